"""A retry on its way to the board: it is not lost, not doubled and not late, whoever dies and whatever is wiped."""

from __future__ import annotations

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any, Final
from unittest import mock

import pytest

from convergio.graphflow.board import adoption
from convergio.graphflow.engine import starter as starter_module
from convergio.graphflow.engine import submission
from convergio.graphflow.engine.ringer import Ringer
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from tests.integration.engine_rig import QUIET, Stage
from tests.integration.refunds import (
    EFFECTS,
    LATE,
    accepted_only,
    driven,
    failed,
    flow,
    fork,
    nothing_happened,
    retried,
    succeeded,
)

pytestmark = QUIET


@pytest.fixture(autouse=True)
def fresh() -> None:
    nothing_happened()


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


DOOMED: Final = """
import faulthandler, os, signal, sys
faulthandler.dump_traceback_later(45)  # where it stands, should it not come to its end
from pathlib import Path
from convergio.config import settings
from convergio.graphflow.engine.fork import Fork
from convergio.graphflow.engine.starter import Starter
from convergio.graphflow.engine.ringer import Ringer
from convergio.graphflow.journal.rows import ForkKind
from convergio.graphflow.model.ids import RunRef
from convergio.workers import boot

where, redis_url, journal_url, home, run = sys.argv[1:]
doomed, name = {"board": (Starter, "start"), "bell": (Ringer, "again")}[where]
setattr(doomed, name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
entrance = boot.entrance(settings.load(redis_url=redis_url, journal_url=journal_url, home=Path(home)))
entrance.fork(Fork(ref=RunRef(tenant="default", run=run), kind=ForkKind.RETRY, run_id="again"))
"""


@pytest.mark.parametrize("where", ["board", "bell"])
def test_a_door_that_is_killed_before_the_board_or_before_the_bell_loses_and_doubles_nothing(
    both: Stage, valkey: str, tmp_path: Path, where: str
) -> None:
    was = failed(both)
    words = [where, valkey, both.settings.journal_url, str(tmp_path), was.run]
    done = subprocess.run([sys.executable, "-c", DOOMED, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    ref = RunRef(tenant="default", run="again")
    assert bool(both.client.exists(both.keys.run(ref))) is (where == "bell")
    assert both.bells() == []
    both.age_rows(LATE)
    both.service.sweeper.apply_rows()
    both.service.sweeper.sweep()
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
    stage.worker.process.entrance.pressure = None  # there was room when it was asked
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
