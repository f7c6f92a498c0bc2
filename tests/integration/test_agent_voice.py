"""What readers of a run have of an agent's step: its words while they come, its answer wherever they come back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from autogen_core.models import CreateResult, LLMMessage

from convergio.graphflow.board import fields
from convergio.graphflow.board import voice as board_voice
from convergio.graphflow.client.event import CUSTOM, FAILED, FINISHED, RESTARTED, RETOLD, STARTED, Event
from convergio.graphflow.engine.fork import Fork
from convergio.graphflow.flow import document
from convergio.graphflow.journal.rows import ForkKind
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks.agents import autogen_adapter
from convergio.tasks.conversation import voice
from tests.dialects import DIALECTS
from tests.failing_provider import FailingProvider, serving
from tests.integration.engine_rig import QUIET, Stage, stage_on
from tests.integration.test_model_turns import answers, asking
from tests.integration.test_stream_readers import messages, read, thread, to_the_end, word_by_word
from tests.integration.test_turns import run

pytestmark = QUIET
OPENAI = DIALECTS["openai"]
START, CONTENT, END = "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END"


@pytest.fixture
def stage(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Stage]:
    with stage_on(valkey, sqlite_url, tmp_path) as made:
        yield made


@pytest.fixture
def provider() -> Iterator[FailingProvider]:
    with serving() as server:
        yield server


def two(first: str = "amy") -> Workflow:
    """An agent answers, and another one after it."""
    steps = {"one": {"agent": first, "prompt": "How?"}, "two": {"agent": "domik", "prompt": "So?", "needs": ["one"]}}
    return document.parse_document({"workflow": "two", "version": 1, "steps": steps})


def kinds(events: Sequence[Event]) -> list[str]:
    """The types in AG-UI's letters, and the names of those that it has none for; many pieces are one."""
    names = [str(one.data["name"]) if one.type == CUSTOM else one.type for one in events]
    upper = [name for name in names if name.isupper() or name in (RESTARTED, RETOLD)]
    return [name for place, name in enumerate(upper) if name != CONTENT or upper[place - 1] != CONTENT]


SAID = ["STEP_STARTED", START, CONTENT, END, "STEP_FINISHED"]


def test_an_agents_step_says_its_words_as_they_come_the_first_at_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model says its second word when the board has the first, and then nothing waits for an hour."""
    monkeypatch.setattr(voice, "BATCH_S", 3_600.0)
    ref = stage.submit(asking(), {"x": "tea"})
    with word_by_word():
        run(stage, ref)
    events, text = read(stage, ref), stage.outcomes(ref)["talk"].output["text"]
    assert kinds(events) == [STARTED, *SAID, FINISHED]
    first, rest = [one.data["delta"] for one in events if one.type == CONTENT]
    assert (first.strip(), first + rest) == (text.split()[0], text)
    assert {(one.step, one.iteration, one.data["attempt"]) for one in events if one.type in SAID} == {("talk", 0, 1)}
    said = {"id": "talk.1.0", "step": "talk", "turn": 1, "role": "assistant", "name": "amy", "content": text}
    assert messages(events) == thread(stage, ref) == [said]


def test_words_of_an_attempt_that_broke_off_are_void_and_each_message_ends_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, calls = autogen_adapter._ScriptedClient.create_stream, list[int]()

    async def breaks(self: Any, asked: Sequence[LLMMessage], **options: Any) -> AsyncIterator[str | CreateResult]:
        calls.append(len(calls))
        pieces = 0
        async for chunk in whole(self, asked, **options):
            pieces += 1
            if len(calls) == 1 and pieces == 3:
                raise errors.ModelUnavailable("it broke off")
            yield chunk

    monkeypatch.setattr(autogen_adapter._ScriptedClient, "create_stream", breaks)
    ref = stage.submit(asking(retry={"max": 2, "backoff": 0.01}), {"x": "tea"})
    with word_by_word(first=2):
        run(stage, ref)
    events = read(stage, ref)
    said = kinds(events)
    anew = said.index(RESTARTED)
    assert said[:4] == [STARTED, *SAID[:3]]
    assert said[4:anew] in ([], [END])
    assert said[anew + 1 :] == [*SAID, FINISHED]
    assert [one.data["attempt"] for one in events if one.type == START] == [1, 2]
    assert messages(events) == thread(stage, ref) != []


def test_a_reader_that_comes_back_anywhere_has_the_answers_and_one_end(stage: Stage) -> None:
    """Of the stream, of a stream that was trimmed, of a new board, and of SQL alone."""
    ref = stage.submit(two())
    run(stage, ref)
    every, said = read(stage, ref), thread(stage, ref)
    assert [one["step"] for one in said] == ["one", "two"]
    assert messages(every) == said

    def checked() -> None:
        for place in range(-1, len(every) - 1):
            behind = to_the_end(stage, ref, after=every[place].id if place >= 0 else "")
            assert messages([*every[: place + 1], *behind]) == said
            assert [one.type for one in behind].count(FINISHED) == 1
            assert [one.type for one in behind].count(STARTED) == (place < 0)
            assert behind[0].type == STARTED or place >= 0

    checked()
    stage.client.xtrim(stage.keys.feed(ref), maxlen=4, approximate=False)
    checked()
    stage.wipe()
    stage.rebuild()
    checked()


def test_a_board_that_is_lost_while_an_agent_speaks_costs_its_readers_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voice, "PAUSE_S", 0.01)
    ref, before = stage.submit(two()), list[Event]()

    def told() -> None:
        if len(before) == 0:
            before.extend(read(stage, ref))
            stage.wipe()
            stage.rebuild()
            stage.worker.meet_new_board()

    with word_by_word(told):
        stage.answer_one()
    run(stage, ref)
    behind = to_the_end(stage, ref, after=before[-1].id)
    assert CONTENT in [one.type for one in before]
    assert messages([*before, *behind]) == messages(to_the_end(stage, ref)) == thread(stage, ref)
    assert [one.type for one in behind].count(FINISHED) == 1


def test_an_answer_that_nobody_could_hear_is_told_from_sql_before_its_outcome(stage: Stage) -> None:
    ref = stage.submit(two())
    with mock.patch.object(board_voice, "speak", side_effect=errors.InvalidInput("nobody hears this")):
        run(stage, ref)
    events = read(stage, ref)
    assert kinds(events) == [STARTED, RETOLD, RETOLD, FINISHED]
    retold = [place for place, one in enumerate(events) if one.type == CUSTOM]
    assert [events[place + 1].type for place in retold] == ["step.succeeded", "step.succeeded"]
    assert messages(events) == thread(stage, ref)


def test_a_model_that_does_not_stream_is_heard_whole(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = autogen_adapter._ScriptedClient.create_stream

    async def at_once(self: Any, asked: Sequence[LLMMessage], **options: Any) -> AsyncIterator[str | CreateResult]:
        async for chunk in whole(self, asked, **options):
            if isinstance(chunk, CreateResult):
                yield chunk

    monkeypatch.setattr(autogen_adapter._ScriptedClient, "create_stream", at_once)
    ref = stage.submit(asking(), {"x": "tea"})
    run(stage, ref)
    events = read(stage, ref)
    assert kinds(events) == [STARTED, *SAID, FINISHED]
    assert [one.data["delta"] for one in events if one.type == CONTENT] == [one["content"] for one in messages(events)]
    assert messages(events) == thread(stage, ref) != []


def test_a_reader_of_a_retry_begins_with_what_another_runs_agents_have_answered(
    stage: Stage, provider: FailingProvider
) -> None:
    refused = OPENAI.refuses(401)
    answers(stage, OPENAI.model(provider), provider, OPENAI.says("Go on"), refused, OPENAI.says("Enough"))
    first = stage.submit(two())
    run(stage, first)
    failed = read(stage, first)[-1]
    assert (failed.type, failed.final, failed.data["code"]) == (FAILED, True, failed.data["error"]["code"])
    assert failed.data["message"] == failed.data["error"]["message"]
    fork = stage.worker.process.entrance.fork(Fork(ref=first, submitter="boss", kind=ForkKind.RETRY)).run
    second = RunRef(tenant=fork.tenant, run=fork.run_id)
    run(stage, second)
    events = read(stage, second)
    assert [one["content"] for one in messages(events)] == ["Go on", "Enough"]
    assert kinds(events)[:2] == [STARTED, "MESSAGES_SNAPSHOT"]
    assert events[0].id == "0-0", "who is stopped before the snapshot gets it again"
    assert messages(events) == thread(stage, second)


def test_a_step_without_an_agent_says_nothing(stage: Stage) -> None:
    steps = {"only": {"task": "probe.echo"}}
    ref = stage.submit(document.parse_document({"workflow": "mute", "version": 1, "steps": steps}))
    with mock.patch.object(board_voice, "speak") as speak:
        run(stage, ref)
    assert not speak.called
    assert not stage.client.hexists(stage.keys.run(ref), fields.SPOKE)
    assert kinds(read(stage, ref)) == [STARTED, FINISHED]


def test_items_of_a_map_are_not_listened_to(stage: Stage) -> None:
    each = {"map": {"over": "[1, 2]", "each": {"agent": "amy", "prompt": "No. {{ item }}?"}}}
    ref = stage.submit(document.parse_document({"workflow": "many", "version": 1, "steps": {"all": each}}))
    run(stage, ref)
    assert [bool(one["text"]) for one in stage.outcomes(ref)["all"].output] == [True, True]
    assert kinds(read(stage, ref)) == [STARTED, FINISHED]
    assert thread(stage, ref) == []
