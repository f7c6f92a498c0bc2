"""Child runs: a step that is a run of another workflow, started once, told once, by rows, across whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from convergio.graphflow.engine import children, reason
from convergio.graphflow.engine.fork import Fork
from convergio.graphflow.engine.inquiry import Inquiry
from convergio.graphflow.journal.rows import ForkKind
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef, child_of
from convergio.graphflow.model.states import BlockedOn, RunState
from tests.integration import families
from tests.integration.engine_rig import QUIET, Stage, stage_on

pytestmark = QUIET


@pytest.fixture
def stage(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Stage]:
    with stage_on(valkey, sqlite_url, tmp_path, include="tests.integration.families") as made:
        yield made


def turn(stage: Stage) -> None:
    """Everybody does what is left, once: workers, journaler, nurse."""
    stage.answer_all()
    stage.journal()
    stage.service.children.tend()


def turns(stage: Stage, count: int = 6) -> None:
    for _ in range(count):
        turn(stage)


def begun(stage: Stage, workflow: Any, given: Any = None) -> tuple[RunRef, RunRef]:
    """A run whose step `call` waits for its child, and that child."""
    ref = stage.submit(workflow, given)
    turn(stage)
    return ref, child_of(ref, "call", 1)


def test_a_child_is_a_run_whose_output_is_the_steps_result(stage: Stage) -> None:
    ref, child = begun(stage, families.parent())
    assert stage.word(ref, "call").blocked_on is BlockedOn.CHILD
    row = stage.row(child)
    assert (row.workflow, row.input, row.submitter, row.tenant) == ("leaf", {"n": 3}, "anonymous", "default")
    assert (row.parent_run, row.parent_step, row.depth) == (ref.run, "call", 1)
    turns(stage)
    assert stage.row(child).output == {"value": 3}
    assert stage.row(ref).output == {"got": {"value": 3}, "said": {"value": 3}}
    assert stage.service.children.tend() == 0, "nothing is left to do about it"


def test_it_waits_without_a_slot_and_without_a_message(stage: Stage) -> None:
    ref, child = begun(stage, families.parent("held", with_={"name": "'x'"}))
    while stage.take() is not None:
        pass
    assert stage.bells() == []
    assert stage.client.zcard(stage.keys.leases) == 0
    assert len(stage.worker.claims) == 0
    assert stage.states(ref)["call"] == "BLOCKED"
    assert stage.word(child, "work").text.startswith("READY")


def test_a_grandchild_has_the_definition_that_was_pinned_at_the_top(stage: Stage) -> None:
    ref, child = begun(stage, families.parent("middle"))
    assert stage.row(ref).pins == {"middle": families.MIDDLE.digest, "leaf": families.LEAF.digest}
    turns(stage)
    grandchild = stage.row(child_of(child, "below", 1))
    assert (grandchild.digest, grandchild.depth) == (families.LEAF.digest, 2)
    assert stage.row(ref).output == {"got": {"value": 3}, "said": {"value": 3}}


# --- what cannot be started -------------------------------------------------------------------------------------------


def test_a_child_that_nobody_knows_is_refused_at_the_door(stage: Stage) -> None:
    with pytest.raises(errors.UnknownWorkflow, match="'nobody', which 'parent' starts"):
        stage.submit(families.parent("nobody"))


def test_an_input_that_does_not_fit_the_child_fails_the_step(stage: Stage) -> None:
    ref, child = begun(stage, families.parent(with_={"n": "'three'"}, retry=3))
    turns(stage)
    assert stage.row(ref).state is RunState.FAILED
    assert (stage.row(ref).error or {})["code"] == "INVALID_INPUT"
    with pytest.raises(errors.UnknownRun):
        stage.row(child)


def test_an_argument_that_cannot_be_evaluated_fails_the_step(stage: Stage) -> None:
    ref, _ = begun(stage, families.parent(with_={"n": "first.value.nothing"}))
    turns(stage)
    assert (stage.row(ref).error or {})["code"] == "EXPRESSION_FAILED"


def test_a_workflow_that_starts_itself_without_an_end_comes_to_one(stage: Stage) -> None:
    ref = stage.submit(families.ENDLESS)
    turns(stage, 40)
    assert stage.row(ref).state is RunState.FAILED
    assert "CHILD_TOO_DEEP" in str((stage.row(ref).error or {})["message"])
    runs = stage.history.runs("default", workflow="endless")
    assert max(row.depth or 0 for row in runs) == children.DEEPEST


# --- its failure, its retries, its time -------------------------------------------------------------------------------


def test_a_childs_failure_fails_the_step_and_names_the_child(stage: Stage) -> None:
    ref, child = begun(stage, families.parent("broken"))
    turns(stage)
    error = stage.row(ref).error or {}
    assert (error["code"], error["step"], error["child"]) == ("CHILD_FAILED", "call", child.run)
    assert child.run in error["message"]


def test_another_attempt_is_another_child(stage: Stage) -> None:
    ref, child = begun(stage, families.parent("broken", retry={"max": 1, "backoff": "1s"}))
    turns(stage, 2)
    assert stage.word(ref, "call").blocked_on is BlockedOn.RETRY
    stage.pass_time(2)
    turns(stage)
    second = child_of(ref, "call", 2)
    assert [stage.row(one).state for one in (child, second)] == [RunState.FAILED, RunState.FAILED]
    assert stage.outcomes(ref)["call"].attempt == 2
    assert (stage.row(ref).error or {})["child"] == second.run


def test_a_retry_policy_may_name_the_childs_own_error(stage: Stage) -> None:
    ref, _ = begun(stage, families.parent("broken", retry={"max": 1, "backoff": "1s", "on": ["MODEL_REFUSED"]}))
    turns(stage, 3)
    assert stage.row(ref).state is RunState.FAILED
    ref, _ = begun(stage, families.parent("broken", retry={"max": 1, "backoff": "1s", "on": ["STEP_FAILED"]}))
    turns(stage, 3)
    assert stage.word(ref, "call").blocked_on is BlockedOn.RETRY


def test_a_child_that_takes_too_long_is_cancelled_and_its_step_has_failed(stage: Stage) -> None:
    ref, child = begun(stage, families.parent("held", with_={"name": "'x'"}, timeout="5s"))
    stage.pass_time(6)
    stage.journal()
    stage.service.children.tend()
    stage.journal()
    assert (stage.row(ref).error or {})["code"] == "STEP_TIMEOUT"
    assert stage.row(child).state is RunState.CANCELLED
    assert stage.row(child).cancel_by == f"run {ref.run}"
    assert stage.service.children.tend() == 1, "settled"
    assert stage.service.children.tend() == 0


def test_the_childs_end_after_its_time_changes_nothing(stage: Stage) -> None:
    workflow = families.parent("held", with_={"name": "'x'"}, timeout="5s", on_failure="continue")
    ref, child = begun(stage, workflow)
    claim = stage.claim(child, "work")
    stage.pass_time(5.5, also=stage.worker.pulse)
    stage.worker.steps.succeed(claim, "late")
    turns(stage)
    assert stage.row(child).state is RunState.SUCCEEDED
    assert stage.row(ref).state is RunState.SUCCEEDED
    assert stage.row(ref).output == {"got": None, "said": None}


# --- control ----------------------------------------------------------------------------------------------------------


def test_cancelling_a_run_cancels_its_children(stage: Stage) -> None:
    ref, child = begun(stage, families.parent("held", with_={"name": "'x'"}))
    stage.worker.process.entrance.cancel(ref, by="ann")
    stage.journal()
    assert stage.row(ref).state is RunState.CANCELLED
    assert stage.service.children.news.is_set()
    stage.service.children.tend()
    stage.journal()
    assert stage.row(child).state is RunState.CANCELLED


def test_a_run_that_ended_before_its_child_was_accepted_has_none(stage: Stage) -> None:
    ref = stage.submit(families.parent("held", with_={"name": "'x'"}))
    stage.answer_all()
    stage.worker.process.entrance.cancel(ref, by="ann")
    stage.journal()
    stage.service.children.tend()
    with pytest.raises(errors.UnknownRun):
        stage.row(child_of(ref, "call", 1))


def test_a_child_that_somebody_cancels_fails_the_step_and_is_not_tried_again(stage: Stage) -> None:
    ref, child = begun(stage, families.parent("held", with_={"name": "'x'"}, retry=3))
    stage.worker.process.entrance.cancel(child, by="ann")
    turns(stage, 2)
    assert (stage.row(ref).error or {})["code"] == "CHILD_CANCELLED"


def test_a_paused_run_starts_no_child_and_one_that_runs_goes_on(stage: Stage) -> None:
    ref = stage.submit(families.parent())
    first = stage.claim(ref, "first")
    stage.worker.process.entrance.pause(ref, by="ann")
    stage.worker.steps.succeed(first, {"value": 3})
    turns(stage, 2)
    assert stage.states(ref)["call"] == "BLOCKED"
    child = child_of(ref, "call", 1)
    with pytest.raises(errors.UnknownRun):
        stage.row(child)
    stage.worker.process.entrance.resume(ref, by="ann")
    stage.journal()
    stage.service.children.tend()
    stage.worker.process.entrance.pause(ref, by="ann")
    turns(stage)
    assert stage.row(child).state is RunState.SUCCEEDED
    assert stage.states(ref) == {"first": "SUCCEEDED", "call": "SUCCEEDED", "last": "READY"}
    stage.worker.process.entrance.resume(ref, by="ann")
    turns(stage)
    assert stage.row(ref).state is RunState.SUCCEEDED


# --- recovery ---------------------------------------------------------------------------------------------------------


def wiped(stage: Stage) -> None:
    """FLUSHALL, and a new board."""
    stage.wipe()
    stage.rebuild()
    stage.worker.meet_new_board()


@pytest.mark.parametrize("journaled", [True, False])
@pytest.mark.parametrize("moment", ["wanted", "accepted", "started", "ended", "told"])
def test_a_wiped_board_costs_no_child_and_makes_no_second_one(stage: Stage, moment: str, journaled: bool) -> None:
    ref = stage.submit(families.parent())
    child, nurse = child_of(ref, "call", 1), stage.service.children
    stage.answer_all()
    if moment != "wanted":
        stage.journal()
        with mock.patch.object(nurse.starter, "start") if moment == "accepted" else mock.MagicMock():
            nurse.tend()
    if moment in ("ended", "told"):
        stage.answer_all()
        stage.journal()
    if moment == "told":
        nurse.tend()
    if journaled:
        stage.journal()
    wiped(stage)
    stage.age_rows(60)
    for _ in range(8):
        stage.pass_time(7)
        stage.service.sweeper.apply_rows()
        turn(stage)
    assert stage.row(ref).output == {"got": {"value": 3}, "said": {"value": 3}}
    assert [row.run_id for row in stage.history.runs("default", workflow="leaf")] == [child.run]


def test_a_parent_whose_wake_up_got_lost_is_told_again(stage: Stage) -> None:
    ref, child = begun(stage, families.parent())
    stage.answer_all()
    stage.journal()
    with mock.patch.object(children, "wake_once"):
        stage.service.children.tend()
    assert stage.row(child).state is RunState.SUCCEEDED
    assert stage.states(ref)["call"] == "BLOCKED"
    stage.service.children.tend()
    assert stage.states(ref)["call"] == "SUCCEEDED"


def test_a_cancel_of_a_child_whose_wake_up_got_lost_comes_true(stage: Stage) -> None:
    ref, child = begun(stage, families.parent("held", with_={"name": "'x'"}))
    stage.worker.process.entrance.cancel(ref, by="ann")
    stage.journal()
    with mock.patch.object(children, "wake_once"):
        stage.service.children.tend()
    stage.service.sweeper.apply_rows()
    stage.journal()
    assert stage.row(child).state is RunState.CANCELLED


def test_a_wiped_board_forgets_neither_the_attempt_nor_the_time(stage: Stage) -> None:
    workflow = families.parent("broken", retry={"max": 1, "backoff": "30s"}, timeout="20m")
    ref, _ = begun(stage, workflow)
    turns(stage, 2)
    wiped(stage)
    assert stage.word(ref, "call").blocked_on is BlockedOn.RETRY
    stage.pass_time(34)
    turns(stage, 1)
    due = stage.events(ref, "child.wanted")[1]["due_ms"]
    wiped(stage)
    assert stage.client.zrange(stage.keys.timers, 0, -1, withscores=True) == [(f"{ref}/call/CHILD", due)]
    assert stage.values(ref)["a:call"] == "2"
    turns(stage)
    stage.pass_time(7)
    turns(stage)
    assert stage.outcomes(ref)["call"].attempt == 2


def test_a_child_that_was_accepted_before_a_crash_is_started_by_the_sweeper(stage: Stage) -> None:
    ref = stage.submit(families.parent())
    stage.answer_all()
    stage.journal()
    with mock.patch.object(stage.service.children.starter, "start", side_effect=errors.BoardUnavailable):
        stage.service.children.tend()
    child = child_of(ref, "call", 1)
    assert stage.row(child).state is RunState.ACCEPTED
    stage.age_rows(60)
    stage.service.sweeper.apply_rows()
    turns(stage)
    assert stage.row(ref).state is RunState.SUCCEEDED


# --- again, and why ---------------------------------------------------------------------------------------------------


def test_a_retry_reuses_a_child_that_succeeded_and_starts_one_that_failed_anew(stage: Stage) -> None:
    made = families.parent("broken")
    ref, child = begun(stage, made)
    turns(stage)
    again = stage.worker.process.entrance.fork(Fork(ref=ref, kind=ForkKind.RETRY)).run
    assert again.pins == stage.row(ref).pins
    turns(stage)
    other = child_of(RunRef(tenant="default", run=again.run_id), "call", 1)
    assert stage.row(other).parent_run == again.run_id
    done = stage.submit(families.parent())
    turns(stage)
    forked = stage.worker.process.entrance.fork(Fork(ref=done, step="last"))
    assert forked.reused == 2
    turns(stage)
    assert len(stage.history.runs("default", workflow="leaf")) == 1
    assert child != other


def test_a_fork_with_a_new_definition_takes_new_children(stage: Stage) -> None:
    done = stage.submit(families.parent())
    turns(stage)
    with mock.patch.object(stage.worker.process.entrance, "find", return_value=families.MIDDLE):
        forked = stage.worker.process.entrance.fork(Fork(ref=done, definition=families.parent()))
    assert forked.reused == 1, "the child is not what it was"


def test_why_names_the_child(stage: Stage) -> None:
    ref, child = begun(stage, families.parent("held", with_={"name": "'x'"}, timeout="1h"))
    stage.journal()
    inquiry = Inquiry(stage.service.link, stage.history)
    view = inquiry.view(ref)
    said = reason.of_step(view, view.steps["call"])
    assert f"for run {child.run} of 'held' (running; convergio runs why {child.run})" in said
    assert "it is cancelled in 59 min" in said or "it is cancelled in 1 h" in said
    assert reason.of_origin(inquiry.view(child)) == f"child of {ref.run}, for its step call"
