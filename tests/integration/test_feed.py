"""A run's feed, read from a real board: without gap or repeat, over rebuilds, trims and a server that is away."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from convergio.graphflow.board import fields
from convergio.graphflow.board.connection import pool
from convergio.graphflow.client.event import FAILED, FINISHED, RESET, SNAPSHOT, STARTED, Event
from convergio.graphflow.client.feed import Feed
from convergio.graphflow.client.past import Past
from convergio.graphflow.model import errors, reference
from convergio.graphflow.model.ids import RunRef
from tests.conftest import ValkeyFactory
from tests.integration.engine_stage import EngineStage, engine_on

CHAIN = {"first": {"task": "demo.one"}, "second": {"task": "demo.two", "needs": ["first"]}}


@pytest.fixture
def stage(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[EngineStage]:
    with engine_on(valkey, sqlite_url, tmp_path) as made:
        yield made


def never() -> Mapping[str, Any] | None:
    return None


def told(events: Iterator[Event | None], until: str) -> list[Event]:
    """Events up to the first of this type."""
    found: list[Event] = []
    deadline = time.monotonic() + 20
    for event in events:
        if event is not None:
            found.append(event)
            if event.type == until:
                return found
        assert time.monotonic() < deadline, f"no {until} after {found}"
    raise AssertionError(f"the feed ended before {until}")


def success(ref: RunRef, output: Any = None) -> dict[str, Any]:
    """The data of `RUN_FINISHED`, but for the result."""
    named = {"threadId": ref.run, "runId": ref.run, "outcome": {"type": "success"}}
    return {**named, "state": "SUCCEEDED", "output": output, "error": None}


def feed(stage: EngineStage, ref: RunRef) -> Feed:
    return Feed(stage.core.link.client, ref, never)


def play(stage: EngineStage, ref: RunRef, *steps: str) -> None:
    for step in steps:
        stage.succeed(ref, step)
    stage.journal()


def test_every_event_is_told_once_and_in_order_to_the_end(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    play(stage, ref, "first", "second")
    events = told(feed(stage, ref).events(), FINISHED)
    assert [event.position[1] for event in events] == list(range(1, len(events) + 1))
    assert [event.type for event in events][:4] == [STARTED, "step.ready", "step.running", "step.succeeded"]
    assert events[2].data == {"worker": "w1"}
    assert events[-1].data == success(ref)


def test_a_reader_goes_on_behind_the_event_it_names(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    play(stage, ref, "first", "second")
    every = told(feed(stage, ref).events(), FINISHED)
    for index, event in enumerate(every[:-1]):
        assert told(feed(stage, ref).events(event.id), FINISHED) == every[index + 1 :]


def test_a_new_epoch_is_told_as_a_reset_and_a_snapshot(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    play(stage, ref, "first")
    reading = feed(stage, ref).events()
    before = told(reading, "step.succeeded")
    stage.core.link.client.flushall()
    stage.rebuild()
    reset, snapshot = told(reading, SNAPSHOT)[-2:]
    assert (reset.type, reset.data) == (RESET, {"epoch": 2, "was": 1})
    assert snapshot.data["state"] == "RUNNING"
    states = {name: facts["state"] for name, facts in snapshot.data["steps"].items()}
    assert states == {"first": "SUCCEEDED", "second": "READY"}
    play(stage, ref, "second")
    after = told(reading, FINISHED)
    assert before[-1].position[0] == 1
    assert {event.position[0] for event in after} == {2}


def test_a_reader_that_comes_back_after_a_rebuild_is_reset_too(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    play(stage, ref, "first")
    stage.core.link.client.flushall()
    stage.rebuild()
    events = told(feed(stage, ref).events("1-3"), SNAPSHOT)
    assert [event.type for event in events] == [RESET, SNAPSHOT]


def test_who_begins_to_read_on_a_new_board_is_told_where_the_run_is(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    play(stage, ref, "first")
    stage.core.link.client.flushall()
    stage.rebuild()
    for state in ("READY", "SUCCEEDED"):
        begun, snapshot = told(feed(stage, ref).events(), SNAPSHOT)
        assert (begun.type, begun.id) == (STARTED, "0-0")
        steps = {name: facts["state"] for name, facts in snapshot.data["steps"].items()}
        assert steps == {"first": "SUCCEEDED", "second": state}
        if state == "READY":
            play(stage, ref, "second")
    assert [event.type for event in told(feed(stage, ref).events(snapshot.id), FINISHED)] == [FINISHED]


def test_what_was_trimmed_is_told_as_a_snapshot(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    play(stage, ref, "first")
    link = stage.core.link
    link.client.xtrim(link.keys(link.epoch()).feed(ref), maxlen=2, approximate=False)
    reading = feed(stage, ref).events()
    snapshot = told(reading, SNAPSHOT)
    assert [event.type for event in snapshot] == [STARTED, SNAPSHOT]
    assert snapshot[1].data["steps"]["first"]["state"] == "SUCCEEDED"
    play(stage, ref, "second")
    rest = told(reading, FINISHED)
    first = snapshot[1].position[1]
    assert [event.position[1] for event in rest] == list(range(first + 1, first + 1 + len(rest)))


def test_a_feed_keeps_its_last_ten_thousand_events_or_a_few_more(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    link = stage.core.link
    keys = link.keys(link.epoch())
    with link.client.pipeline() as pipe:
        for seq in range(100, 12_100):
            pipe.xadd(keys.feed(ref), {"type": "x", "step": "", "at": "0"}, id=f"1-{seq}")
        pipe.hset(keys.run(ref), fields.SEQ, 12_199)
        pipe.execute()
    play(stage, ref, "first")
    assert 10_000 <= link.client.xlen(keys.feed(ref)) <= 10_200


def test_a_run_that_left_the_board_is_told_by_whoever_knows_its_end(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    link = stage.core.link
    link.client.delete(link.keys(link.epoch()).run(ref))
    end = {"state": "SUCCEEDED", "output": 7, "error": None}
    events = told(Feed(link.client, ref, lambda: end).events(), FINISHED)
    assert [event.type for event in events] == [STARTED, FINISHED]
    assert events[-1].data == {**success(ref, 7), "result": 7}


@pytest.mark.parametrize(
    ("facts", "kind", "said"),
    [
        (
            {"state": "FAILED", "output": None, "error": {"code": "STEP_FAILED", "message": "no milk"}},
            FAILED,
            {"message": "no milk", "code": "STEP_FAILED"},
        ),
        (
            {"state": "CANCELLED", "output": None, "error": {"code": "RUN_CANCELLED", "message": "why not"}},
            FINISHED,
            {"outcome": {"type": "cancelled"}},
        ),
    ],
)
def test_a_run_that_did_not_succeed_ends_as_ag_ui_has_it(
    stage: EngineStage, facts: dict[str, Any], kind: str, said: dict[str, Any]
) -> None:
    ref = stage.submit(CHAIN)
    link = stage.core.link
    link.client.delete(link.keys(link.epoch()).run(ref))
    past = Past(last=(1, 5))
    events = told(Feed(link.client, ref, lambda: facts, recall=lambda: past).events(), kind)
    named = {"threadId": ref.run, "runId": ref.run}
    assert [(one.type, one.data) for one in events] == [
        (STARTED, named),
        (kind, {**facts, **said, **(named if kind == FINISHED else {})}),
    ]
    assert events[-1].final
    assert list(Feed(link.client, ref, lambda: facts, recall=lambda: past).events(events[-1].id)) == []


def test_a_reader_that_has_had_the_end_is_told_nothing_again(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    play(stage, ref, "first", "second")
    every = told(feed(stage, ref).events(), FINISHED)
    end = {"state": "SUCCEEDED", "output": None, "error": None}
    link = stage.core.link
    assert list(Feed(link.client, ref, lambda: end).events(every[-1].id)) == []
    link.client.delete(link.keys(link.epoch()).run(ref))
    assert told(Feed(link.client, ref, lambda: end).events(every[-2].id), FINISHED) == every[-1:], (
        "its events are there"
    )
    link.client.delete(link.keys(link.epoch()).feed(ref))
    past = Past(last=every[-2].position)
    assert told(Feed(link.client, ref, lambda: end, recall=lambda: past).events(every[3].id), FINISHED) == [
        replace(every[-1], at_ms=0)
    ]
    assert list(Feed(link.client, ref, lambda: end, recall=lambda: past).events(every[-1].id)) == []


def test_a_reader_outlives_a_server_that_is_killed_and_restarted(
    valkey_server: ValkeyFactory, sqlite_url: str, tmp_path: Path
) -> None:
    server = valkey_server()
    with engine_on(server.url, sqlite_url, tmp_path) as stage:
        ref = stage.submit(CHAIN)
        play(stage, ref, "first")
        reading = feed(stage, ref).events()
        told(reading, "step.succeeded")
        server.kill()
        while next(reading) is not None:
            pass
        server.restart()
        stage.rebuild()
        assert told(reading, SNAPSHOT)[-2].type == RESET
        play(stage, ref, "second")
        assert told(reading, FINISHED)[-1].data["state"] == "SUCCEEDED"


def test_a_server_that_stays_away_ends_the_patience(valkey_server: ValkeyFactory) -> None:
    server = valkey_server(aof=False)
    client = redis.Redis(connection_pool=pool(server.url))
    server.kill()
    reading = Feed(client, RunRef(tenant="default", run="r"), never, patience=0.2).events()
    with pytest.raises(errors.BoardUnavailable):
        told(reading, FINISHED)
    client.connection_pool.disconnect()


def test_a_board_that_nobody_makes_is_told_apart_from_a_server_that_does_not_answer(valkey: str) -> None:
    client = redis.Redis(connection_pool=pool(valkey))
    reading = Feed(client, RunRef(tenant="default", run="r"), never, patience=0.2).events()
    with pytest.raises(errors.BoardRebuilding, match=r"no board for 0\.2 s.*convergio service"):
        told(reading, FINISHED)
    client.connection_pool.disconnect()


def test_a_large_result_is_told_when_its_whole_value_is_known(stage: EngineStage) -> None:
    ref = stage.submit({"only": {"task": "demo.one"}})
    stage.succeed(ref, "only", reference.to("0" * 64, 40_000))
    stage.journal()
    end = {"state": "SUCCEEDED", "output": "x" * 40_000, "error": None}
    answers = [None, errors.BoardUnavailable(), None, end]

    def ended() -> Mapping[str, Any] | None:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    events = told(Feed(stage.core.link.client, ref, ended).events(), FINISHED)
    assert [event.position[1] for event in events] == list(range(1, len(events) + 1))
    assert events[-1].data == {**success(ref, end["output"]), "result": end["output"]}


@pytest.mark.parametrize("text", ["x", "1", "1-x", "-", "1-2-3"])
def test_what_is_no_event_id_is_refused(stage: EngineStage, text: str) -> None:
    with pytest.raises(errors.InvalidInput, match="is no event id"):
        next(feed(stage, RunRef(tenant="default", run="r")).events(text))
