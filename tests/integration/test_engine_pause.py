"""Pause and resume on a real board and journal: rows first, across lost wake-ups and wipes."""

from __future__ import annotations

from unittest import mock

import pytest

from convergio.graphflow.engine import submission
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState
from tests.integration.engine_rig import QUIET, Stage, chain

pytestmark = QUIET


def pause(stage: Stage, ref: RunRef) -> None:
    stage.worker.process.entrance.pause(ref, by="ann")


def resume(stage: Stage, ref: RunRef) -> None:
    stage.worker.process.entrance.resume(ref, by="ann")


def ended(stage: Stage, ref: RunRef) -> RunState:
    stage.answer_all()
    stage.journal()
    return stage.row(ref).state


def test_a_paused_run_starts_nothing_and_goes_on_when_it_is_told_to(stage: Stage) -> None:
    ref = stage.submit(chain())
    claim = stage.claim(ref, "first")
    pause(stage, ref)
    stage.worker.steps.succeed(claim, {"n": 1})
    stage.journal()
    assert stage.row(ref).state is RunState.PAUSED
    assert stage.states(ref) == {"first": "SUCCEEDED", "last": "READY"}
    assert stage.take() is not None, "the first step's own doorbell"
    assert stage.bells() == []
    resume(stage, ref)
    assert stage.bells() == [("last", "1.2")]
    assert ended(stage, ref) is RunState.SUCCEEDED
    assert [event["by"] for event in stage.events(ref, "run.paused")] == ["ann"]


def test_a_doorbell_that_is_answered_while_its_run_is_paused_is_rung_again(stage: Stage) -> None:
    ref = stage.submit(chain())
    pause(stage, ref)
    assert stage.answer_all() == 1
    assert stage.states(ref) == {"first": "READY"}
    stage.pass_time(30)
    assert stage.bells() == [], "nobody rings for a paused run"
    resume(stage, ref)
    assert ended(stage, ref) is RunState.SUCCEEDED


@pytest.mark.parametrize("wiped", [False, True])
def test_a_wish_whose_wake_up_got_lost_is_granted_from_its_row(stage: Stage, wiped: bool) -> None:
    ref = stage.submit(chain())
    stage.journal()
    with mock.patch.object(submission, "wake"):
        pause(stage, ref)
    if wiped:
        stage.wipe()
        stage.rebuild()
        stage.worker.meet_new_board()
    stage.service.sweeper.apply_rows()
    stage.journal()
    assert stage.row(ref).state is RunState.PAUSED
    with mock.patch.object(submission, "wake"):
        resume(stage, ref)
    stage.service.sweeper.apply_rows()
    stage.journal()
    assert stage.row(ref).state is RunState.RUNNING
    stage.pass_time(7)
    assert ended(stage, ref) is RunState.SUCCEEDED


def test_a_run_is_still_paused_on_a_board_that_was_made_anew(stage: Stage) -> None:
    ref = stage.submit(chain())
    pause(stage, ref)
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.worker.meet_new_board()
    stage.pass_time(10)
    stage.answer_all()
    assert stage.values(ref)["@state"] == "PAUSED"
    assert stage.states(ref) == {"first": "READY"}
    resume(stage, ref)
    assert ended(stage, ref) is RunState.SUCCEEDED


def test_a_run_that_is_paused_before_it_begins_begins_paused(stage: Stage) -> None:
    with mock.patch.object(submission.Entrance, "_start"):
        ref = stage.submit(chain())
    with mock.patch.object(submission, "wake"):
        pause(stage, ref)
    stage.age_rows(60)
    stage.service.sweeper.apply_rows()
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).state is RunState.PAUSED
    assert stage.outcomes(ref) == {}
    resume(stage, ref)
    assert ended(stage, ref) is RunState.SUCCEEDED


def test_wishes_about_an_ended_or_unknown_run_change_nothing(stage: Stage) -> None:
    ref = stage.submit(chain())
    assert ended(stage, ref) is RunState.SUCCEEDED
    assert stage.worker.process.entrance.pause(ref, by="ann").paused_ms is None
    with pytest.raises(errors.UnknownRun):
        pause(stage, RunRef(tenant="default", run="nobody"))
