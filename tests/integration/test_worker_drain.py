"""A worker that is asked to stop: what it has is given back at once or finished, and nothing is doubled or lost."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from convergio.graphflow.engine.bell import CONTINUATION, FRESH
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from convergio.tasks.app import make_app, queue_list
from tests.integration.engine_rig import QUIET, single
from tests.integration.worker_crew import Crew, crew_on
from tests.waiting import wait_until

pytestmark = [QUIET, pytest.mark.slow]

POOLS = ["threads", "prefork", "solo"]


@pytest.fixture
def crew(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Crew]:
    with crew_on(valkey, sqlite_url, tmp_path) as made:
        yield made


def stop(process: subprocess.Popen[bytes]) -> float:
    """SIGTERM; when."""
    process.send_signal(signal.SIGTERM)
    return time.monotonic()


def is_run_once(crew: Crew, ref: RunRef) -> bool:
    """It ended well, and no worker died over it."""
    return crew.history.run("default", ref.run).state is RunState.SUCCEEDED and not crew.events(ref, "step.expired")


@pytest.mark.parametrize("pool", POOLS)
def test_a_running_coroutine_is_cancelled_and_its_step_runs_elsewhere_within_two_seconds(pool: str, crew: Crew) -> None:
    first = crew.started("w1", pool=pool, concurrency=2)
    ref = crew.named("worker.waits", "moves")
    wait_until(lambda: crew.began("moves"), timeout=20)
    crew.started("w2")
    asked = stop(first)
    wait_until(lambda: len(crew.began("moves")) == 2, timeout=10)
    assert time.monotonic() - asked < 2
    assert first.wait(timeout=10) == 0
    assert [what for what, *_ in crew.notes("moves")] == ["began", "cancelled", "began"], "never two at a time"
    crew.open_gate()
    wait_until(lambda: crew.ended(ref), timeout=20)
    assert is_run_once(crew, ref)
    (outcome,) = crew.history.facts(ref.run).outcomes
    assert (outcome.attempt, crew.events(ref, "step.given_back")) == (1, 1)


def test_a_remote_control_stops_a_worker_as_a_signal_does(crew: Crew) -> None:
    """Flower has a button for it."""
    first = crew.started("w1", drain_seconds=2)
    coroutine, function = crew.named("worker.waits", "waits"), crew.named("probe.hold", "holds")
    wait_until(lambda: crew.began("waits") and crew.began("holds"), timeout=20)
    with make_app(crew.settings.redis_url) as app:
        app.control.shutdown(destination=["w1@convergio"])
        assert first.wait(timeout=10) == 0
    assert [crew.word(ref).state for ref in (coroutine, function)] == [StepState.READY, StepState.READY]
    assert [what for what, *_ in crew.notes("waits")] == ["began", "cancelled"]


def test_a_coroutine_that_makes_an_error_of_its_end_has_not_failed(crew: Crew) -> None:
    first = crew.started("w1")
    ref = crew.submit(single("worker.objects", with_={"name": "'objects'"}))
    wait_until(lambda: crew.began("objects"), timeout=20)
    stop(first)
    assert first.wait(timeout=10) == 0
    assert crew.word(ref).state is StepState.READY
    crew.open_gate()
    crew.started("w2")
    wait_until(lambda: crew.ended(ref), timeout=20)
    assert is_run_once(crew, ref)


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_what_cannot_be_interrupted_is_given_back_when_the_time_is_over(pool: str, crew: Crew) -> None:
    """It holds the process longer than it may. Its late result would be refused, and there is none."""
    first = crew.started("w1", pool=pool, concurrency=2, drain_seconds=2)
    ref = crew.named("probe.hold", "holds")
    wait_until(lambda: crew.began("holds"), timeout=20)
    crew.started("w2")
    asked = stop(first)
    wait_until(lambda: len(crew.began("holds")) == 2, timeout=10)
    assert 2 < time.monotonic() - asked < 4
    assert first.wait(timeout=5) == 0
    crew.open_gate()
    wait_until(lambda: crew.ended(ref), timeout=20)
    assert [what for what, *_ in crew.notes("holds")] == ["began", "began", "ended"]
    assert is_run_once(crew, ref)


@pytest.mark.parametrize("pool", POOLS)
def test_what_ends_in_time_is_not_given_back(pool: str, crew: Crew) -> None:
    first = crew.started("w1", pool=pool, concurrency=2)
    ref = crew.named("probe.lasts", "short", seconds=1.5)
    wait_until(lambda: crew.began("short"), timeout=20)
    stop(first)
    assert first.wait(timeout=10) == 0
    wait_until(lambda: crew.ended(ref), timeout=10)
    assert [what for what, *_ in crew.notes("short")] == ["began", "ended"]
    assert (is_run_once(crew, ref), crew.events(ref, "step.given_back")) == (True, 0)


@pytest.mark.parametrize("pool", POOLS)
def test_no_doorbell_is_lost_when_a_worker_stops_under_a_stream_of_them(pool: str, crew: Crew) -> None:
    """Who is READY afterwards has a doorbell in a list."""
    worker, refs, stopped = crew.started("w1", pool=pool, concurrency=2), list[RunRef](), 0.0
    while worker.poll() is None:
        if len(doorbells(crew)) < 20:
            refs.append(crew.submit(single("probe.lasts", with_={"seconds": 0.02, "name": "'many'"})))
        if not stopped and len(crew.began("many")) > 10:
            stopped = stop(worker)
    ready = are_ready(crew, refs)
    assert len(ready) < len(refs)
    assert ready <= doorbells(crew)


def test_a_doorbell_that_no_child_has_started_is_put_back(crew: Crew) -> None:
    """The children are frozen with it in their pipes, and never wake. Two of them may have a canary."""
    worker = crew.started("w1", queues="steps", pool="prefork", concurrency=4)
    children = crew.children("w1")
    no_more_canaries(crew)
    for child in children:
        os.kill(child, signal.SIGSTOP)
    refs = [crew.submit(single()) for _ in range(2)]
    wait_until(lambda: not doorbells(crew), timeout=10)
    stop(worker)
    wait_until(lambda: doorbells(crew) >= are_ready(crew, refs), timeout=5)
    for child in children:
        os.kill(child, signal.SIGKILL)
    assert len(are_ready(crew, refs)) == 2


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_worker_that_stops_keeps_no_doorbell_until_its_last_body_has_ended(pool: str, crew: Crew) -> None:
    """Its last pop may bring one, and it lives on for as long as it may."""
    stopping, other = crew.started("w1", pool=pool, concurrency=2), crew.started("w2")
    other.send_signal(signal.SIGSTOP)  # so that the body is in the first, and the first's pop is the one that waits
    crew.named("probe.hold", "holds")
    wait_until(lambda: crew.began("holds"), timeout=20)
    no_more_canaries(crew)
    stop(stopping)
    names = [f"rung{number}" for number in range(3)]
    for name in names:
        crew.named("probe.lasts", name, seconds=0)
    other.send_signal(signal.SIGCONT)
    wait_until(lambda: all(map(crew.began, names)), timeout=10)
    assert stopping.poll() is None
    crew.open_gate()
    assert stopping.wait(timeout=10) == 0


def no_more_canaries(crew: Crew) -> None:
    """Nobody finds what is lost, from now on; those on their way are answered."""
    crew.processes["service"].send_signal(signal.SIGSTOP)
    wait_until(lambda: not crew.entrance.link.client.exists(*LISTS), timeout=10)


def are_ready(crew: Crew, refs: list[RunRef]) -> set[tuple[str, str]]:
    """Run and ring of those whose step waits for a worker."""
    words = [(ref.run, crew.word(ref)) for ref in refs]
    return {(run, word.rest) for run, word in words if word.state is StepState.READY}


LISTS = [queue_list({"routing_key": "steps", "priority": priority}) for priority in (CONTINUATION, FRESH)]


def doorbells(crew: Crew) -> set[tuple[str, str]]:
    """Run and ring of every doorbell that waits."""
    texts = [text for name in LISTS for text in crew.entrance.link.client.lrange(name, 0, -1)]
    bodies = [json.loads(base64.b64decode(json.loads(text)["body"])) for text in texts]
    return {(run, ring) for (run, _, ring), *_ in bodies if run != "canary"}
