"""What a worker's beat threads do for its claims: leases are prolonged, whatever is told late, and to whom."""

from __future__ import annotations

import threading
from unittest import mock

import redis

from convergio.graphflow.board import scripts
from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.model import errors
from convergio.graphflow.model.states import StepState
from convergio.workers import beats
from tests.integration.engine_rig import QUIET, Stage, chain, fork
from tests.waiting import wait_until

pytestmark = QUIET

FULL_LEASE = 7.0


def away(*_: object, **__: object) -> None:
    raise errors.BoardUnavailable


def owing(stage: Stage) -> Claim:
    """A claim that the board was told nothing of: neither the fact nor the outcome."""
    claim = stage.claim(stage.submit(chain()), "first")
    with mock.patch.object(scripts, "record", away):
        stage.worker.steps.record(claim, "fact", 1)
        assert not stage.worker.steps.succeed(claim, {})
    assert stage.worker.claims.owing() == 1
    return claim


def test_an_owed_outcome_of_a_step_that_is_anothers_by_now_is_dropped(stage: Stage) -> None:
    """Its fact is refused first. A drain must not wait for it, and nobody be warned of it for ever."""
    claim = owing(stage)
    stage.pass_time(FULL_LEASE)
    assert stage.word(claim.held.ref, "first").state is StepState.READY
    stage.worker.pulse()
    assert stage.worker.claims.owing() == 0
    assert len(stage.worker.claims) == 0
    assert claim.lost.is_set()


def test_a_body_whose_late_fact_is_refused_is_told_that_it_lost_the_step(stage: Stage) -> None:
    claim = stage.claim(stage.submit(chain()), "first")
    with mock.patch.object(scripts, "record", away):
        stage.worker.steps.record(claim, "fact", 1)
    stage.pass_time(FULL_LEASE)
    stage.worker.claims.catch_up()
    assert claim.lost.is_set()


def test_what_cannot_be_given_back_now_is_given_back_later(stage: Stage) -> None:
    """The server ends the connection in the middle: the claim stays, and no delivery is counted."""
    claim = stage.claim(stage.submit(chain()), "first")
    client = stage.worker.process.core.link.client
    with mock.patch.object(client, "hget", side_effect=redis.ConnectionError("gone")):
        assert not stage.worker.steps.give_back(claim)
    assert stage.worker.claims.owing() == 1
    stage.worker.pulse()
    assert stage.word(claim.held.ref, "first").state is StepState.READY


def test_a_worker_that_leaves_gives_back_all_it_can(stage: Stage) -> None:
    ref = stage.submit(fork())
    bad, good = stage.claim(ref, "left"), stage.claim(ref, "right")
    give_back = stage.worker.steps.give_back

    def refuse(claim: Claim) -> bool:
        if claim is bad:
            raise RuntimeError("nobody thought of this")
        return give_back(claim)

    with mock.patch.object(stage.worker.steps, "give_back", refuse):
        stage.worker.process._leave()
    assert stage.word(ref, "right").state is StepState.READY
    assert good not in stage.worker.claims.running()


def test_a_claim_that_cannot_be_asserted_does_not_keep_the_others_from_it(stage: Stage) -> None:
    ref = stage.submit(fork())
    bad, good = stage.claim(ref, "left"), stage.claim(ref, "right")
    stage.journal()
    stage.wipe()
    stage.rebuild()
    again = stage.worker.claims._again

    def refuse(claim: Claim) -> object:
        if claim is bad:
            raise RuntimeError("nobody thought of this")
        return again(claim)

    with mock.patch.object(stage.worker.claims, "_again", refuse):
        stage.worker.meet_new_board()
    assert stage.word(ref, "right").state is StepState.RUNNING
    assert good.held.epoch != bad.held.epoch


def test_leases_are_prolonged_while_what_is_owed_waits_for_sql(stage: Stage) -> None:
    """P5: a decision that follows from an owed outcome reads a blob, and SQL does not answer."""
    claim, entered, leave = owing(stage), threading.Event(), threading.Event()
    other = stage.claim(stage.submit(chain()), "first")

    def stuck(*_: object, **__: object) -> None:
        entered.set()
        leave.wait(30)

    before = stage.client.zscore(stage.keys.leases, other.member)
    with (
        mock.patch.object(stage.worker.process.core.drain, "run", stuck),
        mock.patch("convergio.graphflow.shortcut.followers", return_value=None),
        mock.patch.object(beats, "INTERVAL", 0.02),
    ):
        with mock.patch.object(scripts, "arrive", away):
            stage.worker.steps.succeed(claim, {})
        running = beats.Beats(stage.worker.claims)
        running.start()
        try:
            wait_until(entered.is_set)
            wait_until(lambda: stage.client.zscore(stage.keys.leases, other.member) > before)
        finally:
            leave.set()
            running.stop()
