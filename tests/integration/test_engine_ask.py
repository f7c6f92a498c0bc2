"""Steps that ask what to do when they have failed for good: without a slot, once, and across a wiped board."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from convergio.graphflow.engine import reason, submission
from convergio.graphflow.engine.inquiry import Inquiry
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import BlockedOn, RunState
from convergio.graphflow.model.workflow import Workflow
from tests.integration.engine_rig import QUIET, Stage

pytestmark = QUIET


def asks() -> Workflow:
    """first, which can be undone -> pay, which fails and asks -> last."""
    made = WorkflowBuilder("asks", version=1, output={"paid": "pay", "last": "last.value"})
    first = made.task("first", "probe.echo", compensate="probe.echo")
    pay = made.task("pay", "probe.raises", after=first, kind="'permanent of an exception'", on_failure="ask")
    made.task("last", "probe.echo", after=pay, value="'done'")
    return made.build()


def asking(stage: Stage) -> RunRef:
    ref = stage.submit(asks())
    stage.answer_all()
    stage.journal()
    assert stage.word(ref, "pay").blocked_on is BlockedOn.SIGNAL
    return ref


def answer(stage: Stage, ref: RunRef, said: str, **more: Any) -> None:
    stage.worker.process.entrance.signal(ref, name="pay", data={"decision": said}, by="ann", **more)


def turns(stage: Stage, count: int = 4) -> None:
    for _ in range(count):
        stage.answer_all()
        stage.journal()


def test_a_question_holds_no_slot_no_message_and_no_outcome(stage: Stage) -> None:
    ref = asking(stage)
    assert stage.bells() == []
    assert stage.client.zcard(stage.keys.leases) == 0
    assert len(stage.worker.claims) == 0
    assert list(stage.outcomes(ref)) == ["first"]
    assert stage.events(ref, "step.asked")[0]["error"]["code"] == "PERMANENT"


@pytest.mark.parametrize("wiped", [False, True])
def test_who_reads_a_step_that_was_skipped_is_given_null(stage: Stage, wiped: bool) -> None:
    made = WorkflowBuilder("reads", version=1, output={"read": "last.value"})
    pay = made.task("pay", "probe.raises", kind="'permanent of an exception'", on_failure="ask")
    made.task("last", "probe.echo", after=pay, value="pay == null")
    ref = stage.submit(made.build())
    stage.answer_all()
    stage.journal()
    answer(stage, ref, "skip")
    if wiped:
        stage.journal()
        stage.wipe()
        stage.rebuild()
        stage.pass_time(10)
    turns(stage)
    assert stage.row(ref).output == {"read": True}


@pytest.mark.parametrize(("said", "state"), [("skip", "SUCCEEDED"), ("fail", "FAILED"), ("compensate", "FAILED")])
def test_an_answer_settles_it(stage: Stage, said: str, state: str) -> None:
    ref = asking(stage)
    answer(stage, ref, said)
    turns(stage)
    assert stage.row(ref).state == state
    error = stage.outcomes(ref)["pay"].error or {}
    assert (error["answer"], error["by"], error["code"]) == (said, "ann", "PERMANENT")
    assert stage.row(ref).output == ({"paid": None, "last": "done"} if said == "skip" else None)
    assert ("undo:first" in stage.outcomes(ref)) == (said == "compensate")


def test_retry_runs_the_step_once_more_and_asks_again(stage: Stage) -> None:
    ref = asking(stage)
    answer(stage, ref, "retry")
    turns(stage)
    assert [event["attempt"] for event in stage.events(ref, "step.asked")] == [1, 2]
    assert stage.word(ref, "pay").blocked_on is BlockedOn.SIGNAL


def test_an_answer_whose_wake_up_got_lost_counts_once(stage: Stage) -> None:
    ref = asking(stage)
    with mock.patch.object(submission, "wake"):
        answer(stage, ref, "retry", signal_id="one")
    stage.age_rows(10)
    for _ in range(3):
        stage.service.sweeper.apply_rows()
    turns(stage)
    for _ in range(3):
        stage.service.sweeper.apply_rows()
    turns(stage)
    assert len(stage.events(ref, "step.answered")) == 1


@pytest.mark.parametrize("journaled", [True, False])
def test_a_wiped_board_asks_again_and_takes_no_answer_twice(stage: Stage, journaled: bool) -> None:
    ref = asking(stage)
    answer(stage, ref, "retry", signal_id="one")
    answer(stage, ref, "skip", signal_id="late")
    if journaled:
        stage.journal()
        turns(stage)
    stage.wipe()
    stage.rebuild()
    stage.worker.meet_new_board()
    stage.pass_time(7)
    turns(stage)
    stage.pass_time(2)
    stage.age_rows(10)
    stage.service.sweeper.apply_rows()
    turns(stage)
    if journaled:
        assert stage.word(ref, "pay").blocked_on is BlockedOn.SIGNAL, "what came too late is no answer later"
        assert len(stage.events(ref, "step.answered")) == 1
        answer(stage, ref, "skip")
        turns(stage)
    else:  # SQL knows both answers, and that nothing followed from them
        assert len(stage.events(ref, "step.answered")) <= 1
        answer(stage, ref, "skip")
        turns(stage)
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_what_is_no_answer_is_refused(stage: Stage) -> None:
    ref = asking(stage)
    with pytest.raises(errors.InvalidInput):
        answer(stage, ref, "perhaps")
    assert stage.word(ref, "pay").blocked_on is BlockedOn.SIGNAL


def test_why_says_what_may_be_answered(stage: Stage) -> None:
    ref = asking(stage)
    view = Inquiry(stage.service.link, stage.history).view(ref)
    said = reason.of_step(view, view.steps["pay"])
    assert "has failed, and asks what to do since" in said
    assert "PERMANENT" in said
    assert f"convergio runs signal {ref.run} pay --answer retry (or skip, fail, compensate)" in said
