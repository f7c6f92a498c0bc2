"""What a decision may read and how much it may write: it can stop anywhere, and goes on there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from convergio.graphflow import decide
from convergio.graphflow.decision import Unloaded, View
from convergio.graphflow.model import errors
from tests.unit.deciding import APPROVE, NOW, START, Run, arrived, plan_of, signal

# --- views and budgets ------------------------------------------------------------------------------------------------


def test_a_field_that_was_not_read_is_asked_for_and_never_assumed() -> None:
    plan = plan_of(a={}, b={"needs": ["a"]})
    with pytest.raises(Unloaded) as caught:
        decide.decide(plan, View({}), [arrived("a")], epoch=1, now_ms=NOW)
    assert caught.value.names
    with pytest.raises(Unloaded):
        decide.decide(plan, View({"c:a": ""}), [arrived("a")], epoch=1, now_ms=NOW)


def test_what_is_read_ahead_of_an_arrival_is_all_that_a_plain_one_needs() -> None:
    plan = plan_of(a={}, b={}, c={"needs": ["a", "b"]}, d={"needs": ["a"]})
    values = dict.fromkeys(decide.wanted(plan, "a"), "")
    values |= {"s:a": "SUCCEEDED|1.1.n", "@state": "RUNNING", "@open": "4"}
    made = decide.decide(plan, View(values), [arrived("a")], epoch=1, now_ms=NOW)
    assert [ring.step for ring in made.rings] == ["d"]


def test_ending_a_run_asks_for_every_steps_state() -> None:
    view = View({"@state": "RUNNING", "@stop": "FAILED"})
    with pytest.raises(Unloaded) as caught:
        decide.decide(plan_of(a={}), view, [{"t": "end", "state": "FAILED", "error": {}}], epoch=1, now_ms=NOW)
    assert caught.value.everything


def test_a_decision_never_writes_what_it_was_not_told() -> None:
    """Every write says what the field held: that is what makes a commit refuse when it was overtaken."""
    run = Run(plan_of(a={}, b={}, c={"needs": ["a", "b"]})).started()
    run.succeed("a")
    before = dict(run.values)
    made = run.apply(arrived("a"))
    assert {name: was for name, (was, _) in made.writes.items()} == {name: before.get(name, "") for name in made.writes}


def test_a_skip_that_travels_far_asks_a_few_times_a_decision_for_what_it_meets() -> None:
    """Each question is a way to the server, and the decision is made again from its beginning."""
    deep = {f"s{number}": {"needs": [f"s{number - 1}"]} if number else {"when": "input.all"} for number in range(1_000)}
    run, questions, decisions = Run(plan_of(**deep), given={"all": False}), 0, 0
    inbox: list[Any] = [START]
    while inbox:
        decisions += 1
        view, made = View({}), None
        while made is None:
            try:
                made = decide.decide(run.plan, view, inbox, epoch=1, now_ms=NOW)
            except Unloaded as missing:
                questions += 1
                view.values.update({name: run.values.get(name, "") for name in missing.names})
        run.values.update({name: to for name, (_, to) in made.writes.items()})
        inbox = [*inbox[made.consumed :], *made.posts]
    assert run.states() == dict.fromkeys(deep, "SKIPPED")
    assert questions <= 10 * decisions


Steps = Mapping[str, Mapping[str, Any]]

WIDE: Steps = {f"s{number}": {"needs": ["a"]} for number in range(40)}
NESTED: Steps = {
    "skip": {"needs": [{"step": "a", "when": "!a.ok"}]},
    **{f"deep{number}": {"needs": [f"deep{number - 1}" if number else "skip"]} for number in range(20)},
}


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 7, 11, 50, decide.BUDGET])
@pytest.mark.parametrize("ending", ["all succeed", "one fails", "cancelled"])
def test_every_budget_comes_to_the_same_end(budget: int, ending: str) -> None:
    finals = [played(size, ending) for size in (decide.BUDGET, budget)]
    assert finals[0] == finals[1]


def played(budget: int, ending: str) -> Any:
    """A run with a wide fan-out and a long dead path, decided in pieces of `budget`."""
    join: Steps = {"join": {"needs": [*WIDE, "deep19"]}}
    run = Run(plan_of(a={}, **WIDE, **NESTED, **join), budget=budget)
    run.settle(START)
    run.arrive("a", {"ok": True})
    assert len(run.rings) == 41
    if ending == "cancelled":
        run.settle({"t": "cancel", "by": "ann", "reason": ""})
    for step in WIDE:
        if ending == "one fails" and step == "s20":
            run.fail(step, "boom")
            run.settle(arrived(step))
        elif run.state == "RUNNING":
            run.arrive(step)
    if ending == "all succeed":
        run.arrive("join", {"done": True})
    told = sorted((event.kind, event.step) for event in run.events)
    return run.values, told, sorted((ring.step, ring.ring) for ring in run.rings)


@pytest.mark.parametrize("budget", [1, 2, 5, 20])
def test_a_decision_stays_within_its_budget(budget: int) -> None:
    run = Run(plan_of(a={}, **WIDE, **NESTED)).started()
    run.succeed("a", {"ok": True})
    made = run.decision([arrived("a")], budget)
    assert made.consumed == 0
    assert len(made.writes) + len(made.events) <= budget + 6, "the last unit may go over it, by one step"


@pytest.mark.parametrize("kind", ["signal", "quarantine"])
def test_many_entries_at_once_stay_within_the_budget(kind: str) -> None:
    steps: Steps = {f"s{number}": {"approval": {"title": "?"}} for number in range(40)}
    run = Run(plan_of(**steps)).started()
    run.values |= {f"s:{step}": "BLOCKED|SIGNAL|77|x|1.1.n" for step in steps}
    entries = [signal(step, APPROVE) for step in steps]
    if kind == "quarantine":
        entries = [{"t": "quarantine", "step": s, "was": run.values[f"s:{s}"], "reason": "x"} for s in steps]
    made = run.decision(entries, 20)
    assert 0 < made.consumed < 40
    assert len(made.writes) + len(made.events) <= 20 + 6


def test_the_end_of_a_run_with_many_live_steps_stays_within_the_budget() -> None:
    run = Run(plan_of(a={}, **WIDE), budget=20).started()
    run.arrive("a")
    run.apply({"t": "cancel", "by": "ann", "reason": ""})
    made = run.apply({"t": "end", "state": "CANCELLED", "error": {}})
    assert made.consumed == 0
    assert len(made.writes) + len(made.events) <= 20 + 6
    assert run.state == "RUNNING"
    run.settle({"t": "end", "state": "CANCELLED", "error": {}})
    assert run.state == "CANCELLED"


def test_a_split_decision_goes_on_exactly_where_it_stopped() -> None:
    run = Run(plan_of(a={}, **WIDE), budget=10).started()
    run.succeed("a")
    made = run.apply(arrived("a"))
    assert made.consumed == 0
    cursor = int(run.values["c:a"])
    assert 0 < cursor < 40
    targets = [edge.target for edge in run.plan.successors["a"]]
    assert [ring.step for ring in made.rings] == targets[:cursor]
    assert [ring.step for ring in run.settle(arrived("a")).rings] == targets[cursor:]
    assert run.values["c:a"] == "x"


def test_a_split_decision_counts_each_edge_once() -> None:
    """A join that is raised once more than it has edges taken starts too early."""
    joins: Steps = {f"j{number}": {"needs": ["a", "b", "c"]} for number in range(30)}
    run = Run(plan_of(a={}, b={}, c={}, **joins), budget=10).started()
    for count, step in enumerate("abc", start=1):
        run.succeed(step)
        assert run.apply(arrived(step)).consumed == 0
        run.settle(arrived(step))
        assert {(run.values[f"j:{join}"], run.values[f"k:{join}"]) for join in joins} == {(str(count), str(count))}
    assert sorted(ring.step for ring in run.rings if ring.step in joins) == sorted(joins)


def test_an_entry_of_a_kind_nobody_knows_is_told_and_consumed() -> None:
    run = Run(plan_of(a={})).started()
    made = run.apply({"t": "novelty"})
    assert (made.consumed, [event.kind for event in made.events]) == (1, ["entry.unknown"])


def test_what_may_be_in_an_error_of_a_run_is_its_public_form() -> None:
    run = Run(plan_of(a={})).started()
    run.values |= {"s:a": "FAILED|1.1.n", "o:a": json.dumps(errors.Permanent("no", hint="do this").as_dict())}
    run.settle(arrived("a"))
    assert json.loads(run.values["@error"]) == {
        "code": "PERMANENT",
        "message": "no",
        "hint": "do this",
        "retryable": False,
        "step": "a",
        "state": "FAILED",
    }
