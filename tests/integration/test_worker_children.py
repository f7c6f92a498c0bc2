"""Child runs on real processes: a service and workers, which are killed while children run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from convergio.graphflow.engine.submission import Submission
from convergio.graphflow.model.ids import RunRef, child_of
from convergio.graphflow.model.states import RunState
from tests.integration import families
from tests.integration.engine_rig import QUIET
from tests.integration.worker_crew import Crew, crew_on
from tests.waiting import wait_until

pytestmark = [QUIET, pytest.mark.slow]


@pytest.fixture
def crew(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Crew]:
    with crew_on(valkey, sqlite_url, tmp_path) as made:
        yield made


def state_of(crew: Crew, ref: RunRef) -> RunState | None:
    rows = crew.history.runs_of([ref.run])
    return rows[0].state if rows else None


def held(crew: Crew) -> tuple[RunRef, RunRef]:
    """A run, and its child, in whose body a worker is."""
    workflow = families.parent("held", with_={"name": "'child'"})
    crew.entrance.find = {"held": families.HELD}.__getitem__
    row = crew.entrance.submit(Submission(workflow=workflow, input=None))
    ref = RunRef(tenant=row.tenant, run=row.run_id)
    wait_until(lambda: crew.began("child"), timeout=20)
    return ref, child_of(ref, "call", 1)


def test_a_child_runs_and_ends_though_service_and_worker_are_killed(crew: Crew) -> None:
    first = crew.started("w1", include="tests.integration.families")
    ref, child = held(crew)
    crew.wait_until_leases_may_end()
    for process in (first, crew.processes["service"]):
        process.kill()
        process.wait()
    crew.start("service")
    crew.started("w2", include="tests.integration.families")
    wait_until(lambda: len(crew.began("child")) == 2, timeout=30)
    crew.open_gate()
    wait_until(lambda: crew.ended(ref), timeout=20)
    assert (state_of(crew, ref), state_of(crew, child)) == (RunState.SUCCEEDED, RunState.SUCCEEDED)
    assert crew.history.run("default", ref.run).output == {"got": "child", "said": "child"}


def test_a_cancel_reaches_the_child_within_two_seconds(crew: Crew) -> None:
    crew.started("w1", include="tests.integration.families")
    ref, child = held(crew)
    crew.entrance.cancel(ref, by="ann")
    wait_until(lambda: state_of(crew, child) is RunState.CANCELLED, timeout=2)
    assert state_of(crew, ref) is RunState.CANCELLED
    crew.open_gate()
