"""What agents are told of a long thread: never half a dealing with a tool, never a question without its answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convergio.graphflow.flow import document
from convergio.graphflow.model import errors
from convergio.tasks.agents.spec import AgentSpec
from convergio.tasks.conversation import compaction
from convergio.tasks.conversation.compaction import Policy
from convergio.tasks.conversation.thread import Kind, Message, heard_by

SUMS_UP = AgentSpec(name="(summary)", description="", system_message="x", model=None, max_tokens=9, script=())


def policy(**given: Any) -> Policy:
    return replace(Policy(messages=6, tokens=None, keep=3, summarizer=SUMS_UP), **given)


def turn(number: int, *what: str, who: str = "ann") -> list[Message]:
    """A turn's messages, by kind: `text`, `call`, `result`, `user` (a handoff to people)."""
    bodies: dict[str, tuple[Kind, dict[str, Any]]] = {
        "text": (Kind.TEXT, {"text": f"{who} {number}"}),
        "call": (Kind.CALLS, {"calls": [{"id": f"c{number}", "name": "look", "arguments": "{}"}]}),
        "result": (Kind.RESULTS, {"results": [{"id": f"c{number}", "name": "look", "text": "found", "ok": True}]}),
        "user": (Kind.HANDOFF, {"text": "over", "target": "user"}),
    }
    made = (bodies[one] for one in what)
    return [
        Message(iteration=number, seq=seq, kind=kind, source=who, body=body) for seq, (kind, body) in enumerate(made)
    ]


def texts(count: int) -> list[Message]:
    return [message for number in range(count) for message in turn(number, "text")]


def compacted(thread: list[Message], by: Policy, text: str = "in short") -> list[Message]:
    """The thread as the next turn has it."""
    kept = compaction.due(by, thread)
    if kept is None:
        return thread
    body, iteration = {"text": text, "kept": kept}, thread[-1].iteration + 1
    return [*thread, Message(iteration=iteration, seq=0, kind=Kind.COMPACTED, source="(summary)", body=body)]


def told(thread: list[Message]) -> list[str]:
    return [message.text for message in compaction.context(thread)]


def test_a_short_thread_is_told_whole() -> None:
    assert compaction.due(policy(), texts(6)) is None
    assert compaction.due(None, texts(600)) is None
    assert compaction.context(texts(6)) == texts(6)


def test_of_a_long_one_the_first_message_a_summary_and_the_last_are_told() -> None:
    thread = compacted(texts(7), policy())
    assert told(thread) == ["ann 0", "in short", "ann 4", "ann 5", "ann 6"]
    assert [one.text for one in heard_by("bob", compaction.context(thread))] == told(thread)
    asked = compaction.question(texts(7), 3)
    assert "ann: ann 3" in asked
    assert "ann: ann 4" not in asked


def test_what_is_dropped_leaves_no_summary() -> None:
    assert told(compacted(texts(7), policy(summarizer=None), "")) == ["ann 0", "ann 4", "ann 5", "ann 6"]


def test_a_summary_is_summed_up_with_what_came_after_it() -> None:
    thread = compacted(texts(7), policy())
    longer = [*thread, *(one for number in (7, 8, 9) for one in turn(number, "text"))]
    again = compacted(longer, policy(), "shorter still")
    assert told(again) == ["ann 0", "shorter still", "ann 7", "ann 8", "ann 9"]
    assert "in short" in compaction.question(longer, 3)
    assert (compaction.made(thread), compaction.made(again)) == (1, 2)


def test_tokens_are_a_limit_too() -> None:
    assert compaction.due(policy(messages=None, tokens=1_000), texts(50)) is None
    assert compaction.due(policy(messages=None, tokens=20), texts(50)) == 3


def test_a_turn_is_never_divided() -> None:
    thread = [*texts(5), *turn(5, "call", "result", "text")]
    assert compaction.due(policy(keep=3), thread) == 3
    assert compaction.due(policy(keep=2), thread) is None, "the last turn has three messages, and stays"


def test_a_call_stays_with_a_result_that_comes_in_another_turn() -> None:
    (late,) = turn(6, "result")
    results = [{**late.body["results"][0], "id": "c5"}]
    thread = [*texts(5), *turn(5, "call"), replace(late, body={"results": results})]
    assert compaction.due(policy(keep=1), thread) is None
    assert compaction.due(policy(keep=2), thread) == 2


def test_a_question_to_people_stays_with_its_answer() -> None:
    thread = [*texts(5), *turn(5, "user"), *turn(6, "text", who="user")]
    assert compaction.due(policy(keep=1), thread) is None
    assert compaction.due(policy(keep=2), thread) == 2


TURNS = st.lists(
    st.sampled_from([("text",), ("call", "result", "text"), ("call", "result", "call"), ("user",)]), max_size=30
)


@given(TURNS, st.integers(1, 8), st.integers(4, 12))
def test_no_cut_crosses_an_open_call_however_often_it_is_cut(
    kinds: list[tuple[str, ...]], keep: int, most: int
) -> None:
    thread = texts(1)
    for number, what in enumerate(kinds, 1):
        thread = compacted(thread, policy(messages=most, keep=min(keep, most - 1)))
        thread += turn(number, *what)
        shown = compaction.context(thread)
        asked = [call["id"] for one in shown if one.kind is Kind.CALLS for call in one.body["calls"]]
        for one in shown:
            if one.kind is Kind.RESULTS:
                assert one.body["results"][0]["id"] in asked, "a result without its call"
        assert shown[0] == thread[0]
        assert shown[-1] == thread[-1]


@pytest.mark.parametrize("wrong", [{}, {"messages": 5, "keep": 5}, {"messages": 40, "by": "magic"}])
def test_a_policy_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    talk = {"conversation": {"agents": [{"name": "ann", "role": "x"}], "compaction": wrong}, "prompt": "x"}
    with pytest.raises(errors.InvalidWorkflow):
        document.parse_document({"workflow": "w", "version": 1, "steps": {"talk": talk}})
