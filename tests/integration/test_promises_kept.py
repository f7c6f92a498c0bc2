"""Promises of `docs/promises.md` that no other test would miss if they were broken."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import sqlalchemy as sa
from celery.app import trace

from convergio.graphflow import decide
from convergio.graphflow.board import scripts
from convergio.graphflow.journal import tables
from convergio.graphflow.library import Catalog
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import new_run_id
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from tests.integration.engine_rig import QUIET, Stage, sign_off, single

pytestmark = QUIET


# --- inboxes ----------------------------------------------------------------------------------------------------------


def test_what_a_drainer_left_when_it_died_is_drained_by_the_sweeper(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts, "LOCK_MS", 1)
    ref = stage.submit(single())
    claim = stage.claim(ref, "only")
    with monkeypatch.context() as patch:
        patch.setattr(stage.worker.steps.drain, "run", mock.Mock(side_effect=errors.BoardUnavailable()))
        stage.worker.steps.succeed(claim, {"value": 1})
    assert stage.word(ref, "only").state is StepState.SUCCEEDED
    stage.journal()
    assert stage.row(ref).state is RunState.RUNNING, "its end is not decided yet"
    stage.pass_time(2)
    stage.journal()
    assert stage.row(ref).state is RunState.SUCCEEDED
    assert stage.service.sweeper.repairs["drained"] == 1


def test_a_decision_that_was_overtaken_is_made_again_from_what_is_there_now(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the decision on a signal and its COMMIT the step begins to wait for it."""
    ref = stage.submit(sign_off())
    stage.worker.steps.succeed(stage.claim(ref, "draft"), {})
    claim, made, decided = stage.claim(ref, "sign"), decide.decide, list[Any]()

    def overtaken(*args: Any, **options: Any) -> Any:
        decided.append(made(*args, **options))
        assert len(decided) < 5, "it decides for ever on what it read first"
        if len(decided) == 1:
            stage.worker.steps.block(claim, signal="sign", data={})
        return decided[-1]

    with monkeypatch.context() as patch:
        patch.setattr(decide, "decide", overtaken)
        stage.signal(ref, "sign")
    assert len(decided) == 2
    assert stage.word(ref, "sign").blocked_on is BlockedOn.JOURNAL


# --- signals ----------------------------------------------------------------------------------------------------------


def test_a_signal_that_sql_does_not_have_decides_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row first, then the board: what was decided can be proven later."""
    ref = stage.submit(sign_off())
    stage.answer_all()
    assert stage.word(ref, "sign").blocked_on is BlockedOn.SIGNAL
    with monkeypatch.context() as patch:
        patch.setattr(stage.worker.process.entrance.doors, "signal", mock.Mock(side_effect=errors.JournalUnavailable()))
        with pytest.raises(errors.JournalUnavailable):
            stage.signal(ref, "sign")
    assert stage.word(ref, "sign").blocked_on is BlockedOn.SIGNAL
    assert stage.client.llen(stage.keys.inbox(ref)) == 0
    stage.signal(ref, "sign")
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED


# --- doors ------------------------------------------------------------------------------------------------------------


def test_submitter_and_sweeper_know_the_same_not_after_time(stage: Stage) -> None:
    """A submitter with a later one could start a run that the sweeper started, that ended, and that left the board."""
    with mock.patch.object(scripts, "start", wraps=scripts.start) as start:
        ref = stage.submit(single())
    (call,) = start.call_args_list
    assert call.kwargs["not_after_ms"] == stage.row(ref).not_after_ms


# --- the public entries -----------------------------------------------------------------------------------------------


def test_a_submission_that_is_delivered_twice_makes_one_run(stage: Stage) -> None:
    """The run's id is the task's id: a killed worker's entry is delivered again."""
    worker, name = stage.worker.process, new_run_id()
    worker.catalog = Catalog(built=[single()])
    task = worker.core.app.tasks["convergio.submit"]
    request = {"id": name, "task": task.name, "hostname": "w1@convergio", "delivery_info": {"routing_key": "convergio"}}
    for _ in range(2):
        trace.build_tracer(task.name, task, app=worker.core.app)(name, ["single"], {}, request)
    with stage.store.read() as connection:
        assert list(connection.execute(sa.select(tables.runs.c.run_id)).scalars()) == [name]
    assert stage.bells() == [("only", "1.1")]
