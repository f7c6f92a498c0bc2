"""Maps, decided: dealt and rung within bounds, counted once, withdrawn when their join has its verdict."""

from __future__ import annotations

import json
from typing import Any

import pytest

from convergio.graphflow.board.fields import Progress
from convergio.graphflow.decision import Decision, Entry
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import instance
from tests.unit.deciding import START, Run, arrived, plan_of

MOST = 500
"""Items of one COMMIT."""


def plan(over: str = "input", *, retry: int = 0, **details: Any) -> Plan:
    each = {"task": "m.g", "with": {"x": "item"}, "retry": retry}
    return plan_of(m={"map": {"over": over, "each": each, **details}}, end={"needs": ["m"], "with": {"a": "m"}})


def member(index: int, whole: str = "m") -> str:
    return instance.member(whole, index)


class Counted(Run):
    """A run whose decisions are looked at: how many there were, and how much the largest wrote."""

    def __init__(self, plan: Plan, **given: Any) -> None:
        super().__init__(plan, **given)
        self.decisions = 0
        self.most = 0
        self.longest = 0

    def apply(self, *entries: Entry) -> Decision:
        made = super().apply(*entries)
        self.decisions += 1
        self.most = max(self.most, len(made.writes) + len(made.events))
        self.longest = max([self.longest, *(len(value) for _, value in made.writes.values())])
        return made


def test_items_are_dealt_before_the_first_is_rung() -> None:
    run = Run(plan(), given=["a", {"b": 1}])
    run.settle(START)
    assert [run.values[f"o:{member(index)}@"] for index in (0, 1)] == ['"a"', '{"b":1}']
    assert run.values[f"r:{member(1)}"] == f"{member(1)}@"
    assert [ring.step for ring in run.rings] == [member(0), member(1)]


@pytest.mark.slow
def test_ten_thousand_items_are_dealt_rung_and_counted_in_bounded_decisions() -> None:
    run = Counted(plan(max_concurrency=1_000), given=list(range(10_000)))
    run.settle(START)
    assert len(run.rings) == 1_000
    assert run.most <= MOST
    assert run.longest < 100, "nothing that is written grows with the list"
    run.most, before = 0, run.decisions
    for index in range(9_999):
        run.arrive(member(index), {"nr": index})
    assert (len(run.rings), run.most) == (10_000, 6), "each makes room for the next, and writes nothing else"
    assert run.decisions == before + 9_999
    assert run.longest < 100
    run.arrive(member(9_999), {"nr": 9_999})
    assert run.most <= MOST
    assert run.state_of("m") == "SUCCEEDED"
    assert json.loads(run.values["o:m"])["bytes"] > 100_000, "a result that is too large to travel is a blob"
    assert run.state_of("end") == "READY"


@pytest.mark.slow
def test_ten_thousand_items_are_withdrawn_in_bounded_decisions() -> None:
    run = Counted(plan(join="any"), given=list(range(10_000)))
    run.settle(START)
    run.arrive(member(5), {"ok": True})
    assert run.most <= MOST
    states = [run.state_of(member(index)) for index in range(10_000)]
    assert (states.count("CANCELLED"), states[5]) == (9_999, "SUCCEEDED")
    assert run.state_of("m") == "SUCCEEDED"


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 8])
def test_a_map_comes_to_the_same_however_its_decisions_are_cut(budget: int) -> None:
    run = Run(plan(max_concurrency=2, join={"tolerate": 1}), given=[1, 2, 3], budget=budget)
    run.settle(START)
    run.fail(member(1), "no")
    run.settle(arrived(member(1)))
    for index in (0, 2):
        run.arrive(member(index), index)
    assert json.loads(run.values["o:m"]) == [{"ok": True}, None, 2]


def test_an_item_that_arrives_twice_counts_once() -> None:
    run = Run(plan(), given=[1, 2])
    run.settle(START)
    run.arrive(member(0))
    run.settle(arrived(member(0)))
    assert Progress.parse(run.values["p:m"]).done == 1
    assert run.state_of("m") == "BLOCKED"


def test_a_map_with_a_verdict_rings_nobody_any_more() -> None:
    run = Run(plan(max_concurrency=2), given=[1, 2, 3])
    run.settle(START)
    run.fail(member(0), "no")
    left = run.apply(arrived(member(0))).posts
    run.settle({"t": "deal", "step": "m"}, *left)
    assert run.state_of("m") == "FAILED"
    assert [ring.step for ring in run.rings] == [member(0), member(1)]


def test_what_a_decision_rings_is_not_withdrawn_by_the_same_one() -> None:
    run = Run(plan(max_concurrency=2, join={"quorum": 2}), given=[1, 2, 3, 4])
    run.settle(START)
    run.succeed(member(0))
    run.succeed(member(1))
    run.budget = 2
    left = run.apply(arrived(member(0))).posts
    run.budget = MOST
    first = run.apply(*left, arrived(member(1)))
    assert {ring.step for ring in first.rings} == {member(2)}
    assert first.posts == [{"t": "fold", "step": "m"}]
    run.settle(*first.posts)
    assert (run.state_of(member(2)), run.state_of("m")) == ("CANCELLED", "SUCCEEDED")


def test_a_straggler_changes_nothing() -> None:
    run = Run(plan(join="any"), given=[1, 2])
    run.settle(START)
    run.arrive(member(0), "a")
    before = dict(run.values)
    run.arrive(member(1), "b")
    assert {name for name in before if run.values[name] != before[name]} == {f"s:{member(1)}"}
    assert run.values["o:m"] == '["a",null]'


@pytest.mark.parametrize(("given", "code"), [(5, "BAD_LIST"), ({"a": 1}, "BAD_LIST"), (None, "BAD_LIST")])
def test_what_is_no_list_fails_the_map(given: Any, code: str) -> None:
    run = Run(plan(), given=given)
    run.settle(START)
    error = json.loads(run.values["o:m"])
    assert (run.state_of("m"), error["code"]) == ("FAILED", code)
    assert error["hint"].startswith("write `over` as CEL that gives a list")


def test_an_item_that_is_too_large_to_travel_fails_the_map() -> None:
    run = Run(plan(), given=["x", "y" * 40_000])
    run.settle(START)
    assert json.loads(run.values["o:m"])["code"] == "PAYLOAD_TOO_LARGE"
    assert run.rings == []


def test_an_expression_that_fails_fails_the_map() -> None:
    run = Run(plan("input.rows"), given={})
    run.settle(START)
    assert json.loads(run.values["o:m"])["code"] == "EXPRESSION_FAILED"
