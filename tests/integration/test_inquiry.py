"""Where a run is and why: what is read from a real board and a real journal, state by state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from convergio.graphflow.board.keys import Keys
from convergio.graphflow.engine import reason
from convergio.graphflow.engine.inquiry import Inquiry
from convergio.graphflow.engine.reason import StepView, Tally
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.instance import member
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from tests.integration.engine_stage import EngineStage, engine_on

CHAIN = {"first": {"task": "demo.one", "retry": 2}, "second": {"task": "demo.two", "needs": ["first"]}}
SIGNED = {"sign": {"approval": {"title": "Pay?", "description": "Pay {{ 1 + 1 }} euros"}}}


@pytest.fixture
def stage(valkey: str, journal_url: str, tmp_path: Path) -> Iterator[EngineStage]:
    with engine_on(valkey, journal_url, tmp_path) as made:
        yield made


def seen(stage: EngineStage, ref: RunRef, step: str) -> StepView:
    return stage.inquiry.view(ref).steps[step]


def said(stage: EngineStage, ref: RunRef, step: str) -> str:
    view = stage.inquiry.view(ref)
    return reason.of_step(view, view.steps[step])


def test_a_new_run_is_live_and_its_first_step_is_queued(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    view = stage.inquiry.view(ref)
    assert (view.state, view.board, view.stopping) == (RunState.RUNNING, "live", None)
    assert [step.state for step in view.steps.values()] == [StepState.READY, StepState.WAITING]
    first = view.steps["first"]
    assert first.ahead == 1
    assert first.since_ms is not None
    assert 0 <= view.now_ms - first.since_ms < 60_000
    assert said(stage, ref, "first").startswith("is queued for 0.")
    assert said(stage, ref, "second") == "waits for first (ready)"


def test_a_running_step_names_its_worker_and_its_attempt(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    stage.claim(ref, "first")
    first = seen(stage, ref, "first")
    assert (first.state, first.worker, first.attempt, first.attempts) == (StepState.RUNNING, "w1", 1, 3)
    assert said(stage, ref, "first").startswith("runs on w1 for 0.")
    assert said(stage, ref, "second") == "waits for first (running)"


def test_a_retry_says_when_and_after_what_once_sql_has_the_error(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    stage.steps.fail(stage.claim(ref, "first"), errors.Transient("503", retry_after=30))
    stage.journal()
    first = seen(stage, ref, "first")
    assert (first.state, first.on, first.attempt) == (StepState.BLOCKED, BlockedOn.RETRY, 2)
    assert said(stage, ref, "first").startswith("is tried again in ")
    assert said(stage, ref, "first").endswith("s (attempt 2 of 3): TRANSIENT 503")


def test_a_deferred_step_gives_the_hooks_reason(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    stage.steps.defer(stage.claim(ref, "first"), seconds=3600, reason="outside office hours")
    stage.journal()
    assert seen(stage, ref, "first").on is BlockedOn.HOOK
    assert said(stage, ref, "first").endswith("a pre-run hook deferred it (outside office hours)")


def test_an_approval_says_how_to_decide_it_and_shows_its_question(stage: EngineStage) -> None:
    ref = stage.submit(SIGNED)
    stage.steps.block(stage.claim(ref, "sign"), signal="sign", data={"description": "Pay 2 euros"})
    stage.journal()
    assert seen(stage, ref, "sign").note == "Pay 2 euros"
    assert f"convergio runs signal {ref.run} sign --approve" in said(stage, ref, "sign")


def test_an_outcome_that_sql_lacks_says_so_and_what_waits_for_it_waits(stage: EngineStage) -> None:
    durable = {**CHAIN, "first": {"task": "demo.one", "durability": "step"}}
    ref = stage.submit(durable)
    stage.journal()
    stage.succeed(ref, "first", 7)
    first = seen(stage, ref, "first")
    assert (first.on, first.parked) == (BlockedOn.JOURNAL, StepState.SUCCEEDED)
    assert said(stage, ref, "first").startswith("has ended as SUCCEEDED 0.")
    assert said(stage, ref, "second") == "waits for first (blocked on the journal)"
    stage.journal()
    assert seen(stage, ref, "first").state is StepState.SUCCEEDED
    assert seen(stage, ref, "second").state is StepState.READY


def test_a_step_that_a_worker_declined_is_ready_and_says_what_is_missing(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    stage.steps.decline(stage.claim(ref, "first"), missing="no function is registered as 'demo.one'")
    assert seen(stage, ref, "first").state is StepState.READY
    told = said(stage, ref, "first")
    assert told.startswith("is ready: NO_WORKER, worker w1 cannot do it: no function is registered as 'demo.one'")


def test_a_step_whose_work_goes_on_elsewhere_says_what_it_waits_for(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    stage.steps.look_again(stage.claim(ref, "first"), seconds=40, awaits="the result of a task")
    stage.journal()
    assert said(stage, ref, "first").startswith("waits for the result of a task, and looks again in ")


def test_after_a_rebuild_a_step_is_held_and_says_for_how_long(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    stage.claim(ref, "first")
    stage.journal()
    stage.rebuild()
    assert said(stage, ref, "first").startswith("is held for ")
    assert seen(stage, ref, "first").held_ms is not None


def test_a_quarantined_step_gives_the_reason(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    was = stage.word(ref, "first").text
    stage.entrance.wake(ref, {"t": "quarantine", "step": "first", "was": was, "reason": "5 workers died"})
    stage.journal()
    assert seen(stage, ref, "first").state is StepState.QUARANTINED
    again = f"Try again: convergio runs retry {ref.run}"
    assert said(stage, ref, "first") == f"is in quarantine: QUARANTINED 5 workers died. {again}"
    assert stage.inquiry.view(ref).state is RunState.FAILED


def test_a_cancelled_run_gives_its_reason_before_and_after_it_left_the_board(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    stage.entrance.cancel(ref, by="ann", reason="enough")
    stage.journal()
    assert said(stage, ref, "first") == "was cancelled: the run was ended (enough)"
    assert said(stage, ref, "second") == "never started: the run ended as CANCELLED before"
    stage.core.link.client.flushall()
    assert stage.inquiry.view(ref).board == "left"
    assert said(stage, ref, "first") == "was cancelled: the run was ended (enough)"


def test_an_ended_run_is_told_by_the_journal_with_times_and_outputs(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    stage.succeed(ref, "first", 1)
    stage.succeed(ref, "second", {"total": 2})
    stage.journal()
    stage.core.link.client.flushall()
    view = stage.inquiry.view(ref)
    assert (view.state, view.board, view.output) == (RunState.SUCCEEDED, "left", {"total": 2})
    steps = view.steps.values()
    assert all(step.started_ms and step.finished_ms and step.worker == "w1" for step in steps)
    assert reason.of_run(view).startswith("the run ended as SUCCEEDED after ")


def test_a_run_that_nobody_started_says_who_will(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    keys: Keys = stage.core.link.keys(stage.core.link.epoch())
    stage.core.link.client.delete(keys.run(ref))  # as if the submitter had died between SQL and the board
    view = stage.inquiry.view(ref)
    assert view.board == "absent"
    assert reason.of_step(view, view.steps["first"]) == "waits until its run is on the board"


def test_a_board_that_is_gone_says_so(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    stage.core.link.client.flushall()
    view = stage.inquiry.view(ref)
    assert view.board == "rebuilding"
    assert "made anew" in reason.of_run(view)


def test_without_redis_the_journal_answers(stage: EngineStage) -> None:
    ref = stage.submit(CHAIN)
    view = Inquiry(None, stage.history).view(ref)
    assert view.board == "away"
    assert "Redis does not answer" in reason.of_run(view)


def test_an_unknown_run_is_an_error(stage: EngineStage) -> None:
    with pytest.raises(errors.UnknownRun):
        stage.inquiry.view(RunRef(tenant="default", run="nope"))
    ref = stage.submit(CHAIN)
    with pytest.raises(errors.UnknownRun):
        stage.inquiry.view(RunRef(tenant="other", run=ref.run))


def test_a_paused_run_says_so_while_what_runs_goes_on(stage: EngineStage) -> None:
    ref = stage.submit({**CHAIN, "other": {"task": "demo.one"}})
    stage.claim(ref, "first")
    stage.entrance.pause(ref, by="ann")
    view = stage.inquiry.view(ref)
    assert view.state is RunState.PAUSED
    assert reason.of_run(view).startswith("the run is paused for 0.")
    assert "by ann; first still runs. Let it go on: convergio runs resume" in reason.of_run(view)
    assert said(stage, ref, "other").startswith("is ready, and starts when its run goes on")
    stage.entrance.resume(ref, by="ann")
    assert said(stage, ref, "other").startswith("is queued for 0.")


# --- maps and loops ---------------------------------------------------------------------------------------------------

MAPPED = {"each": {"map": {"over": "[1, 2, 3]", "max_concurrency": 2, "each": {"task": "demo.one"}}}}
LOOPED = {
    "draft": {"task": "demo.one"},
    "review": {"task": "demo.two", "needs": ["draft"], "loop": {"back_to": "draft", "max": 3}},
}


def test_a_map_says_how_many_of_its_items_are_done_while_it_works_and_when_it_has_ended(stage: EngineStage) -> None:
    ref = stage.submit(MAPPED)
    stage.succeed(ref, member("each", 0), "a")
    assert seen(stage, ref, "each").tally == Tally(items=3, done=1, good=1, active=2)
    assert said(stage, ref, "each").endswith(": 1 of 3 items done, 2 at work")
    assert seen(stage, ref, "each").does == "demo.one for each of [1, 2, 3]"
    for index in (1, 2):
        stage.succeed(ref, member("each", index), "b")
    stage.journal()
    each = seen(stage, ref, "each")
    assert (each.state, each.tally) == (StepState.SUCCEEDED, Tally(items=3, done=3, good=3))


def test_a_map_names_the_items_that_failed_first_and_why(stage: EngineStage) -> None:
    over = "[1, 2, 3, 4, 5, 6]"
    ref = stage.submit({"each": {"map": {"over": over, "join": {"tolerate": 5}, "each": {"task": "demo.one"}}}})
    for index in (4, 0, 2, 5):
        stage.steps.fail(stage.claim(ref, member("each", index)), errors.Permanent(f"no. {index} is bad"))
    stage.journal()
    assert seen(stage, ref, "each").failures == tuple(
        f"each[{index}] PERMANENT no. {index} is bad" for index in (4, 0, 2)
    )
    named = "; ".join(f"each[{index}] PERMANENT no. {index} is bad" for index in (4, 0, 2))
    told = f": 4 of 6 items done, 4 failed, 2 at work. Failed: {named}; and 1 more"
    assert said(stage, ref, "each").endswith(told)
    for index in (1, 3):
        stage.succeed(ref, member("each", index), "b")
    stage.journal()
    assert "ended as SUCCEEDED" in said(stage, ref, "each")
    assert "Failed: each[4] PERMANENT" in said(stage, ref, "each")


def test_a_step_of_a_loop_is_shown_in_its_last_round(stage: EngineStage) -> None:
    ref = stage.submit(LOOPED)
    for name in ("draft", "review", "draft#1"):
        stage.succeed(ref, name, {"by": name})
    stage.journal()
    view = stage.inquiry.view(ref)
    assert [(step.label, step.state) for step in view.steps.values()] == [
        ("draft#1", StepState.SUCCEEDED),
        ("review#1", StepState.READY),
    ]
    assert view.steps["review"].ahead is not None
    assert view.steps["review"].finished_ms is None, "that was another round"
    stage.succeed(ref, "review#1")
    for name in ("draft#2", "review#2"):
        stage.succeed(ref, name)
    stage.journal()
    assert {step.iteration for step in stage.inquiry.view(ref).steps.values()} == {2}
