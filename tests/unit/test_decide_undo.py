"""Compensation: what is undone, in which order, once, and what the run comes to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from convergio.graphflow import decide
from convergio.graphflow.board import fields
from convergio.graphflow.flow import document
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors, workflow
from tests.unit.deciding import NOW, Run, arrived, plan_of

UNDO = {"compensate": {"task": "m.undo"}}


def trip(**header: Any) -> Plan:
    """flight -> hotel -> pay, and mail beside hotel; flight and hotel can be undone."""
    steps = {
        "flight": {"task": "m.f", **UNDO},
        "hotel": {"task": "m.f", "needs": ["flight"], **UNDO},
        "mail": {"task": "m.f", "needs": ["flight"]},
        "pay": {"task": "m.f", "needs": ["hotel", "mail"], "on_failure": "fail" if header else "compensate"},
    }
    return Plan.of(document.parse_document({"workflow": "trip", "version": 1, "steps": steps, **header}))


def failed(plan: Plan) -> Run:
    """Everything but pay has succeeded, and pay has failed."""
    run = Run(plan).started()
    for step in ("flight", "hotel", "mail"):
        run.arrive(step)
    run.fail("pay", "no money")
    run.settle(arrived("pay"))
    return run


def test_what_succeeded_is_undone_the_last_first_when_sql_knows() -> None:
    run = failed(trip())
    assert run.state == "COMPENSATING"
    assert run.events[-1].kind == "run.compensating"
    assert run.events[-1].park
    run.settle(arrived("hotel"), arrived("pay"))
    assert run.rings_of("undo:hotel") == [], "SQL does not know yet"
    run.release("undo:")
    assert (run.rings_of("undo:hotel"), run.rings_of("undo:flight")) == (["1.1"], [])
    run.arrive("undo:hotel")
    assert run.rings_of("undo:flight") == ["1.1"]
    run.arrive("undo:flight")
    assert run.state == "FAILED"
    error = json.loads(run.values["@error"])
    assert (error["message"], error["step"], error["compensated"]) == ("no money", "pay", ["hotel", "flight"])
    assert error["uncompensated"] == []


def test_an_undo_that_fails_is_told_and_the_others_are_tried() -> None:
    run = failed(trip())
    run.release("undo:")
    run.fail("undo:hotel", "closed")
    run.settle(arrived("undo:hotel"))
    run.arrive("undo:flight")
    error = json.loads(run.values["@error"])
    assert (run.state, error["compensated"]) == ("FAILED", ["flight"])
    assert error["uncompensated"] == [{"step": "hotel", "code": "E", "message": "closed"}]


def test_what_is_read_ahead_for_the_end_of_undoing_is_known_though_it_is_no_step() -> None:
    for name in (workflow.UNDO, f"{workflow.UNDO}hotel"):
        assert fields.state(name) in decide.wanted(trip(), name)


def test_a_repeated_arrival_undoes_nothing_twice() -> None:
    run = failed(trip())
    run.release("undo:")
    for _ in range(2):
        run.settle(arrived("undo:"), arrived("pay"), arrived("hotel"))
    run.arrive("undo:hotel")
    run.settle(arrived("undo:hotel"))
    assert (run.rings_of("undo:hotel"), run.rings_of("undo:flight")) == (["1.1"], ["1.1"])


@pytest.mark.parametrize("budget", [1, 2, 3, 10])
def test_every_budget_undoes_the_same(budget: int) -> None:
    run = Run(trip(), budget=budget).started()
    for step in ("flight", "hotel", "mail"):
        run.arrive(step)
    run.fail("pay", "no money")
    run.settle(arrived("pay"))
    run.release("undo:")
    run.arrive("undo:hotel")
    run.arrive("undo:flight")
    assert json.loads(run.values["@error"])["compensated"] == ["hotel", "flight"]


def test_only_what_succeeded_is_undone() -> None:
    run = Run(trip(on_failure="compensate")).started()
    run.arrive("flight")
    run.fail("hotel", "full")
    run.settle(arrived("hotel"))
    assert run.state_of("mail") == "CANCELLED"
    run.release("undo:")
    run.arrive("undo:flight")
    assert json.loads(run.values["@error"])["compensated"] == ["flight"]
    assert "s:undo:hotel" not in run.values


def test_an_outcome_that_waits_for_sql_is_undone_when_it_is_there() -> None:
    run = Run(trip(on_failure="compensate")).started()
    run.arrive("flight")
    run.arrive("mail")
    run.values["s:hotel"] = f"BLOCKED|JOURNAL|{NOW}|SUCCEEDED|1.1.n"
    run.fail("mail", "no")
    run.values.pop("c:mail")
    run.settle(arrived("mail"))
    run.release("undo:")
    assert run.rings_of("undo:flight") == []
    run.release("hotel")
    assert run.rings_of("undo:hotel") == ["1.1"]


def test_a_failure_ends_a_run_as_ever_where_nobody_asked_for_more() -> None:
    steps: dict[str, Any] = {"a": UNDO, "b": {"needs": ["a"]}}
    run = Run(plan_of(**steps)).started()
    run.arrive("a")
    run.fail("b", "no")
    run.settle(arrived("b"))
    assert run.state == "FAILED"


def test_a_cancelled_run_is_undone_where_its_workflow_says_so() -> None:
    for header, state in (({"on_failure": "compensate"}, "COMPENSATING"), ({}, "CANCELLED")):
        run = Run(trip(**header)).started()
        run.arrive("flight")
        run.settle({"t": "cancel", "by": "ann", "reason": ""})
        assert run.state == state
    run = Run(trip(on_failure="compensate")).started()
    run.arrive("flight")
    for _ in range(2):  # the sweeper tells it again, for as long as the run lives
        run.settle({"t": "cancel", "by": "ann", "reason": ""})
    run.release("undo:")
    run.arrive("undo:flight")
    assert run.state == "CANCELLED"
    assert json.loads(run.values["@error"])["code"] == "RUN_CANCELLED"


def test_a_cancel_ends_the_undoing_of_a_run_that_failed() -> None:
    run = failed(trip())
    run.release("undo:")
    run.arrive("undo:hotel")
    run.settle({"t": "cancel", "by": "ann", "reason": "stuck"})
    assert (run.state, run.state_of("undo:flight")) == ("CANCELLED", "CANCELLED")
    error = json.loads(run.values["@error"])
    assert (error["code"], error["compensated"]) == ("RUN_CANCELLED", ["hotel"])
    assert error["uncompensated"] == [{"step": "flight"}]


def test_a_paused_run_that_fails_is_undone() -> None:
    run = Run(trip()).started()
    for step in ("flight", "hotel", "mail"):
        run.arrive(step)
    run.settle({"t": "pause", "cv": 1, "by": "ann"})
    run.fail("pay", "no")
    run.settle(arrived("pay"))
    run.release("undo:")
    assert run.rings_of("undo:hotel") == ["1.1"]
    run.settle({"t": "resume", "cv": 2, "by": "ann"})
    assert run.state == "COMPENSATING"


def test_an_undo_whose_workers_die_is_put_in_quarantine_and_the_next_one_begins() -> None:
    run = failed(trip())
    run.release("undo:")
    run.settle({"t": "quarantine", "step": "undo:hotel", "was": run.values["s:undo:hotel"], "reason": "died"})
    assert run.state_of("undo:hotel") == "QUARANTINED"
    assert run.rings_of("undo:flight") == ["1.1"]
    run.arrive("undo:flight")
    (left,) = json.loads(run.values["@error"])["uncompensated"]
    assert left["code"] == errors.Quarantined.code


def test_a_result_that_cannot_be_made_is_a_failure_like_any_other() -> None:
    run = Run(trip(on_failure="compensate", output={"x": "flight.nothing.at_all"})).started()
    for step in ("flight", "hotel", "mail", "pay"):
        run.arrive(step)
    assert run.state == "COMPENSATING"
