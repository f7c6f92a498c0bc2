"""Bare Celery, the yardstick: stock app and transport, tuned like people tune it. Also its worker module."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import redis
from celery import Celery, chain, chord, group
from kombu import Queue

from convergio.benchmarks import rig, stamping

URL: Final = "CONVERGIO_BENCH_URL"
QUEUE: Final = "celery"
WARM_UP: Final = 400
"""Tasks that are gone before the draining is measured: both workers are at work by then."""


def make_app(url: str, *, prefetch: int = 4, no_ack: bool = False) -> Celery:
    """The app: no results, late acks, no rate limits. `no_ack`: its queue keeps no books, as the doorbells' do."""
    app = Celery("bare", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=True,
        worker_prefetch_multiplier=prefetch,
        worker_disable_rate_limits=True,
        broker_connection_retry_on_startup=True,
        task_store_errors_even_if_ignored=False,
        worker_send_task_events=False,
    )
    if no_ack:
        app.conf.task_queues = [Queue(QUEUE, no_ack=True)]

    @app.task(shared=False, name="bare.noop")
    def noop() -> None:
        """Nothing."""

    @app.task(shared=False, name="bare.again")
    def again(left: int) -> None:
        """A task that enqueues the next: the least that a chain can cost."""
        stamping.stamp()
        if left:
            app.tasks["bare.again"].delay(left - 1)

    @app.task(shared=False, name="bare.link", ignore_result=False)
    def link(previous: Any = None) -> int:
        """A link of Celery's own chain, a member of its group, or the body of its chord."""
        stamping.stamp()
        return 0

    assert all((noop, again, link))
    return app


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """Workers of one kind: so many processes with a pool of so many."""

    processes: int
    pool: str
    concurrency: int


SOLO: Final = Crew(processes=2, pool="solo", concurrency=1)


def worker_argv(
    *, prefetch: int, events: bool = False, no_ack: bool = False, pool: str = "solo", concurrency: int = 1
) -> list[str]:
    """The command of one worker process."""
    flags = ["-E"] * events + ["no_ack"] * no_ack
    return [sys.executable, "-m", "convergio.benchmarks.bare", str(prefetch), pool, str(concurrency), *flags]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bare:
    """Running workers of bare Celery, and the app to send with."""

    app: Celery
    client: redis.Redis
    place: rig.Folder
    pids: list[int]

    def independent(self, count: int) -> rig.Measure:
        """`count` no-op tasks, sent one by one while the workers run."""

        def work() -> None:
            noop = self.app.tasks["bare.noop"]
            for _ in range(count):
                noop.delay()
            self.wait_idle()

        return rig.measured(work, items=count, pids=self.pids)

    def wait_idle(self) -> None:
        """Until nothing is queued and nothing unacknowledged."""
        _wait_idle(self.client)

    def hops(self, length: int) -> list[float]:
        """Seconds from task to task, where each enqueues the next."""
        self.app.tasks["bare.again"].delay(length)
        return _gaps(self._stamps(length + 1))

    def chain_hops(self, length: int) -> list[float]:
        """Seconds from link to link of Celery's own chain."""
        link = self.app.tasks["bare.link"]
        chain(*(link.s() for _ in range(length))).apply_async()
        return _gaps(self._stamps(length))

    def chord_seconds(self, width: int) -> float:
        """Seconds from sending a chord of `width` members to its body."""
        link = self.app.tasks["bare.link"]
        start = time.time()
        chord(group(link.s() for _ in range(width)), link.s()).apply_async()
        return self._stamps(width + 1)[-1] - start

    def _stamps(self, count: int) -> list[float]:
        found: list[float] = []

        def complete() -> bool:
            found.extend(self.place.take_stamps())
            return len(found) >= count

        rig.wait_for(complete, what=f"{count} timestamps of bare tasks", interval=0.05)
        return sorted(found)


def _gaps(stamps: Iterable[float]) -> list[float]:
    times = list(stamps)
    return [later - earlier for earlier, later in pairwise(times)]


@contextmanager
def workers(
    place: rig.Folder, url: str, *, prefetch: int, events: bool = False, no_ack: bool = False, crew: Crew = SOLO
) -> Generator[Bare]:
    """Workers of bare Celery on an emptied server."""
    client = redis.Redis.from_url(url)
    client.flushall()
    env = {URL: url, stamping.VARIABLE: str(place.stamps)}
    app = make_app(url, prefetch=prefetch, no_ack=no_ack)
    argv = worker_argv(prefetch=prefetch, events=events, no_ack=no_ack, pool=crew.pool, concurrency=crew.concurrency)
    with rig.processes(place, [argv] * crew.processes, env) as pids:
        bare = Bare(app=app, client=client, place=place, pids=[*pids, rig.server_pid(client)])
        for _ in range(20):
            app.tasks["bare.noop"].delay()
        rig.wait_for(lambda: _consumers(client) >= crew.processes, what="bare workers")
        bare.wait_idle()
        yield bare
    app.close()
    client.close()


def drain(place: rig.Folder, url: str, *, count: int, prefetch: int = 64) -> rig.Measure:
    """The rate at which two workers empty a queue that was filled before they started (their start is not counted)."""
    client = redis.Redis.from_url(url)
    client.flushall()
    app = make_app(url, prefetch=prefetch)
    env = {URL: url, stamping.VARIABLE: str(place.stamps)}
    argv = worker_argv(prefetch=prefetch)
    for _ in range(count + WARM_UP):
        app.tasks["bare.noop"].delay()
    with rig.processes(place, [argv, argv], env) as pids:
        rig.wait_for(lambda: client.llen(QUEUE) <= count, what="the workers to begin")
        left = client.llen(QUEUE)
        done = rig.measured(lambda: _wait_idle(client), items=left, pids=[*pids, rig.server_pid(client)])
    app.close()
    client.close()
    return done


def _wait_idle(client: redis.Redis) -> None:
    def idle() -> bool:
        with client.pipeline() as pipe:
            pipe.llen(QUEUE)
            pipe.hlen("unacked")
            return not any(pipe.execute())

    rig.wait_for(idle, what="bare tasks to end", interval=0.01)


def _consumers(client: redis.Redis) -> int:
    """Connections that wait in BRPOP: one per consuming worker."""
    return sum(1 for one in client.client_list() if one["cmd"] == "brpop")


def main() -> None:
    """One worker: `python -m convergio.benchmarks.bare PREFETCH POOL CONCURRENCY [-E] [no_ack]`."""
    app = make_app(os.environ[URL], prefetch=int(sys.argv[1]), no_ack="no_ack" in sys.argv)
    flags = [
        "-P",
        sys.argv[2],
        "-c",
        sys.argv[3],
        "--without-gossip",
        "--without-mingle",
        "-l",
        "WARNING",
        "-n",
        f"w{os.getpid()}@bench",
    ]
    app.worker_main(["worker", *flags, *(["-E"] if "-E" in sys.argv else [])])


if __name__ == "__main__":
    main()
