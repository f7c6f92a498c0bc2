"""A task that somebody revokes, by Flower or by `celery control revoke`: real workers cancel its run, and live on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import celery
import pytest

from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from convergio.tasks import bell
from convergio.tasks.app import make_app
from tests.integration.engine_rig import QUIET, sign_off, single
from tests.integration.worker_crew import Crew, crew_on
from tests.waiting import wait_until

pytestmark = [QUIET, pytest.mark.slow]


@pytest.fixture
def crew(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Crew]:
    with crew_on(valkey, sqlite_url, tmp_path) as made:
        yield made


@pytest.fixture
def client(crew: Crew) -> Iterator[celery.Celery]:
    """Any Celery client of these servers."""
    with make_app(crew.settings.redis_url) as app:
        yield app


def task_of(ref: RunRef, step: str = "only") -> str:
    """The Celery id of the step's first doorbell."""
    return bell.doorbell_id(ref.run, step, "1.1")


def state(crew: Crew, ref: RunRef) -> tuple[RunState, str | None]:
    """How the run is, and why it was cancelled."""
    row = crew.history.run(ref.tenant, ref.run)
    return row.state, row.cancel_reason


def cancelled(task_id: str) -> tuple[RunState, str]:
    return RunState.CANCELLED, f"task {task_id} was revoked"


def test_whatever_a_step_does_its_revoked_task_cancels_the_run(crew: Crew, client: celery.Celery) -> None:
    """It runs, waits for a decision without a message, or is rung where nobody listens; two workers hear of it."""
    for name in ("w1", "w2"):
        crew.started(name, queues="steps,control,convergio")
    runs = crew.named("worker.waits", "runs")
    waits, queued = crew.submit(sign_off()), crew.submit(single(queue="tools"))
    wait_until(lambda: crew.began("runs") and crew.word(waits, "sign").state is StepState.BLOCKED, timeout=20)
    wait_until(lambda: crew.word(queued).state is StepState.READY, timeout=20)
    ids = [task_of(runs), task_of(waits, "sign"), task_of(queued)]
    client.control.revoke(ids[0], terminate=True, signal="SIGKILL")  # as Flower's "Terminate" does
    client.control.revoke(ids[1:])
    for ref, task_id in zip((runs, waits, queued), ids, strict=True):
        wait_until(lambda ref=ref: crew.ended(ref), timeout=20)  # type: ignore[misc]
        assert state(crew, ref) == cancelled(task_id)
    wait_until(lambda: [what for what, *_ in crew.notes("runs")] == ["began", "cancelled"], timeout=5)
    assert all(crew.processes[name].poll() is None for name in ("w1", "w2"))
    assert str(client.AsyncResult(ids[1]).state) == "REVOKED", "whoever waits for the decision is told"


def test_a_task_that_has_ended_or_that_nobody_knows_cancels_nothing(crew: Crew, client: celery.Celery) -> None:
    crew.started("w1")
    ref = crew.submit(sign_off())
    wait_until(lambda: crew.word(ref, "sign").state is StepState.BLOCKED, timeout=20)
    wait_until(lambda: crew.history.outcomes(ref.run, ["draft"]), timeout=20)
    client.control.revoke([task_of(ref, "draft"), "019abcde0123456789abcdef01234567.draft.1.1", "no-task-of-ours"])
    noted = crew.entrance.link.client.exists
    wait_until(lambda: "flagged as revoked" in crew.log("w1") and not noted("convergio:revoked"), timeout=20)
    assert state(crew, ref) == (RunState.RUNNING, None)
    crew.entrance.signal(ref, name="sign", data={"decision": "approve"}, by="boss")
    wait_until(lambda: crew.ended(ref), timeout=20)
    assert state(crew, ref) == (RunState.SUCCEEDED, None)


def test_a_submission_that_is_revoked_cancels_its_run(crew: Crew, client: celery.Celery) -> None:
    crew.started("w1", include="tests.integration.families")
    result = client.send_task("convergio.submit", kwargs={"workflow": "held", "input": {"name": "it"}})
    wait_until(lambda: crew.began("it"), timeout=20)
    result.revoke()
    ref = RunRef(tenant="default", run=str(result.id))
    wait_until(lambda: crew.ended(ref), timeout=20)
    assert state(crew, ref) == cancelled(str(result.id))
    with pytest.raises(Exception, match="was revoked"):
        result.get(timeout=20)


def test_a_child_whose_task_is_terminated_is_ended_by_the_engine_and_its_siblings_go_on(
    crew: Crew, client: celery.Celery
) -> None:
    crew.started("w1", pool="prefork", concurrency=2)
    held, other = crew.named("probe.lasts", "held", seconds=60), crew.named("probe.hold", "other")
    wait_until(lambda: crew.began("held") and crew.began("other"), timeout=30)
    client.control.terminate(task_of(held), signal="SIGKILL")
    wait_until(lambda: crew.ended(held), timeout=20)
    assert state(crew, held) == cancelled(task_of(held))
    crew.open_gate()
    wait_until(lambda: crew.ended(other), timeout=20)
    assert state(crew, other) == (RunState.SUCCEEDED, None)
    assert len(crew.began("other")) == 1


def test_a_revocation_waits_for_the_service_process(crew: Crew, client: celery.Celery) -> None:
    crew.started("w1")
    ref = crew.submit(sign_off())
    wait_until(lambda: crew.word(ref, "sign").state is StepState.BLOCKED, timeout=20)
    service = crew.processes["service"]
    service.kill()
    service.wait()
    client.control.revoke(task_of(ref, "sign"))
    wait_until(lambda: crew.entrance.link.client.exists("convergio:revoked"), timeout=20)
    assert state(crew, ref) == (RunState.RUNNING, None)
    crew.start("service")
    wait_until(lambda: crew.ended(ref), timeout=30)
    assert state(crew, ref) == cancelled(task_of(ref, "sign"))
