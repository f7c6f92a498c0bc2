"""A concurrency key among real workers, one of which is killed, and on a Redis that is wiped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState
from tests.integration.engine_rig import QUIET
from tests.integration.worker_crew import Crew, crew_on
from tests.waiting import wait_until

pytestmark = [QUIET, pytest.mark.slow]

LIMIT = 2
RUNS = 16


@pytest.fixture
def crew(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Crew]:
    with crew_on(valkey, sqlite_url, tmp_path) as made:
        yield made


def limited(crew: Crew, name: str) -> RunRef:
    """A run of one step that takes a moment, under the key of all of them."""
    made = WorkflowBuilder("limited", version=1)
    key = {"key": "gate", "limit": LIMIT}
    made.task("only", "probe.lasts", with_={"name": f"'{name}'", "seconds": 0.5}, concurrency_key=key)
    return crew.submit(made.build())


def bodies(crew: Crew, names: list[str], killed: dict[int, float]) -> list[tuple[float, float]]:
    """When each body began, and when it ended: by itself, or with its process."""
    found: list[tuple[float, float]] = []
    for name in names:
        began: dict[int, float] = {}
        for what, pid, at in crew.notes(name):
            if what == "began":
                began[pid] = at
            else:
                found.append((began.pop(pid), at))
        found += [(at, killed[pid]) for pid, at in began.items()]
    return found


def most_at_once(spans: list[tuple[float, float]]) -> int:
    return max(sum(begin <= at < end for begin, end in spans) for at, _ in spans)


def done(crew: Crew, refs: list[RunRef]) -> int:
    return sum(crew.ended(ref) for ref in refs)


def test_never_more_bodies_than_the_limit_and_all_come_to_their_turn(crew: Crew) -> None:
    first = crew.started("w1", concurrency=4)
    crew.started("w2", concurrency=4)
    crew.wait_until_leases_may_end()
    names = [f"body{number}" for number in range(RUNS)]
    refs = [limited(crew, name) for name in names]
    wait_until(lambda: done(crew, refs) >= 4, timeout=30)
    wait_until(lambda: any(first.pid in crew.began(name) for name in names), timeout=10)
    first.kill()
    first.wait()
    killed = {first.pid: time.monotonic()}
    wait_until(lambda: done(crew, refs) >= 8, timeout=40)
    crew.entrance.link.client.flushall()
    wait_until(lambda: done(crew, refs) == RUNS, timeout=60)
    assert {crew.history.run("default", ref.run).state for ref in refs} == {RunState.SUCCEEDED}
    spans = bodies(crew, names, killed)
    assert len(spans) >= RUNS
    assert most_at_once(spans) == LIMIT
