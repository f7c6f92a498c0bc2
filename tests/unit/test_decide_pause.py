"""Pausing a run and letting it go on: nothing is rung meanwhile, nothing is lost, and the younger wish counts."""

from __future__ import annotations

from typing import Any

import pytest

from convergio.graphflow import decide
from convergio.graphflow.waiting import QUEUE
from tests.unit.deciding import NOW, Run, arrived, plan_of


def wish(kind: str, version: int) -> dict[str, Any]:
    return {"t": kind, "cv": version, "by": "ann"}


@pytest.fixture
def run() -> Run:
    """a is READY, b waits for it."""
    return Run(plan_of(a={}, b={"needs": ["a"]})).started()


def test_while_a_run_is_paused_what_becomes_ready_is_not_rung(run: Run) -> None:
    run.settle(wish("pause", 1))
    assert run.state == "PAUSED"
    made = run.arrive("a")
    assert run.state_of("b") == "READY"
    assert made.rings == []


def test_when_it_goes_on_everything_ready_is_rung_under_a_new_ring(run: Run) -> None:
    run.settle(wish("pause", 1))
    run.arrive("a")
    made = run.settle(wish("resume", 2))
    assert run.state == "RUNNING"
    assert [(ring.step, ring.ring) for ring in made.rings] == [("b", "1.2")]
    assert [event.kind for event in made.events] == ["run.resumed", "step.ready"]
    run.arrive("b")
    assert run.state == "SUCCEEDED"


def test_the_run_goes_on_before_its_bells_ring(run: Run) -> None:
    """A doorbell that is answered while the run is paused is lost."""
    run.settle(wish("pause", 1))
    first = run.apply(wish("resume", 2))
    assert first.writes["@state"][1] == "RUNNING"


def test_hundreds_of_steps_are_rung_some_at_a_time_and_each_at_least_once() -> None:
    steps: dict[str, Any] = {f"s{number:03}": {"needs": ["a"]} for number in range(180)}
    run = Run(plan_of(a={}, **steps)).started()
    run.settle(wish("pause", 1))
    run.arrive("a")
    made = run.apply(*run.apply(wish("resume", 2)).posts)
    assert 0 < len(made.rings) <= decide.AT_ONCE
    rest = run.settle(*made.posts)
    assert {ring.step for ring in [*made.rings, *rest.rings]} == set(steps)


@pytest.mark.parametrize("budget", [1, 2, 3, 10])
def test_a_small_budget_rings_them_all_as_well(budget: int) -> None:
    steps: dict[str, Any] = {f"s{number:03}": {"needs": ["a"]} for number in range(60)}
    run = Run(plan_of(a={}, **steps), budget=budget).started()
    run.settle(wish("pause", 1))
    run.arrive("a")
    assert {ring.step for ring in run.settle(wish("resume", 2)).rings} == set(steps)


def test_ringing_that_was_left_for_later_stops_when_the_run_is_paused_again(run: Run) -> None:
    run.settle(wish("pause", 1))
    before = dict(run.values)
    made = run.settle({"t": "rung", "after": ""})
    assert run.values == before
    assert (made.rings, made.events) == ([], [])


@pytest.mark.parametrize(
    ("wishes", "ends"),
    [
        ([("pause", 1), ("resume", 2)], "RUNNING"),
        ([("resume", 2), ("pause", 1)], "RUNNING"),
        ([("pause", 1), ("pause", 1)], "PAUSED"),
        ([("pause", 3), ("resume", 2)], "PAUSED"),
        ([("pause", 1), ("resume", 2), ("pause", 1)], "RUNNING"),
    ],
)
def test_the_wish_with_the_higher_control_version_counts(run: Run, wishes: list[tuple[str, int]], ends: str) -> None:
    for kind, version in wishes:
        run.settle(wish(kind, version))
    assert run.state == ends


def test_a_run_whose_last_step_ends_while_it_is_paused_has_ended(run: Run) -> None:
    run.arrive("a")
    run.settle(wish("pause", 1))
    run.arrive("b")
    assert run.state == "SUCCEEDED"


def test_a_paused_run_can_be_cancelled_and_a_failure_ends_it(run: Run) -> None:
    run.settle(wish("pause", 1), {"t": "cancel", "by": "ann", "reason": "enough"})
    assert run.state == "CANCELLED"
    other = Run(plan_of(a={}, b={"needs": ["a"]})).started()
    other.settle(wish("pause", 1))
    other.fail("a", "boom")
    other.settle(arrived("a"))
    assert other.state == "FAILED"


def test_an_ended_run_is_not_paused(run: Run) -> None:
    run.settle({"t": "cancel", "by": "ann", "reason": "enough"})
    run.settle(wish("pause", 1))
    assert run.state == "CANCELLED"


def test_a_queues_patience_does_not_run_out_while_nobody_may_take_the_step() -> None:
    run = Run(plan_of(a={"timeout": {"queue": "30s"}})).started()
    run.settle(wish("pause", 1))
    made = run.settle({"t": "timer", "step": "a", "on": QUEUE, "was": run.values["s:a"]})
    assert run.state == "PAUSED"
    assert made.timers == [("a", QUEUE, NOW + 30_000)]
