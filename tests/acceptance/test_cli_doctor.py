"""`convergio doctor`, `migrate` and `rebuild` on real servers: what is wrong fails, and says what to do."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.acceptance.town import Place, stack
from tests.servers import ValkeyServer, valkey_running
from tests.waiting import wait_until


def levels(place: Place) -> dict[str, tuple[str, str]]:
    """Level and hint of every check; the worst of those with one name."""
    done = place.cli("doctor", "--json")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    order = ["OK", "WARN", "FAIL"]
    found.sort(key=lambda check: order.index(check["level"]))
    assert done.returncode == int(any(check["level"] == "FAIL" for check in found))
    return {check["name"]: (check["level"], check["hint"]) for check in found}


def test_a_stack_that_runs_is_well(town: Place) -> None:
    checks = levels(town)
    assert {name for name, (level, _) in checks.items() if level != "OK"} == set()
    assert {"python", "sqlite", "model", "journal", "redis", "eviction", "persistence", "clock", "keepalive"} < set(
        checks
    )
    assert {"board", "journaler", "sweeper", "queue steps", "queue convergio", "memory", "visibility", "probe"} < set(
        checks
    )


def test_without_a_stack_it_fails_and_leaves_no_trace(tmp_path: Path) -> None:
    place = Place(home=tmp_path / "none")
    checks = levels(place)
    assert checks["redis"][0] == checks["journal"][0] == "FAIL"
    assert "convergio up" in checks["redis"][1]
    assert not place.home.exists()


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with valkey_running(aof=False) as made:
        yield made


def test_a_server_that_forgets_or_is_not_persistent_is_found(
    new_place: Place, server: ValkeyServer, sqlite_url: str
) -> None:
    own = {"CONVERGIO_REDIS_URL": server.url, "CONVERGIO_JOURNAL_URL": sqlite_url}
    place = Place(home=new_place.home, extra={**new_place.extra, **own})
    with server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    checks = levels(place)
    assert checks["eviction"] == (
        "FAIL",
        "CONFIG SET maxmemory-policy noeviction: a board that forgets keys silently loses steps for a while",
    )
    assert checks["persistence"][0] == "WARN"
    assert checks["journal"][0] == "FAIL"
    assert checks["board"][0] == "FAIL"
    place.ok("migrate")
    assert levels(place)["journal"][0] == "OK"


def test_a_service_process_that_is_gone_is_found(new_place: Place) -> None:
    with stack(new_place):
        os.kill(new_place.pid("service"), signal.SIGSTOP)
        try:
            with new_place.redis() as client:
                wait_until(lambda: not client.get("convergio:leader:sweeper"), timeout=30)
            checks = levels(new_place)
            assert checks["journaler"] == checks["sweeper"]
            assert checks["sweeper"] == ("FAIL", "start the service process: convergio up, or convergio worker")
        finally:
            os.kill(new_place.pid("service"), signal.SIGCONT)


def test_rebuild_makes_a_new_board_on_which_runs_go_on(new_place: Place, tmp_path: Path) -> None:
    path = tmp_path / "signed.yaml"
    path.write_text("workflow: signed\nversion: 1\nsteps: {sign: {approval: {}}}\n")
    with stack(new_place):
        run = new_place.ok("run", str(path)).strip()
        wait_until(lambda: new_place.state(run, "sign") == "BLOCKED", timeout=30)
        before = epoch(new_place)
        refused = new_place.cli("rebuild", given="n\n")
        assert (refused.returncode, epoch(new_place)) == (130, before)
        assert f"epoch {before + 1}: the board is new" in new_place.ok("rebuild", "--yes")
        new_place.ok("runs", "signal", run, "sign", "--approve")
        assert new_place.cli("runs", "watch", run).returncode == 0


def epoch(place: Place) -> int:
    with redis.Redis.from_url(place.redis_url, decode_responses=True) as client:
        return int(str(client.get("convergio:epoch")).split("|")[0])
