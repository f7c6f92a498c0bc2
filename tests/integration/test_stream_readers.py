"""What a reader of a conversation has, whatever its stream is like: the first words at once, the thread at the end."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from convergio.graphflow.board import voice as board_voice
from convergio.graphflow.client.event import CUSTOM, FINISHED, MESSAGES, RETOLD, SPOKEN, STARTED, Event
from convergio.graphflow.client.feed import Feed
from convergio.graphflow.client.past import Past
from convergio.graphflow.client.transcript import Transcript
from convergio.graphflow.engine.fork import Fork
from convergio.graphflow.flow import document
from convergio.graphflow.journal.rows import ForkKind
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.tasks.agents import autogen_adapter, autogen_turn
from convergio.tasks.conversation import tables, voice
from convergio.tasks.conversation.pace import tempos
from tests.integration.engine_rig import QUIET, Stage
from tests.integration.test_turns import agent, looking_up, run, talking

pytestmark = QUIET

WORDS = " ".join(f"w{place}" for place in range(60))


def feed(stage: Stage, ref: RunRef) -> Feed:
    return Feed(stage.client, ref, lambda: None, recall=partial(stage.worker.process.archive.past, ref.tenant, ref.run))


def read(stage: Stage, ref: RunRef, after: str = "") -> list[Event]:
    """All that there is now."""
    found: list[Event] = []
    for event in feed(stage, ref).events(after):
        if event is None:
            return found
        found.append(event)
    return found


def to_the_end(stage: Stage, ref: RunRef, after: str = "") -> list[Event]:
    """All that a reader of a run that has ended is told behind this."""
    row = stage.row(ref)
    facts = {"state": row.state.value, "output": row.output, "error": row.error}
    recall = partial(stage.worker.process.archive.past, ref.tenant, ref.run)
    return [one for one in Feed(stage.client, ref, lambda: facts, recall=recall).events(after) if one is not None]


def messages(events: Sequence[Event]) -> list[dict[str, Any]]:
    transcript = Transcript()
    for event in events:
        transcript.tell(event)
    return transcript.messages


def thread(stage: Stage, ref: RunRef) -> list[dict[str, Any]]:
    """What SQL has of it, as a reader would."""
    past = stage.worker.process.archive.past(ref.tenant, ref.run)
    return [dict(message) for turn in past.turns for message in turn.messages]


@contextmanager
def word_by_word(told: Callable[[], object] = lambda: None, *, first: int = 1) -> Generator[None]:
    """The scripted model says each word when the board has the one before, up to its word number `first`. `told` is
    called whenever something was told."""
    heard, speak, said = threading.Event(), board_voice.speak, list[float]()

    def speaking(*args: Any, **more: Any) -> Any:
        answer = speak(*args, **more)
        told()
        if any(kind == voice.CONTENT for kind, _ in more["said"]):
            heard.set()
        return answer

    async def paced(seconds: float) -> None:
        if 0 < len(said) <= first:
            await asyncio.to_thread(heard.wait, 10)
            heard.clear()
        said.append(seconds)

    with (
        mock.patch.object(board_voice, "speak", speaking),
        mock.patch.object(autogen_turn, "asyncio", SimpleNamespace(sleep=paced)),
        mock.patch.object(autogen_adapter, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": paced})),
    ):
        yield


def test_the_first_words_do_not_wait_for_more(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model says its second word when the board has the first, and then nothing waits for an hour."""
    monkeypatch.setattr(voice, "BATCH_S", 3_600.0)
    ref = stage.submit(talking(agent("ann", {"say": "one two three"}), stop={"turns": 1}), {"x": "it"})
    with word_by_word():
        run(stage, ref)
    events = read(stage, ref)
    assert [one.data["delta"] for one in events if one.type == voice.CONTENT] == ["one ", "two three"]
    assert messages(events) == thread(stage, ref)


def test_a_reader_has_what_the_thread_has_tools_thoughts_and_handoffs_included(stage: Stage) -> None:
    thinks = {"say": "let me see", "call": [{"tool": "turns.look_up", "arguments": {"word": "dog"}}]}
    ann = agent(
        "ann", thinks, {"call": [{"tool": "transfer_to_bob"}]}, "so it is", tools=["turns.look_up"], handoffs=["bob"]
    )
    talk = {"agents": [ann, agent("bob", "well")], "policy": "handoff", "stop": {"turns": 3}}
    steps = {"talk": {"conversation": talk, "prompt": "Plan it"}}
    ref = stage.submit(document.parse_document({"workflow": "talking", "version": 1, "steps": steps}))
    run(stage, ref)
    events = read(stage, ref)
    assert messages(events) == thread(stage, ref)
    assert [one.data["whole"] for one in events if one.type == SPOKEN].count(True) >= 2
    assert [one["role"] for one in messages(events)].count("tool") == 2
    assert any("bob" in one.get("content", "") for one in messages(events) if one["role"] == "assistant")
    for place in range(0, len(events), 7):
        behind = read(stage, ref, after=events[place].id)
        assert messages([*events[: place + 1], *behind]) == thread(stage, ref)


def test_whose_stream_goes_before_the_run_leaves_the_board_has_the_thread_and_one_end(stage: Stage) -> None:
    ref = stage.submit(talking(agent("ann", "one"), agent("bob", "two"), stop={"turns": 2}), {"x": "it"})
    run(stage, ref)
    before = to_the_end(stage, ref)
    stage.client.delete(stage.keys.feed(ref))
    for place in (None, 0, len(before) // 2, len(before) - 2):
        events = to_the_end(stage, ref, after="" if place is None else before[place].id)
        assert messages(events) == thread(stage, ref)
        assert [one.type for one in events if one.final] == [FINISHED]
        assert events[-1].final
        assert to_the_end(stage, ref, after=events[-1].id) == []
    assert to_the_end(stage, ref, after=before[-1].id) == []


def test_a_turn_that_nobody_could_hear_is_told_from_the_thread_before_its_outcome(stage: Stage) -> None:
    ref = stage.submit(talking(agent("ann", "one"), agent("bob", "two"), stop={"turns": 2}), {"x": "it"})
    with mock.patch.object(board_voice, "speak", side_effect=errors.InvalidInput("nobody hears this")):
        run(stage, ref)
    events = read(stage, ref)
    retold = [place for place, one in enumerate(events) if one.type == CUSTOM and one.data["name"] == RETOLD]
    assert [events[place + 1].type for place in retold] == ["step.succeeded", "step.succeeded"]
    assert messages(events) == thread(stage, ref)
    assert events[-1].type == FINISHED
    assert read(stage, ref, after=events[retold[1]].id) == events[retold[1] :], "it is told to who was stopped after it"


def test_a_snapshot_waits_for_a_turn_that_has_ended_and_is_not_in_sql_yet(stage: Stage) -> None:
    ref = stage.submit(talking(agent("ann", "one"), agent("bob", "two"), stop={"turns": 2}), {"x": "it"})
    stage.answer_one()
    every = read(stage, ref)
    stage.client.xtrim(stage.keys.feed(ref), maxlen=0, approximate=False)
    assert read(stage, ref, after=every[1].id) == []
    stage.journal()
    behind = read(stage, ref, after=every[1].id)
    assert [one["content"] for one in messages(behind)] == ["Plan it", "one"]
    run(stage, ref)
    assert messages([*behind, *read(stage, ref, after=behind[-1].id)]) == thread(stage, ref)


def test_a_turn_is_told_again_before_its_beginning_is_trimmed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice, "BATCH_S", 0.0)
    monkeypatch.setattr(voice, "RETELL_EVERY", 15)
    ref = stage.submit(talking(agent("ann", WORDS), stop={"turns": 1}), {"x": "it"})
    begun: list[tuple[list[Event], str]] = []

    def told() -> None:
        stage.client.xtrim(stage.keys.feed(ref), maxlen=30, approximate=False)
        events = read(stage, ref)
        begun.append((events, events[-1].id))

    with word_by_word(told, first=len(WORDS)):
        run(stage, ref)
    assert len(begun) > len(WORDS.split())
    assert [one.type for one in begun[-1][0][:2]] == [STARTED, MESSAGES], "it begins where the stream is trimmed"
    for events, last in begun:
        assert messages([*events, *read(stage, ref, after=last)]) == thread(stage, ref)


def test_a_reader_of_a_retry_has_the_turns_that_another_run_has_made(stage: Stage) -> None:
    team = [agent("ann", "one", "three"), agent("bob", "two", {"fail": "refused"}, "four")]
    first = stage.submit(talking(*team, stop={"turns": 5}), {"x": "it"})
    run(stage, first)
    said = messages(read(stage, first))
    assert [one["content"] for one in said] == ["Plan it", "one", "two", "three"]
    process = stage.worker.process
    fork = process.entrance.fork(Fork(ref=first, submitter="boss", kind=ForkKind.RETRY)).run
    second = RunRef(tenant=fork.tenant, run=fork.run_id)
    run(stage, second)
    assert messages(read(stage, second))[: len(said)] == said


def test_how_fast_each_turn_was_is_kept_with_it(stage: Stage) -> None:
    said = {"say": "one two three four", "pace": 0.002}
    ref = stage.submit(talking(looking_up(said), agent("bob", said), stop={"turns": 2}), {"x": "it"})
    run(stage, ref)
    first, second = tables.paced(stage.store, ref.tenant, ref.run)
    assert (first["speaker"], first["iteration"], second["speaker"], second["iteration"]) == ("ann", 0, "bob", 1)
    assert (second["chunks"], second["output_tokens"]) == (4, 4)
    for row in (first, second):
        assert 0 < row["first_token_us"] < row["wall_us"]
        assert row["first_told_us"] > 0
        assert 0 < row["gap_p50_us"] <= row["gap_max_us"] <= row["streamed_us"] < row["wall_us"]
        assert row["overhead_us"] <= row["wall_us"] - row["tools_us"]
    (tempo,) = tempos([first, second])
    assert (tempo.step, tempo.turns) == ("talk", 2)
    assert tempo.tokens_per_s == round(
        (first["output_tokens"] + 4) * 1e6 / (first["streamed_us"] + second["streamed_us"]), 1
    )


def test_what_the_journal_tells_survives_the_way_to_a_client(stage: Stage) -> None:
    ref = stage.submit(talking(agent("ann", "one"), stop={"turns": 1}), {"x": "it"})
    run(stage, ref)
    past = stage.worker.process.archive.past(ref.tenant, ref.run)
    assert past.last is not None
    assert Past.of(json.loads(json.dumps(past.as_dict()))) == past
    assert not stage.worker.process.archive.past("other", ref.run).turns
