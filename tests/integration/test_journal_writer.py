"""The group commit: what each event writes, what wins, and what a refused row costs its neighbours."""

from __future__ import annotations

import json
import multiprocessing
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from convergio.graphflow.journal import database, tables
from convergio.graphflow.journal.boards import Boards
from convergio.graphflow.journal.database import Database
from convergio.graphflow.journal.rows import StreamEvent
from convergio.graphflow.model import errors
from convergio.graphflow.model.outcome import Outcome
from convergio.graphflow.model.states import TERMINAL_STEP, RunState, StepState
from tests.integration import journal_samples as samples
from tests.waiting import wait_until

CPU_BOUND = 60e-6
"""Seconds of CPU for each event of a group of 500."""


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from samples.shared(request, tmp_path_factory)


@pytest.fixture
def journal(shared: Database) -> Database:
    return samples.emptied(shared)


@pytest.fixture
def stream(journal: Database) -> samples.Stream:
    return samples.Stream(journal)


# --- what each event writes -------------------------------------------------------------------------------------------


def test_an_outcome_is_kept_with_all_it_says(journal: Database, stream: samples.Stream) -> None:
    done = stream.write(samples.outcome(4, "load", run_seq=2, iteration=3, tenant="acme", submitter="bob"))

    assert done.new_outcomes == {("run1", "load", 3)}
    (row,) = samples.rows_of(journal, tables.outcomes)
    assert row == {
        "run_id": "run1",
        "step": "load",
        "iteration": 3,
        "tenant": "acme",
        "submitter": "bob",
        "state": "SUCCEEDED",
        "attempt": 1,
        "output": '{"paid":true}',
        "error": None,
        "started_ms": 1_000,
        "finished_ms": 1_100,
        "worker": "w1@host",
        "tokens": 7,
        "epoch": 1,
        "seq": 2,
        "stream_seq": 4,
        "reused_from": None,
        "cache_digest": None,
        "cached_from": None,
    }


@pytest.mark.parametrize("state", sorted(TERMINAL_STEP))
def test_every_terminal_state_is_an_outcome(journal: Database, stream: samples.Stream, state: StepState) -> None:
    body = Outcome(state=state, error={"code": "X"}).as_json()
    data = parsed(body)
    stream.write(samples.event(1, f"step.{state.lower()}", step="load", data=data))

    (row,) = samples.rows_of(journal, tables.outcomes)
    assert (row["state"], row["error"], row["output"]) == (state.value, '{"code":"X"}', None)


def test_a_run_starts_once_and_only_when_it_is_accepted(journal: Database, stream: samples.Stream) -> None:
    doors = samples.accepted(journal, "run1")
    stream.write(samples.event(1, "run.started", at_ms=1_500))
    stream.write(samples.event(2, "run.started", at_ms=9_000))

    run = doors.run("default", "run1")
    assert (run.state, run.started_ms) == (RunState.RUNNING, 1_500)
    assert [row["type"] for row in samples.rows_of(journal, tables.events)] == ["run.started", "run.started"]


@pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED])
def test_a_run_ends_once(journal: Database, stream: samples.Stream, state: RunState) -> None:
    doors = samples.accepted(journal, "run1")
    ending = {"state": state, "output": {"total": 12}, "error": {"code": "X"}}
    done = stream.write(
        samples.event(1, "run.started"), samples.event(2, f"run.{state.lower()}", at_ms=2_000, data=ending)
    )
    other = stream.write(samples.event(3, "run.failed", at_ms=9_000), samples.event(4, "run.started"))

    assert (done.finished_runs, other.finished_runs) == (("run1",), ())
    run = doors.run("default", "run1")
    assert (run.state, run.finished_ms) == (state, 2_000)
    assert (run.output, run.error) == ({"total": 12}, {"code": "X"})


def test_the_end_of_a_run_is_an_event_too_without_its_output(journal: Database, stream: samples.Stream) -> None:
    stream.write(samples.event(1, "run.failed", data={"output": None, "error": {"code": "X"}}))

    (row,) = samples.rows_of(journal, tables.events)
    assert (row["type"], row["data"]) == ("run.failed", '{"error":{"code":"X"}}')


def test_a_recorded_fact_is_kept_once(journal: Database, stream: samples.Stream) -> None:
    for seq, value in enumerate(["first", "second"], start=1):
        stream.write(samples.event(seq, "step.recorded", step="load", data={"key": "answer", "value": value}))

    (row,) = samples.rows_of(journal, tables.records)
    assert (row["step"], row["key"], row["value"], row["epoch"]) == ("load", "answer", '"first"', 1)
    assert samples.rows_of(journal, tables.events) == []


def test_an_applied_signal_is_marked_once(journal: Database, stream: samples.Stream) -> None:
    samples.accepted(journal, "run1").signal(samples.new_signal())
    for seq, at_ms in ((1, 3_000), (2, 9_000)):
        stream.write(samples.event(seq, "signal.applied", step="sign", at_ms=at_ms, data={"id": "signal1"}))

    (row,) = samples.rows_of(journal, tables.signals)
    assert (row["applied_ms"], row["dropped_ms"]) == (3_000, None)
    assert len(samples.rows_of(journal, tables.events)) == 2


def test_signals_that_a_run_did_not_live_to_see_are_dropped(journal: Database, stream: samples.Stream) -> None:
    doors = samples.accepted(journal, "run1", "run2")
    for signal_id, run_id in (("applied", "run1"), ("late", "run1"), ("other", "run2")):
        doors.signal(samples.new_signal(signal_id, run_id))
    stream.write(samples.event(1, "signal.applied", data={"id": "applied"}))
    stream.write(samples.event(2, "run.cancelled", at_ms=5_000))

    dropped = {row["signal_id"]: row["dropped_ms"] for row in samples.rows_of(journal, tables.signals)}
    assert dropped == {"applied": None, "late": 5_000, "other": None}


def test_any_other_event_is_kept_as_it_came(journal: Database, stream: samples.Stream) -> None:
    stream.write(samples.event(1, "step.retry", step="load", iteration=2, run_seq=9, data={"wait": 1.5, "a": "ü"}))

    (row,) = samples.rows_of(journal, tables.events)
    assert (row["type"], row["step"], row["iteration"], row["seq"]) == ("step.retry", "load", 2, 9)
    assert row["data"] == '{"a":"ü","wait":1.5}'


def test_an_empty_group_moves_the_high_water_alone(journal: Database, stream: samples.Stream) -> None:
    stream.commit([], epoch=1, high_water=0, new_high_water=17)

    board = Boards(journal).current()
    assert board is not None
    assert board.high_water == 17


# --- the first one wins -----------------------------------------------------------------------------------------------


def test_the_first_outcome_of_a_step_wins_in_one_group_and_over_groups(
    journal: Database, stream: samples.Stream
) -> None:
    one, two, three = (samples.outcome(seq, data={"worker": f"w{seq}"}) for seq in (1, 2, 3))
    first = stream.write(one, two)
    second = stream.write(three)

    assert first.new_outcomes == {("run1", "load", 0)}
    assert second.new_outcomes == frozenset()
    (row,) = samples.rows_of(journal, tables.outcomes)
    assert row["worker"] == "w1"


def test_iterations_and_runs_have_outcomes_of_their_own(journal: Database, stream: samples.Stream) -> None:
    stream.write(samples.outcome(1), samples.outcome(2, iteration=1), samples.outcome(3, run_id="run2"))

    assert len(samples.rows_of(journal, tables.outcomes)) == 3


def test_a_domains_rows_are_written_with_the_outcome_that_won(journal: Database, stream: samples.Stream) -> None:
    def paying(seq: int, entry: str) -> StreamEvent:
        return samples.outcome(seq, data={"rows": {"ledger": [{"entry": entry, "amount": 5}]}})

    stream.write(paying(1, "first"), paying(2, "second in the group"))
    stream.write(paying(3, "later"))

    assert [row["entry"] for row in samples.rows_of(journal, samples.LEDGER)] == ["first"]


def test_a_domains_rows_belong_to_the_tenant_and_run_of_their_outcome(
    journal: Database, stream: samples.Stream
) -> None:
    rows = [
        {"entry": "e1", "amount": 5, "tenant": "victim", "run_id": "another"},
        {"entry": "e2", "amount": 6, "note": "n"},
    ]
    stream.write(samples.outcome(1, tenant="acme", data={"rows": {"ledger": rows}}))

    kept = samples.rows_of(journal, samples.LEDGER)
    assert [(row["entry"], row["tenant"], row["run_id"], row["note"]) for row in kept] == [
        ("e1", "acme", "run1", None),
        ("e2", "acme", "run1", "n"),
    ]


def test_of_two_processes_that_bring_the_same_outcomes_each_outcome_has_one_winner(journal_url: str) -> None:
    seqs = list(range(300))
    with samples.migrated(journal_url) as opened:
        Boards(opened).raise_epoch(None, "server", 1)
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            one = pool.submit(samples.salvage, journal_url, "one", seqs, 10)
            two = pool.submit(samples.salvage, journal_url, "two", seqs[::-1], 10)
            wait_until(lambda: len(samples.rows_of(opened, samples.LEDGER)) == 2, timeout=60)
            Boards(opened).raise_epoch(1, "server", 1)
            won = {"one": one.result(timeout=60), "two": two.result(timeout=60)}
        kept = samples.rows_of(opened, tables.outcomes)
    assert sorted(won["one"] + won["two"]) == sorted(f"step{seq}" for seq in seqs)
    assert {row["step"]: row["worker"] for row in kept} == {
        step: worker for worker, steps in won.items() for step in steps
    }


# --- the high water ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epoch", "high_water"), [(1, 4), (1, 6), (2, 5), (0, 5)])
def test_who_does_not_know_epoch_and_high_water_writes_nothing(
    journal: Database, stream: samples.Stream, epoch: int, high_water: int
) -> None:
    samples.accepted(journal, "run1")
    stream.commit([], epoch=1, high_water=0, new_high_water=5)

    with pytest.raises(errors.EpochLost):
        stream.commit(
            [samples.outcome(6), samples.event(7, "run.started")],
            epoch=epoch,
            high_water=high_water,
            new_high_water=7,
        )
    board = Boards(journal).current()
    assert board is not None
    assert (board.epoch, board.high_water) == (1, 5)
    assert samples.rows_of(journal, tables.outcomes) == samples.rows_of(journal, tables.events) == []


def test_salvage_writes_what_is_missing_under_the_old_epoch_and_leaves_the_high_water(
    journal: Database, stream: samples.Stream
) -> None:
    samples.accepted(journal, "run1")
    events = [
        samples.event(1, "run.started"),
        samples.outcome(2, "load"),
        samples.outcome(3, "pay"),
        samples.event(4, "run.succeeded", data={"output": 1}),
    ]
    stream.write(*events[:2])
    Boards(journal).raise_epoch(1, "server-b", 1)
    done = stream.writer.salvage(events, epoch=2, stream_epoch=1)
    again = stream.writer.salvage(events, epoch=2, stream_epoch=1)

    assert done.new_outcomes == {("run1", "pay", 0)}
    assert done.finished_runs == ("run1",)
    assert (again.new_outcomes, again.finished_runs) == (frozenset(), ())
    kept = samples.rows_of(journal, tables.outcomes) + samples.rows_of(journal, tables.events)
    assert sorted((row["epoch"], row["stream_seq"]) for row in kept) == [(1, 1), (1, 2), (1, 3), (1, 4)]
    board = Boards(journal).current()
    assert board is not None
    assert (board.epoch, board.high_water) == (2, 0)


def test_salvage_for_an_epoch_that_was_raised_again_writes_nothing(journal: Database, stream: samples.Stream) -> None:
    Boards(journal).raise_epoch(1, "server-b", 1)
    Boards(journal).raise_epoch(2, "server-c", 1)

    with pytest.raises(errors.EpochLost):
        stream.writer.salvage([samples.outcome(1)], epoch=2, stream_epoch=1)
    assert samples.rows_of(journal, tables.outcomes) == []


# --- what SQL refuses -------------------------------------------------------------------------------------------------


def ledger(**row: Any) -> dict[str, Any]:
    return {"rows": {"ledger": [{"entry": "e", "amount": 5, **row}]}}


REFUSED = {
    "a NUL character in the output": samples.outcome(2, "bad", data={"output": {"a": ["x\x00y"]}}),
    "a NUL character in the error": samples.outcome(2, "bad", data={"error": {"message": "x\x00y"}}),
    "a NUL character in the worker": samples.outcome(2, "bad", data={"worker": "x\x00y"}),
    "a NUL character in the step": samples.outcome(2, "b\x00ad"),
    "a NUL character in an event": samples.event(2, "step.retry", step="bad", data={"why": "x\x00y"}),
    "a NUL character in a domain's row": samples.outcome(2, "bad", data=ledger(note="x\x00y")),
    "a lone surrogate": samples.outcome(2, "bad", data={"output": "\ud800"}),
    "a lone surrogate in the run": samples.outcome(2, "bad", run_id="\ud800"),
    "a state that is not terminal": samples.outcome(2, "bad", data={"state": "RUNNING"}),
    "a state that is no text": samples.outcome(2, "bad", data={"state": {"x": 1}}),
    "an outcome without a step": samples.event(2, "step.failed", data=dict(samples.outcome(2).data)),
    "an outcome without tokens": samples.event(2, "step.failed", step="bad", data={"state": "FAILED"}),
    "a number beyond 64 bits": samples.outcome(2, "bad", data={"tokens": 2**63}),
    "a number that is text": samples.outcome(2, "bad", data={"tokens": "many"}),
    "a number that is not JSON": samples.outcome(2, "bad", data={"output": float("nan")}),
    "a time beyond 64 bits": samples.event(2, "step.retry", step="bad", at_ms=2**70),
    "a key beyond its limit": samples.event(2, "step.recorded", step="bad", data={"key": "k" * 256, "value": 1}),
    "a record without a key": samples.event(2, "step.recorded", step="bad", data={"value": 1}),
    "a signal without its id": samples.event(2, "signal.applied", data={}),
    "rows for an unknown table": samples.outcome(2, "bad", data={"rows": {"users": [{"id": 1}]}}),
    "rows for a table of the journal": samples.outcome(2, "bad", data={"rows": {"runs": [{"run_id": "x"}]}}),
    "rows with an unknown column": samples.outcome(2, "bad", data=ledger(color="red")),
    "rows without a column they need": samples.outcome(2, "bad", data={"rows": {"ledger": [{"entry": "e"}]}}),
    "rows with an object in a text": samples.outcome(2, "bad", data=ledger(note={"a": 1})),
    "rows with a word in a date": samples.outcome(2, "bad", data=ledger(day="never")),
    "rows that are no object": samples.outcome(2, "bad", data={"rows": [1]}),
    "rows that are no list": samples.outcome(2, "bad", data={"rows": {"ledger": {"entry": "e"}}}),
    "rows in which a row is no object": samples.outcome(2, "bad", data={"rows": {"ledger": ["e"]}}),
    "the end of a run with a NUL character": samples.event(2, "run.succeeded", data={"output": "x\x00y"}),
}


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED.keys())
def test_an_event_that_sql_refuses_is_buried_alone(
    journal: Database, stream: samples.Stream, refused: StreamEvent
) -> None:
    doors = samples.accepted(journal, "run1")
    group = [samples.outcome(1, "before"), refused, samples.outcome(3, "after"), samples.event(4, "run.started")]
    done = stream.write(*group)

    assert done.refused == (refused,)
    assert done.new_outcomes == {("run1", "before", 0), ("run1", "after", 0)}
    assert sorted(row["step"] for row in samples.rows_of(journal, tables.outcomes)) == ["after", "before"]
    assert samples.rows_of(journal, tables.records) == samples.rows_of(journal, samples.LEDGER) == []
    assert doors.run("default", "run1").state is RunState.RUNNING
    (dead,) = samples.rows_of(journal, tables.dead_events)
    assert (dead["epoch"], dead["stream_seq"], dead["tenant"]) == (1, 2, "default")
    assert dead["reason"]
    assert refused.type in dead["body"]
    board = Boards(journal).current()
    assert board is not None
    assert board.high_water == 4


def test_a_name_that_postgres_cannot_index_is_refused_and_does_not_block_the_journal(postgres_url: str) -> None:
    endless = samples.outcome(1, secrets.token_hex(5_000))
    with samples.migrated(postgres_url) as opened:
        done = samples.Stream(opened).write(endless, samples.outcome(2))
    assert done.refused == (endless,)
    assert done.new_outcomes == {("run1", "load", 0)}


def test_many_refused_events_in_a_large_group_cost_only_themselves(journal: Database, stream: samples.Stream) -> None:
    bad = set(range(7, 300, 31))
    group = [samples.outcome(seq, f"step{seq}", data={"state": "NONE"} if seq in bad else {}) for seq in range(1, 301)]
    done = stream.write(*group)

    assert {event.seq for event in done.refused} == bad
    assert len(done.new_outcomes) == len(samples.rows_of(journal, tables.outcomes)) == 300 - len(bad)
    assert len(samples.rows_of(journal, tables.dead_events)) == len(bad)


def test_a_database_that_is_away_buries_nothing(journal_url: str) -> None:
    with samples.migrated(journal_url) as opened:
        stream = samples.Stream(opened)
        with opened.write() as connection:
            tables.outcomes.drop(connection)
        with pytest.raises(errors.JournalUnavailable, match="missing"):
            stream.write(samples.outcome(1))
        board = Boards(opened).current()
        assert board is not None
        assert board.high_water == 0
        assert samples.rows_of(opened, tables.dead_events) == []


# --- cost -------------------------------------------------------------------------------------------------------------


def test_journaling_an_outcome_on_sqlite_costs_little_cpu(tmp_path: Path) -> None:
    with samples.migrated(f"sqlite:///{tmp_path / 'journal.sqlite'}") as opened:
        opened.close()
        fast = database.connect(f"sqlite:///{tmp_path / 'journal.sqlite'}", synchronous="NORMAL")
        stream = samples.Stream(fast)
        costs: list[float] = []
        for start in range(1, 5_001, 500):
            group = [samples.outcome(seq, f"step{seq}", f"{seq:032x}") for seq in range(start, start + 500)]
            before = time.process_time()
            done = stream.write(*group)
            costs.append((time.process_time() - before) / 500)
            assert len(done.new_outcomes) == 500
        fast.close()
    assert min(costs) < CPU_BOUND


def parsed(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    return value
