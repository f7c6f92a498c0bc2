"""Retry and fork: a new run reuses what holds of another one, and runs the rest once."""

from __future__ import annotations

import json

import pytest

from convergio.graphflow.journal.rows import ForkKind
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from tests.integration.engine_rig import QUIET, Stage
from tests.integration.refunds import (
    BROKEN,
    EFFECTS,
    STEPS,
    driven,
    failed,
    flow,
    fork,
    forked,
    nothing_happened,
    ref_of,
    retried,
    succeeded,
)

pytestmark = QUIET


@pytest.fixture(autouse=True)
def fresh() -> None:
    nothing_happened()


# --- retry ------------------------------------------------------------------------------------------------------------


def test_a_retry_runs_only_what_did_not_succeed_and_ends_well(both: Stage) -> None:
    was = failed(both)
    made = forked(both, was)
    assert (made.created, made.reused, made.steps) == (True, 4, 6)
    ref = ref_of(made)
    assert driven(both, ref) is RunState.SUCCEEDED
    assert EFFECTS == {"pay": 1, "tell": 1}
    assert both.row(ref).output == {"told": 7}
    found = both.outcomes(ref)
    assert {name for name, row in found.items() if row.reused_from == was.run} == {"load", "left", "right", "never"}
    assert {row.state for row in found.values()} == {StepState.SUCCEEDED, StepState.SKIPPED}


def test_the_failed_run_stays_as_it_was(stage: Stage) -> None:
    was = failed(stage)
    before = stage.history.facts(was.run)
    assert driven(stage, retried(stage, was)) is RunState.SUCCEEDED
    assert stage.history.facts(was.run) == before


def test_what_runs_again_is_rung_at_once_and_not_after_a_lease(stage: Stage) -> None:
    was = failed(stage)
    ref = retried(stage, was)
    assert [name for name, _ in stage.bells()] == ["pay"]
    assert stage.client.zcard(stage.keys.held) == 0
    assert stage.client.zcard(stage.keys.inboxes) == 0
    assert driven(stage, ref) is RunState.SUCCEEDED


def test_a_retry_that_fails_again_is_retried_again_and_reuses_what_the_first_run_did(stage: Stage) -> None:
    first = failed(stage)
    BROKEN.add("tell")
    second = retried(stage, first)
    assert driven(stage, second) is RunState.FAILED
    BROKEN.clear()
    EFFECTS.clear()
    third = retried(stage, second)
    assert driven(stage, third) is RunState.SUCCEEDED
    assert EFFECTS == {"tell": 1}
    origins = {name: row.reused_from for name, row in stage.outcomes(third).items()}
    assert (origins["load"], origins["pay"], origins["tell"]) == (first.run, second.run, None)


def test_a_cancelled_run_is_retried_and_what_it_had_recorded_is_there(stage: Stage) -> None:
    was = stage.submit(flow(), {"id": 7})
    stage.worker.steps.succeed(stage.claim(was, "load"), {"value": 7})
    stage.worker.steps.succeed(stage.claim(was, "left"), {"value": 7})
    bought = stage.claim(was, "right")
    stage.worker.steps.record(bought, "answer", {"paid": True})
    stage.worker.process.entrance.cancel(was, by="bob")
    stage.journal()
    assert stage.row(was).state is RunState.CANCELLED
    ref = retried(stage, was)
    assert stage.claim(ref, "right").held.records == {"answer": {"paid": True}}
    assert stage.states(ref) == {"load": "SUCCEEDED", "left": "SUCCEEDED", "never": "SKIPPED", "right": "RUNNING"}


def test_a_reused_step_has_no_tokens_so_that_sums_are_of_what_was_paid(stage: Stage) -> None:
    was = stage.submit(flow(), {"id": 7})
    stage.worker.steps.succeed(stage.claim(was, "load"), {"value": 7}, tokens=500)
    stage.worker.process.entrance.cancel(was, by="bob")
    stage.journal()
    ref = retried(stage, was)
    assert driven(stage, ref) is RunState.SUCCEEDED
    assert sum(row.tokens for run in (was, ref) for row in stage.outcomes(run).values()) == 500


def test_a_retry_of_a_run_with_a_large_input_has_that_input(stage: Stage) -> None:
    BROKEN.add("pay")
    was = stage.submit(flow(), {"id": 7, "text": "x" * 40_000})
    assert driven(stage, was) is RunState.FAILED
    BROKEN.clear()
    EFFECTS.clear()
    ref = retried(stage, was)
    assert stage.row(ref).input == {"id": 7, "text": "x" * 40_000}
    assert driven(stage, ref) is RunState.SUCCEEDED
    assert EFFECTS == {"pay": 1, "tell": 1}


def test_a_reused_result_that_is_too_large_to_travel_is_read_by_what_follows(stage: Stage) -> None:
    measuring = {**STEPS["pay"], "with": {"name": "'pay'", "value": "size(left.value)"}}
    made = flow({"size": "pay.value"}, left={"task": "forks.large", "needs": ["load"]}, pay=measuring)
    was = stage.submit(made, {"id": 7})
    assert driven(stage, was) is RunState.SUCCEEDED
    EFFECTS.clear()
    ref = ref_of(forked(stage, was, ForkKind.FORK, step="pay"))
    assert driven(stage, ref) is RunState.SUCCEEDED
    assert stage.row(ref).output == {"size": 40_000}
    assert EFFECTS == {"pay": 1, "tell": 1}


# --- fork -------------------------------------------------------------------------------------------------------------


def test_a_fork_from_a_step_repeats_it_and_what_follows_from_it(both: Stage) -> None:
    ref = fork(both, succeeded(both), step="left")
    assert driven(both, ref) is RunState.SUCCEEDED
    assert EFFECTS == {"left": 1, "pay": 1, "tell": 1}
    assert both.row(ref).fork_step == "left"


def test_with_another_input_everything_that_may_depend_on_it_runs_again(stage: Stage) -> None:
    ref = fork(stage, succeeded(stage), input={"id": 8})
    assert driven(stage, ref) is RunState.SUCCEEDED
    assert EFFECTS == {"load": 1, "left": 1, "right": 1, "pay": 1, "tell": 1}
    assert stage.row(ref).output == {"told": 8}


def test_with_another_definition_what_did_not_change_is_kept(stage: Stage) -> None:
    changed = flow(pay={**STEPS["pay"], "with": {"name": "'pay'", "value": "left.value * 2"}})
    ref = fork(stage, succeeded(stage), definition=changed)
    assert driven(stage, ref) is RunState.SUCCEEDED
    assert EFFECTS == {"pay": 1, "tell": 1}
    assert stage.row(ref).output == {"told": 14}
    assert stage.row(ref).digest == changed.digest


def test_with_another_output_the_result_is_made_without_running_anything(stage: Stage) -> None:
    ref = fork(stage, succeeded(stage), definition=flow({"sum": "tell.value + load.value"}))
    assert driven(stage, ref) is RunState.SUCCEEDED
    assert EFFECTS == {}
    assert stage.row(ref).output == {"sum": 14}


def test_a_step_that_the_new_definition_skips_is_told_once_to_readers_and_to_sql(stage: Stage) -> None:
    changed = flow({"told": "load.value"}, pay={**STEPS["pay"], "when": "load.value > 100"})
    ref = fork(stage, succeeded(stage), definition=changed)
    kinds = [entry["type"] for _, entry in stage.client.xrange(stage.keys.feed(ref))]
    assert kinds[:2] == ["run.started", "step.skipped"]
    assert driven(stage, ref) is RunState.SUCCEEDED
    assert stage.outcomes(ref)["pay"].state is StepState.SKIPPED
    assert EFFECTS == {}, "nothing is left to run behind what is skipped"


def test_what_is_skipped_beside_what_runs_again_is_told_once_too(stage: Stage) -> None:
    audit = {"task": "forks.work", "with": {"name": "'audit'"}, "needs": ["load"], "when": "load.value > 100"}
    changed = flow(audit=audit, pay={**STEPS["pay"], "with": {"name": "'pay'", "value": "left.value * 2"}})
    ref = fork(stage, succeeded(stage), definition=changed)
    kinds = [entry["type"] for _, entry in stage.client.xrange(stage.keys.feed(ref))]
    assert kinds == ["run.started", "step.skipped", "step.rung"]
    assert driven(stage, ref) is RunState.SUCCEEDED
    assert stage.outcomes(ref)["audit"].state is StepState.SKIPPED
    assert EFFECTS == {"pay": 1, "tell": 1}


def test_a_condition_that_fails_on_reused_outcomes_fails_the_new_run(stage: Stage) -> None:
    changed = flow(pay={**STEPS["pay"], "when": "load.nothing.there"})
    ref = fork(stage, succeeded(stage), definition=changed)
    assert driven(stage, ref) is RunState.FAILED
    assert (stage.row(ref).error or {})["code"] == "EXPRESSION_FAILED"
    assert EFFECTS == {}


def test_a_fork_of_a_run_that_goes_on_leaves_it_alone(stage: Stage) -> None:
    was = stage.submit(flow(), {"id": 7})
    stage.worker.steps.succeed(stage.claim(was, "load"), {"value": 7})
    stage.journal()
    ref = fork(stage, was, step="left")
    assert driven(stage, ref) is RunState.SUCCEEDED
    assert driven(stage, was) is RunState.SUCCEEDED
    assert EFFECTS == {"left": 2, "right": 2, "pay": 2, "tell": 2}


def test_a_wait_that_begins_with_a_fork_has_its_timer(stage: Stage) -> None:
    slow = flow(left={"wait": {"for": "5m"}, "needs": ["load"]}, pay={**STEPS["pay"], "with": {"name": "'pay'"}})
    ref = fork(stage, succeeded(stage), definition=slow)
    assert stage.word(ref, "left").blocked_on is BlockedOn.TIMER
    assert stage.client.zcard(stage.keys.timers) == 1


def test_an_approval_that_was_given_is_not_asked_for_again(stage: Stage) -> None:
    signed = flow(right={"approval": {"title": "Sign"}, "needs": ["load"]})
    was = stage.submit(signed, {"id": 7})
    BROKEN.add("pay")
    driven(stage, was)
    stage.signal(was, "right")
    assert driven(stage, was) is RunState.FAILED
    BROKEN.clear()
    assert driven(stage, retried(stage, was)) is RunState.SUCCEEDED
    again = fork(stage, was, step="right")
    driven(stage, again)
    assert stage.word(again, "right").blocked_on is BlockedOn.SIGNAL


# --- by the same id or key --------------------------------------------------------------------------------------------


def test_a_retry_asked_for_twice_by_one_key_is_one_run(stage: Stage) -> None:
    was = failed(stage)
    first = forked(stage, was, key="again")
    assert driven(stage, ref_of(first)) is RunState.SUCCEEDED
    second = forked(stage, was, key="again")
    assert (second.created, second.run.run_id) == (False, first.run.run_id)
    assert EFFECTS == {"pay": 1, "tell": 1}


def test_what_a_reader_is_told_first_names_the_run_it_came_from(stage: Stage) -> None:
    was = failed(stage)
    ref = retried(stage, was)
    _, first = stage.client.xrange(stage.keys.feed(ref), count=1)[0]
    assert first["type"] == "run.started"
    stage.journal()
    assert stage.events(ref, "run.started") == [{"forked_from": was.run, "kind": "retry"}]
    assert json.loads(stage.values(ref)["@meta"])["submitter"] == "bob"
