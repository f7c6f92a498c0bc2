"""The pool `prefork`: every child is a worker of its own, and its death costs nobody else anything."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
import pytest

from convergio.graphflow.engine.canaries import UNCLAIMED
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.journal import database
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from tests.integration import worker_bodies
from tests.integration.clients import foreign
from tests.integration.engine_rig import QUIET, single
from tests.integration.worker_crew import Crew, crew_on
from tests.waiting import wait_until

pytestmark = [QUIET, pytest.mark.slow]

PREFORK = {"pool": "prefork", "concurrency": 2}


@pytest.fixture
def crew(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Crew]:
    with crew_on(valkey, sqlite_url, tmp_path) as made:
        yield made


def test_children_run_steps_side_by_side_and_keep_the_leases_of_those_that_compute(crew: Crew) -> None:
    """The bodies last longer than a lease, and let go of the interpreter only when it takes itself away."""
    parent = crew.started("w1", **PREFORK)
    refs = [crew.submit(single("worker.computes", with_={"seconds": 7})) for _ in range(2)]
    wait_until(lambda: all(map(crew.ended, refs)), timeout=40)
    rows = [crew.history.run("default", ref.run) for ref in refs]
    assert {row.state for row in rows} == {RunState.SUCCEEDED}
    assert len({row.output for row in rows} - {parent.pid}) == 2
    assert [crew.events(ref, "step.expired") for ref in refs] == [0, 0]


def test_a_killed_childs_step_runs_again_at_once_and_its_siblings_runs_on(crew: Crew) -> None:
    parent = crew.started("w1", **PREFORK)
    doomed, healthy = crew.named("probe.hold", "doomed"), crew.named("probe.hold", "healthy")
    wait_until(lambda: crew.began("doomed") and crew.began("healthy"), timeout=30)
    crew.wait_until_leases_may_end()
    os.kill(crew.began("doomed")[0], signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: crew.events(doomed, "step.expired") == 1, timeout=10)
    assert time.monotonic() - killed < 4, "a lease is 6 s"
    wait_until(lambda: len(crew.began("doomed")) == 2, timeout=20)
    crew.open_gate()
    wait_until(lambda: crew.ended(doomed) and crew.ended(healthy), timeout=20)
    assert parent.poll() is None
    assert len(crew.began("healthy")) == 1
    assert (crew.events(doomed, "step.expired"), crew.events(healthy, "step.expired")) == (1, 0)
    assert crew.history.run("default", doomed.run).state is RunState.SUCCEEDED


def test_a_step_that_kills_its_process_is_put_in_quarantine_and_the_worker_goes_on(crew: Crew) -> None:
    parent = crew.started("w1", **PREFORK)
    poison = crew.submit(single("worker.dies"))
    wait_until(lambda: crew.ended(poison), timeout=40)
    outcome = {row.step: row for row in crew.history.facts(poison.run).outcomes}["only"]
    assert outcome.state is StepState.QUARANTINED
    assert parent.poll() is None
    after = crew.submit(single())
    wait_until(lambda: crew.ended(after), timeout=20)
    assert crew.history.run("default", after.run).state is RunState.SUCCEEDED


def test_a_step_that_crashes_before_its_claim_is_put_in_quarantine_and_the_worker_goes_on(crew: Crew) -> None:
    """Nobody ever holds a lease of it: its doorbells get lost one after the other, as the canaries prove."""
    parent = crew.started("w1", **PREFORK)
    made = WorkflowBuilder("crashes", version=1)
    made.task(worker_bodies.DEADLY, "probe.echo")
    poison, healthy = crew.submit(made.build()), crew.named("probe.hold", "healthy")
    wait_until(lambda: crew.ended(poison), timeout=90)
    (outcome,) = crew.history.facts(poison.run).outcomes
    assert outcome.state is StepState.QUARANTINED
    assert "died before it claimed the step" in str(outcome.error)
    assert crew.events(poison, "step.rung") == UNCLAIMED - 1
    assert crew.events(poison, "step.expired") == 0
    assert parent.poll() is None
    crew.open_gate()
    wait_until(lambda: crew.ended(healthy), timeout=20)
    assert len(crew.began("healthy")) == 1


def test_a_function_that_outlasts_its_timeout_is_ended_with_its_child(crew: Crew) -> None:
    """It would hold the only slot for ever."""
    parent = crew.started("w1", pool="prefork", concurrency=1)
    stuck = crew.submit(single("probe.hold", with_={"name": "'stuck'"}, timeout=1))
    wait_until(lambda: crew.ended(stuck), timeout=20)
    assert crew.history.facts(stuck.run).outcomes[0].state is StepState.FAILED
    after = crew.submit(single())
    wait_until(lambda: crew.ended(after), timeout=10)
    assert [what for what, *_ in crew.notes("stuck")] == ["began"]
    assert parent.poll() is None


def test_a_cancel_ends_a_function_that_computes(crew: Crew) -> None:
    crew.started("w1", pool="prefork", concurrency=1)
    endless = crew.submit(single("worker.computes", with_={"seconds": 600}))
    wait_until(lambda: crew.word(endless).state is StepState.RUNNING, timeout=20)
    crew.entrance.cancel(endless, by="boss")
    after = crew.submit(single())
    wait_until(lambda: crew.ended(endless) and crew.ended(after), timeout=10)
    assert crew.history.run("default", endless.run).state is RunState.CANCELLED
    assert crew.history.run("default", after.run).state is RunState.SUCCEEDED


def test_a_child_that_has_grown_too_large_is_replaced_after_its_step(crew: Crew) -> None:
    crew.started("w1", pool="prefork", concurrency=1, child_memory_mb=400)
    pids = [run_of(crew, "worker.grows", megabytes=size) for size in (1, 1, 500, 1)]
    assert pids[0] == pids[1] == pids[2] != pids[3]


def run_of(crew: Crew, function: str, **given: object) -> object:
    """The output of a run of one step."""
    ref = crew.submit(single(function, with_=given))
    wait_until(lambda: crew.ended(ref), timeout=20)
    return crew.history.run("default", ref.run).output


def test_a_child_stays_until_what_it_owes_is_in_sql(crew: Crew) -> None:
    """The service process is frozen: SQL does not have the outcome, so the child that keeps it may not go."""
    parent = crew.started("w1", **PREFORK)
    crew.processes["service"].send_signal(signal.SIGSTOP)
    owed = crew.submit(single(durability="step"))
    wait_until(lambda: crew.word(owed).blocked_on is BlockedOn.JOURNAL, timeout=10)
    parent.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        parent.wait(timeout=6)
    crew.processes["service"].send_signal(signal.SIGCONT)
    assert parent.wait(timeout=15) == 0
    wait_until(lambda: crew.ended(owed), timeout=10)


def test_any_celery_client_gets_a_runs_result_from_children(crew: Crew) -> None:
    crew.started("w1", **PREFORK)
    with foreign(crew.settings.redis_url) as app:
        answers = [submitted(app) for _ in range(4)]
        assert [answer.get(timeout=30) for answer in answers] == ["soon"] * 4


def test_a_public_entry_whose_child_dies_is_answered_all_the_same(crew: Crew) -> None:
    """The child is killed while it waits for the journal, which somebody else has locked."""
    crew.started("w1", pool="prefork", concurrency=1, queues="convergio,steps")
    store = database.connect(crew.settings.journal_url)
    with foreign(crew.settings.redis_url) as app:
        with store.write():
            answer = submitted(app)
            os.kill(wait_until(lambda: frozen_at_work(crew, app), timeout=40), signal.SIGKILL)
            wait_until(lambda: "is gone" in crew.log("w1") or "WorkerLostError" in crew.log("w1"), timeout=10)
        assert answer.get(timeout=30) == "soon"
    store.close()


def frozen_at_work(crew: Crew, app: celery.Celery) -> int | None:
    """The only child, stopped while it has a task; None if it had just given up, to try again a second later."""
    child = crew.children("w1")[0]
    os.kill(child, signal.SIGSTOP)
    if (app.control.inspect(timeout=2, limit=1, destination=["w1@convergio"]).active() or {}).get("w1@convergio"):
        return child
    os.kill(child, signal.SIGCONT)
    return None


def submitted(app: celery.Celery) -> Any:
    return app.send_task("convergio.submit", kwargs={"workflow": "quick"}, queue="convergio")


def test_a_terminate_signal_to_the_whole_group_ends_no_body(crew: Crew) -> None:
    """So does systemd; what runs is finished, by the child that has it."""
    parent = crew.started("w1", **PREFORK)
    ref = crew.named("probe.lasts", "slow", seconds=3)
    wait_until(lambda: crew.began("slow"), timeout=20)
    os.killpg(parent.pid, signal.SIGTERM)
    assert parent.wait(timeout=20) == 0
    wait_until(lambda: crew.ended(ref), timeout=10)
    assert [what for what, *_ in crew.notes("slow")] == ["began", "ended"]
    assert crew.history.run("default", ref.run).state is RunState.SUCCEEDED
