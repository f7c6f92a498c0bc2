"""Steps that ask what to do when they have failed for good, and what follows from the answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from convergio.graphflow.asking import detail_of
from convergio.graphflow.decision import ASK, LEAVE
from convergio.graphflow.engine.submission import check_signal
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors
from convergio.graphflow.waiting import QUEUE
from tests.unit.deciding import Run, plan_of, signal

ERROR = {"code": "E", "message": "a|b\n|c", "hint": None, "retryable": True}


def plan(**fields: Any) -> Plan:
    """first, which can be undone -> a, which asks -> b."""
    first = {"compensate": {"task": "m.undo"}}
    return plan_of(first=first, a={"on_failure": "ask", "needs": ["first"], **fields}, b={"needs": ["a"]})


def asking(**fields: Any) -> Run:
    """a has failed, as a worker tells it."""
    run = Run(plan(**fields)).started()
    run.arrive("first")
    run.values["s:a"] = f"BLOCKED|SIGNAL|5|{detail_of(ERROR)}|1.1.n"
    return run


def answer(said: str, *, id: str = "1") -> dict[str, Any]:
    return dict(signal("a", {"decision": said, "by": "ann"}, id=id))


def test_retry_rings_the_step_once_more() -> None:
    run = asking()
    run.settle(answer("retry"))
    assert run.values["s:a"] == "READY|1.2"
    assert run.values["a:a"] == "2"
    assert [event.kind for event in run.events][-3:] == ["step.answered", "step.ready", "signal.applied"]
    run.arrive("a")
    run.arrive("b")
    assert run.state == "SUCCEEDED"


def test_skip_goes_on_with_null_and_keeps_what_went_wrong() -> None:
    run = asking()
    made = run.settle(answer("skip"))
    assert run.state_of("a") == "FAILED"
    assert [ring.step for ring in made.rings] == ["b"]
    assert "o:a" not in run.values, "it is what those read that come after"
    (told,) = [event for event in made.events if event.kind == "step.failed"]
    assert json.loads(told.data)["error"] == {**ERROR, "answer": "skip", "by": "ann"}
    run.arrive("b")
    assert run.state == "SUCCEEDED"


def test_fail_fails_the_run() -> None:
    run = asking()
    run.settle(answer("fail"))
    assert run.state == "FAILED"
    assert json.loads(run.values["@error"])["answer"] == "fail"


def test_compensate_has_the_run_undone() -> None:
    run = asking()
    run.settle(answer("compensate"))
    assert run.state == "COMPENSATING"


def test_a_second_answer_changes_nothing_not_even_the_next_question() -> None:
    run = asking()
    run.settle(answer("retry"))
    run.settle(answer("skip", id="2"))
    assert run.state_of("a") == "READY"
    run.values["s:a"] = f"BLOCKED|SIGNAL|5|{detail_of(ERROR)}|1.2.n"
    run.settle(answer("skip", id="2"), answer("retry"))
    assert run.state_of("a") == "BLOCKED"
    run.settle(answer("skip", id="3"))
    assert run.state_of("a") == "FAILED"


def test_an_answer_that_comes_before_the_question_is_none() -> None:
    run = Run(plan()).started()
    run.arrive("first")
    run.settle(answer("skip"))
    assert run.state_of("a") == "READY"
    assert "g:a" not in run.values


def test_a_step_in_quarantine_asks_too_and_starts_anew() -> None:
    run = Run(plan()).started()
    run.arrive("first")
    run.values |= {"d:a": "4"}
    run.settle({"t": "quarantine", "step": "a", "was": run.values["s:a"], "reason": "died"})
    assert run.state_of("a") == "BLOCKED"
    run.settle(answer("retry"))
    assert run.state_of("a") == "READY"
    assert "d:a" not in run.values


def test_a_step_that_no_worker_took_asks_too() -> None:
    run = Run(plan(timeout={"queue": "30s"})).started()
    run.arrive("first")
    run.settle({"t": "timer", "step": "a", "on": QUEUE, "was": run.values["s:a"]})
    assert run.values["s:a"].startswith("BLOCKED|SIGNAL|")
    run.settle(answer("fail"))
    assert json.loads(run.values["o:a"])["code"] == "STEP_TIMEOUT"


def test_a_childs_failure_is_asked_about_and_another_one_may_be_wanted() -> None:
    run = Run(plan(workflow="other")).started()
    run.arrive("first")
    error = errors.ChildFailed("no").as_dict()
    run.settle({"t": "child", "step": "a", "attempt": 1, "state": "FAILED", "error": error})
    assert run.values["s:a"].startswith("BLOCKED|SIGNAL|")
    run.settle(answer("retry"))
    assert run.values["s:a"].split("|")[:2] == ["BLOCKED", "CHILD"]
    run.settle({"t": "child", "step": "a", "attempt": 2, "state": "SUCCEEDED", "output": 3})
    assert run.values["o:a"] == "3"


def test_a_cancelled_run_asks_no_more() -> None:
    run = asking()
    run.settle({"t": "cancel", "by": "ann", "reason": ""})
    assert (run.state, run.state_of("a")) == ("CANCELLED", "CANCELLED")


@pytest.mark.parametrize("said", [{"decision": "again"}, {}, None, {"decision": ["retry"]}])
def test_what_is_no_answer_is_refused_at_the_door(said: Any) -> None:
    with pytest.raises(errors.InvalidInput, match="what to do"):
        check_signal(plan(), "a", said)


def test_compensate_is_an_answer_only_where_something_can_be_undone() -> None:
    check_signal(plan(), "a", {"decision": "compensate"})
    with pytest.raises(errors.InvalidInput) as caught:
        check_signal(plan_of(a={"on_failure": "ask"}), "a", {"decision": "compensate"})
    assert caught.value.hint is not None
    assert "retry, skip, fail" in caught.value.hint


def test_a_step_with_a_concurrency_key_leaves_it_to_ask_and_gets_in_line_again() -> None:
    run = Run(plan(concurrency_key="k", timeout={"queue": "30s"}, **{"with": {"x": "first"}})).started()
    run.arrive("first")
    run.values |= {"s:a": "READY|1.1", "n:a": "1"}
    made = run.settle({"t": "timer", "step": "a", "on": QUEUE, "was": "READY|1.1"})
    assert run.values["s:a"].startswith("BLOCKED|SIGNAL|")
    assert {on for step, on, due in made.timers if step == "a" and due is not None} == {LEAVE}
    made = run.settle(answer("retry"))
    assert run.values["s:a"].startswith("BLOCKED|LIMIT|")
    assert [(step, on) for step, on, due in made.timers if due is not None] == [("a", ASK)]
    assert made.rings == []
    assert "r:a" not in made.writes, "it is there already: a write that expects nothing there is refused for ever"
