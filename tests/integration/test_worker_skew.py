"""Workers of another version than who rings: what they do not know waits for one that does, and nothing bounces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from convergio.graphflow.engine import bell
from convergio.graphflow.engine.inquiry import Inquiry
from convergio.graphflow.engine.reason import of_step
from convergio.graphflow.model.states import RunState, StepState
from convergio.graphflow.model.workflow import StepKind
from tests.integration.engine_rig import QUIET
from tests.integration.worker_crew import Crew, crew_on
from tests.waiting import wait_until

pytestmark = [QUIET, pytest.mark.slow]

NEWER = "convergio.newer"
"""A task that only a later version has."""


@pytest.fixture
def crew(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Crew]:
    with crew_on(valkey, sqlite_url, tmp_path) as made:
        yield made


@pytest.mark.parametrize("pool", ["threads", "solo", "prefork"])
def test_a_doorbell_for_a_task_that_is_not_known_leaves_its_step_ready_and_says_no_worker(
    pool: str, crew: Crew
) -> None:
    """A solo worker is handed them behind one that it knows; the others pop them. Nobody rings again meanwhile."""
    known = crew.named("probe.lasts", "known", seconds="0")
    with mock.patch.dict(bell.TASK_OF, {StepKind.TASK: NEWER}):
        refs = [crew.named("probe.lasts", f"n{number}", seconds="0") for number in range(3)]
    service = crew.processes["service"]
    service.kill()
    service.wait()
    inquiry = Inquiry(crew.entrance.link, crew.history)

    def sentences() -> list[str]:
        views = [inquiry.view(ref) for ref in refs]
        return [of_step(view, view.steps["only"]) for view in views]

    crew.started("w1", pool=pool)
    wait_until(lambda: all("NO_WORKER" in said and NEWER in said for said in sentences()), timeout=30)
    assert {crew.word(ref).state for ref in refs} == {StepState.READY}
    crew.start("service")  # which rings for what the worker knows
    wait_until(lambda: all(crew.ended(ref) for ref in (known, *refs)), timeout=60)
    assert {crew.history.run(ref.tenant, ref.run).state for ref in refs} == {RunState.SUCCEEDED}
    assert [crew.events(ref, kind) for ref in refs for kind in ("step.given_back", "step.expired")] == [0] * 6
    assert [row.attempt for ref in refs for row in crew.history.facts(ref.run).outcomes] == [1] * 3
