"""How steps and runs are ended from outside: timeouts, cancels, and the failure of a branch."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from unittest import mock

import pytest

from convergio.graphflow.board import fields, scripts
from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.flow import registry
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks import liveness
from tests.integration.engine_rig import QUIET, Stage, chain, fork, sign_off, single
from tests.waiting import wait_until

pytestmark = QUIET


class Body:
    """A body of `ends.body` that lasts until it is let go; it says how far it got."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.go_on = threading.Event()
        self.cancelled = threading.Event()

    def blocking(self) -> str:
        self.began.set()
        assert self.go_on.wait(20)
        return "late"

    async def on_the_loop(self) -> str:
        self.began.set()
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return "late"


@pytest.fixture
def body(monkeypatch: pytest.MonkeyPatch) -> Body:
    made = Body()
    monkeypatch.setattr(registry.REGISTRY, "_by_name", dict(registry.REGISTRY._by_name))
    for name, function in (("ends.blocking", made.blocking), ("ends.on_the_loop", made.on_the_loop)):
        registry.REGISTRY.add(registry.Registered(name=name, function=function))
    return made


@contextmanager
def answering(stage: Stage, body: Body, step: str = "only") -> Generator[None]:
    """A thread of the worker answers the step's doorbell; its body has begun. Doorbells before it are dropped."""
    bell = wait_until(stage.take, timeout=0)
    while bell.step != step:
        bell = wait_until(stage.take, timeout=0)
    thread = threading.Thread(target=stage.worker.answer, args=(bell,))
    thread.start()
    try:
        assert body.began.wait(10)
        yield
    finally:
        body.go_on.set()
        thread.join(10)
        assert not thread.is_alive()


def error_of(stage: Stage, ref: RunRef) -> tuple[str, str]:
    stage.journal()
    error = stage.row(ref).error
    assert error is not None
    return error["code"], error.get("step", "")


# --- timeouts ---------------------------------------------------------------------------------------------------------


def test_a_body_that_overruns_its_timeout_fails_and_its_late_result_is_refused(stage: Stage, body: Body) -> None:
    ref = stage.submit(single("ends.blocking", timeout=5))
    with answering(stage, body):
        stage.clock.now += 4
        stage.worker.pulse()
        assert stage.word(ref, "only").state is StepState.RUNNING
        stage.clock.now += 2
        stage.worker.pulse()
        assert error_of(stage, ref) == ("STEP_TIMEOUT", "only")
    assert len(stage.worker.claims) == 0
    assert stage.worker.claims.fenced == 1
    stage.journal()
    assert stage.outcomes(ref)["only"].state is StepState.FAILED


def test_a_coroutine_that_overruns_its_timeout_is_cancelled(stage: Stage, body: Body) -> None:
    ref = stage.submit(single("ends.on_the_loop", timeout=5))
    with answering(stage, body):
        stage.clock.now += 6
        stage.worker.pulse()
        assert body.cancelled.wait(5)
    assert error_of(stage, ref) == ("STEP_TIMEOUT", "only")


def test_a_timeout_is_tried_again_by_the_steps_policy(stage: Stage) -> None:
    ref = stage.submit(timed(retry={"max": 1, "backoff": 1}))
    late = stage.claim(ref, "only")
    stage.clock.now += 6
    stage.worker.pulse()
    assert stage.word(ref, "only").blocked_on is BlockedOn.RETRY
    stage.pass_time(2)
    second = stage.claim(ref, "only")
    with pytest.raises(errors.StaleFence):
        stage.worker.steps.succeed(late, {"n": 1})
    stage.worker.steps.succeed(second, {"n": 2})
    stage.journal()
    assert stage.row(ref).output == {"n": 2}


def timed(**fields_: object) -> Workflow:
    made = WorkflowBuilder("timed", version=1)
    made.task("only", "probe.echo", **{"timeout": 5, **fields_})  # type: ignore[arg-type]
    return made.build()


def test_an_outcome_that_waits_for_sql_does_not_time_out(stage: Stage) -> None:
    ref = stage.submit(timed(durability="step"))
    stage.worker.steps.succeed(stage.claim(ref, "only"), {"n": 1})
    stage.clock.now += 60
    stage.worker.pulse()
    stage.journal()
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_a_timeout_that_passes_while_there_is_no_board_counts_on_the_next_one(stage: Stage) -> None:
    ref = stage.submit(timed())
    claim = stage.claim(ref, "only")
    stage.journal()
    stage.wipe()
    stage.clock.now += 6
    stage.worker.pulse()
    stage.rebuild()
    stage.worker.meet_new_board()
    assert claim.lost.is_set()
    assert error_of(stage, ref) == ("STEP_TIMEOUT", "only")


@pytest.mark.parametrize("name", ["ends.blocking", "ends.on_the_loop"])
def test_a_body_that_gives_no_sign_of_life_times_out(stage: Stage, body: Body, name: str) -> None:
    ref = stage.submit(single(name, timeout={"run": 1_000, "idle": 5}))
    with answering(stage, body):
        stage.clock.now += 4
        stage.worker.pulse()
        assert stage.word(ref, "only").state is StepState.RUNNING
        stage.clock.now += 2
        stage.worker.pulse()
        assert error_of(stage, ref) == ("STEP_TIMEOUT", "only")
    assert "no sign of life for 5 s" in (stage.row(ref).error or {})["message"]


def test_a_heartbeat_and_a_recorded_fact_are_signs_of_life(stage: Stage) -> None:
    ref = stage.submit(timed(timeout={"idle": 5}))
    claim = stage.claim(ref, "only")
    with liveness.heard(claim):
        signs = [
            liveness.heartbeat,
            lambda: asyncio.run(asyncio.to_thread(liveness.heartbeat)),
            lambda: stage.worker.steps.record(claim, "fact", 1),
            claim.sign,
        ]
        for sign in signs:
            stage.clock.now += 4
            sign()
            stage.worker.pulse()
            assert stage.word(ref, "only").state is StepState.RUNNING
    liveness.heartbeat()  # of no step: it does nothing
    stage.clock.now += 6
    stage.worker.pulse()
    assert error_of(stage, ref) == ("STEP_TIMEOUT", "only")


def test_a_coroutine_of_a_step_speaks_for_its_claim(stage: Stage) -> None:
    """The loop runs on another thread: the step goes with the coroutine."""
    heard: list[float] = []

    async def speaks() -> str:
        liveness.heartbeat()
        heard.append(stage.worker.claims.running()[0].signed)
        return "done"

    registry.REGISTRY.add(registry.Registered(name="ends.speaks", function=speaks))
    stage.submit(single("ends.speaks", timeout={"idle": 5}))
    bell = stage.take()
    assert bell is not None
    with mock.patch.object(Claim, "sign", autospec=True) as sign:
        stage.worker.answer(bell)
    assert sign.call_count == 2, "by its claim, and by its body"
    assert heard != []


# --- cancel -----------------------------------------------------------------------------------------------------------


def cancelled(stage: Stage, ref: RunRef) -> None:
    stage.worker.process.entrance.cancel(ref, by="boss", reason="no money left")


def test_a_cancel_reaches_a_running_coroutine_at_the_next_pulse(stage: Stage, body: Body) -> None:
    ref = stage.submit(single("ends.on_the_loop"))
    with answering(stage, body):
        cancelled(stage, ref)
        assert not body.cancelled.is_set()
        stage.worker.pulse()
        assert body.cancelled.wait(5)
    stage.journal()
    row = stage.row(ref)
    assert row.state is RunState.CANCELLED
    assert (row.cancel_by, row.cancel_reason) == ("boss", "no money left")
    assert row.error is not None
    assert row.error["message"] == "cancelled by boss: no money left"


def test_the_late_result_of_a_cancelled_body_is_refused(stage: Stage, body: Body) -> None:
    ref = stage.submit(single("ends.blocking"))
    with answering(stage, body):
        cancelled(stage, ref)
        assert stage.client.zcard(stage.keys.leases) == 0
    stage.journal()
    assert stage.outcomes(ref)["only"].state is StepState.CANCELLED
    assert stage.worker.claims.fenced >= 1


def test_a_cancelled_run_starts_nothing_more(stage: Stage) -> None:
    ref = stage.submit(fork())
    ring = stage.word(ref, "left").rest
    cancelled(stage, ref)
    assert stage.ring(ref, "left", ring) is None
    assert stage.answer_all() == 2, "its doorbells are answered, and start nothing"
    assert len(stage.worker.claims) == 0
    stage.journal()
    assert {row.state for row in stage.outcomes(ref).values()} == {StepState.CANCELLED}


def test_no_step_is_claimed_once_a_run_is_being_ended(stage: Stage) -> None:
    """The mark that stops claims is set first, alone; then what is live is withdrawn in peace."""
    ref = stage.submit(fork())
    ring, seen, commit = stage.word(ref, "left").rest, list[object](), scripts.commit

    def between(*args: object, **kwargs: object) -> object:
        answer = commit(*args, **kwargs)  # type: ignore[arg-type]
        seen.append(stage.ring(ref, "left", ring))
        return answer

    with mock.patch.object(scripts, "commit", between):
        cancelled(stage, ref)
    assert seen == [None, None]


def test_whatever_a_cancelled_run_waits_for_is_dropped(stage: Stage) -> None:
    waits: list[Callable[[Stage], RunRef]] = [retrying, deferred, signed, parked]
    refs = [make(stage) for make in waits]
    for ref in refs:
        cancelled(stage, ref)
    assert stage.client.zcard(stage.keys.timers) == 0
    stage.journal()
    assert {stage.row(ref).state for ref in refs} == {RunState.CANCELLED}
    assert stage.outcomes(refs[3])["first"].state is StepState.SUCCEEDED, "what was recorded before is kept"


def retrying(stage: Stage) -> RunRef:
    ref = stage.submit(chain(retry=1))
    stage.worker.steps.fail(stage.claim(ref, "first"), errors.Transient())
    return ref


def deferred(stage: Stage) -> RunRef:
    ref = stage.submit(chain())
    stage.worker.steps.defer(stage.claim(ref, "first"), seconds=60, reason="later")
    return ref


def signed(stage: Stage) -> RunRef:
    ref = stage.submit(sign_off())
    stage.worker.steps.succeed(stage.claim(ref, "draft"), {})
    stage.worker.steps.block(stage.claim(ref, "sign"), signal="sign", data={})
    return ref


def parked(stage: Stage) -> RunRef:
    ref = stage.submit(chain(durability="step"))
    stage.worker.steps.succeed(stage.claim(ref, "first"), {})
    return ref


def test_to_cancel_twice_or_too_late_changes_nothing(stage: Stage) -> None:
    ref, ended = stage.submit(chain()), stage.submit(single())
    stage.worker.steps.succeed(stage.claim(ended, "only"), {})
    stage.journal()
    for _ in range(2):
        cancelled(stage, ref)
        cancelled(stage, ended)
    stage.journal()
    assert (stage.row(ref).state, stage.row(ended).state) == (RunState.CANCELLED, RunState.SUCCEEDED)
    assert stage.row(ref).control_version == 1
    with pytest.raises(errors.UnknownRun):
        cancelled(stage, RunRef(tenant="default", run="nobody"))


def test_a_cancel_whose_wake_up_got_lost_is_carried_out_by_the_sweeper(stage: Stage) -> None:
    ref = stage.submit(chain())
    stage.journal()
    with mock.patch.object(stage.worker.process.entrance, "wake"):
        cancelled(stage, ref)
    stage.service.sweeper.apply_rows()
    stage.journal()
    assert stage.row(ref).state is RunState.CANCELLED
    stage.service.sweeper.apply_rows()
    assert stage.service.sweeper.repairs["cancels"] == 1


# --- a branch fails ---------------------------------------------------------------------------------------------------


def test_the_failure_of_one_branch_withdraws_the_others(stage: Stage, body: Body) -> None:
    made = WorkflowBuilder("branches", version=1)
    made.task("runs", "ends.on_the_loop")
    made.task("rung", "probe.echo")
    made.task("tried", "probe.echo", retry=1)
    made.task("fails", "probe.echo")
    ref = stage.submit(made.build())
    with answering(stage, body, "runs"):
        stage.worker.steps.fail(stage.claim(ref, "tried"), errors.Transient())
        stage.worker.steps.fail(stage.claim(ref, "fails"), errors.Permanent("broken"))
        assert stage.states(ref) == {
            "runs": "CANCELLED",
            "rung": "CANCELLED",
            "tried": "CANCELLED",
            "fails": "FAILED",
        }
        assert stage.client.zcard(stage.keys.timers) == stage.client.zcard(stage.keys.leases) == 0
        stage.worker.pulse()
        assert body.cancelled.wait(5)
    assert error_of(stage, ref) == ("PERMANENT", "fails")


def test_of_two_branches_that_fail_the_first_is_the_reason(stage: Stage) -> None:
    ref = stage.submit(fork())
    first, second = stage.claim(ref, "left"), stage.claim(ref, "right")
    stage.worker.steps.fail(first, errors.Permanent("first"))
    with pytest.raises(errors.StaleFence):
        stage.worker.steps.fail(second, errors.Permanent("second"))
    assert error_of(stage, ref) == ("PERMANENT", "left")
    assert stage.values(ref)[fields.STATE] == RunState.FAILED
