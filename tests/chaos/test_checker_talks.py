"""The checker finds what can go wrong with conversations: threads, effects of their tools, the ledger, their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from convergio.benchmarks import checker
from convergio.benchmarks.effects import Note
from convergio.benchmarks.evidence import Kept, Paid, Talked
from convergio.benchmarks.graphs import Graph, Link, Node
from convergio.benchmarks.talks import Speech, Talk
from convergio.benchmarks.violations import Fault, Violation
from tests.chaos.histories import RUN, Told, graph, tell

TALK = Talk(
    members=2,
    turns=(
        Speech(text="one", notes=(("a", "b"), ("c",))),
        Speech(text="two", failure="broken_off"),
        Speech(text="three", notes=(("d",),)),
    ),
)


def talking() -> Graph:
    """A step, a talk of three turns, and a step that is given what was said last."""
    return graph(
        Node(name="first"),
        Node(name="talk", links=(Link(step="first"),), talk=TALK, retries=1),
        Node(name="last", links=(Link(step="talk"),)),
    )


def found(told: Told) -> Sequence[Violation]:
    return checker.check(told.accepted, told.history, told.executions, notes=told.notes)


def change(told: Told, turn: int, **rows: Any) -> None:
    told.talked[turn] = replace(told.talked[turn], **rows)


def of(told: Told, turn: int) -> Talked:
    return told.talked[turn]


def test_a_good_history_is_accepted() -> None:
    assert found(tell(talking())) == []


def lose_a_message(told: Told) -> None:
    change(told, 0, said=of(told, 0).said[:-1])


def say_it_twice(told: Told) -> None:
    last = of(told, 1).said[-1]
    change(told, 1, said=[*of(told, 1).said, replace(last, seq=1)])


def say_something_else(told: Told) -> None:
    *before, last = of(told, 2).said
    change(told, 2, said=[*before, replace(last, body={"text": "four"})])


def speak_out_of_turn(told: Told) -> None:
    change(told, 1, taken=[replace(one, speaker="m0") for one in of(told, 1).taken])


def get_another_result(told: Told) -> None:
    said = [
        replace(one, body={"results": [{"text": "?"}]}) if one.kind == "results" else one for one in of(told, 2).said
    ]
    change(told, 2, said=said)


def number_it_wrong(told: Told) -> None:
    change(told, 2, said=[replace(one, seq=one.seq + 1) for one in of(told, 2).said])


def speak_without_an_outcome(told: Told) -> None:
    told.outcomes[RUN, "talk#2"] = replace(told.outcome("talk#2"), state="CANCELLED")


def note_it_under_two_keys(told: Told) -> None:
    told.notes.append(Note(key=f"{RUN}:talk:0:call_other", text="a", pid=2))


def note_something_else(told: Told) -> None:
    told.notes.append(Note(key=f"{RUN}:talk:2:call_2_9", text="z", pid=2))


def note_nothing(told: Told) -> None:
    told.notes.pop()


def pay_twice(told: Told) -> None:
    change(told, 0, paid=[*of(told, 0).paid, Paid(run=RUN, step="talk", call="another")])


def pay_for_nothing(told: Told) -> None:
    change(told, 0, paid=of(told, 0).paid[1:])


def forget_an_answer(told: Told) -> None:
    change(told, 0, kept=of(told, 0).kept[1:], paid=of(told, 0).paid[1:])


def count_another_call(told: Told) -> None:
    change(told, 1, taken=[replace(one, calls=2) for one in of(told, 1).taken])


def lose_what_a_failed_attempt_cost(told: Told) -> None:
    spent = Kept(run=RUN, step="talk#1", key="spent.x", value={"model_calls": [{"call_id": "lost"}]})
    change(told, 1, kept=[*of(told, 1).kept, spent])


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lose_a_message, Fault.THREAD),
        (say_it_twice, Fault.THREAD),
        (say_something_else, Fault.THREAD),
        (speak_out_of_turn, Fault.THREAD),
        (get_another_result, Fault.THREAD),
        (number_it_wrong, Fault.THREAD),
        (speak_without_an_outcome, Fault.THREAD),
        (note_it_under_two_keys, Fault.EFFECT),
        (note_something_else, Fault.EFFECT),
        (note_nothing, Fault.EFFECT),
        (pay_twice, Fault.LEDGER),
        (pay_for_nothing, Fault.LEDGER),
        (forget_an_answer, Fault.LEDGER),
        (count_another_call, Fault.LEDGER),
        (lose_what_a_failed_attempt_cost, Fault.LEDGER),
    ],
)
def test_what_is_wrong_with_a_conversation_is_found(spoil: Callable[[Told], None], fault: Fault) -> None:
    told = tell(talking())
    spoil(told)
    assert fault in {one.fault for one in found(told)}


def test_a_tool_that_is_called_again_under_its_key_did_one_thing() -> None:
    told = tell(talking())
    told.notes.append(replace(told.notes[0], pid=2))
    assert found(told) == []


def test_what_a_failed_attempt_paid_for_is_on_the_ledger() -> None:
    told, call = tell(talking()), "of a failed attempt"
    spent = Kept(run=RUN, step="talk#1", key="spent.x", value={"model_calls": [{"call_id": call}]})
    paid = Paid(run=RUN, step="talk#1", call=call)
    change(told, 1, kept=[*of(told, 1).kept, spent], paid=[*of(told, 1).paid, paid])
    assert found(told) == []


def test_what_a_lost_claim_paid_for_is_on_the_ledger_and_is_another_claims() -> None:
    told = tell(talking())
    change(told, 1, paid=[*of(told, 1).paid, Paid(run=RUN, step="talk#1", call=f"{RUN}:of a lost claim:1")])
    assert found(told) == []
    own = of(told, 1).paid[0].call.rpartition(":")[0]
    change(told, 1, paid=[*of(told, 1).paid, Paid(run=RUN, step="talk#1", call=f"{own}:9")])
    assert {violation.fault for violation in found(told)} == {Fault.LEDGER}


def test_a_claim_that_had_recorded_answers_and_was_lost_may_have_paid_for_one_more() -> None:
    told = tell(talking())
    kept, (first, *rest) = of(told, 0).kept, of(told, 0).paid
    former = f"{RUN}:of a lost claim"
    began = replace(kept[0], value={"row": {"call_id": f"{former}:1"}})
    assert kept[0].value["row"]["call_id"] == first.call
    calls = [replace(first, call=f"{former}:{number}") for number in (1, 2)]
    change(told, 0, kept=[began, *kept[1:]], paid=[*calls, *rest])
    assert found(told) == []


def test_an_answer_that_was_recorded_and_owned_up_to_is_on_the_ledger_once() -> None:
    """The attempt lost its connection while it recorded the answer, and gave its step back."""
    told = tell(talking())
    row = {"call_id": of(told, 1).paid[0].call}
    change(told, 1, kept=[*of(told, 1).kept, Kept(run=RUN, step="talk#1", key="spent.x", value={"model_calls": [row]})])
    assert found(told) == []


def test_turns_out_of_order_are_found() -> None:
    told = tell(talking())
    one, two = told.outcome("talk#1"), told.outcome("talk#2")
    told.outcomes[RUN, "talk#1"], told.outcomes[RUN, "talk#2"] = (
        replace(one, order=two.order),
        replace(two, order=one.order),
    )
    assert Fault.ORDER in {violation.fault for violation in found(told)}


def test_a_turn_that_took_another_attempt_than_it_should_is_found() -> None:
    told = tell(talking())
    told.outcomes[RUN, "talk#1"] = replace(told.outcome("talk#1"), attempt=1)
    assert Fault.WRONG in {violation.fault for violation in found(told)}
