"""One thing that is wrong must not keep the rest from going on: a run, a claim, a caller, an event."""

from __future__ import annotations

import json
from typing import Any, cast
from unittest import mock

import pytest

from convergio.graphflow.board import fields, scripts
from convergio.graphflow.engine import sweeper
from convergio.graphflow.engine.sweeper import Sweeper
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from tests.integration.engine_rig import QUIET, Stage, chain, fork, single

pytestmark = QUIET


def running(stage: Stage, *refs: RunRef) -> None:
    stage.journal()
    assert {stage.row(ref).state for ref in refs} == {RunState.RUNNING}


# --- a run that cannot be decided -------------------------------------------------------------------------------------


def poisoned(stage: Stage) -> RunRef:
    """A run whose inbox holds what this version cannot decide, as another version may have put it there."""
    ref = stage.submit(chain())
    stage.client.rpush(stage.keys.inbox(ref), json.dumps({"t": "arrived", "step": "of_another_version"}))
    stage.client.zadd(stage.keys.inboxes, {str(ref): 0})
    return ref


def test_a_run_that_cannot_be_decided_does_not_stop_the_sweep(stage: Stage) -> None:
    poisoned(stage)
    left_over = stage.submit(chain())
    claim = stage.claim(left_over, "first")
    with mock.patch.object(stage.worker.process.core.drain, "run"):  # its drainer dies right after ARRIVE
        stage.worker.steps.succeed(claim, {"n": 1})
    stage.client.hdel(stage.keys.run(left_over), fields.LOCK)
    ended = stage.submit(single())
    stage.worker.steps.succeed(stage.claim(ended, "only"), {})
    stage.journal()
    stage.pass_time(70)
    assert stage.word(left_over, "last").state is StepState.READY
    assert not stage.client.exists(stage.keys.run(ended)), "it left the board after its grace"


@pytest.mark.parametrize("place", ["leases", "timers", "held"])
def test_a_member_that_no_workflow_knows_does_not_stop_the_sweep(stage: Stage, place: str) -> None:
    ghost, dead = stage.submit(chain()), stage.submit(chain())
    end = {"leases": "/1.1.x", "timers": "/RETRY", "held": ""}[place]
    stage.client.zadd(getattr(stage.keys, place), {f"{ghost}/of_another_version{end}": 0})
    stage.claim(dead, "first", stage.another_worker())
    stage.pass_time(7)
    assert stage.word(dead, "first").state is StepState.READY


def test_a_row_that_cannot_be_started_does_not_keep_others_from_it(stage: Stage) -> None:
    refs = [RunRef(tenant="default", run=name) for name in ("r1", "r2")]
    start = type(stage.service.sweeper.starter).start
    with mock.patch.object(type(stage.service.sweeper.starter), "start", side_effect=errors.BoardUnavailable):
        for ref in refs:
            stage.submit(chain(ref.run), run_id=ref.run)

    def picky(self: Any, run: Any, plan: Any, *, not_after_ms: int | None) -> bool:
        if run.run_id == "r1":
            raise ValueError("a definition that this version does not read")
        return start(self, run, plan, not_after_ms=not_after_ms)

    stage.age_rows(20)
    with mock.patch.object(type(stage.service.sweeper.starter), "start", picky):
        stage.service.sweeper.apply_rows()
    assert stage.client.exists(stage.keys.run(refs[1]))


def test_members_that_cannot_be_helped_do_not_starve_those_behind_them(stage: Stage) -> None:
    """More than a batch of them, and all are older."""
    ghost, dead = stage.submit(chain()), stage.submit(chain())
    stage.client.zadd(stage.keys.leases, {f"{ghost}/of_another_version/1.1.x": 0, f"{ghost}/of_a_third/1.1.x": 1})
    stage.claim(dead, "first", stage.another_worker())
    with mock.patch.object(sweeper, "BATCH", 1):
        stage.pass_time(9)
    assert stage.word(dead, "first").state is StepState.READY


def test_inboxes_that_cannot_be_drained_do_not_starve_those_behind_them(stage: Stage) -> None:
    poisoned(stage)
    left_over = stage.submit(chain())
    claim = stage.claim(left_over, "first")
    with mock.patch.object(stage.worker.process.core.drain, "run"):
        stage.worker.steps.succeed(claim, {"n": 1})
    stage.client.hdel(stage.keys.run(left_over), fields.LOCK)
    with mock.patch.object(sweeper, "BATCH", 1):
        stage.pass_time(4)
    assert stage.word(left_over, "last").state is StepState.READY


def test_rows_that_cannot_be_helped_do_not_starve_those_behind_them(stage: Stage) -> None:
    bad, good = stage.submit(chain(), run_id="r1"), stage.submit(chain(), run_id="r2")
    running(stage, bad, good)
    with mock.patch("convergio.graphflow.engine.submission.wake"):  # nobody hears of it
        for ref in (bad, good):
            stage.worker.process.entrance.pause(ref, by="ann")
    stage.client.rpush(stage.keys.inbox(bad), json.dumps({"t": "arrived", "step": "of_another_version"}))
    with mock.patch.object(sweeper, "BATCH", 1):
        for _ in range(2):
            stage.service.sweeper.apply_rows()
    assert stage.values(good)[fields.STATE] == RunState.PAUSED


def test_an_inbox_that_cannot_be_drained_does_not_grow(stage: Stage) -> None:
    """What time does, and what SQL knows, is posted at each sweep until it is decided."""
    made = WorkflowBuilder("pausing", version=1)
    made.wait("pause", length="1s")
    ref = stage.submit(made.build())
    running(stage, ref)
    with mock.patch("convergio.graphflow.engine.submission.wake"):
        stage.worker.process.entrance.cancel(ref, by="ann")
    with mock.patch.object(type(stage.service.sweeper.drain), "run", side_effect=errors.JournalUnavailable):
        stage.pass_time(5, also=stage.service.sweeper.apply_rows)
    kinds = [json.loads(text)["t"] for text in stage.client.lrange(stage.keys.inbox(ref), 0, -1)]
    assert sorted(kinds) == ["cancel", "timer"]


def test_a_store_that_goes_away_ends_the_sweep(stage: Stage) -> None:
    """What is not the run's own fault is not passed over."""
    stage.claim(stage.submit(chain()), "first")
    for error in (errors.BoardUnavailable, errors.BoardRebuilding):
        stage.pass_time(6)
        stage.age(60)
        with mock.patch.object(Sweeper, "find", side_effect=error), pytest.raises(error):
            stage.pass_time(1)


# --- a claim that cannot be told --------------------------------------------------------------------------------------


def test_a_claim_that_cannot_be_told_is_left_to_its_lease_and_holds_nobody_up(stage: Stage) -> None:
    ref = stage.submit(fork())
    bad, good = stage.claim(ref, "left"), stage.claim(ref, "right")

    def broken(held: scripts.Claimed) -> int | None:
        raise ValueError("no store can keep this")

    with pytest.raises(ValueError, match="no store"):
        stage.worker.claims.settle(bad, broken)
    with mock.patch.object(scripts, "complete", side_effect=errors.BoardUnavailable):
        assert not stage.worker.steps.succeed(good, {"n": 1})
    stage.pass_time(7, also=stage.worker.pulse)
    assert stage.word(ref, "right").state is StepState.SUCCEEDED
    assert stage.word(ref, "left").state is StepState.READY
    assert len(stage.worker.claims) == 0


def test_a_claim_whose_timeout_cannot_be_told_holds_nobody_up(stage: Stage) -> None:
    ref, other = stage.submit(single(timeout=1)), stage.submit(single())
    stage.claim(ref, "only")
    owed = stage.claim(other, "only")
    with mock.patch.object(scripts, "complete", side_effect=errors.BoardUnavailable):
        stage.worker.steps.succeed(owed, {"n": 1})
    stage.clock.now += 2
    with mock.patch.object(type(stage.worker.steps), "fail", side_effect=ValueError):
        stage.worker.pulse()
    assert stage.word(other, "only").state is StepState.SUCCEEDED


# --- a caller that cannot be answered, an event that SQL refuses ------------------------------------------------------


def test_a_caller_that_cannot_be_answered_does_not_hold_up_releases(stage: Stage) -> None:
    ended, durable = stage.submit(single()), stage.submit(chain("durable", durability="step"))
    callers = cast("Any", stage.service.journaler.finished).__self__
    with mock.patch.object(callers.app.backend, "mark_as_done", side_effect=TypeError):
        stage.worker.steps.succeed(stage.claim(ended, "only"), {"n": 1})
        stage.worker.steps.succeed(stage.claim(durable, "first"), {"n": 1})
        stage.journal()
    assert stage.client.zrange(stage.keys.done, 0, -1) == [str(ended)]
    assert stage.word(durable, "last").state is StepState.READY


def test_an_event_that_sql_refuses_is_kept_as_a_dead_one_and_the_group_goes_on(stage: Stage) -> None:
    bad, good = stage.submit(chain("bad")), stage.submit(single())
    claim = stage.claim(bad, "first")
    claim.owe({"no_such_table": [{"a": 1}]})
    stage.worker.steps.succeed(claim, {"n": 1})
    stage.worker.steps.succeed(stage.claim(good, "only"), {"n": 1})
    assert stage.service.journaler.step(wait_ms=1) > 3, "all in one group"
    (dead,) = stage.history.dead_events()
    assert (dead.run_id, dead.step) == (bad.run, "first")
    assert "no_such_table" in dead.reason
    assert stage.row(good).state is RunState.SUCCEEDED
    running(stage, bad)
