"""Steps that are repeated until a condition holds: on real servers, over lost boards, cancels and retries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from convergio.graphflow.engine.fork import Fork
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.journal.rows import ForkKind
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from tests.integration.engine_rig import QUIET, Stage

pytestmark = QUIET


def drafts(rounds: int = 3, *, most: int = 5, on_max: str = "fail", until: str | None = None) -> Workflow:
    """plan -> draft -> review, which goes back to draft until so many rounds are made -> send."""
    made = WorkflowBuilder("drafts", version=1, output={"review": "review.value", "sent": "send.value"})
    plan = made.task("plan", "probe.echo", value="input")
    draft = made.task("draft", "probe.echo", after=plan, value="[plan.value, iteration, review]")
    ends = until or f"review.value[1] >= {rounds - 1}"
    loop: Mapping[str, str | int] = {"back_to": "draft", "until": ends, "max": most, "on_max": on_max}
    review = made.task("review", "probe.echo", after=draft, value="[size(draft.value), iteration]", loop=loop)
    made.task("send", "probe.echo", after=review, value="[draft.value[1], review.value[1]]")
    return made.build()


def again(stage: Stage, ref: RunRef, **fork: Any) -> RunRef:
    made = stage.worker.process.entrance.fork(Fork(ref=ref, **fork))
    return RunRef(tenant=ref.tenant, run=made.run.run_id)


def test_the_steps_of_a_loop_run_again_until_its_condition_holds(stage: Stage) -> None:
    ref = stage.submit(drafts(3), "x")
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == {"review": [3, 2], "sent": [2, 2]}
    rows = stage.outcomes(ref)
    assert set(rows) == {"plan", "draft", "draft#1", "draft#2", "review", "review#1", "review#2", "send"}
    assert [(row.step, row.iteration) for name, row in rows.items() if name == "draft#2"] == [("draft", 2)]


def test_what_comes_later_in_a_loop_is_seen_from_the_round_before(stage: Stage) -> None:
    ref = stage.submit(drafts(3), "x")
    stage.answer_all()
    stage.journal()
    seen = [stage.outcomes(ref)[name].output["value"] for name in ("draft", "draft#1", "draft#2")]
    assert seen == [["x", 0, None], ["x", 1, {"value": [3, 0]}], ["x", 2, {"value": [3, 1]}]]


def test_a_loop_that_has_made_all_its_rounds_fails_the_run(stage: Stage) -> None:
    ref = stage.submit(drafts(9, most=2), "x")
    stage.answer_all()
    stage.journal()
    row = stage.row(ref)
    assert row.error is not None
    assert (row.state, row.error["code"], row.error["step"]) == (RunState.FAILED, "LOOP_EXHAUSTED", "review#1")
    assert "send" not in stage.outcomes(ref)


def test_a_loop_may_go_on_after_all_its_rounds(stage: Stage) -> None:
    ref = stage.submit(drafts(9, most=2, on_max="continue"), "x")
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == {"review": [3, 1], "sent": [1, 1]}


def test_a_condition_that_cannot_be_evaluated_fails_the_run(stage: Stage) -> None:
    ref = stage.submit(drafts(until="review.nothing"), "x")
    stage.answer_all()
    stage.journal()
    error = stage.row(ref).error
    assert error is not None
    assert (error["code"], error["step"]) == ("EXPRESSION_FAILED", "review")


def test_one_step_alone_may_be_a_loop(stage: Stage) -> None:
    made = WorkflowBuilder("poll", version=1)
    made.task("ask", "probe.echo", value="iteration", loop={"back_to": "ask", "until": "ask.value == 3", "max": 9})
    ref = stage.submit(made.build())
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == {"value": 3}


def test_a_loop_may_hold_a_branch_and_a_map(stage: Stage) -> None:
    made = WorkflowBuilder("both", version=1, output={"each": "each", "odd": "odd", "even": "even"})
    first = made.task("first", "probe.echo", value="iteration")
    odd = made.task("odd", "probe.echo", after=first.when("first.value % 2 == 1"), value="iteration")
    even = made.task("even", "probe.echo", after=first.when("first.value % 2 == 0"), value="iteration")
    each = made.map("each", over="[first.value, iteration * 10]", after=[odd, even], join="all").task(
        "probe.picky", value="item", index="index"
    )
    made.task("last", "probe.echo", after=each, loop={"back_to": "first", "max": 2})
    ref = stage.submit(made.build())
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == {"each": [[0, 1], [1, 10]], "odd": {"value": 1}, "even": None}
    rows = stage.outcomes(ref)
    assert (rows["odd"].state, rows["even#1"].state) == (StepState.SKIPPED, StepState.SKIPPED)
    assert rows[instance.member("each#1", 1)].output == [1, 10]


def test_a_person_may_end_a_loop(stage: Stage) -> None:
    made = WorkflowBuilder("signed", version=1)
    draft = made.task("draft", "probe.echo", value="iteration")
    made.wait("look", signal="seen", after=draft, loop={"back_to": "draft", "until": "look.good", "max": 5})
    ref = stage.submit(made.build())
    entrance = stage.worker.process.entrance
    for good in (False, False, True):
        stage.answer_all()
        entrance.signal(ref, name="seen", data={"good": good}, by="ann")
    stage.journal()
    assert stage.row(ref).state is RunState.SUCCEEDED
    assert stage.outcomes(ref)["draft#2"].output == {"value": 2}


def test_an_approval_may_be_asked_in_every_round(stage: Stage) -> None:
    made = WorkflowBuilder("signed", version=1)
    draft = made.task("draft", "probe.echo", value="iteration")
    made.approval("sign", after=draft, title="Well?", loop={"back_to": "draft", "max": 2})
    ref = stage.submit(made.build())
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED
    assert stage.outcomes(ref)["sign#1"].output["decision"] == "approve"


@pytest.mark.parametrize("answered", range(9))
def test_a_loop_goes_on_after_the_board_was_wiped_at_any_point(stage: Stage, answered: int) -> None:
    ref = stage.submit(drafts(3), "x")
    for _ in range(answered):
        bell = stage.take()
        if bell is not None:
            stage.worker.answer(bell)
    stage.journal()
    before = stage.outcomes(ref)
    stage.wipe()
    stage.rebuild()
    stage.pass_time(7)
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == {"review": [3, 2], "sent": [2, 2]}
    after = stage.outcomes(ref)
    assert {name: after[name] for name in before} == before
    assert len(stage.events(ref, "loop.repeated")) == 2


def test_a_retry_goes_on_in_the_round_that_failed(stage: Stage) -> None:
    ref = stage.submit(drafts(3), "x")
    for _ in range(4):
        bell = stage.take()
        assert bell is not None
        stage.worker.answer(bell)
    claim = stage.claim(ref, "review#1")
    stage.worker.steps.fail(claim, errors.Permanent("no"))
    stage.client.delete(*stage.queue_lists())
    stage.journal()
    new = again(stage, ref, kind=ForkKind.RETRY)
    assert [step for step, _ in stage.bells()] == ["review#1"]
    stage.answer_all()
    stage.journal()
    assert stage.row(new).output == {"review": [3, 2], "sent": [2, 2]}
    assert {name for name, row in stage.outcomes(new).items() if row.reused_from} == {
        "plan", "draft", "review", "draft#1"
    }  # fmt: skip


def test_a_loop_that_failed_for_its_rounds_goes_on_with_more_of_them(stage: Stage) -> None:
    ref = stage.submit(drafts(3, most=2), "x")
    stage.answer_all()
    stage.journal()
    with pytest.raises(errors.NothingToRetry) as caught:
        again(stage, ref, kind=ForkKind.RETRY)
    assert "more rounds" in str(caught.value.hint)
    new = again(stage, ref, definition=drafts(3, most=4))
    stage.answer_all()
    stage.journal()
    assert stage.row(new).output == {"review": [3, 2], "sent": [2, 2]}
    assert {name for name, row in stage.outcomes(new).items() if not row.reused_from} == {"draft#2", "review#2", "send"}


def test_a_fork_from_a_step_of_a_loop_begins_with_its_first_round(stage: Stage) -> None:
    ref = stage.submit(drafts(2), "x")
    stage.answer_all()
    stage.journal()
    new = again(stage, ref, step="review")
    stage.answer_all()
    stage.journal()
    assert stage.row(new).output == {"review": [3, 1], "sent": [1, 1]}
    assert {name for name, row in stage.outcomes(new).items() if row.reused_from} == {"plan", "draft"}


def test_a_fork_behind_a_loop_keeps_all_its_rounds(stage: Stage) -> None:
    ref = stage.submit(drafts(2), "x")
    stage.answer_all()
    stage.journal()
    new = again(stage, ref, step="send")
    stage.answer_all()
    stage.journal()
    assert {name for name, row in stage.outcomes(new).items() if not row.reused_from} == {"send"}


def test_a_cancel_ends_a_loop_in_any_round(stage: Stage) -> None:
    ref = stage.submit(drafts(3), "x")
    for _ in range(4):
        bell = stage.take()
        assert bell is not None
        stage.worker.answer(bell)
    stage.worker.process.entrance.cancel(ref, by="ann")
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).state is RunState.CANCELLED
    assert stage.outcomes(ref)["review#1"].state is StepState.CANCELLED
