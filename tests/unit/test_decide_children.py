"""Steps that are runs: what is decided about children, on whatever comes in whatever order."""

from __future__ import annotations

from typing import Any

import pytest

from convergio.graphflow.model import errors
from convergio.graphflow.model.states import BlockedOn
from tests.unit.deciding import NOW, Run, plan_of

RETRIED = {"workflow": "other", "retry": {"max": 1, "jitter": 0, "backoff": "2s"}, "timeout": "1m"}


def ended(attempt: int = 1, output: Any = None, error: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is told of the child of step a."""
    facts = {"state": "SUCCEEDED", "output": output} if error is None else {"state": "FAILED", "error": error}
    return {"t": "child", "step": "a", "attempt": attempt, **facts}


FAILURE = {**errors.ChildFailed("no").as_dict(), "cause": "E"}


def started(**fields: Any) -> Run:
    """a is a run, and b needs it."""
    return Run(plan_of(a={"workflow": "other", **fields}, b={"needs": ["a"]})).started()


def test_a_step_that_is_a_run_wants_its_child_and_rings_nobody() -> None:
    run = started(timeout="1m")
    assert run.values["s:a"] == f"BLOCKED|CHILD|{NOW}|1|"
    assert run.rings == []
    (event,) = run.events
    assert (event.kind, event.step, event.journal) == ("child.wanted", "a", True)


def test_its_output_is_the_steps_result() -> None:
    run = started()
    made = run.settle(ended(output={"n": 1}))
    assert (run.state_of("a"), run.values["o:a"]) == ("SUCCEEDED", '{"n":1}')
    assert [ring.step for ring in made.rings] == ["b"]


def test_a_second_telling_changes_nothing() -> None:
    run = started()
    run.settle(ended(output=1))
    before = dict(run.values)
    run.settle(ended(output=2), ended(error=FAILURE))
    assert run.values == before


def test_the_end_of_an_earlier_attempt_changes_nothing() -> None:
    run = started(**RETRIED)
    run.settle(ended(error=FAILURE))
    run.settle({"t": "timer", "step": "a", "on": "RETRY", "was": run.values["s:a"]})
    before = dict(run.values)
    run.settle(ended(1, output=1))
    assert run.values == before
    run.settle(ended(2, output=2))
    assert run.values["o:a"] == "2"


def test_its_failure_is_retried_by_the_steps_policy_as_another_child() -> None:
    run = started(**RETRIED)
    made = run.settle(ended(error=FAILURE))
    assert made.timers == [("a", BlockedOn.CHILD, None), ("a", BlockedOn.RETRY, NOW + 2_000)]
    made = run.settle({"t": "timer", "step": "a", "on": "RETRY", "was": run.values["s:a"]})
    assert made.timers == [("a", BlockedOn.RETRY, None), ("a", BlockedOn.CHILD, NOW + 60_000)]
    assert run.values["s:a"] == f"BLOCKED|CHILD|{NOW}|2|"
    run.settle(ended(2, error=FAILURE))
    assert (run.state_of("a"), run.state) == ("FAILED", "FAILED")


@pytest.mark.parametrize("error", [{**FAILURE, "retryable": False}, errors.ChildCancelled("by ann").as_dict()])
def test_what_will_not_pass_is_not_retried(error: dict[str, Any]) -> None:
    run = started(**RETRIED)
    run.settle(ended(error=error))
    assert run.state_of("a") == "FAILED"


def test_an_old_timer_does_not_end_the_next_attempts_time() -> None:
    run = started(**RETRIED)
    late = {"t": "timer", "step": "a", "on": "CHILD", "was": run.values["s:a"]}
    run.settle(ended(error=FAILURE))
    run.settle({"t": "timer", "step": "a", "on": "RETRY", "was": run.values["s:a"]})
    assert run.settle(late).timers == []
    assert run.state_of("a") == "BLOCKED"


def test_a_child_that_takes_too_long_is_left() -> None:
    run = started(timeout="1m", on_failure="continue")
    made = run.settle({"t": "timer", "step": "a", "on": "CHILD", "was": run.values["s:a"]})
    assert [event.kind for event in made.events if event.step == "a"] == ["child.left", "step.failed"]
    assert [ring.step for ring in made.rings] == ["b"]


def test_a_run_that_ends_leaves_its_children() -> None:
    run = started(timeout="1m")
    made = run.settle({"t": "cancel", "by": "ann", "reason": ""})
    assert [event.kind for event in made.events] == ["child.left", "step.cancelled", "run.cancelled"]
    assert made.timers == [("a", BlockedOn.CHILD, None)]
    before = dict(run.values)
    run.settle(ended(output=1))
    assert run.values == before
