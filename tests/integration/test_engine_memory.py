"""A Redis whose memory is full refuses new runs first: whatever is on the board can go on to its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from convergio.graphflow.model import errors
from convergio.graphflow.model.states import RunState, StepState
from tests import servers
from tests.conftest import ValkeyFactory
from tests.integration.engine_rig import QUIET, Stage, chain, sign_off, single, stage_on

pytestmark = QUIET


@pytest.fixture
def server(valkey_server: ValkeyFactory) -> servers.ValkeyServer:
    return valkey_server(aof=False)


@pytest.fixture
def stage(server: servers.ValkeyServer, sqlite_url: str, tmp_path: Path) -> Iterator[Stage]:
    with stage_on(server.url, sqlite_url, tmp_path) as made:
        yield made


def fill(stage: Stage) -> None:
    stage.client.config_set("maxmemory", "1")


def test_a_run_on_the_board_ends_though_memory_is_full(stage: Stage) -> None:
    """Claims, retries, signals, leases, releases and the leader's own lease: none of them may need new memory."""
    durable = stage.submit(chain("durable", durability="step", retry={"max": 1, "backoff": 1}))
    signed, dead = stage.submit(sign_off()), stage.submit(chain())
    stage.journal()
    fill(stage)
    assert stage.service.writer_lease.holds()
    assert stage.service.sweeper_lease.holds()
    stage.worker.steps.fail(stage.claim(durable, "first"), errors.Transient())
    stage.claim(dead, "first", stage.another_worker())
    stage.play(durable, signed, dead)
    assert {stage.row(ref).state for ref in (durable, signed, dead)} == {RunState.SUCCEEDED}


def test_lost_doorbells_are_found_though_memory_is_full(stage: Stage) -> None:
    ref = stage.submit(chain())
    stage.take()
    fill(stage)
    stage.age(0.1)
    stage.service.canaries.watch()
    while (bell := stage.take()) is not None:
        stage.worker.answer(bell)
    stage.age(3)
    stage.service.canaries.watch()
    assert ("first", stage.word(ref, "first").rest) in stage.bells()


def test_a_new_run_is_not_started_while_memory_is_full_and_is_not_lost(stage: Stage) -> None:
    stage.worker.process.entrance.pressure = None  # there was room when it was asked
    fill(stage)
    ref = stage.submit(single())
    assert stage.row(ref).state is RunState.ACCEPTED
    assert stage.bells() == []
    stage.client.config_set("maxmemory", "0")
    stage.age_rows(20)
    stage.service.sweeper.apply_rows()
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_signals_and_cancels_do_not_wait_behind_runs_that_cannot_be_started(stage: Stage) -> None:
    """They are what ends runs, and gives memory back."""
    signed = stage.submit(sign_off())
    stage.answer_all()
    cancelled = stage.submit(chain())
    stage.journal()
    stage.worker.process.entrance.pressure = None  # there was room when it was asked
    fill(stage)
    stage.submit(single())
    with mock.patch.object(stage.worker.process.entrance, "wake"):
        stage.signal(signed, "sign")
        stage.worker.process.entrance.cancel(cancelled, by="boss")
    stage.age_rows(20)
    with pytest.raises(errors.BoardUnavailable, match="memory"):
        stage.service.sweeper.apply_rows()
    stage.journal()
    assert stage.outcomes(signed)["sign"].state is StepState.SUCCEEDED
    assert stage.row(cancelled).state is RunState.CANCELLED
