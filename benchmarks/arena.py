"""The arena of a chaos run: Valkey, the journal, two service processes and three workers, in a temporary folder."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, cast

import redis

from convergio.benchmarks import doomed, effects, postgres, rig
from convergio.benchmarks.doomed import Orders
from convergio.benchmarks.effects import Effects
from convergio.benchmarks.evidence import Journal
from convergio.benchmarks.rig import say, wait_for
from convergio.config.settings import Settings, load
from convergio.workers import boot
from convergio.workers.cli import local
from convergio.workers.embedded import valkey
from convergio.workers.embedded.child import Child, State
from convergio.workers.embedded.supervisor import Supervisor

Database = Literal["sqlite", "postgres"]

VALKEY: Final = "valkey"
SERVICES: Final = ("service1", "service2")
PREFORK: Final = "worker3"
"""The worker whose children run the bodies."""

POOLS: Final = (("worker1", "threads", 4), ("worker2", "solo", 1), (PREFORK, "prefork", 2))
"""Workers: name, Celery pool, threads or children."""

WORKERS: Final = tuple(name for name, _, _ in POOLS)
DRAIN_S: Final = 5.0
"""Seconds a worker that is stopped has for the steps it runs."""

QUEUES: Final = ("steps", "turns", "control")
PRIORITIES: Final = ("", "\x06\x163", "\x06\x166", "\x06\x169")
"""What kombu adds to a queue's name for its lists."""


@dataclass(frozen=True, kw_only=True)
class Arena:
    """Everything that runs, and the handles by which faults take it."""

    folder: Path
    settings: Settings
    server: valkey.Server
    supervisor: Supervisor
    client: redis.Redis
    journal: Journal
    sql: SqliteFile | postgres.Server
    effects: Effects
    orders: Orders

    # --- processes ------------------------------------------------------------------------------------------------

    def pid(self, name: str) -> int:
        """The child's process id; waits until it runs."""
        return int(wait_for(lambda: self.supervisor.pid(name) or 0, what=f"{name} to run", timeout=20))

    def leader(self) -> str:
        """The service process that journals now; any of the two while none does."""
        with suppress(redis.RedisError, OSError):
            holder = str(self.client.get(f"{self.settings.key_prefix}:leader:journaler") or "")
            for name in SERVICES:
                if f"-{self.supervisor.pid(name)}-" in holder:
                    return name
        return SERVICES[0]

    def pids(self, name: str) -> list[int]:
        """The child's process id, and those of its own children."""
        parent = self.pid(name)
        return [parent, *rig.children(parent)]

    @contextmanager
    def frozen(self, names: Sequence[str]) -> Generator[None]:
        """Stops these processes' clocks for a while (SIGSTOP ... SIGCONT); one that dies meanwhile is let be."""
        pids = [pid for name in names for pid in self.pids(name)]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def busy(self) -> dict[str, int]:
        """How many bodies each worker runs at this moment, by their own account."""
        parents = {name: pid for name in WORKERS if (pid := self.supervisor.pid(name)) is not None}
        pids = {pid: name for name, parent in parents.items() for pid in (parent, *rig.children(parent))}
        names = [pids[one.pid] for one in self.effects.running() if one.pid in pids]
        return {name: names.count(name) for name in WORKERS}

    # --- the board ------------------------------------------------------------------------------------------------

    def lists(self) -> list[str]:
        """The Redis lists that hold doorbells."""
        return [f"{queue}{priority}" for queue in QUEUES for priority in PRIORITIES]

    def backlog(self) -> list[tuple[str, str]]:
        """Doorbells that wait now: (list, message)."""
        return [
            (name, message)
            for name in self.lists()
            for message in cast("list[str]", self.client.lrange(name, 0, -1))
            if "convergio.canary" not in message
        ]

    def unjournaled_outcomes(self) -> int:
        """How many outcomes stand in the board's stream that SQL does not have. 0 without a board."""
        epoch = self.journal.epoch()
        prefix = f"{self.settings.key_prefix}:{epoch}"
        released = cast("str | None", self.client.get(f"{prefix}:released"))
        after = f"({epoch}-{released or 0}"
        found = cast("list[tuple[str, dict[str, str]]]", self.client.xrange(f"{prefix}:journal", min=after))
        return sum(1 for _, fact in found if fact["t"] == "step.succeeded")

    def settled(self) -> bool:
        """Whether the board is the journal's, and every process runs."""
        try:
            text = str(self.client.get(f"{self.settings.key_prefix}:epoch") or "")
        except (redis.RedisError, OSError):
            return False
        ready = all(status.state is State.READY for status in self.supervisor.status())
        return ready and text.split("|", 1)[0] == str(self.journal.epoch())


@contextmanager
def arena(database: Database = "sqlite", *, keep: bool = False) -> Generator[Arena]:
    """Starts everything, and stops and removes everything. `keep`: leaves the folder behind, to look at."""
    folder = Path(tempfile.mkdtemp(prefix="convergio-chaos-"))
    folder.chmod(0o711)  # PostgreSQL may run under another account
    try:
        with postgres.server(folder / "postgres") if database == "postgres" else _sqlite(folder) as sql:
            yield from _running(folder, sql)
    finally:
        if keep:
            say(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class SqliteFile:
    """The journal in a file."""

    path: Path

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    @contextmanager
    def away(self) -> Generator[None]:
        """Somebody else holds its write lock."""
        connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield
        finally:
            connection.close()


@contextmanager
def _sqlite(folder: Path) -> Generator[SqliteFile]:
    yield SqliteFile(path=folder / "journal.sqlite3")


def _running(folder: Path, sql: SqliteFile | postgres.Server) -> Generator[Arena]:
    for name in ("effects", "orders", "logs"):
        (folder / name).mkdir()
    server = valkey.Server.open(folder / "valkey")
    settings = load(redis_url=server.url, journal_url=sql.url, home=folder, drain_seconds=DRAIN_S)
    boot.migrate(sql.url)
    with (
        Supervisor(_children(folder, server, settings), logs=folder / "logs") as supervisor,
        redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=5) as client,
    ):
        made = Arena(
            folder=folder,
            settings=settings,
            server=server,
            supervisor=supervisor,
            client=client,
            journal=Journal(sql.url),
            sql=sql,
            effects=Effects(folder / "effects"),
            orders=Orders(folder / "orders"),
        )
        wait_for(made.settled, what="the board", timeout=60, interval=0.1)
        yield made


def _children(folder: Path, server: valkey.Server, settings: Settings) -> list[Child]:
    env = {
        "CONVERGIO_HOME": str(folder),
        "CONVERGIO_REDIS_URL": server.url,
        "CONVERGIO_JOURNAL_URL": settings.journal_url,
        "CONVERGIO_INCLUDE": "convergio.benchmarks.labour",
        "CONVERGIO_MODEL_NAME": "scripted",
        "CONVERGIO_DRAIN_SECONDS": str(DRAIN_S),
        effects.VARIABLE: str(folder / "effects"),
        doomed.VARIABLE: str(folder / "orders"),
    }
    services = [
        Child(name=name, argv=(sys.executable, "-m", "convergio.benchmarks.doomed"), env=env, needs=(VALKEY,))
        for name in SERVICES
    ]
    workers = [
        replace(
            local.worker(settings, name=name, alone=True),
            env={**env, "CONVERGIO_POOL": pool, "CONVERGIO_CONCURRENCY": str(threads)},
            needs=(VALKEY,),
        )
        for name, pool, threads in POOLS
    ]
    return [server.child(VALKEY), *services, *workers]


def now() -> tuple[float, int]:
    """The moment, on both clocks: monotonic seconds, wall milliseconds."""
    return time.monotonic(), time.time_ns() // 1_000_000
