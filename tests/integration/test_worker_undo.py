"""Compensation, and steps that ask, on real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from tests.integration.engine_rig import QUIET
from tests.integration.worker_crew import Crew, crew_on
from tests.waiting import wait_until

pytestmark = [QUIET, pytest.mark.slow]


@pytest.fixture
def crew(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Crew]:
    with crew_on(valkey, sqlite_url, tmp_path) as made:
        yield made


def test_a_failed_step_asks_its_answer_undoes_the_run_and_a_killed_workers_undo_runs_again(crew: Crew) -> None:
    made = WorkflowBuilder("trip", version=1)
    book = made.task("book", "probe.echo", compensate={"task": "probe.hold", "with": {"name": "'undo'"}})
    made.task("pay", "probe.raises", after=book, kind="'permanent of an exception'", on_failure="ask")
    first = crew.started("w1")
    ref = crew.submit(made.build())
    wait_until(lambda: crew.word(ref, "pay").blocked_on is BlockedOn.SIGNAL, timeout=20)
    wait_until(lambda: crew.events(ref, "step.asked") == 1, timeout=10)
    crew.entrance.signal(ref, name="pay", data={"decision": "compensate"}, by="ann")
    wait_until(lambda: crew.began("undo"), timeout=20)
    assert crew.history.run("default", ref.run).state is RunState.COMPENSATING
    crew.wait_until_leases_may_end()
    first.kill()
    first.wait()
    crew.started("w2")
    wait_until(lambda: len(crew.began("undo")) == 2, timeout=30)
    crew.open_gate()
    wait_until(lambda: crew.ended(ref), timeout=20)
    row = crew.history.run("default", ref.run)
    assert row.state is RunState.FAILED
    assert row.error is not None
    assert (row.error["answer"], row.error["compensated"]) == ("compensate", ["book"])
    states = {one.step: one.state for one in crew.history.facts(ref.run).outcomes}
    assert states == {"book": StepState.SUCCEEDED, "pay": StepState.FAILED, "undo:book": StepState.SUCCEEDED}
