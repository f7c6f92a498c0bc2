"""What a retry or a fork is made into, and what is refused in words."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from convergio.graphflow.engine.fork import Fork, planned
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.journal.rows import Basis, ForkKind
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from convergio.graphflow.model.workflow import Workflow, digest_of
from tests.property.ledger import Ledger
from tests.unit.deciding import plan_of

REF = RunRef(tenant="default", run="r1")
PLAN = plan_of(first={"with": {"n": "input.n"}}, last={"needs": ["first"]})
SUCCEEDED, FAILED = StepState.SUCCEEDED, StepState.FAILED


def basis(state: RunState = RunState.FAILED, given: Any = None, plan: Plan = PLAN, **ends: StepState) -> Basis:
    """A run in this state, of which these steps have ended."""
    ledger = Ledger(REF, plan.workflow.document, plan.digest, {"n": 1} if given is None else given, state=state)
    return Basis(run=ledger.run(), document=plan.workflow.document, ends=ends or {"first": SUCCEEDED, "last": FAILED})


def retry(of: Basis) -> Any:
    return planned(Fork(ref=REF, kind=ForkKind.RETRY), of)


def edited(**steps: Any) -> Workflow:
    return plan_of(**steps).workflow


def test_a_retry_keeps_definition_and_input_and_reuses_what_succeeded() -> None:
    made = retry(basis())
    assert (made.workflow.digest, made.input) == (PLAN.digest, {"n": 1})
    assert (made.origin.run_id, made.origin.kind) == ("r1", ForkKind.RETRY)
    assert (made.origin.reused, made.origin.resumed) == (("first",), ("last",))


def test_a_retry_stays_pinned_to_the_digest_though_this_version_writes_the_document_otherwise() -> None:
    older = {name: value for name, value in PLAN.workflow.document.items() if name != "title"}
    was = basis()
    made = retry(Basis(run=was.run, document=older, ends=was.ends))
    assert made.workflow.digest == digest_of(older) != PLAN.digest
    assert made.origin.reused == ("first",)


@pytest.mark.parametrize("state", [RunState.ACCEPTED, RunState.RUNNING, RunState.PAUSED])
def test_what_has_not_ended_is_not_retried(state: RunState) -> None:
    with pytest.raises(errors.RunNotEnded, match=f"is {state}") as refusal:
        retry(basis(state))
    assert "runs watch r1" in str(refusal.value.hint)


def test_what_succeeded_is_not_retried() -> None:
    with pytest.raises(errors.NothingToRetry, match="has succeeded") as refusal:
        retry(basis(RunState.SUCCEEDED, first=SUCCEEDED, last=SUCCEEDED))
    assert "--from STEP" in str(refusal.value.hint)


def test_a_run_whose_output_alone_failed_is_not_retried_unless_its_definition_is_mended() -> None:
    was = basis(RunState.FAILED, first=SUCCEEDED, last=SUCCEEDED)
    with pytest.raises(errors.NothingToRetry, match="output failed"):
        retry(was)
    mended = plan_of({"n": "first"}, first={"with": {"n": "input.n"}}, last={"needs": ["first"]}).workflow
    assert planned(Fork(ref=REF, definition=mended), was).origin.reused == ("first", "last")


def test_a_run_that_was_cancelled_behind_its_last_step_is_retried_for_its_result() -> None:
    assert retry(basis(RunState.CANCELLED, first=SUCCEEDED, last=SUCCEEDED)).origin.reused == ("first", "last")


def test_a_fork_of_a_run_that_goes_on_takes_what_has_ended() -> None:
    made = planned(Fork(ref=REF, step="last"), basis(RunState.RUNNING, first=SUCCEEDED))
    assert (made.origin.reused, made.origin.step) == (("first",), "last")


def test_a_fork_that_changes_nothing_is_refused() -> None:
    with pytest.raises(errors.InvalidInput, match="changes nothing"):
        planned(Fork(ref=REF), basis())


def test_a_step_that_the_definition_lacks_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(errors.UnknownStep) as refusal:
        planned(Fork(ref=REF, step="fist"), basis())
    assert "first" in str(refusal.value.hint)
    renamed = edited(start={"with": {"n": "input.n"}}, last={"needs": ["start"]})
    with pytest.raises(errors.UnknownStep, match="no step 'first'"):
        planned(Fork(ref=REF, step="first", definition=renamed), basis())


def test_another_workflow_is_no_edited_definition() -> None:
    other = Workflow(name="other", version=1, steps=PLAN.workflow.steps, document=PLAN.workflow.document)
    with pytest.raises(errors.InvalidInput, match="is of 'play', not of 'other'"):
        planned(Fork(ref=REF, definition=other), basis())


def test_null_is_an_input_and_true_is_not_one() -> None:
    assert planned(Fork(ref=REF, input=None), basis()).origin.reused == ()
    assert planned(Fork(ref=REF, input={"n": True}), basis()).origin.reused == ()
    assert planned(Fork(ref=REF, input={"n": 1}), basis()).origin.reused == ("first",)


def test_a_loop_that_was_exhausted_is_retried_only_if_it_would_not_end_as_it_did() -> None:
    loop = {"back_to": "ask", "max": 1, "until": "ask.ok"}
    plan = plan_of(book={"compensate": "m.undo"}, ask={"needs": ["book"], "loop": loop})
    was = basis(plan=plan, book=SUCCEEDED, ask=SUCCEEDED)
    run = dataclasses.replace(was.run, error={"code": "LOOP_EXHAUSTED", "step": "ask"})
    with pytest.raises(errors.NothingToRetry, match="would end as it did"):
        retry(dataclasses.replace(was, run=run))
    undone = {**was.ends, "undo:book": SUCCEEDED}
    assert retry(dataclasses.replace(was, run=run, ends=undone)).origin.reused == ()
