"""Histories that once went wrong, each in short: the explorer found them, and they are mended."""

from __future__ import annotations

import json
from typing import Any

from convergio.graphflow.waiting import QUEUE
from tests.unit.deciding import START, Run, plan_of, signal


def due(run: Run, step: str) -> dict[str, Any]:
    """What the sweeper puts in the inbox when the queue's timer of the step is due."""
    return {"t": "timer", "step": step, "on": QUEUE, "was": run.values[f"s:{step}"]}


def test_a_signal_that_is_delivered_twice_ends_no_wait_that_began_after_it() -> None:
    """The sweeper gives a signal again when its row is 1.5 s old and SQL does not have its end yet."""
    first, second = {"wait": {"signal": "paid"}}, {"wait": {"signal": "paid"}, "needs": ["first"]}
    run = Run(plan_of(first=first, second=second)).started()
    for _ in range(2):
        run.settle(signal("paid", {"amount": 3}, id="1"))
    assert run.states() == {"first": "SUCCEEDED", "second": "BLOCKED"}


def test_a_second_early_signal_is_kept_for_the_second_wait() -> None:
    waits = {"wait": {"signal": "paid"}}
    run = Run(plan_of(a={}, first={**waits, "needs": ["a"]}, second={**waits, "needs": ["first"]})).started()
    run.settle(signal("paid", {"amount": 3}, id="1"), signal("paid", {"amount": 4}, id="2"))
    assert [json.loads(event.data)["how"] for event in run.events if event.kind == "signal.applied"] == ["kept", "kept"]
    run.arrive("a")
    assert run.state == "SUCCEEDED"


def test_an_old_entry_of_the_queues_timer_leaves_the_timer_of_a_step_that_still_waits() -> None:
    """Between the sweep and the decision the step was rung again: by a resume, or as a held one after a rebuild."""
    run = Run(plan_of(a={"timeout": {"queue": "30s"}})).started()
    old = due(run, "a")
    run.values["s:a"] = "READY|1.2"
    assert run.settle(old).timers == []


def test_a_step_that_was_taken_in_time_does_not_fail_for_want_of_a_worker() -> None:
    """It runs its second attempt when the patience with its first one is over; the first worker died, or it failed."""
    run = Run(plan_of(a={"timeout": {"queue": "30s"}, "retry": 1})).started()
    run.values |= {"s:a": "READY|1.2", "n:a": "2", "a:a": "2"}
    run.settle(due(run, "a"))
    assert run.state_of("a") == "READY"


def test_a_run_goes_on_before_it_is_looked_at_what_is_ready() -> None:
    """What is rung after that look and before the commit is refused: the run is still paused. Nobody rings it again."""
    run = Run(plan_of(a={"retry": 1})).started()
    run.values["s:a"] = "BLOCKED|RETRY|5|E|1.1.n"
    run.settle({"t": "pause", "cv": 1})
    made = run.apply({"t": "resume", "cv": 2})
    run.values["s:a"] = "READY|1.2"  # RING before the commit, and a CLAIM that was refused
    assert [ring.step for ring in run.settle(*made.posts).rings] == ["a"]


def test_a_start_that_is_decided_again_after_a_rebuild_leaves_a_root_that_has_ended() -> None:
    """A rebuild leaves a start that ends the run to the live board, and has put the journaled outcomes there before."""
    run = Run(plan_of(a={}, b={"when": "input.x > 1"}))
    run.values |= {"s:a": "SUCCEEDED|journal", "o:a": "7"}
    run.settle(START)
    assert run.states() == {"a": "SUCCEEDED", "b": "FAILED"}
