"""What a test may leave running by mistake: processes, and listening sockets of the test process itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests import servers
from tests.waiting import wait_until

GRACE = 5.0
"""Seconds that processes have to end by themselves: a terminated worker needs a moment."""


@dataclass(frozen=True)
class Leak:
    """One thing that runs: a process by id and command, or a listening socket of ours by port."""

    kind: str
    number: int
    what: str


def census() -> frozenset[Leak]:
    """Every process that tests of this session started and that runs, orphans included, and every port we listen on."""
    return frozenset([*_processes(), *_ports()])


def census_since(before: frozenset[Leak]) -> frozenset[Leak]:
    """What runs now and did not run `before`, after the grace."""
    try:
        wait_until(lambda: not census() - before, timeout=GRACE, interval=0.1)
    except AssertionError:
        return census() - before
    return frozenset()


def end(leaked: frozenset[Leak]) -> None:
    """Kills leaked processes, so that one faulty test does not disturb the next."""
    for leak in leaked:
        if leak.kind == "process" and psutil.pid_exists(leak.number):
            psutil.Process(leak.number).kill()


def _processes() -> Iterator[Leak]:
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter():
        # Processes come and go while we look, and other people's may not be looked at.
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and _is_ours(process, is_child=process.pid in children):
                yield Leak("process", process.pid, " ".join(process.cmdline())[:200])


def _is_ours(process: psutil.Process, *, is_child: bool) -> bool:
    """By the inherited mark; or a Python child without it: a fork of ours, or one started with an empty environment."""
    if process.status() == psutil.STATUS_ZOMBIE or "multiprocessing.resource_tracker" in " ".join(process.cmdline()):
        return False
    if process.environ().get(servers.SESSION_MARK) == os.environ[servers.SESSION_MARK]:
        return True
    return is_child and Path(process.exe()) == Path(sys.executable).resolve()


def _ports() -> Iterator[Leak]:
    for connection in psutil.Process().net_connections(kind="tcp"):
        if connection.status == psutil.CONN_LISTEN:
            yield Leak("port", connection.laddr.port, "listening in the test process")
