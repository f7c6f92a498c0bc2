"""P3: successors of a `step`-durable step start only once its outcome is in SQL, and no answer is bought twice."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest

from convergio.graphflow.board import scripts
from convergio.graphflow.engine import journaler
from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from tests.conftest import ValkeyFactory
from tests.integration.engine_rig import QUIET, Stage, another_service, chain, single, stage_on
from tests.waiting import wait_until

pytestmark = QUIET


class Killed(BaseException):
    """The service process ends here, without another word."""


def killed_in(phase: str) -> object:
    def between(name: str) -> None:
        if name == phase:
            raise Killed

    return between


def parked(stage: Stage, ref: RunRef | None = None) -> tuple[RunRef, Claim]:
    """A run whose first step's outcome waits for SQL."""
    ref = ref or stage.submit(chain(durability="step"))
    while stage.take():
        pass
    claim = stage.claim(ref, "first")
    stage.worker.steps.succeed(claim, {"n": 1})
    assert stage.word(ref, "first").blocked_on is BlockedOn.JOURNAL
    return ref, claim


# --- who waits --------------------------------------------------------------------------------------------------------


def test_a_successor_is_not_rung_before_the_commit(both: Stage) -> None:
    ref, _ = parked(both)
    seen: dict[str, list[tuple[str, str]]] = {}

    def between(phase: str) -> None:
        seen[phase] = both.bells()

    both.service.journaler.step(wait_ms=1, between=between)
    assert seen == {"commit": [], "release": []}
    assert both.bells() == [("last", "1.1")]
    assert both.word(ref, "first").state is StepState.SUCCEEDED


def test_a_stream_durable_step_is_followed_at_once(stage: Stage) -> None:
    ref = stage.submit(chain())
    stage.worker.steps.succeed(stage.claim(ref, "first"), {"n": 1})
    assert ("last", "1.1") in stage.bells()
    assert stage.outcomes(ref) == {}


def test_a_failed_attempt_of_a_step_durable_step_waits_too(stage: Stage) -> None:
    ref = stage.submit(chain(durability="step"))
    stage.worker.steps.fail(stage.claim(ref, "first"), errors.Permanent("no"))
    assert stage.values(ref)["@state"] == "RUNNING"
    stage.journal()
    assert stage.row(ref).state is RunState.FAILED


def test_the_runs_own_end_waits_for_sql(stage: Stage) -> None:
    ref = stage.submit(single())
    stage.worker.steps.succeed(stage.claim(ref, "only"), {"n": 1})
    feed = stage.keys.feed(ref)
    assert stage.values(ref)["@state"] == "SUCCEEDED"
    assert [entry["type"] for _, entry in stage.client.xrange(feed)][-1] == "run.succeeded"
    assert stage.client.zcard(stage.keys.done) == 0
    stage.journal()
    assert [entry["type"] for _, entry in stage.client.xrange(feed)][-1] == "run.finished"
    assert stage.client.zrange(stage.keys.done, 0, -1) == [str(ref)]


def test_the_process_keeps_a_parked_outcome_until_sql_has_it(stage: Stage) -> None:
    parked(stage)
    stage.worker.pulse()
    assert stage.worker.claims.owing() == 1
    stage.journal()
    stage.worker.pulse()
    assert stage.worker.claims.owing() == len(stage.worker.claims) == 0


def test_a_parked_outcome_needs_no_lease(stage: Stage) -> None:
    ref, _ = parked(stage)
    stage.pass_time(20)
    assert stage.word(ref, "first").blocked_on is BlockedOn.JOURNAL
    assert stage.client.zcard(stage.keys.leases) == 0


@pytest.mark.parametrize("at_once", [1, 2, 50])
def test_what_sql_has_is_let_go_and_decided_on_without_asking_for_each_inbox(stage: Stage, at_once: int) -> None:
    refs = [parked(stage)[0] for _ in range(5)]
    post = mock.Mock(wraps=scripts.post)
    with mock.patch.object(journaler, "LOCKED_AT_ONCE", at_once), mock.patch.object(scripts, "post", post):
        stage.service.journaler.step(wait_ms=1)
    assert post.call_count == 0
    assert stage.bells() == [("last", "1.1")] * 5
    assert {stage.word(ref, "first").state for ref in refs} == {StepState.SUCCEEDED}
    assert not any("@lock" in stage.client.hgetall(stage.keys.run(ref)) for ref in refs)


def test_what_is_let_go_of_a_run_that_somebody_decides_on_is_left_to_them(stage: Stage) -> None:
    ref, _ = parked(stage)
    theirs = f"theirs|{(stage.client.time()[0] + 60) * 1000}"
    stage.client.hset(stage.keys.run(ref), "@lock", theirs)
    stage.service.journaler.step(wait_ms=1)
    assert stage.bells() == []
    assert stage.client.lrange(stage.keys.inbox(ref), 0, -1) == ['{"t":"arrived","step":"first"}']
    assert stage.client.hget(stage.keys.run(ref), "@lock") == theirs


def test_a_run_that_cannot_be_decided_on_holds_up_no_other_and_goes_on_when_its_lock_is_over(stage: Stage) -> None:
    refs = [parked(stage)[0] for _ in range(3)]
    drain = stage.service.journaler.drain
    fails = [errors.JournalUnavailable("SQL is away"), mock.DEFAULT, mock.DEFAULT]
    with mock.patch.object(drain, "run", mock.Mock(wraps=drain.run, side_effect=fails)):
        stage.service.journaler.step(wait_ms=1)
    assert stage.bells() == [("last", "1.1")] * 2
    assert stage.client.hget(stage.keys.run(refs[0]), "@lock") is not None
    stage.client.hset(stage.keys.run(refs[0]), "@lock", "over|0")
    stage.pass_time(3)
    assert stage.bells() == [("last", "1.1")] * 3
    assert {stage.word(ref, "first").state for ref in refs} == {StepState.SUCCEEDED}


# --- the journaler dies, or stumbles ----------------------------------------------------------------------------------


def test_killed_between_commit_and_release_the_next_leader_releases(both: Stage) -> None:
    parked(both)
    with pytest.raises(Killed):
        both.service.journaler.step(wait_ms=1, between=killed_in("release"))  # type: ignore[arg-type]
    assert both.bells() == []
    with ExitStack() as stack:
        another_service(both.settings, stack).journaler.step(wait_ms=1)
        assert both.bells() == [("last", "1.1")]


def test_killed_before_the_commit_the_next_leader_commits(both: Stage) -> None:
    ref, _ = parked(both)
    with pytest.raises(Killed):
        both.service.journaler.step(wait_ms=1, between=killed_in("commit"))  # type: ignore[arg-type]
    assert both.outcomes(ref) == {}
    with ExitStack() as stack:
        another_service(both.settings, stack).journaler.step(wait_ms=1)
    assert set(both.outcomes(ref)) == {"first"}
    assert both.bells() == [("last", "1.1")]


def test_a_release_that_failed_is_made_up_for_without_new_events(
    valkey_server: ValkeyFactory, sqlite_url: str, tmp_path: Path
) -> None:
    server = valkey_server(aof=False)
    with stage_on(server.url, sqlite_url, tmp_path, socket_timeout=0.2) as stage:
        parked(stage)

        def between(phase: str) -> None:
            if phase == "release":
                server.pause()

        with pytest.raises(errors.BoardUnavailable):
            stage.service.journaler.step(wait_ms=1, between=between)
        server.resume()
        assert stage.bells() == []
        assert stage.service.journaler.step(wait_ms=1) == 0
        assert stage.bells() == [("last", "1.1")]


# --- SQL is away ------------------------------------------------------------------------------------------------------


def test_without_sql_stream_steps_go_on_and_step_durable_ones_wait_without_a_slot(both: Stage) -> None:
    stream, durable = both.submit(chain("stream")), both.submit(chain("durable", durability="step"))
    both.journal()
    while both.take():
        pass
    with both.sql_away():
        for ref in (stream, durable):
            both.worker.steps.succeed(both.claim(ref, "first"), {"n": 1})
        for _ in range(2):
            with pytest.raises(errors.JournalUnavailable):
                both.service.journaler.step(wait_ms=1)
        assert both.bells() == [("last", "1.1")]
        both.worker.steps.succeed(both.claim(stream, "last"), {"n": 2})
        assert both.word(durable, "first").blocked_on is BlockedOn.JOURNAL
        assert both.client.zcard(both.keys.leases) == 0
        with pytest.raises(errors.JournalUnavailable):
            both.submit(chain())
    both.play(stream, durable)
    assert both.outcomes(stream)["last"].output == {"n": 2}
    assert both.outcomes(durable)["first"].output == {"n": 1}


def test_without_sql_time_goes_on(stage: Stage) -> None:
    """Leases, retries and lost doorbells are the board's own: they need no SQL."""
    dead, retried = stage.submit(chain()), stage.submit(single(retry={"max": 3, "backoff": 1}))
    stage.claim(dead, "first", stage.another_worker())
    stage.worker.steps.fail(stage.claim(retried, "only"), errors.Transient())
    with stage.sql_away():
        stage.pass_time(7)
        assert stage.word(dead, "first").state is StepState.READY
        assert stage.word(retried, "only").state is StepState.READY


def test_a_service_process_sweeps_while_sql_is_away(stage: Stage) -> None:
    """With its real threads: the clerk, who waits for SQL, must not hold the sweeper up."""
    ref = stage.submit(single(retry={"max": 3, "backoff": 1}))
    stage.worker.steps.fail(stage.claim(ref, "only"), errors.Transient())
    stage.journal()
    stage.client.delete(stage.keys.leader("sweeper"), stage.keys.leader("journaler"))
    with stage.sql_away(), ExitStack() as stack:
        service = another_service(stage.settings, stack)
        stack.callback(service.stop)
        service.start()
        stage.age(60)
        wait_until(lambda: stage.word(ref, "only").state is StepState.READY, timeout=10)
