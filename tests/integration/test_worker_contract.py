"""Real Celery workers on our transport: what each setting of `consumer_settings` and `broker_settings` buys.

Where a test has a twin without the setting, the twin shows the damage. A twin that fails is good news: Celery or kombu
has learned it, and the setting or our line can go.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from celery import Celery

from convergio.graphflow.engine.bell import Route
from convergio.tasks import bell
from tests import servers
from tests.conftest import ValkeyFactory
from tests.integration.bell_app import GATE, SEEN, make_app, running_worker
from tests.waiting import wait_until

POOLS = {"solo": ("-P", "solo"), "threads": ("-P", "threads", "-c", "4"), "prefork": ("-P", "prefork", "-c", "2")}
UNACKED = "convergio.unacked"

Server = redis.Redis

pytestmark = pytest.mark.slow


@pytest.fixture
def server(valkey: str) -> Generator[Server]:
    with redis.Redis.from_url(valkey) as client:
        yield client


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "worker.log"


def ring(server: Server, app: Celery, count: int, *, queue: str = "steps", step: str = "go", start: int = 1) -> None:
    """Pushes doorbells as the board does."""
    ringer, route = bell.Bell(app), Route(queue=queue, task="convergio.step", priority=0)
    for number in range(start, start + count):
        message = ringer.render(
            route, tenant="default", submitter="cli", run="r1", step=step, ring=f"1.{number}", label=f"flow/{step}"
        )
        server.lpush(ringer.list_of(route), message)


def seen(server: Server) -> list[dict[str, Any]]:
    return [json.loads(note) for note in server.lrange(SEEN, 0, -1)]


def tell(server: Server, *words: object) -> Any:
    """Sends a command that redis-py has no typed name for."""
    return cast(Any, server).execute_command(*words)


def is_answered(server: Server, count: int) -> Callable[[], bool]:
    return lambda: server.llen(SEEN) == count


def calls(server: Server, *commands: str) -> int:
    statistics: Any = server.info("commandstats")
    return sum(int(statistics.get(f"cmdstat_{command}", {"calls": 0})["calls"]) for command in commands)


# --- no acknowledgements ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", POOLS)
def test_celery_honours_queues_without_acknowledgements(pool: str, valkey: str, server: Server, log: Path) -> None:
    ring(server, make_app(valkey), 20)
    before = calls(server, "hset", "zrem", "hdel")
    with running_worker(valkey, "-Q", "steps", *POOLS[pool], log=log):
        wait_until(is_answered(server, 20), timeout=30)
    assert calls(server, "hset", "zrem", "hdel") == before
    assert sorted(note["args"][2] for note in seen(server)) == sorted(f"1.{number}" for number in range(1, 21))


def test_celery_on_stock_kombu_still_acknowledges_them(valkey: str, server: Server, log: Path) -> None:
    ring(server, make_app(valkey), 20)
    before = calls(server, "zrem", "hdel")
    with running_worker(valkey, "-Q", "steps", *POOLS["solo"], log=log, stock=True):
        wait_until(is_answered(server, 20), timeout=30)
    assert calls(server, "zrem", "hdel") >= before + 38, "two a doorbell, the last one perhaps not yet"


def test_a_worker_takes_only_the_queues_that_it_is_told(valkey: str, server: Server, log: Path) -> None:
    app = make_app(valkey)
    for queue in ("steps", "turns", "control"):
        ring(server, app, 1, queue=queue)
    with running_worker(valkey, "-Q", "turns,control", *POOLS["threads"], log=log):
        wait_until(is_answered(server, 2), timeout=30)
    assert server.llen("steps") == 1
    assert {note["delivery_info"]["routing_key"] for note in seen(server)} == {"turns", "control"}


def test_a_queue_that_nobody_declared_is_refused(valkey: str, log: Path) -> None:
    with running_worker(valkey, "-Q", "turnz", *POOLS["solo"], log=log) as worker:
        assert worker.wait(timeout=30) != 0
    assert "turnz" in log.read_text()


# --- slots --------------------------------------------------------------------------------------------------------


def test_a_worker_pops_no_more_doorbells_than_it_has_slots(valkey: str, server: Server, log: Path) -> None:
    ring(server, make_app(valkey), 10, step="hold")
    with running_worker(valkey, "-Q", "steps", "-P", "threads", "-c", "2", log=log):
        wait_until(is_answered(server, 2), timeout=30)
        until = (
            time.monotonic() + 1.5
        )  # a pop waits 1 s at most: one that was sent wrongly would have come back by then
        while time.monotonic() < until:
            assert server.llen("steps") == 8
        server.set(GATE, "open")
        wait_until(is_answered(server, 10), timeout=10)


def test_with_prefetch_a_worker_still_takes_the_whole_queue_into_its_memory(
    valkey: str, server: Server, log: Path
) -> None:
    ring(server, make_app(valkey), 10, step="hold")
    eager = {"worker_disable_prefetch": False}
    with running_worker(valkey, "-Q", "steps", "-P", "threads", "-c", "2", log=log, settings=eager):
        wait_until(lambda: server.llen("steps") == 0, timeout=30)
        wait_until(lambda: server.llen(SEEN) == 2, timeout=30)
        server.set(GATE, "open")


def seconds_between_first_and_last(server: Server) -> float:
    times = [note["at"] for note in seen(server)]
    return float(max(times) - min(times))


def test_late_acknowledgements_keep_a_threads_pool_busy_and_early_ones_still_stall_it(
    valkey: str, server: Server, log: Path
) -> None:
    spans: list[float] = []
    for late in (True, False):
        server.delete(SEEN)
        ring(server, make_app(valkey), 12)
        settings = {"task_acks_late": late}
        with running_worker(valkey, "-Q", "steps", "-P", "threads", "-c", "2", log=log, settings=settings):
            wait_until(is_answered(server, 12), timeout=40)
        spans.append(seconds_between_first_and_last(server))
    with_late, with_early = spans
    assert with_early > 4 * with_late, spans


# --- a worker that stops or dies ----------------------------------------------------------------------------------


def lost_by_a_clean_stop(valkey: str, server: Server, pool: str, log: Path) -> int:
    """How many doorbells are neither answered nor in their list when a worker is stopped under a stream of them."""
    app, rung = make_app(valkey), 1
    ring(server, app, 1)
    with running_worker(valkey, "-Q", "steps", *POOLS[pool], log=log) as worker:
        wait_until(lambda: server.llen(SEEN) > 0, timeout=30)
        while worker.poll() is None:
            rung += 1
            ring(server, app, 1, start=rung)
            if rung == 50:
                worker.terminate()
    return rung - server.llen(SEEN) - server.llen("steps")


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_clean_stop_loses_no_doorbell(pool: str, valkey: str, server: Server, log: Path) -> None:
    assert lost_by_a_clean_stop(valkey, server, pool, log) == 0


def test_an_entry_of_a_killed_worker_is_delivered_again_within_25_seconds(
    valkey: str, server: Server, log: Path
) -> None:
    app = make_app(valkey)
    app.send_task("convergio.submit", args=["a"], queue="convergio", ignore_result=True)
    with running_worker(valkey, "-Q", "convergio", "-P", "threads", "-c", "2", log=log) as first:
        wait_until(is_answered(server, 1), timeout=30)
        delivered = time.monotonic()
        first.kill()
        first.wait()
    assert server.hlen(UNACKED) == 1
    server.set(GATE, "open")
    with running_worker(valkey, "-Q", "convergio", "-P", "threads", "-c", "2", log=log):
        wait_until(is_answered(server, 2), timeout=40)
        elapsed = time.monotonic() - delivered
        wait_until(lambda: server.hlen(UNACKED) == 0, timeout=5)
    assert 14 < elapsed < 25, elapsed
    assert seen(server)[1]["delivery_info"]["redelivered"] is True
    assert seen(server)[0]["id"] == seen(server)[1]["id"]


def test_a_doorbell_of_a_killed_worker_is_gone(valkey: str, server: Server, log: Path) -> None:
    """The other side of the bargain: the board's lease, not the broker, brings the step back."""
    ring(server, make_app(valkey), 1, step="hold")
    with running_worker(valkey, "-Q", "steps", *POOLS["threads"], log=log) as worker:
        wait_until(is_answered(server, 1), timeout=30)
        worker.kill()
        worker.wait()
    assert (server.llen("steps"), server.exists(UNACKED)) == (0, 0)


# --- a server that fails over -------------------------------------------------------------------------------------


def become_a_replica(server: Server) -> None:
    tell(server, "REPLICAOF", "127.0.0.1", "1")


def become_a_replica_that_says_nothing_old(server: Server) -> None:
    server.config_set("replica-serve-stale-data", "no")
    become_a_replica(server)


def refuse_writes(server: Server) -> None:
    server.config_set("min-replicas-to-write", 1)


def unblock_every_pop(server: Server) -> None:
    clients: Any = server.client_list()
    for client in clients:
        if client["cmd"] == "brpop":
            tell(server, "CLIENT", "UNBLOCK", client["id"], "ERROR")


def recover(server: Server) -> None:
    tell(server, "REPLICAOF", "NO", "ONE")
    server.config_set("min-replicas-to-write", 0)


FAILOVERS = [become_a_replica, become_a_replica_that_says_nothing_old, refuse_writes, unblock_every_pop]


@pytest.mark.parametrize("fail", FAILOVERS, ids=lambda fail: fail.__name__)
def test_a_worker_outlives_a_failover(fail: Callable[[Server], None], valkey_server: ValkeyFactory, log: Path) -> None:
    valkey = valkey_server(aof=False)
    app = make_app(valkey.url)
    with valkey.client() as server, running_worker(valkey.url, "-Q", "steps", *POOLS["threads"], log=log) as worker:
        ring(server, app, 1)
        wait_until(is_answered(server, 1), timeout=30)
        fail(server)
        wait_until(lambda: "Connection to broker lost" in log.read_text(), timeout=15)
        recover(server)
        ring(server, app, 1, start=2)
        wait_until(is_answered(server, 2), timeout=30)
        assert worker.poll() is None


@pytest.mark.parametrize("fail", FAILOVERS, ids=lambda fail: fail.__name__)
def test_without_the_setting_a_failover_still_ends_the_worker(
    fail: Callable[[Server], None], valkey_server: ValkeyFactory, log: Path
) -> None:
    valkey = valkey_server(aof=False)
    fatal = {"broker_channel_error_retry": False}
    with (
        valkey.client() as server,
        running_worker(valkey.url, "-Q", "steps", *POOLS["threads"], log=log, settings=fatal) as worker,
    ):
        ring(server, make_app(valkey.url), 1)
        wait_until(is_answered(server, 1), timeout=30)
        fail(server)
        assert worker.wait(timeout=15) != 0


def test_a_worker_follows_a_sentinel_to_the_new_server(valkey_server: ValkeyFactory, tmp_path: Path, log: Path) -> None:
    old, new = valkey_server(aof=False), valkey_server(aof=False)
    with old.client() as first, new.client() as second, servers.sentinel(old, new, tmp_path) as port:
        url = f"sentinel://127.0.0.1:{port}"
        app = make_app(url, master_name="board")
        with running_worker(url, "-Q", "steps", *POOLS["threads"], log=log, master_name="board") as worker:
            ring(first, app, 1)
            wait_until(is_answered(second, 1), timeout=30)
            with redis.Redis(port=port) as sentinel:
                tell(sentinel, "SENTINEL", "FAILOVER", "board")
            wait_until(lambda: role_of(second) == "master" and role_of(first) == "slave", timeout=40)
            ring(second, app, 1, start=2)
            wait_until(is_answered(second, 2), timeout=30)
            assert worker.poll() is None


def role_of(server: Server) -> str:
    information: Any = server.info("replication")
    return str(information["role"])
