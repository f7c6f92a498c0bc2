"""The rig of a benchmark: its own servers and processes in a temporary folder, and what they cost in CPU time."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import redis

from convergio.workers.embedded import valkey
from convergio.workers.embedded.child import Child
from convergio.workers.embedded.supervisor import Supervisor

T = TypeVar("T")

TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
CPUS = os.cpu_count() or 1


def say(text: str) -> None:
    """Progress, on stderr: stdout is for the result."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def level(least: int, *names: str) -> Generator[None]:
    """These loggers say nothing below `least` within; after it they are as they were."""
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    for logger, _ in before:
        logger.setLevel(least)
    try:
        yield
    finally:
        for logger, was in before:
            logger.setLevel(was)


def wait_for(predicate: Callable[[], T], *, what: str, timeout: float = 120.0, interval: float = 0.003) -> T:
    """The first truthy value of `predicate`; RuntimeError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {timeout} s: {what}")
        time.sleep(interval)


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Where a benchmark's files are: the server's data, the journal, logs, and timestamps that tasks write."""

    path: Path
    taken: dict[Path, int] = field(default_factory=dict[Path, int])
    """bytes of each stamp file that were read before"""

    @property
    def stamps(self) -> Path:
        """Directory of the stamp files, one per process."""
        return self.path / "stamps"

    def take_stamps(self) -> list[float]:
        """Timestamps (seconds) that tasks of all processes wrote since the last call, in order."""
        found: list[float] = []
        for file in self.stamps.iterdir():
            text = file.read_bytes()[self.taken.get(file, 0) :]
            whole = text[: text.rfind(b"\n") + 1]
            self.taken[file] = self.taken.get(file, 0) + len(whole)
            found += [float(line) for line in whole.split()]
        return sorted(found)


@contextmanager
def folder() -> Generator[Folder]:
    """A temporary folder, removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="convergio-bench-"))
    (path / "stamps").mkdir()
    try:
        yield Folder(path=path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def server(place: Folder) -> Generator[str]:
    """A Valkey of our own, with an append-only file like in production. Its URL."""
    own = valkey.Server.open(place.path / "valkey")
    (place.path / "logs").mkdir(exist_ok=True)
    with Supervisor([own.child()], logs=place.path / "logs"):
        yield own.url


@contextmanager
def processes(place: Folder, argvs: Sequence[Sequence[str]], env: Mapping[str, str]) -> Generator[list[int]]:
    """Worker processes under a supervisor, and their pids. They are not restarted: a dead one spoils the figure."""
    children = [
        Child(name=f"worker{number}", argv=tuple(argv), env=env, restart=False) for number, argv in enumerate(argvs)
    ]
    with Supervisor(children, logs=place.path / "logs") as supervisor:
        yield [pid for child in children if (pid := supervisor.pid(child.name)) is not None]


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system CPU time of these processes and their children that still run."""
    return sum(_cpu(pid) for pid in {*pids, *(child for pid in pids for child in children(pid))})


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def busy_seconds() -> float:
    """CPU time that the whole machine has spent, by whomever, and what its host took from it."""
    first = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, first[1:9])
    return (user + nice + system + irq + softirq + steal) / TICKS


def children(pid: int) -> list[int]:
    """The processes that this one has started, as long as both run."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def resident_mb(pid: int) -> float:
    """The memory of a process that is there now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 2**20


def server_pid(client: redis.Redis) -> int:
    """The process of the server behind a client on this machine."""
    return int(client.info("server")["process_id"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """How long something took, and what it cost. Seconds. `others`: CPU time that went to whoever else was busy."""

    seconds: float
    cpu: float
    items: int
    others: float = 0.0

    @property
    def per_second(self) -> float:
        return self.items / self.seconds

    @property
    def disturbance(self) -> float:
        """The share of the machine that others took, 0..1."""
        return self.others / (self.seconds * (os.cpu_count() or 1))

    @property
    def undisturbed(self) -> float:
        """Items per second of the machine that was left to us; on one with nobody else the same as `per_second`."""
        return self.per_second / (1 - min(0.9, self.disturbance))

    @property
    def cpu_us(self) -> float:
        """CPU microseconds per item, all processes together."""
        return self.cpu / self.items * 1e6


def measured(work: Callable[[], None], *, items: int, pids: Iterable[int]) -> Measure:
    """Runs `work` once and measures it, with the CPU time of `pids` and of this process."""
    watched = [*pids, os.getpid()]
    before, busy, start = cpu_seconds(watched), busy_seconds(), time.perf_counter()
    work()
    seconds, cpu = time.perf_counter() - start, cpu_seconds(watched) - before
    return Measure(seconds=seconds, cpu=cpu, items=items, others=max(0.0, busy_seconds() - busy - cpu))
