"""Two installations on one Redis: each has queues, messages and results of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from convergio.graphflow import Client
from convergio.graphflow.board.keys import queue_prefix
from convergio.graphflow.model.states import RunState
from tests.integration.engine_rig import QUIET, chain, single
from tests.integration.worker_crew import Crew, crew_on
from tests.waiting import wait_until

pytestmark = QUIET


@pytest.fixture
def crew(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Crew]:
    with crew_on(valkey, sqlite_url, tmp_path, key_prefix="team") as made:
        yield made


def test_the_default_installation_is_found_by_any_celery_client() -> None:
    assert queue_prefix("convergio") == ""
    assert queue_prefix("team") == "team."


def test_every_key_of_an_installation_has_its_prefix_and_another_ones_doorbells_are_left_alone(crew: Crew) -> None:
    redis: Any = crew.entrance.link.client
    for queue in ("convergio", "steps"):
        redis.lpush(queue, "a message of the installation that has the default prefix")
    worker = crew.started("w1", pool="solo")
    refs = [crew.submit(chain()), crew.submit(single())]
    wait_until(lambda: all(map(crew.ended, refs)), timeout=30)
    assert {crew.history.run(ref.tenant, ref.run).state for ref in refs} == {RunState.SUCCEEDED}
    with Client(crew.settings.redis_url, prefix="team") as client:
        run = client.run(refs[1].run)
        assert run.result("20s") == {"value": None}
        run.cancel("it has ended: an entry that is answered")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=20) == 0
    assert crew.log("w1").count("could not be put back") == 0
    others = {str(name) for name in redis.scan_iter() if not str(name).startswith(("team:", "team."))}
    assert others == {"convergio", "steps"}
    assert redis.llen("convergio") == redis.llen("steps") == 1
