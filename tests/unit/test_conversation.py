"""Who speaks next, when it is over, what is heard; tools as models are told of them; the conversations' tables."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory

from convergio.graphflow.client.event import Event
from convergio.graphflow.flow import document
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.model import errors
from convergio.graphflow.model.workflow import OnMax
from convergio.tasks.agents import replies
from convergio.tasks.agents.roster import Roster
from convergio.tasks.conversation import course, migrations, pace, review, tables
from convergio.tasks.conversation.grown import Grown
from convergio.tasks.conversation.team import Team
from convergio.tasks.conversation.thread import Kind, Message
from convergio.tasks.tools.tool import Tools
from convergio.workers.cli import picture
from convergio.workers.cli.talk import Talk


def said(speaker: str, text: str = "hello") -> Message:
    return Message(iteration=0, seq=0, kind=Kind.TEXT, source=speaker, body={"text": text})


def team_of(*names: str, policy: str = "round_robin") -> Team:
    """A team of these names; those that the roster does not have get a role."""
    roster = Roster.load()
    agents: list[Any] = [name if name in roster else {"name": name, "role": "R"} for name in names]
    talk = {"conversation": {"agents": agents, "policy": policy}, "prompt": "p"}
    flow = document.parse_document({"workflow": "w", "version": 1, "steps": {"t": talk}})
    return Team.of(flow.steps["t"].spec, roster)


STOP = {"turns": 3, "mention": ["DONE", "APPROVED"], "condition": None}


def test_turns_go_round_and_begin_behind_whoever_spoke_last() -> None:
    team = team_of("ann", "bob", "cem")
    threads: list[list[Message]] = [[], [said("ann")], [said("ann"), said("bob")], [said("cem"), said("user")]]
    assert [course.chosen(team, thread).speaker for thread in threads] == ["ann", "bob", "cem", "ann"]


def test_what_is_made_of_a_thread_is_made_once_and_of_another_thread_anew() -> None:
    asked: list[int] = []

    def make(whose: str, new: Sequence[Message], before: int) -> list[str]:
        asked.append(len(new))
        return [f"{before + place} {whose} {one.text}" for place, one in enumerate(new)]

    kept = Grown[str](make, most=4)
    thread = [said("ann", "a"), said("bob", "b"), said("ann", "c")]
    assert kept.of("x", thread[:2]) == ["0 x a", "1 x b"]
    assert kept.of("x", thread) == ["0 x a", "1 x b", "2 x c"]
    assert kept.of("x", [*thread[:2], said("ann", "other")]) == ["0 x a", "1 x b", "2 x other"]
    assert kept.of("y", thread) == ["0 y a", "1 y b", "2 y c"]
    assert kept.of("x", thread) == ["0 x a", "1 x b", "2 x c"]
    assert asked == [2, 1, 3, 3, 3], "at last nothing was kept of it: there is room for four messages"


def test_a_scored_choice_says_what_every_candidate_had() -> None:
    kept = course.as_kept(
        course.chosen(team_of("amy", "ali", policy="scored"), [said("user", "How large is the budget?")])
    )
    assert set(kept["scores"]) == {"amy", "ali"} == set(kept["totals"])
    assert all(isinstance(value, float) for one in kept["scores"].values() for value in one.values())
    assert kept["speaker"] == max(kept["totals"], key=lambda name: float(kept["totals"][name]))
    json.dumps(kept, allow_nan=False)


@pytest.mark.parametrize(
    ("turns", "said", "verdict"),
    [
        (1, "go on", None),
        (1, "it is APPROVED", {"by": "mention", "said": "APPROVED"}),
        (3, "go on", {"by": "turns", "turns": 3}),
        (3, "DONE", {"by": "mention", "said": "DONE"}),
    ],
)
def test_a_conversation_ends_with_a_word_or_with_its_last_turn(turns: int, said: str, verdict: Any) -> None:
    assert review.over(STOP, number=turns, said=said, recall=list) == verdict


def test_a_thread_is_turns_as_conditions_read_them() -> None:
    results = {"results": [{"id": "c", "name": "look", "text": "found it", "ok": True}]}
    thread = [
        replace(said("user", "Plan"), at_ms=1_000),
        replace(said("ann"), kind=Kind.RESULTS, body=results, at_ms=3_000),
        replace(said("ann", "hello"), at_ms=4_000),
        replace(said("bob"), iteration=1, kind=Kind.HANDOFF, body={"text": "over", "target": "ann"}, at_ms=9_000),
    ]
    task, first, second = review.turns(thread, {0: (7, 2)})
    assert (task.said[0].source, task.elapsed_s) == ("user", 0.0)
    assert [one.kind for one in first.said] == ["ToolCallExecutionEvent", "TextMessage"]
    assert (first.said[0].executed, first.said[0].text) == (("look",), "found it")
    assert (first.elapsed_s, first.prompt_tokens, first.completion_tokens) == (3.0, 7, 2)
    assert (second.said[0].target, second.elapsed_s, second.prompt_tokens) == ("ann", 8.0, 0)


def test_the_same_team_in_python_and_in_yaml_is_the_same_workflow() -> None:
    built = WorkflowBuilder("w", version=1)
    team: Any = ("amy", {"name": "bob", "role": "You doubt.", "script": ["no"]})
    built.conversation(
        "talk",
        *team,
        prompt="Plan",
        policy="graph",
        graph={"edges": {"amy": ["bob"], "bob": [{"to": "amy", "contains": "?"}]}, "among": "llm"},
        selector={"model": "tiny"},
        stop={"turns": 7, "mention": "OK"},
        continues="input.after",
        retry=2,
    )
    written = document.parse_yaml("""
        workflow: w
        version: 1
        steps:
          talk:
            conversation:
              agents: [amy, {name: bob, role: You doubt., script: [no]}]
              policy: graph
              graph: {edges: {amy: [bob], bob: [{to: amy, contains: "?"}]}, among: llm}
              selector: {model: tiny}
              stop: {turns: 7, mention: OK}
            prompt: Plan
            after: input.after
            retry: 2
        """)
    assert built.build().digest == written.digest
    loop = written.steps["talk"].loop
    assert loop is not None
    assert (loop.back_to, loop.max, loop.on_max) == ("talk", 1000, OnMax.CONTINUE)


def test_members_are_those_of_the_roster_or_say_who_they_are() -> None:
    team = team_of("amy", "bob")
    assert team.names == ("amy", "bob")
    assert team.member("amy").system_message == Roster.load().get("amy").system_message
    assert team.member("bob").system_message == "R"


def test_which_reply_is_due_is_read_from_the_thread_and_failures_from_the_attempt() -> None:
    script: list[dict[str, Any]] = [{"say": "a b", "call": [], "pace": 0.0, "fail": "rate_limit", "times": 2}]
    assert [replies.due(script, 0, attempt).failure for attempt in (1, 2, 3)] == ["rate_limit", "rate_limit", None]
    assert replies.due(script, 0, 3).words == ("a ", "b")
    assert replies.due(script, 1, 1).words == (replies.OVER,)


# --- tools ------------------------------------------------------------------------------------------------------------


def test_a_tool_tells_models_its_arguments_but_not_its_key_and_refuses_others() -> None:
    def pay(amount: int, to: str = "me", *, idempotency_key: str) -> str:
        """Pays."""
        return f"{amount} {to} {idempotency_key}"

    made = Tools().add(pay)
    assert set(made.schema["properties"]) == {"amount", "to"}
    assert made.schema["required"] == ["amount"]
    assert asyncio.run(made.call({"amount": 3}, key="k")) == "3 me k"
    for wrong in ({"amount": "many"}, {}, {"amount": 1, "idempotency_key": "mine"}):
        with pytest.raises(errors.InvalidInput):
            asyncio.run(made.call(wrong, key="k"))


def test_a_tool_that_nobody_registered_is_told_with_a_hint() -> None:
    tools = Tools()
    tools.add(_size, "market.size")
    with pytest.raises(errors.UnknownFunction) as caught:
        tools.get("market.sise")
    assert "market.size" in str(caught.value)


def _size(text: str) -> int:
    return len(text)


# --- tables, and a terminal -------------------------------------------------------------------------------------------


def test_the_migration_makes_the_declared_tables(tmp_path: Path) -> None:
    folder = str(Path(migrations.__file__).parent)
    config = Config()
    config.set_main_option("script_location", folder)
    config.set_main_option("version_locations", folder)
    config.set_main_option("path_separator", "os")
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'journal.sqlite'}")
    with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
        for revision in reversed(list(ScriptDirectory.from_config(config).walk_revisions())):
            revision.module.upgrade()
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
    engine.dispose()


def test_a_terminal_shows_words_as_they_come_and_drops_those_of_a_lost_turn() -> None:
    def event(kind: str, **data: Any) -> Event:
        return Event(id="1-1", type=kind, step="talk", data=data)

    begins = event("TEXT_MESSAGE_START", messageId="talk.1.0", role="assistant", name="ann")
    events = [
        begins,
        event("TEXT_MESSAGE_CONTENT", messageId="talk.1.0", delta="half"),
        event("CUSTOM", name="turn.restarted", value={}),
        begins,
        event("TEXT_MESSAGE_CONTENT", messageId="talk.1.0", delta="who"),
        event("TEXT_MESSAGE_CONTENT", messageId="talk.1.0", delta="le"),
        event("TEXT_MESSAGE_END", messageId="talk.1.0"),
        event("TOOL_CALL_START", parentMessageId="talk.1.1", toolCallId="c", toolCallName="look_up", speaker="ann"),
    ]
    lines: list[str] = []
    whole = Talk(lines.append)
    for one in events:
        whole.tell(one)
    assert lines == ["  (the turn begins anew, as its worker was lost or has failed)", "ann: whole", "  uses look_up"]
    pieces: list[str] = []
    parts = Talk(lambda text: pieces.append(f"{text}\n"), piece=pieces.append)
    for one in events:
        parts.tell(one)
    assert "".join(pieces).splitlines()[0] == "ann: half"
    assert "ann: whole" in "".join(pieces).splitlines()


def _line(shown: list[str], text: str) -> None:
    shown.append(f"{text}\n")


def test_a_terminal_is_shown_of_a_snapshot_what_it_does_not_have() -> None:
    def event(kind: str, **data: Any) -> Event:
        return Event(id="1-1", type=kind, step="talk", data=data)

    def said(place: int, text: str) -> dict[str, Any]:
        name = f"talk.1.{place}"
        return {"id": name, "role": "assistant", "name": "ann", "content": text, "step": "talk", "turn": 1}

    for piece in (True, False):
        shown: list[str] = []
        talk = Talk(partial(_line, shown), piece=shown.append if piece else None)
        talk.tell(event("TEXT_MESSAGE_START", messageId="talk.1.0", role="assistant", name="ann"))
        talk.tell(event("TEXT_MESSAGE_CONTENT", messageId="talk.1.0", delta="one "))
        if not piece:
            assert talk.tail == "ann: one "
        talk.tell(event("MESSAGES_SNAPSHOT", messages=[said(0, "one two"), said(1, "three")]))
        talk.tell(event("CUSTOM", name="turn.messages", value={"messages": [said(0, "one two"), said(1, "three")]}))
        assert "".join(shown) == "ann: one two\nann: three\n"
        talk.tell(event("TEXT_MESSAGE_START", messageId="talk.1.2", role="assistant", name="ann"))
        talk.tell(event("TEXT_MESSAGE_CONTENT", messageId="talk.1.2", delta="void"))
        talk.tell(event("step.failed"))
        talk.tell(Event(id="1-2", type="MESSAGES_SNAPSHOT", data={"messages": [said(3, "four")]}))
        assert shown[-1].endswith("four\n") or shown[-2:] == ["four", "\n"]


def test_of_several_who_speak_at_once_a_terminal_shows_one_after_the_other() -> None:
    def event(step: str, kind: str, **data: Any) -> Event:
        return Event(id="1-1", type=kind, step=step, data={"messageId": f"{step}.1.0", **data})

    both = [
        event("a", "TEXT_MESSAGE_START", role="assistant", name="ann"),
        event("a", "TEXT_MESSAGE_CONTENT", delta="one "),
        event("b", "TEXT_MESSAGE_START", role="assistant", name="bob"),
        event("b", "TEXT_MESSAGE_CONTENT", delta="three "),
        event("b", "TOOL_CALL_START", parentMessageId="b.1.1", toolCallId="c", toolCallName="look_up", speaker="bob"),
        event("a", "TEXT_MESSAGE_CONTENT", delta="two"),
        event("a", "TEXT_MESSAGE_END"),
        event("b", "TEXT_MESSAGE_CONTENT", delta="four"),
    ]
    for piece in (True, False):
        for last in (event("b", "TEXT_MESSAGE_END"), event("b", "step.failed")):
            shown: list[str] = []
            talk = Talk(partial(_line, shown), piece=shown.append if piece else None)
            for one in (*both, last):
                talk.tell(one)
            assert not talk.open
            heard = "bob: three four\n" if piece or last.type == "TEXT_MESSAGE_END" else ""
            assert "".join(shown) == f"ann: one two\n  uses look_up\n{heard}"


def test_words_that_others_stand_in_for_begin_a_line_of_their_own() -> None:
    shown: list[str] = []
    talk = Talk(partial(_line, shown), piece=shown.append)
    about = {"messageId": "a.1.0", "role": "assistant", "name": "ann"}
    for kind, data in (("START", about), ("CONTENT", {**about, "delta": "no JSON"}), ("END", about)):
        talk.tell(Event(id="1-1", type=f"TEXT_MESSAGE_{kind}", step="a", data=data))
    said = {"id": "a.1.0", "role": "assistant", "name": "ann", "content": "{repaired: 1}", "step": "a", "turn": 1}
    talk.tell(Event(id="1-1", type="CUSTOM", step="a", data={"name": "turn.messages", "value": {"messages": [said]}}))
    assert "".join(shown) == "ann: no JSON\nann: {repaired: 1}\n"


def test_how_fast_a_conversation_was_is_said_in_a_line() -> None:
    row = {
        "step": "talk",
        "first_token_us": 310_000,
        "first_told_us": 2_000,
        "gap_p50_us": 20_000,
        "gap_max_us": 30_000,
    }
    row |= {"chunks": 3, "output_tokens": 8, "streamed_us": 200_000, "overhead_us": 11_000}
    silent = row | {"first_token_us": None, "first_told_us": None, "streamed_us": 0, "overhead_us": 13_000}
    (tempo,) = pace.tempos([row, silent])
    assert picture.tempo(tempo) == (
        "talk: 2 turns, first words after 310 ms and 2 ms to readers, 40 tokens/s, 12 ms a turn beside models and tools"
    )
    assert picture.tempo(pace.tempos([silent])[0]) == "talk: 1 turn, 13 ms a turn beside models and tools"


@pytest.mark.parametrize(("wall_s", "tools_s"), [(0.0546234, 0.0025366), (0.0000014, 0.0000014), (1.0, 0.0)])
def test_the_times_of_a_turn_add_up_to_the_microsecond(
    wall_s: float, tools_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    its = pace.Pace()
    its.began, its.tools_s = 0.0, tools_s
    monkeypatch.setattr("time.monotonic", lambda: wall_s)
    row = its.row(output_tokens=1, model_ms=0)
    assert row["overhead_us"] + row["tools_us"] + row["model_us"] == row["wall_us"]
