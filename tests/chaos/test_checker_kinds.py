"""The checker finds what can go wrong with maps, loops, children, undoing and concurrency keys."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from convergio.benchmarks import checker, graphs
from convergio.benchmarks.graphs import Gate, Graph, Items, Link, Loop, Node
from convergio.benchmarks.violations import Fault
from tests.chaos.histories import BEGAN_MS, RUN, Told, execution, graph, tell, undo_one

CHILD = f"{RUN}-call"
"""The run that the step `call` is."""


def faults(told: Told, *, cancelled: bool = False) -> set[Fault]:
    gone = frozenset({RUN}) if cancelled else frozenset[str]()
    return {one.fault for one in checker.check(told.accepted, told.history, told.executions, cancelled=gone)}


def change(told: Told, step: str, run: str = RUN, **fields: object) -> None:
    """The outcome of a step, spoiled."""
    told.outcomes[run, step] = dataclasses.replace(told.outcomes[run, step], **fields)  # type: ignore[arg-type]


def drop(told: Told, step: str, run: str = RUN) -> None:
    """It neither ran nor has an outcome."""
    del told.outcomes[run, step]
    told.executions = [one for one in told.executions if (one.run, one.step) != (run, step)]


def after(*parents: str) -> tuple[Link, ...]:
    return tuple(Link(step=name) for name in parents)


# --- maps ---------------------------------------------------------------------------------------------------------


def mapped() -> Graph:
    """head, a map over its three numbers, and a step that is given what they gave."""
    items = Items(over="head", flaws=(0, 0, 0))
    return graph(
        Node(name="head", deals=3),
        Node(name="each", links=after("head"), items=items),
        Node(name="last", links=after("each")),
    )


def leave_an_item_out(told: Told) -> None:
    """The map ended without its second item."""
    drop(told, "each#2000")
    results = list(told.outcome("each").output)
    change(told, "each", output=[results[0], None, results[2]])


def shorten_the_list(told: Told) -> None:
    change(told, "each", output=told.outcome("each").output[:2])


def miss_an_item(told: Told) -> None:
    """The step behind the map was given two of three."""
    output = dict(told.outcome("last").output)
    change(told, "last", output={**output, "saw": {k: v for k, v in output["saw"].items() if k != "each[1]"}})


@pytest.mark.parametrize("spoil", [leave_an_item_out, shorten_the_list, miss_an_item])
def test_a_map_that_lacks_an_item_is_incomplete(spoil: Callable[[Told], None]) -> None:
    told = tell(mapped())
    assert faults(told) == set()
    spoil(told)
    assert Fault.FAN_IN in faults(told)


def test_a_map_that_ended_before_its_item_is_out_of_order() -> None:
    told = tell(mapped())
    change(told, "each#3000", order=(1, 99))
    assert faults(told) == {Fault.ORDER}


def test_an_item_that_began_before_its_list_was_there_is_out_of_order() -> None:
    told = tell(mapped())
    told.of("each#1000").began = told.of("head").began
    assert faults(told) == {Fault.ORDER}


def test_a_map_that_took_another_result_of_its_item_than_the_journal_has_is_doubled() -> None:
    told = tell(mapped())
    results: list[Any] = list(told.outcome("each").output)
    change(told, "each", output=[{**results[0], "by": "somebody"}, *results[1:]])
    assert Fault.DOUBLED in faults(told)


def test_an_item_that_has_two_outcomes_is_doubled() -> None:
    told = tell(mapped())
    history = dataclasses.replace(told.history, outcomes=[*told.history.outcomes, told.outcome("each#2000")])
    found = checker.check(told.accepted, history, told.executions)
    assert [(one.fault, one.step) for one in found] == [(Fault.DOUBLED, "each#2000")]


def test_an_item_that_was_given_another_one_is_wrong() -> None:
    told = tell(mapped())
    change(told, "each#2000", output={**told.outcome("each#2000").output, "digest": "0" * 32})
    assert Fault.WRONG in faults(told)


def test_an_item_more_than_the_list_has_is_wrong() -> None:
    told = tell(mapped())
    told.executions.append(execution("each#4000", at=150))
    assert faults(told) == {Fault.WRONG}


# --- loops --------------------------------------------------------------------------------------------------------


def looped() -> Graph:
    """Three rounds of head and tail, and a step behind them."""
    never = Gate(of="tail", modulus=3, below=0)
    loop = Loop(back_to="head", until=never, most=3)
    return graph(
        Node(name="head", sees="tail"),
        Node(name="tail", links=after("head"), loop=loop),
        Node(name="last", links=after("tail")),
    )


def test_a_round_too_few_is_lost() -> None:
    told = tell(looped())
    assert faults(told) == set()
    drop(told, "tail#2")
    assert Fault.LOST in faults(told)


def test_a_round_too_many_is_wrong() -> None:
    told = tell(looped())
    told.outcomes[RUN, "head#3"] = dataclasses.replace(told.outcome("head#2"), step="head#3")
    assert Fault.WRONG in faults(told)


def test_a_round_that_began_before_the_last_one_had_ended_is_out_of_order() -> None:
    told = tell(looped())
    told.of("head#1").began = told.of("tail").began
    assert faults(told) == {Fault.ORDER}
    told = tell(looped())
    change(told, "tail", order=(1, 99))
    assert Fault.ORDER in faults(told)


def test_a_step_behind_a_loop_that_saw_another_round_than_the_last_is_doubled() -> None:
    told = tell(looped())
    output = dict(told.outcome("last").output)
    change(told, "last", output={**output, "saw": {"tail": told.of("tail#1").nonce}})
    assert Fault.DOUBLED in faults(told)


# --- children -----------------------------------------------------------------------------------------------------


def calling() -> Graph:
    """A step that is a run of two steps, and one behind it."""
    nodes = [Node(name="one"), Node(name="two", links=after("one"))]
    child = Graph(name="below", shape="child", value=0, nodes={node.name: node for node in nodes})
    return graph(Node(name="call", child=child), Node(name="last", links=after("call")))


def of_child(told: Told, **fields: object) -> None:
    """The child's row, spoiled."""
    told.runs = [dataclasses.replace(row, **fields) if row.run == CHILD else row for row in told.runs]  # type: ignore[arg-type]


def test_a_child_that_never_ended_is_lost() -> None:
    told = tell(calling())
    assert faults(told) == set()
    of_child(told, state="RUNNING")
    assert Fault.LOST in faults(told)


def test_a_child_that_nobody_started_is_lost() -> None:
    told = tell(calling())
    told.runs = [row for row in told.runs if row.run != CHILD]
    assert Fault.LOST in faults(told)


def test_a_step_that_is_two_runs_is_doubled() -> None:
    told = tell(calling())
    (row,) = (row for row in told.runs if row.run == CHILD)
    told.runs.append(dataclasses.replace(row, run="other"))
    assert faults(told) == {Fault.DOUBLED}


def test_a_childs_step_that_has_no_outcome_is_lost_and_one_out_of_order_is_seen() -> None:
    told = tell(calling())
    drop(told, "one", CHILD)
    assert Fault.LOST in faults(told)
    told = tell(calling())
    change(told, "two", CHILD, order=(1, -1))
    assert Fault.ORDER in faults(told)


def test_a_parent_that_was_told_something_else_is_wrong() -> None:
    told = tell(calling())
    of_child(told, state="FAILED")
    assert Fault.WRONG in faults(told)


def test_a_parent_that_was_told_before_the_child_had_ended_is_out_of_order() -> None:
    told = tell(calling())
    of_child(told, finished_ms=(told.outcome("call").finished_ms or 0) + 1)
    assert faults(told) == {Fault.ORDER}


def test_a_childs_result_that_is_not_the_journals_is_doubled() -> None:
    told = tell(calling())
    output = told.outcome("call").output
    change(told, "call", output={"out": {**output["out"], "by": "somebody"}})
    assert Fault.DOUBLED in faults(told)


def test_a_child_may_be_cancelled_with_its_parent_and_must_be_reached_by_that() -> None:
    told = tell(calling())
    told.runs = [dataclasses.replace(row, state="CANCELLED") for row in told.runs]
    told.events = [dataclasses.replace(event, type="run.cancelled") for event in told.events]
    drop(told, "two", CHILD)
    drop(told, "last")
    change(told, "call", state="CANCELLED", output={})
    assert faults(told, cancelled=True) == set()
    told.runs = [dataclasses.replace(row, finished_ms=BEGAN_MS + 10) if row.run == RUN else row for row in told.runs]
    late = checker.REACH_MS + 100
    told.executions.append(execution("two", at=late, run=CHILD, saw={"one": told.of("one", CHILD).nonce}))
    assert faults(told, cancelled=True) == {Fault.LOST}


def test_a_child_that_is_cancelled_while_its_parent_goes_on_is_wrong() -> None:
    told = tell(calling())
    of_child(told, state="CANCELLED")
    assert Fault.WRONG in faults(told)


# --- undoing ------------------------------------------------------------------------------------------------------


def saga(*, fails: bool = True) -> Graph:
    """Three steps one after the other that can be undone, and one that fails."""
    return graph(
        Node(name="a", undo=0),
        Node(name="b", undo=0, links=after("a")),
        Node(name="c", undo=0, links=after("b")),
        Node(name="d", undo=0, links=after("c"), flaws=1 if fails else 0, on_failure="compensate"),
    )


def swap_turns(told: Told) -> None:
    """a is undone before b, which stands on it."""
    first, second = told.outcome("undo:b"), told.outcome("undo:a")
    change(told, "undo:b", order=second.order)
    change(told, "undo:a", order=first.order)


def undo_side_by_side(told: Told) -> None:
    told.of("undo:a").began = told.of("undo:b").began


def undo_too_soon(told: Told) -> None:
    told.events = [dataclasses.replace(one, at_ms=BEGAN_MS + 90_000) for one in told.events]


def go_on_meanwhile(told: Told) -> None:
    told.executions.append(execution("d", 1, at=9_000, saw=told.of("d").saw, succeeded=False))


@pytest.mark.parametrize("spoil", [swap_turns, undo_side_by_side, undo_too_soon, go_on_meanwhile])
def test_what_is_undone_out_of_turn_is_out_of_order(spoil: Callable[[Told], None]) -> None:
    told = tell(saga())
    assert faults(told) == set()
    spoil(told)
    assert faults(told) == {Fault.ORDER}


def test_what_succeeded_and_is_not_undone_is_lost() -> None:
    told = tell(saga())
    drop(told, "undo:b")
    assert faults(told) == {Fault.LOST}


def test_what_is_undone_though_it_failed_is_wrong() -> None:
    told = tell(saga())
    told.executions.append(execution("undo:d", at=9_000))
    assert faults(told) == {Fault.WRONG}


def test_what_is_undone_though_the_run_succeeded_is_wrong() -> None:
    told = tell(saga(fails=False))
    assert faults(told) == set()
    undo_one(told, RUN, "c")
    assert Fault.WRONG in faults(told)


def test_what_is_undone_again_after_it_was_is_doubled() -> None:
    told = tell(saga())
    told.executions.append(execution("undo:b", at=9_000, saw=told.of("undo:b").saw))
    assert faults(told) == {Fault.DOUBLED}


def test_what_is_undone_by_another_result_than_the_journals_is_doubled() -> None:
    told = tell(saga())
    output = told.outcome("undo:b").output
    change(told, "undo:b", output={**output, "saw": {"b": "somebody"}})
    assert faults(told) == {Fault.DOUBLED}


def test_a_cancel_ends_the_undoing_of_a_run_that_had_failed_and_of_no_other() -> None:
    told = tell(dataclasses.replace(saga(), undone=True))
    drop(told, "undo:a")
    told.runs = [dataclasses.replace(row, state="CANCELLED") for row in told.runs]
    assert faults(told, cancelled=True) == set()
    told.events = [
        dataclasses.replace(one, data={"state": "CANCELLED"}) if one.type == "run.compensating" else one
        for one in told.events
    ]
    assert faults(told, cancelled=True) == {Fault.LOST}


# --- questions, keys ----------------------------------------------------------------------------------------------


def test_a_step_that_was_skipped_by_an_answer_lets_the_run_go_on_without_a_result() -> None:
    asks = Node(name="asks", flaws=1, answer="skip")
    told = tell(graph(asks, Node(name="last", links=after("asks"))))
    assert faults(told) == set()
    output = dict(told.outcome("last").output)
    change(told, "last", output={**output, "saw": {"asks": "what went wrong"}})
    assert faults(told) == {Fault.FAN_IN}


def test_more_at_once_than_the_limit_of_their_key_is_seen() -> None:
    told = tell(graph(*[Node(name=name, keyed=True) for name in "abc"]))
    assert faults(told) == set()
    for name in "abc":
        told.of(name).began, told.of(name).ended = 1.0, 1.5
    assert faults(told) == {Fault.LIMIT}
    assert graphs.LIMIT == 2
    told.of("c").began, told.of("c").ended = 1.5, 1.6
    assert faults(told) == set()
