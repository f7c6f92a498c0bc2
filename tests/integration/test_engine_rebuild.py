"""P4: Redis is wiped, restarted or rolled back in the middle of everything: every run ends as it would have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from convergio.graphflow.board import fields, releasing, scripts
from convergio.graphflow.board.connection import Link
from convergio.graphflow.engine.rebuild import Rebuilder
from convergio.graphflow.engine.starter import Starter
from convergio.graphflow.engine.submission import board_time
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from tests.conftest import ValkeyFactory
from tests.integration.engine_rig import QUIET, Stage, chain, fork, sign_off, single, stage_on

pytestmark = QUIET

BACKOFF = {"max": 3, "backoff": 30, "jitter": 0}


def new_board(stage: Stage) -> None:
    """Wiped, rebuilt, and met by the processes that live."""
    stage.wipe()
    stage.rebuild()
    stage.worker.meet_new_board()


# --- runs in every state ----------------------------------------------------------------------------------------------


def ready(stage: Stage) -> RunRef:
    return stage.submit(chain())


def half_done(stage: Stage) -> RunRef:
    ref = stage.submit(chain())
    stage.worker.steps.succeed(stage.claim(ref, "first"), {"step": "first"})
    return ref


def running(stage: Stage) -> RunRef:
    ref = stage.submit(chain())
    stage.claim(ref, "first")
    return ref


def running_on_a_dead_worker(stage: Stage) -> RunRef:
    ref = stage.submit(chain())
    stage.claim(ref, "first", stage.another_worker())
    return ref


def joining(stage: Stage) -> RunRef:
    ref = stage.submit(fork())
    stage.worker.steps.succeed(stage.claim(ref, "left"), {"step": "left"})
    return ref


def waiting_for_a_signal(stage: Stage) -> RunRef:
    ref = half_done_approval(stage)
    stage.worker.steps.block(stage.claim(ref, "sign"), signal="sign", data={})
    return ref


def half_done_approval(stage: Stage) -> RunRef:
    ref = stage.submit(sign_off())
    stage.worker.steps.succeed(stage.claim(ref, "draft"), {"step": "draft"})
    return ref


def signalled_early(stage: Stage) -> RunRef:
    ref = stage.submit(sign_off())
    stage.signal(ref, "sign")
    return ref


def retry_later(stage: Stage) -> RunRef:
    ref = stage.submit(chain(retry=BACKOFF))
    stage.worker.steps.fail(stage.claim(ref, "first"), errors.Transient())
    return ref


def retry_due(stage: Stage) -> RunRef:
    ref = stage.submit(chain(retry={"max": 3, "backoff": 0.001}))
    stage.worker.steps.fail(stage.claim(ref, "first"), errors.Transient())
    return ref


def deferred(stage: Stage) -> RunRef:
    ref = stage.submit(chain())
    stage.worker.steps.defer(stage.claim(ref, "first"), seconds=30, reason="rush hour")
    return ref


def parked(stage: Stage) -> RunRef:
    ref = stage.submit(chain(durability="step"))
    stage.worker.steps.succeed(stage.claim(ref, "first"), {"step": "first"})
    return ref


def ended_but_not_journaled(stage: Stage) -> RunRef:
    ref = half_done(stage)
    stage.worker.steps.succeed(stage.claim(ref, "last"), {"step": "last"})
    return ref


def accepted(stage: Stage) -> RunRef:
    with mock.patch.object(Starter, "start", side_effect=errors.BoardUnavailable):
        return stage.submit(chain())


STATES: list[Callable[[Stage], RunRef]] = [
    ready,
    half_done,
    running,
    running_on_a_dead_worker,
    joining,
    waiting_for_a_signal,
    signalled_early,
    retry_later,
    retry_due,
    deferred,
    parked,
    ended_but_not_journaled,
    accepted,
]


def expected(make: Callable[[Stage], RunRef]) -> object:
    if make is joining:
        return {"left": {"step": "left"}, "right": {"step": "right"}}
    signed = make in (waiting_for_a_signal, signalled_early)
    return {"step": "send" if signed else "last"}


@pytest.mark.parametrize("journaled", [True, False], ids=["journaled", "not journaled"])
def test_runs_in_every_state_end_as_they_would_have(both: Stage, journaled: bool) -> None:
    refs = {make: make(both) for make in STATES}
    if journaled:
        both.journal()
    new_board(both)
    both.play(*refs.values())
    for make, ref in refs.items():
        assert both.row(ref).state is RunState.SUCCEEDED, make.__name__
        assert both.row(ref).output == expected(make), make.__name__
        assert len(both.outcomes(ref)) == 3 if make in (joining, waiting_for_a_signal, signalled_early) else 2
        assert both.events(ref, "run.started") in ([{}], [{}, {}]), make.__name__


def test_a_run_that_ended_in_sql_but_was_not_released_is_not_run_again(stage: Stage) -> None:
    ref = ended_but_not_journaled(stage)
    away = mock.patch.object(releasing, "release", side_effect=errors.BoardUnavailable)
    with away, pytest.raises(errors.BoardUnavailable):
        stage.journal()
    new_board(stage)
    assert not stage.client.exists(stage.keys.run(ref))
    assert stage.row(ref).output == {"step": "last"}


def test_a_cancel_whose_wake_up_was_wiped_is_carried_out(stage: Stage) -> None:
    ref = running(stage)
    stage.journal()
    entrance = stage.worker.process.entrance
    with mock.patch.object(entrance, "wake"):
        entrance.cancel(ref, by="boss")
    new_board(stage)
    stage.service.sweeper.apply_rows()
    stage.journal()
    assert stage.row(ref).state is RunState.CANCELLED


def test_a_signal_whose_wake_up_was_wiped_is_applied(stage: Stage) -> None:
    ref = waiting_for_a_signal(stage)
    stage.journal()
    with mock.patch.object(stage.worker.process.entrance, "wake"):
        stage.signal(ref, "sign", "reject")
    new_board(stage)
    stage.age(2)
    stage.service.sweeper.sweep()
    stage.journal()
    error = stage.row(ref).error
    assert error is not None
    assert error["code"] == "APPROVAL_REJECTED"


def test_a_signal_that_is_being_decided_when_the_board_is_wiped_is_applied_all_the_same(stage: Stage) -> None:
    ref = waiting_for_a_signal(stage)
    stage.journal()
    post = scripts.post

    def posted_and_wiped(*args: Any, **more: Any) -> scripts.Locked | None:
        locked = post(*args, **more)
        stage.client.flushall()
        return locked

    door = stage.worker.process.entrance
    with mock.patch.object(scripts, "post", posted_and_wiped):
        assert door.signal(ref, name="sign", data={"decision": "reject"}, by="boss"), "its row is kept"
    stage.rebuild()
    stage.worker.meet_new_board()
    stage.age(2)
    stage.service.sweeper.sweep()
    stage.journal()
    assert stage.row(ref).state is RunState.FAILED


def test_a_retry_goes_on_with_its_attempt_and_its_due_time(stage: Stage) -> None:
    later, due = retry_later(stage), retry_due(stage)
    stage.journal()
    before = stage.client.zscore(stage.keys.timers, f"{later}/first/RETRY")
    new_board(stage)
    assert stage.word(later, "first").blocked_on is BlockedOn.RETRY
    assert abs(stage.client.zscore(stage.keys.timers, f"{later}/first/RETRY") - before) <= 1
    assert stage.word(due, "first").state is StepState.READY
    for ref in (later, due):
        assert stage.values(ref)[fields.attempt("first")] == "2"


def test_a_skipped_branch_stays_skipped(stage: Stage) -> None:
    made = WorkflowBuilder("branching", version=1)
    first = made.task("first", "probe.echo")
    made.task("yes", "probe.echo", after=first.when("first.step == 'first'"))
    made.task("no", "probe.echo", after=first.when("first.step != 'first'"))
    ref = stage.submit(made.build())
    stage.worker.steps.succeed(stage.claim(ref, "first"), {"step": "first"})
    stage.journal()
    new_board(stage)
    assert stage.states(ref) == {"first": "SUCCEEDED", "yes": "READY", "no": "SKIPPED"}
    stage.play(ref)
    assert {name: row.state.value for name, row in stage.outcomes(ref).items()}["no"] == "SKIPPED"


def test_many_and_large_runs_come_back_whole(stage: Stage) -> None:
    """More runs than are read at once, and more steps than are written at once."""
    made = WorkflowBuilder("wide", version=1)
    for number in range(450):
        made.task(f"s{number}", "probe.echo")
    wide = stage.submit(made.build())
    refs = [stage.submit(single()) for _ in range(110)]
    stage.journal()
    before = stage.values(wide)
    new_board(stage)
    after = stage.values(wide)
    assert before.keys() - {fields.LOCK, "@commit"} <= after.keys()
    assert stage.client.zcard(stage.keys.runs) == len(refs) + 1
    assert stage.client.zcard(stage.keys.held) == len(refs) + 450


# --- the processes that live ------------------------------------------------------------------------------------------


def test_a_body_that_still_runs_asserts_its_claim_and_is_not_run_again(stage: Stage) -> None:
    ref = stage.submit(chain())
    claim = stage.claim(ref, "first")
    stage.journal()
    while stage.take():
        pass
    new_board(stage)
    assert stage.word(ref, "first").text == fields.running(claim.held.fence)
    assert claim.held.fence.startswith("2.")
    stage.pass_time(10, also=stage.worker.pulse)
    assert stage.bells() == []
    stage.worker.steps.succeed(claim, {"n": 1})
    stage.journal()
    assert stage.outcomes(ref)["first"].output == {"n": 1}


def test_a_parked_outcome_is_offered_again(stage: Stage) -> None:
    ref = parked(stage)
    new_board(stage)
    assert stage.word(ref, "first").blocked_on is BlockedOn.JOURNAL
    stage.journal()
    assert stage.outcomes(ref)["first"].output == {"step": "first"}
    assert stage.values(ref)[fields.rings("first")] == "1", "it was not run again"


def test_an_outcome_that_comes_while_there_is_no_board_is_kept_and_told_later(stage: Stage) -> None:
    ref = stage.submit(chain())
    claim = stage.claim(ref, "first")
    stage.journal()
    stage.wipe()
    assert not stage.worker.steps.succeed(claim, {"n": 1})
    stage.rebuild()
    stage.worker.meet_new_board()
    stage.journal()
    assert stage.outcomes(ref)["first"].output == {"n": 1}
    assert stage.values(ref)[fields.rings("first")] == "1"


@pytest.mark.parametrize("answer", ["retry", "defer", "block"])
def test_a_wait_that_begins_while_there_is_no_board_begins_later(stage: Stage, answer: str) -> None:
    workflow = sign_off() if answer == "block" else chain(retry=BACKOFF)
    step = "sign" if answer == "block" else "first"
    ref = stage.submit(workflow)
    if answer == "block":
        stage.worker.steps.succeed(stage.claim(ref, "draft"), {})
    claim = stage.claim(ref, step)
    stage.journal()
    stage.wipe()
    match answer:
        case "retry":
            stage.worker.steps.fail(claim, errors.Transient())
        case "defer":
            stage.worker.steps.defer(claim, seconds=30, reason="later")
        case _:
            stage.worker.steps.block(claim, signal=step, data={})
    stage.rebuild()
    stage.worker.meet_new_board()
    assert stage.word(ref, step).state is StepState.BLOCKED
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_a_claim_is_asserted_by_its_own_process_only_and_only_before_the_next_claim(stage: Stage) -> None:
    late, quick = stage.worker, stage.another_worker()
    ref = stage.submit(chain())
    stale = stage.claim(ref, "first", late)
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.pass_time(7)
    held = stage.claim(ref, "first", quick)
    late.meet_new_board()
    assert stale.lost.is_set()
    assert late.claims.fenced == 1
    assert stage.word(ref, "first").text == fields.running(held.held.fence)


def test_ready_steps_are_held_one_lease_from_the_moment_the_board_is_whole(stage: Stage) -> None:
    ref = stage.submit(chain())
    stage.journal()
    stage.wipe()
    written: list[int] = []
    write = Rebuilder._write_run

    def timed(*args: Any) -> Any:
        answer = write(*args)
        written.append(board_time(stage.service.link))
        return answer

    with mock.patch.object(Rebuilder, "_write_run", timed):
        stage.rebuild()
    assert stage.client.zscore(stage.keys.held, f"{ref}/first") >= written[-1] + scripts.LEASE_MS
    stage.pass_time(5.5)
    assert stage.bells() == []
    stage.pass_time(1)
    assert [step for step, _ in stage.bells()] == ["first"]


# --- the server is another one ----------------------------------------------------------------------------------------


def test_a_restarted_server_is_a_new_board_though_it_lost_nothing(
    valkey_server: ValkeyFactory, sqlite_url: str, tmp_path: Path
) -> None:
    server = valkey_server()
    with stage_on(server.url, sqlite_url, tmp_path) as stage:
        refs = [parked(stage), half_done(stage), running(stage), retry_later(stage)]
        old = stage.keys.number
        server.restart()
        assert not stage.worker.steps.succeed(stage.worker.claims._snapshot()[-1], {"step": "first"})
        new_board_after_restart(stage)
        assert stage.keys.number == old + 1
        assert set(stage.outcomes(refs[1])) == {"first"}, "what SQL did not have was salvaged from the old stream"
        assert stage.states(refs[1]) == {"first": "SUCCEEDED", "last": "READY"}
        stage.play(*refs)
        assert {stage.row(ref).state for ref in refs} == {RunState.SUCCEEDED}


def new_board_after_restart(stage: Stage) -> None:
    stage.rebuild()
    stage.worker.meet_new_board()


def test_a_rolled_back_server_takes_back_nothing_that_sql_has(
    valkey_server: ValkeyFactory, sqlite_url: str, tmp_path: Path
) -> None:
    server = valkey_server()
    with stage_on(server.url, sqlite_url, tmp_path) as stage:
        refs = [half_done(stage) for _ in range(3)]
        stage.journal()
        server.kill()
        assert server.cut_aof_tail(3_000) == 3_000
        server.start()
        new_board_after_restart(stage)
        for ref in refs:
            assert stage.outcomes(ref)["first"].output == {"step": "first"}
            assert stage.states(ref) == {"first": "SUCCEEDED", "last": "READY"}
        stage.play(*refs)
        assert {stage.row(ref).state for ref in refs} == {RunState.SUCCEEDED}


def test_a_worker_that_knows_only_the_old_server_writes_nothing_on_the_new_one(
    valkey_server: ValkeyFactory, sqlite_url: str, tmp_path: Path
) -> None:
    server = valkey_server()
    with stage_on(server.url, sqlite_url, tmp_path) as stage:
        ref = stage.submit(chain())
        claim = stage.claim(ref, "first")
        server.restart()
        fresh = Link(server.url)
        before = fresh.client.hgetall(f"convergio:1:{ref}".replace("/", ":"))
        assert before
        assert not stage.worker.steps.succeed(claim, {})
        assert fresh.client.hgetall(f"convergio:1:{ref}".replace("/", ":")) == before
        fresh.close()
