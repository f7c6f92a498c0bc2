"""Retry, redrive and fork: a new run reuses what holds, runs the rest once, and is not lost or doubled on its way."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, Final
from unittest import mock

import pytest

from convergio.graphflow.board import adoption
from convergio.graphflow.engine import starter as starter_module
from convergio.graphflow.engine import submission
from convergio.graphflow.engine.fork import Fork, Forked
from convergio.graphflow.engine.ringer import Ringer
from convergio.graphflow.engine.starter import Starter
from convergio.graphflow.flow import document
from convergio.graphflow.flow.registry import step
from convergio.graphflow.journal.rows import ForkKind
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from tests.integration.engine_rig import QUIET, Stage, stage_on

pytestmark = QUIET

LATE: Final = 10.1
"""Seconds after which the submitter may not start its run any more."""

EFFECTS: Final[Counter[str]] = Counter()
"""How often each step's body ran."""

BROKEN: Final[set[str]] = set()
"""Bodies that fail now."""


@step(name="forks.work")
def work(name: str, value: Any = None) -> dict[str, Any]:
    EFFECTS[name] += 1
    if name in BROKEN:
        raise errors.Permanent(f"{name} is broken")
    return {"by": name, "value": value}


@step(name="forks.large")
def large() -> dict[str, Any]:
    EFFECTS["left"] += 1
    return {"value": "y" * 40_000}


STEPS: Final[Mapping[str, Any]] = {
    "load": {"task": "forks.work", "with": {"name": "'load'", "value": "input.id"}},
    "left": {"task": "forks.work", "with": {"name": "'left'", "value": "load.value"}, "needs": ["load"]},
    "right": {"task": "forks.work", "with": {"name": "'right'"}, "needs": ["load"], "durability": "step"},
    "never": {"task": "forks.work", "with": {"name": "'never'"}, "needs": ["load"], "when": "load.value < 0"},
    "pay": {"task": "forks.work", "with": {"name": "'pay'", "value": "left.value"}, "needs": ["left", "right"]},
    "tell": {"task": "forks.work", "with": {"name": "'tell'", "value": "pay.value"}, "needs": ["pay", "never"]},
}


def flow(output: Mapping[str, str] | None = None, **changed: Any) -> Workflow:
    """load -> left, right (and never) -> pay -> tell."""
    head = {"workflow": "refund", "version": 1, "steps": {**STEPS, **changed}}
    return document.parse_document({**head, "output": output or {"told": "tell.value"}})


@pytest.fixture(autouse=True)
def fresh() -> None:
    EFFECTS.clear()
    BROKEN.clear()


@pytest.fixture
def stage(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Stage]:
    with stage_on(valkey, sqlite_url, tmp_path) as made:
        yield made


@pytest.fixture
def both(valkey: str, journal_url: str, tmp_path: Path) -> Iterator[Stage]:
    """The same on each database."""
    with stage_on(valkey, journal_url, tmp_path) as made:
        yield made


def driven(stage: Stage, ref: RunRef) -> RunState:
    """Answers doorbells and journals until nothing comes any more; no time passes."""
    while stage.answer_all() + stage.journal():
        stage.worker.pulse()  # it learns what SQL has by now
    return stage.row(ref).state


def failed(stage: Stage, workflow: Workflow | None = None, **given: Any) -> RunRef:
    """A run that failed at `pay`; by now the reason is gone."""
    BROKEN.add("pay")
    ref = stage.submit(workflow or flow(), {"id": 7}, **given)
    assert driven(stage, ref) is RunState.FAILED
    BROKEN.clear()
    EFFECTS.clear()
    return ref


def forked(stage: Stage, ref: RunRef, kind: ForkKind = ForkKind.RETRY, **given: Any) -> Forked:
    return stage.worker.process.entrance.fork(Fork(ref=ref, submitter="bob", kind=kind, **given))


def ref_of(made: Forked) -> RunRef:
    return RunRef(tenant=made.run.tenant, run=made.run.run_id)


def retried(stage: Stage, ref: RunRef, **given: Any) -> RunRef:
    return ref_of(forked(stage, ref, **given))


def accepted_only(stage: Stage, ref: RunRef, **given: Any) -> RunRef:
    """The retry is in SQL, and then who asked for it died."""
    with mock.patch.object(Starter, "start", side_effect=errors.BoardUnavailable):
        return retried(stage, ref, **given)


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


def succeeded(stage: Stage) -> RunRef:
    ref = stage.submit(flow(), {"id": 7})
    assert driven(stage, ref) is RunState.SUCCEEDED
    EFFECTS.clear()
    return ref


def fork(stage: Stage, ref: RunRef, **given: Any) -> RunRef:
    return ref_of(forked(stage, ref, ForkKind.FORK, **given))


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


# --- on its way to the board ------------------------------------------------------------------------------------------


def test_a_retry_whose_caller_died_before_the_board_is_started_by_the_sweeper(both: Stage) -> None:
    ref = accepted_only(both, failed(both))
    both.service.sweeper.apply_rows()
    assert not both.client.exists(both.keys.run(ref)), "who asked may still come"
    both.age_rows(LATE)
    both.service.sweeper.apply_rows()
    assert [name for name, _ in both.bells()] == ["pay"]
    assert driven(both, ref) is RunState.SUCCEEDED
    assert EFFECTS == {"pay": 1, "tell": 1}


def test_a_caller_that_comes_too_late_leaves_the_retry_to_the_sweeper(stage: Stage) -> None:
    was = failed(stage)
    with mock.patch.object(submission, "START_WITHIN_MS", -1):
        ref = retried(stage, was)
    assert not stage.client.exists(stage.keys.run(ref))
    stage.service.sweeper.apply_rows()
    assert driven(stage, ref) is RunState.SUCCEEDED


def test_a_caller_that_dies_before_it_rings_costs_one_sweep_and_no_lease(stage: Stage) -> None:
    was = failed(stage)
    with mock.patch.object(Ringer, "again", side_effect=errors.BoardUnavailable):
        ref = retried(stage, was)
    assert stage.bells() == []
    stage.service.sweeper.sweep()
    assert driven(stage, ref) is RunState.SUCCEEDED
    assert EFFECTS == {"pay": 1, "tell": 1}


def test_a_caller_that_dies_before_the_end_is_decided_costs_a_sweep(stage: Stage) -> None:
    was = succeeded(stage)
    with mock.patch.object(starter_module, "wake"):
        ref = fork(stage, was, definition=flow({"sum": "tell.value + load.value"}))
    assert driven(stage, ref) is RunState.RUNNING
    stage.pass_time(2)
    assert driven(stage, ref) is RunState.SUCCEEDED
    assert stage.row(ref).output == {"sum": 14}


def test_a_board_lost_between_row_and_start_is_rebuilt_with_the_retry_and_holds_its_steps(both: Stage) -> None:
    ref = accepted_only(both, failed(both))
    both.wipe()
    both.rebuild()
    both.worker.meet_new_board()
    assert both.states(ref) == {
        "load": "SUCCEEDED", "left": "SUCCEEDED", "right": "SUCCEEDED", "never": "SKIPPED", "pay": "READY",
    }  # fmt: skip
    assert both.client.zcard(both.keys.held) == 1, "for all that the new board knows, somebody runs it"
    assert both.bells() == []
    both.pass_time(7)
    assert driven(both, ref) is RunState.SUCCEEDED
    assert EFFECTS == {"pay": 1, "tell": 1}


def test_a_retry_that_runs_already_survives_a_board_lost_before_sql_heard_of_its_start(stage: Stage) -> None:
    ref = retried(stage, failed(stage))
    claim = stage.claim(ref, "pay")
    stage.wipe()
    assert stage.row(ref).state is RunState.ACCEPTED
    stage.rebuild()
    stage.worker.meet_new_board()
    assert stage.word(ref, "pay").state is StepState.RUNNING, "its worker has it still"
    stage.worker.steps.succeed(claim, {"value": 7})
    stage.age_rows(LATE)
    stage.service.sweeper.apply_rows()
    assert driven(stage, ref) is RunState.SUCCEEDED
    assert EFFECTS == {"tell": 1}


def test_a_start_that_met_a_lost_board_is_made_on_the_new_one(stage: Stage) -> None:
    """The caller knows the old epoch still; the rebuild has not read the row when it begins."""
    was = failed(stage)
    stage.wipe()
    stage.rebuild()
    ref = retried(stage, was)
    assert driven(stage, ref) is RunState.SUCCEEDED
    assert EFFECTS == {"pay": 1, "tell": 1}


def test_of_several_who_start_a_retry_at_once_one_does(stage: Stage) -> None:
    was = failed(stage)
    ref = accepted_only(stage, was)
    row, barrier = stage.row(ref), Barrier(4)
    starter = stage.service.sweeper.starter
    plan = stage.service.sweeper.plans.get(row.digest)

    def start(_: int) -> bool:
        barrier.wait(timeout=30)
        return starter.start(row, plan, not_after_ms=None)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(start, range(4))) == [False, False, False, True]
    assert [name for name, _ in stage.bells()] == ["pay"]
    assert driven(stage, ref) is RunState.SUCCEEDED
    assert EFFECTS == {"pay": 1, "tell": 1}
    left = list(stage.client.scan_iter(match="*:made:*"))
    assert len(left) == 3
    assert all(0 < stage.client.ttl(name) <= adoption.KEPT_S for name in left)
    assert stage.client.ttl(stage.keys.run(ref)) == -1, "a run that lives never expires"


def test_a_starter_that_slept_while_another_started_the_run_changes_nothing(stage: Stage) -> None:
    ref = accepted_only(stage, failed(stage))
    row, starter = stage.row(ref), stage.service.sweeper.starter
    plan = stage.service.sweeper.plans.get(row.digest)
    adopt = adoption.adopt

    def slept(*given: Any, **more: Any) -> bool:
        with mock.patch.object(adoption, "adopt", adopt):
            assert starter.start(row, plan, not_after_ms=None)
        stage.claim(ref, "pay")
        return adopt(*given, **more)

    with mock.patch.object(adoption, "adopt", slept):
        assert not starter.start(row, plan, not_after_ms=None)
    assert stage.word(ref, "pay").state is StepState.RUNNING


def test_what_was_made_and_expired_before_it_was_adopted_is_made_again(stage: Stage) -> None:
    was = failed(stage)
    with mock.patch.object(adoption, "KEPT_S", -1):
        ref = retried(stage, was)
    assert stage.row(ref).state is RunState.ACCEPTED
    assert not stage.client.exists(stage.keys.run(ref))
    stage.age_rows(LATE)
    stage.service.sweeper.apply_rows()
    assert driven(stage, ref) is RunState.SUCCEEDED


def test_a_retry_that_was_cancelled_before_it_started_rings_nobody(stage: Stage) -> None:
    ref = accepted_only(stage, failed(stage))
    stage.worker.process.entrance.cancel(ref, by="bob", reason="too late")
    stage.age_rows(LATE)
    stage.service.sweeper.apply_rows()
    assert driven(stage, ref) is RunState.CANCELLED
    assert EFFECTS == {}


def test_a_retry_that_was_paused_before_it_started_waits_until_it_is_resumed(stage: Stage) -> None:
    ref = accepted_only(stage, failed(stage))
    entrance = stage.worker.process.entrance
    entrance.pause(ref, by="bob")
    stage.age_rows(LATE)
    stage.service.sweeper.apply_rows()
    assert driven(stage, ref) is RunState.PAUSED
    assert EFFECTS == {}
    entrance.resume(ref, by="bob")
    assert driven(stage, ref) is RunState.SUCCEEDED
    assert EFFECTS == {"pay": 1, "tell": 1}


def test_a_retry_on_a_full_server_waits_in_sql(stage: Stage) -> None:
    was = failed(stage)
    stage.client.set("ballast", "x" * 2_000_000)
    stage.client.config_set("maxmemory", 1_000_000)
    try:
        ref = retried(stage, was)
    finally:
        stage.client.delete("ballast")
        stage.client.config_set("maxmemory", 0)
    assert stage.row(ref).state is RunState.ACCEPTED
    stage.age_rows(LATE)
    stage.service.sweeper.apply_rows()
    assert driven(stage, ref) is RunState.SUCCEEDED


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
