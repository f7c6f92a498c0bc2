"""Join policies, failures that the run survives, steps that only wait, and patience with the queue."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from convergio.graphflow.decision import Decision
from convergio.graphflow.model.workflow import Join, JoinKind
from convergio.graphflow.waiting import QUEUE
from tests.unit.deciding import APPROVE, NOW, Run, arrived, plan_of, signal

PARENTS = ("a", "b", "c")


def joined(policy: Any, *, states: Sequence[str]) -> str:
    """What becomes of a join after its parents a, b and c came to these states, one after the other."""
    parents: dict[str, Any] = {name: {"on_failure": "continue"} for name in PARENTS}
    run = Run(plan_of(**parents, join={"needs": list(PARENTS), "join": policy}, end={"needs": ["join"]})).started()
    for name, state in zip(PARENTS, states, strict=False):
        if state == "s":
            run.arrive(name)
        else:
            run.values[f"s:{name}"] = "SKIPPED"
            run.settle(arrived(name))
    return run.state_of("join")


@pytest.mark.parametrize(
    ("policy", "states", "becomes"),
    [
        ("all", "ss", "WAITING"),
        ("all", "sss", "READY"),
        ("all", "s--", "READY"),
        ("all", "---", "SKIPPED"),
        ("any", "--", "WAITING"),
        ("any", "--s", "READY"),
        ("any", "s", "READY"),
        ("any", "---", "SKIPPED"),
        ({"quorum": 2}, "s-", "WAITING"),
        ({"quorum": 2}, "s-s", "READY"),
        ({"quorum": 2}, "ss", "READY"),
        ({"quorum": 2}, "--", "SKIPPED"),
        ({"tolerate": 1}, "ss", "WAITING"),
        ({"tolerate": 1}, "s-s", "READY"),
        ({"tolerate": 1}, "s-", "WAITING"),
        ({"tolerate": 1}, "--", "SKIPPED"),
        ({"tolerate": 2}, "---", "SKIPPED"),
    ],
)
def test_a_join_starts_as_its_policy_says(policy: Any, states: str, becomes: str) -> None:
    assert joined(policy, states=states) == becomes


def test_a_join_that_has_started_is_not_rung_again_by_those_who_come_later() -> None:
    parents: dict[str, Any] = {name: {} for name in PARENTS}
    run = Run(plan_of(**parents, join={"needs": list(PARENTS), "join": "any"})).started()
    for name in PARENTS:
        run.arrive(name)
    assert run.rings_of("join") == ["1.1"]


def test_what_a_join_did_not_wait_for_reads_as_null_until_sql_has_it() -> None:
    """The outcome of b is on the board, and parked: nothing follows from it yet."""
    later = {"needs": ["a", "b"], "join": "any", "when": "b == null"}
    run = Run(plan_of(a={}, b={"durability": "step"}, c=later)).started()
    run.values |= {"s:b": "BLOCKED|JOURNAL|5|SUCCEEDED|1.1.n", "o:b": '{"ok":true}'}
    run.arrive("a")
    assert run.state_of("c") == "READY"


@pytest.mark.parametrize("kind", list(JoinKind))
def test_when_all_edges_are_resolved_every_join_policy_has_a_verdict(kind: JoinKind) -> None:
    for count in range(4):
        for taken in range(4):
            assert Join(kind=kind, count=count).fires(edges=3, resolved=3, taken=taken) is not None
            assert taken or not Join(kind=kind, count=count).fires(edges=3, resolved=3, taken=0)


# --- on_failure -------------------------------------------------------------------------------------------------------


def test_a_run_survives_the_failure_of_a_step_that_says_so_and_reads_null_for_its_result() -> None:
    plan = plan_of(
        {"a": "a", "b": "b"},
        a={"on_failure": "continue"},
        b={"needs": ["a"], "when": "a == null", "with": {"x": "a"}},
        c={"needs": [{"step": "a", "when": "a != null"}]},
    )
    run = Run(plan).started()
    run.values["s:a"] = "FAILED|1.1.n"
    run.settle(arrived("a"))
    assert run.states() == {"a": "FAILED", "b": "READY", "c": "SKIPPED"}
    run.arrive("b", 7)
    assert run.state == "SUCCEEDED"
    assert json.loads(run.values["@output"]) == {"a": None, "b": 7}


def test_a_quarantined_step_may_be_survived_as_well() -> None:
    run = Run(plan_of(a={"on_failure": "continue"}, b={"needs": ["a"]})).started()
    run.values["s:a"] = "RUNNING|1.1.n"
    run.settle({"t": "quarantine", "step": "a", "was": "RUNNING|1.1.n", "reason": "too often"})
    assert run.states() == {"a": "QUARANTINED", "b": "READY"}
    assert "o:a" not in run.values, "successors would read the error as a result"


# --- wait -------------------------------------------------------------------------------------------------------------


def timer(run: Run, step: str, on: str) -> Decision:
    """The sweeper finds the timer due."""
    return run.settle({"t": "timer", "step": step, "on": on, "was": run.values[f"s:{step}"]})


def test_a_wait_takes_its_time_without_a_worker() -> None:
    run = Run(plan_of(pause={"wait": {"for": "5m"}}, b={"needs": ["pause"]}))
    begun = run.settle({"t": "start"})
    assert run.states() == {"pause": "BLOCKED"}
    assert begun.rings == []
    assert begun.timers == [("pause", "TIMER", NOW + 300_000)]
    due = timer(run, "pause", "TIMER")
    assert run.states() == {"pause": "SUCCEEDED", "b": "READY"}
    assert ("pause", "TIMER", None) in due.timers, "the timer is dropped with the decision"


def test_a_wait_until_a_moment_reads_it_from_an_expression() -> None:
    run = Run(plan_of(a={}, then={"wait": {"until": "a.at"}, "needs": ["a"]})).started()
    made = run.arrive("a", {"at": "2027-01-01T00:00:00+01:00"})
    assert made.timers == [("then", "TIMER", 1_798_758_000_000)]


@pytest.mark.parametrize("at", ["soon", "2027-01-01T00:00:00", 7, None])
def test_a_moment_that_is_none_fails_the_step(at: Any) -> None:
    run = Run(plan_of(a={}, then={"wait": {"until": "a.at"}, "needs": ["a"]})).started()
    run.arrive("a", {"at": at})
    assert run.state_of("then") == "FAILED"
    assert run.state == "FAILED"


def test_a_signal_ends_the_wait_for_it_and_is_its_result() -> None:
    run = Run(plan_of(paid={"wait": {"signal": "payment", "timeout": "1h"}}, b={"needs": ["paid"]})).started()
    made = run.settle(signal("payment", {"amount": 3}))
    assert run.states() == {"paid": "SUCCEEDED", "b": "READY"}
    assert json.loads(run.values["o:paid"]) == {"amount": 3}
    assert ("paid", "SIGNAL", None) in made.timers
    assert [event.data for event in made.events if event.kind == "signal.applied"] == [
        '{"id":"1","name":"payment","how":"applied"}'
    ]


def test_a_signal_that_came_before_the_wait_counts_once() -> None:
    waits = {"needs": ["a"], "wait": {"signal": "payment"}}
    run = Run(plan_of(a={}, paid=waits, again={**waits, "needs": ["paid"]})).started()
    run.settle(signal("payment", {"amount": 3}))
    run.arrive("a")
    assert run.states() == {"a": "SUCCEEDED", "paid": "SUCCEEDED", "again": "BLOCKED"}
    run.settle(signal("payment", {"amount": 4}, id="2"))
    assert run.state == "SUCCEEDED"
    assert json.loads(run.values["o:again"]) == {"amount": 4}


def test_who_waits_too_long_for_a_signal_fails() -> None:
    run = Run(plan_of(paid={"wait": {"signal": "payment", "timeout": "1h"}})).started()
    timer(run, "paid", "SIGNAL")
    assert run.state == "FAILED"
    assert json.loads(run.values["o:paid"])["code"] == "STEP_TIMEOUT"


def test_a_timer_that_is_due_after_the_signal_changes_nothing() -> None:
    run = Run(plan_of(paid={"wait": {"signal": "payment", "timeout": "1h"}}, b={"needs": ["paid"]})).started()
    late = {"t": "timer", "step": "paid", "on": "SIGNAL", "was": run.values["s:paid"]}
    run.settle(signal("payment", {"amount": 3}))
    made = run.settle(late)
    assert run.state_of("paid") == "SUCCEEDED"
    assert made.timers == [("paid", "SIGNAL", None)]
    assert made.writes == {}


def test_one_signal_may_end_an_approval_and_a_wait_of_the_same_name() -> None:
    run = Run(plan_of(sign={"approval": {}}, heard={"wait": {"signal": "sign"}})).started()
    run.values["s:sign"] = "BLOCKED|SIGNAL|5|sign|1.1.n"
    run.settle(signal("sign", APPROVE))
    assert run.state_of("heard") == "SUCCEEDED"
    assert run.values["s:sign"].startswith("BLOCKED|JOURNAL|")


def test_waits_are_withdrawn_with_their_run() -> None:
    run = Run(plan_of(pause={"wait": {"for": "5m"}}, b={})).started()
    made = run.settle({"t": "cancel", "by": "ann", "reason": "enough"})
    assert run.states() == {"pause": "CANCELLED", "b": "CANCELLED"}
    assert made.timers == [("pause", "TIMER", None)]


# --- the queue --------------------------------------------------------------------------------------------------------


def test_a_step_that_no_worker_takes_in_time_fails() -> None:
    run = Run(plan_of(a={"timeout": {"queue": "30s"}}))
    assert run.settle({"t": "start"}).timers == [("a", QUEUE, NOW + 30_000)]
    timer(run, "a", QUEUE)
    assert run.state == "FAILED"
    assert "no worker of queue 'steps'" in json.loads(run.values["o:a"])["message"]


def test_a_step_that_was_taken_in_time_is_not_touched() -> None:
    run = Run(plan_of(a={"timeout": {"queue": "30s"}})).started()
    was = run.values["s:a"]
    run.values["s:a"] = "RUNNING|1.1.n"
    run.settle({"t": "timer", "step": "a", "on": QUEUE, "was": was})
    assert run.values["s:a"] == "RUNNING|1.1.n"
