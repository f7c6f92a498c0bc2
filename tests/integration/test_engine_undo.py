"""Compensation on a real board and journal: once, in order, and only when SQL knows that the run is being undone."""

from __future__ import annotations

from typing import Any

import pytest

from convergio.graphflow.board import fields
from convergio.graphflow.engine import reason
from convergio.graphflow.engine.fork import Fork
from convergio.graphflow.engine.inquiry import Inquiry
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.journal.rows import ForkKind
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from tests.integration.engine_rig import QUIET, Stage

pytestmark = QUIET


def trip(pay: str = "probe.raises", undo: str = "probe.echo", **header: Any) -> Workflow:
    """flight -> hotel -> pay, which fails; hotel, then flight, is undone with what it gave."""
    made = WorkflowBuilder("trip", version=1, **header)
    back = {"task": "probe.echo", "with": {"value": "flight.value"}, "retry": {"max": 1, "backoff": "1s"}}
    flight = made.task("flight", "probe.echo", value="'LH1'", compensate=back)
    other = {**back, "task": undo, "with": {"kind": "'no text'"} if undo == "probe.raises" else {}}
    hotel = made.task("hotel", "probe.echo", after=flight, value="'Ritz'", compensate=other)
    given = {"kind": "'permanent of an exception'"} if pay == "probe.raises" else {"name": "'pay'"}
    made.task("pay", pay, after=hotel, on_failure="compensate", with_=given)
    return made.build()


def turns(stage: Stage, count: int = 6) -> None:
    for _ in range(count):
        stage.answer_all()
        stage.journal()


def undone(stage: Stage, ref: RunRef) -> list[str]:
    """The undo steps that have succeeded, in SQL's order."""
    rows = stage.history.facts(ref.run).outcomes
    return [row.step for row in rows if row.step.startswith("undo:") and row.state is StepState.SUCCEEDED]


def test_a_run_that_fails_undoes_what_it_did_the_last_first(stage: Stage) -> None:
    ref = stage.submit(trip())
    turns(stage)
    row = stage.row(ref)
    assert row.state is RunState.FAILED
    assert undone(stage, ref) == ["undo:hotel", "undo:flight"]
    assert stage.outcomes(ref)["undo:flight"].output == {"value": "LH1"}, "it had the result of its step"
    assert row.error is not None
    assert (row.error["step"], row.error["compensated"]) == ("pay", ["hotel", "flight"])


def test_nothing_is_undone_before_sql_knows(stage: Stage) -> None:
    ref = stage.submit(trip())
    stage.answer_all()
    assert stage.values(ref)["@state"] == "COMPENSATING"
    assert stage.bells() == []
    assert stage.row(ref).state is RunState.ACCEPTED
    stage.journal()
    assert stage.row(ref).state is RunState.COMPENSATING
    assert stage.bells() == [("undo:hotel", "1.1")]


def test_no_other_step_is_claimed_while_a_run_is_undone(stage: Stage) -> None:
    ref = stage.submit(trip())
    stage.answer_all()
    stage.journal()
    stage.client.hset(stage.keys.run(ref), fields.state("pay"), "READY|1.9")
    assert stage.ring(ref, "pay", "1.9") is None
    assert stage.ring(ref, "undo:hotel", "1.1") is not None


def test_an_undo_is_retried_by_its_policy_and_told_when_it_fails_for_good(stage: Stage) -> None:
    ref = stage.submit(trip(undo="probe.raises"))
    turns(stage, 2)
    assert stage.word(ref, "undo:hotel").text.startswith("BLOCKED|RETRY")
    stage.pass_time(2)
    turns(stage)
    assert stage.outcomes(ref)["undo:hotel"].attempt == 2
    error = stage.row(ref).error or {}
    assert error["compensated"] == ["flight"]
    assert [(left["step"], left["code"]) for left in error["uncompensated"]] == [("hotel", "STEP_FAILED")]


@pytest.mark.parametrize("journaled", [True, False])
@pytest.mark.parametrize("moment", range(6))
def test_a_wiped_board_undoes_nothing_twice_and_forgets_nothing(stage: Stage, moment: int, journaled: bool) -> None:
    """After so many moves, worker and journaler in turn, the board is gone."""
    ref = stage.submit(trip())
    stage.journal()
    for number in range(moment):
        if number % 2:
            stage.journal()
        else:
            stage.answer_all()
    if journaled:
        stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.worker.meet_new_board()
    for _ in range(6):
        stage.pass_time(7)
        turns(stage, 2)
    assert stage.row(ref).state is RunState.FAILED
    assert undone(stage, ref) == ["undo:hotel", "undo:flight"]


def test_an_undo_that_runs_while_the_board_is_wiped_is_not_run_twice(stage: Stage) -> None:
    ref = stage.submit(trip())
    stage.answer_all()
    stage.journal()
    claim = stage.claim(ref, "undo:hotel")
    stage.wipe()
    stage.rebuild()
    stage.worker.meet_new_board()
    assert stage.word(ref, "undo:hotel").state is StepState.RUNNING
    stage.worker.steps.succeed(claim, "undone")
    turns(stage)
    assert undone(stage, ref) == ["undo:hotel", "undo:flight"]
    assert stage.outcomes(ref)["undo:hotel"].output == "undone"


def test_a_killed_workers_undo_runs_again(stage: Stage) -> None:
    ref = stage.submit(trip())
    stage.answer_all()
    stage.journal()
    assert stage.take() is not None
    stage.claim(ref, "undo:hotel")
    stage.pass_time(14)
    stage.journal()
    assert stage.events(ref, "step.expired")
    turns(stage)
    assert undone(stage, ref) == ["undo:hotel", "undo:flight"]


def test_a_cancelled_run_is_undone_where_its_workflow_says_so(stage: Stage) -> None:
    ref = stage.submit(trip("probe.hold", on_failure="compensate"))
    while (bell := stage.take()) is not None and bell.step != "pay":
        stage.worker.answer(bell)
    stage.worker.process.entrance.cancel(ref, by="ann")
    stage.journal()
    stage.service.sweeper.apply_rows()
    turns(stage)
    assert stage.row(ref).state is RunState.CANCELLED
    assert (stage.row(ref).error or {})["compensated"] == ["hotel", "flight"]


def test_a_retry_does_again_what_was_undone(stage: Stage) -> None:
    ref = stage.submit(trip())
    turns(stage)
    forked = stage.worker.process.entrance.fork(Fork(ref=ref, kind=ForkKind.RETRY))
    assert forked.reused == 0
    turns(stage)
    assert undone(stage, RunRef(tenant="default", run=forked.run.run_id)) == ["undo:hotel", "undo:flight"]


def test_why_says_what_is_undone(stage: Stage) -> None:
    ref = stage.submit(trip())
    inquiry = Inquiry(stage.service.link, stage.history, stage.worker.process.core.ringer.bell.list_of)
    assert list(inquiry.view(ref).steps) == ["flight", "hotel", "pay"]
    stage.answer_all()
    view = inquiry.view(ref)
    assert "undoes what it did before it ends: that begins when SQL knows" in reason.of_run(view)
    stage.journal()
    view = inquiry.view(ref)
    assert list(view.steps) == ["flight", "hotel", "pay", "undo:hotel"]
    assert "undoes what it did before it ends: undo:hotel is queued" in reason.of_run(view)
    turns(stage)
    assert list(inquiry.view(ref).steps) == ["flight", "hotel", "pay", "undo:hotel", "undo:flight"]
