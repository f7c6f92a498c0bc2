"""P2 and P5: one owner at a time. A lease that is over, a stale owner, a worker that dies again and again."""

from __future__ import annotations

from unittest import mock

import pytest

from convergio.graphflow.board import fields
from convergio.graphflow.engine.sweeper import DELIVERIES
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from tests.integration.engine_rig import QUIET, Stage, chain, fork, single

pytestmark = QUIET

FULL_LEASE = 7.0
"""Seconds after which a lease is over and the sweeper has seen the board for a full lease."""


def deliveries(stage: Stage, ref: RunRef, step: str = "first") -> int:
    return int(stage.values(ref).get(fields.deliveries(step), "0"))


# --- P2: fences -------------------------------------------------------------------------------------------------------


def test_a_late_outcome_of_a_lost_lease_is_refused_and_counted(stage: Stage) -> None:
    """The first owner is cut off, not dead: its result comes after another owner's."""
    slow, quick = stage.worker, stage.another_worker()
    ref = stage.submit(chain())
    stale = stage.claim(ref, "first", slow)
    stage.pass_time(FULL_LEASE)
    stage.worker.steps.succeed(stage.claim(ref, "first", quick), {"by": "quick"})
    with pytest.raises(errors.StaleFence):
        slow.steps.succeed(stale, {"by": "slow"})
    assert slow.claims.fenced == 1
    assert len(slow.claims) == 0
    stage.play(ref)
    assert stage.outcomes(ref)["first"].output == {"by": "quick"}


def test_a_late_outcome_is_refused_also_while_the_step_waits_or_runs_again(stage: Stage) -> None:
    slow, quick = stage.worker, stage.another_worker()
    ref = stage.submit(chain())
    stale = stage.claim(ref, "first", slow)
    stage.pass_time(FULL_LEASE)
    assert stage.word(ref, "first").state is StepState.READY
    with pytest.raises(errors.StaleFence):
        slow.steps.succeed(stale, {"by": "slow"})
    held = stage.claim(ref, "first", quick)
    for late in (
        lambda: slow.steps.record(stale, "fact", 1),
        lambda: slow.steps.fail(stale, errors.StepFailed()),
        lambda: slow.steps.defer(stale, seconds=1, reason="late"),
        lambda: slow.steps.block(stale, signal="first", data={}),
    ):
        with pytest.raises(errors.StaleFence):
            late()
    assert stage.word(ref, "first").text == fields.running(held.held.fence)
    quick.steps.succeed(held, {"by": "quick"})
    stage.journal()
    assert stage.outcomes(ref)["first"].output == {"by": "quick"}


def test_a_beat_tells_a_stale_owner_that_it_lost_the_step(stage: Stage) -> None:
    told: list[str] = []
    ref = stage.submit(chain())
    claim = stage.claim(ref, "first")
    claim.on_lost = lambda: told.append("lost")
    stage.pass_time(FULL_LEASE)
    stage.worker.pulse()
    assert claim.lost.is_set()
    assert told == ["lost"]
    assert len(stage.worker.claims) == 0


def test_a_doorbell_that_comes_twice_starts_one_claim(stage: Stage) -> None:
    ref = stage.submit(chain())
    ring = stage.word(ref, "first").rest
    assert stage.ring(ref, "first", ring) is not None
    assert stage.ring(ref, "first", ring, stage.another_worker()) is None


def test_an_outcome_that_was_told_twice_is_one(stage: Stage) -> None:
    """The answer got lost, the worker tells it again: nothing follows from it a second time."""
    ref = stage.submit(chain())
    claim = stage.claim(ref, "first")
    stage.worker.steps.succeed(claim, {"n": 1})
    rung = stage.bells()
    stage.worker.steps.succeed(claim, {"n": 1})
    assert stage.bells() == rung
    assert stage.values(ref)[fields.OPEN] == "1"


# --- P5: when a lease may expire --------------------------------------------------------------------------------------


def test_a_dead_workers_step_is_rung_again_at_the_consuming_end_within_fifteen_seconds(stage: Stage) -> None:
    dead = stage.another_worker()
    ref, other = stage.submit(chain()), stage.submit(chain())
    stage.claim(ref, "first", dead)
    while stage.take():
        pass
    stage.pass_time(2)
    waiting = stage.submit(chain())
    stage.claim(waiting, "first", stage.worker)
    stage.pass_time(FULL_LEASE, also=stage.worker.pulse)
    assert stage.word(ref, "first").state is StepState.READY
    bell = stage.take()
    assert bell is not None
    assert bell.args == [ref.run, "first", "1.2"]
    assert stage.word(other, "first").rest == "1.1", "who only waits is left alone"


def test_a_beaten_lease_never_expires(stage: Stage) -> None:
    ref = stage.submit(chain())
    claim = stage.claim(ref, "first")
    stage.pass_time(20, also=stage.worker.pulse)
    assert stage.word(ref, "first").text == fields.running(claim.held.fence)
    assert "expired" not in stage.service.sweeper.repairs
    stage.worker.steps.succeed(claim, {})


def test_a_lease_expires_only_after_a_full_lease_under_the_sweepers_own_eyes(stage: Stage) -> None:
    """Redis was away for all: workers could not beat. A sweeper that just came back may not judge them."""
    ref = stage.submit(chain())
    claim = stage.claim(ref, "first")
    stage.age(60)
    stage.pass_time(6.5)
    assert stage.word(ref, "first").text == fields.running(claim.held.fence)
    stage.pass_time(0.5)
    assert stage.word(ref, "first").state is StepState.READY


@pytest.mark.parametrize("gap", [2.5, 30])
def test_a_gap_in_the_sweepers_watch_begins_it_anew(stage: Stage, gap: float) -> None:
    ref = stage.submit(chain())
    stage.pass_time(5.5)
    claim = stage.claim(ref, "first")
    stage.age(60)
    stage.clock.now += gap
    stage.pass_time(6)
    assert stage.word(ref, "first").text == fields.running(claim.held.fence)
    stage.pass_time(1)
    assert stage.word(ref, "first").state is StepState.READY


def test_a_board_that_was_away_for_a_moment_begins_the_watch_anew(stage: Stage) -> None:
    ref = stage.submit(chain())
    claim = stage.claim(ref, "first")
    stage.pass_time(5.5)
    stage.age(60)
    key, epoch = stage.keys.epoch, stage.client.get(stage.keys.epoch)
    stage.client.delete(key)
    stage.service.link.forget(stage.service.link.epoch())
    with pytest.raises(errors.BoardRebuilding):
        stage.service.sweeper.sweep()
    stage.client.set(key, epoch)
    stage.pass_time(5.5)
    assert stage.word(ref, "first").text == fields.running(claim.held.fence)


def test_a_beat_that_comes_while_the_sweeper_decides_saves_the_lease(stage: Stage) -> None:
    """The sweeper read that the lease is over; the ring looks at the lease itself once more."""
    ref = stage.submit(chain())
    claim = stage.claim(ref, "first")
    stage.pass_time(6)
    stage.age(60)
    find, pulse = stage.service.sweeper.find, stage.worker.pulse

    def beaten(*args: object) -> object:
        pulse()
        return find(*args)  # type: ignore[arg-type]

    stage.service.sweeper.find = beaten  # type: ignore[method-assign,assignment]
    stage.pass_time(1)
    assert stage.word(ref, "first").text == fields.running(claim.held.fence)


# --- deliveries -------------------------------------------------------------------------------------------------------


def die(stage: Stage, ref: RunRef, times: int, step: str = "first") -> None:
    """So many workers claim the step and are never heard of again."""
    for _ in range(times):
        stage.claim(ref, step, stage.another_worker())
        stage.pass_time(FULL_LEASE)


def test_a_step_that_kills_its_workers_is_put_in_quarantine_with_the_reason(stage: Stage) -> None:
    ref = stage.submit(chain())
    die(stage, ref, DELIVERIES - 1)
    assert deliveries(stage, ref) == DELIVERIES - 1
    assert stage.word(ref, "first").state is StepState.READY
    die(stage, ref, 1)
    assert stage.word(ref, "first").state is StepState.QUARANTINED
    stage.journal()
    row = stage.row(ref)
    assert row.state is RunState.FAILED
    assert row.error is not None
    assert row.error["code"] == "QUARANTINED"
    assert f"{DELIVERIES} workers in a row" in row.error["message"]
    assert stage.outcomes(ref)["first"].state is StepState.QUARANTINED


def test_a_worker_that_cannot_read_the_definition_gives_the_step_back_and_says_why(stage: Stage) -> None:
    """It is of a newer version. Otherwise five leases would end, and the step stand there as one that kills workers."""
    ref = stage.submit(chain())
    older = stage.another_worker()
    with mock.patch.object(older.process.core.plans, "get", side_effect=KeyError("dream")):
        word = stage.word(ref, "first")
        assert stage.ring(ref, "first", word.rest, older) is None
    assert stage.word(ref, "first").state is StepState.READY
    assert stage.client.zcard(stage.keys.leases) == 0
    assert deliveries(stage, ref) == 0
    told = [data for _, data in stage.client.xrange(stage.keys.feed(ref)) if data["type"] == "step.declined"]
    assert "dream" in told[0]["data"]
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_deliveries_that_were_answered_do_not_count(stage: Stage) -> None:
    """Given back, deferred, tried again: the worker lived, so the step is not what kills workers."""
    workflow = single("probe.echo", retry=10)
    for answer in ("give_back", "defer", "retry"):
        ref = stage.submit(workflow)
        die(stage, ref, DELIVERIES - 1, "only")
        assert deliveries(stage, ref, "only") == DELIVERIES - 1
        claim = stage.claim(ref, "only")
        match answer:
            case "give_back":
                stage.worker.steps.give_back(claim)
            case "defer":
                stage.worker.steps.defer(claim, seconds=1, reason="later")
            case _:
                stage.worker.steps.fail(claim, errors.Transient())
        assert deliveries(stage, ref, "only") == 0, answer
        stage.pass_time(2)
        die(stage, ref, 1, "only")
        assert stage.word(ref, "only").state is StepState.READY, answer


def test_answered_deliveries_do_not_count_after_a_rebuild_either(stage: Stage) -> None:
    ref = stage.submit(single("probe.echo", retry=10))
    die(stage, ref, DELIVERIES - 1, "only")
    stage.worker.steps.give_back(stage.claim(ref, "only"))
    stage.journal()
    stage.wipe()
    stage.rebuild()
    assert deliveries(stage, ref, "only") == 0


def test_deliveries_that_were_not_answered_still_count_after_a_rebuild(stage: Stage) -> None:
    """Otherwise a step that takes Redis down with its worker would go on for ever."""
    ref = stage.submit(chain())
    die(stage, ref, DELIVERIES - 1)
    stage.journal()
    stage.wipe()
    stage.rebuild()
    assert deliveries(stage, ref) == DELIVERIES - 1


def test_new_epochs_are_no_deliveries(stage: Stage) -> None:
    ref = stage.submit(chain())
    for _ in range(DELIVERIES + 1):
        stage.claim(ref, "first", stage.another_worker())
        stage.wipe()
        stage.rebuild()
        stage.pass_time(FULL_LEASE)
    assert deliveries(stage, ref) == 0
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_a_quarantined_branch_ends_the_run_and_withdraws_the_other(stage: Stage) -> None:
    ref = stage.submit(fork())
    other = stage.claim(ref, "right")
    for _ in range(DELIVERIES):
        stage.claim(ref, "left", stage.another_worker())
        stage.pass_time(FULL_LEASE, also=stage.worker.pulse)
    assert stage.states(ref) == {"left": "QUARANTINED", "right": "CANCELLED"}
    stage.worker.pulse()
    assert other.lost.is_set()
