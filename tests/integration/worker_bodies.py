"""What steps do in the tests of worker processes, beside `engine_bodies`: things that only real processes survive."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Final, NoReturn

from celery import signals
from celery.worker import state

from convergio.graphflow.flow.registry import step
from tests.integration import engine_bodies
from tests.integration.engine_bodies import FOLDER, GATE

QUICK: Final = engine_bodies.QUICK
"""A workflow that whoever includes this module knows by name; importing it registers its functions."""

TABLES: Final[list[bytes]] = []
"""What a process has grown by."""

JAM: Final = "jam"
"""The file that stops a consumer's loop for ever."""


@step(name="worker.dies")
def dies() -> NoReturn:
    """As the kernel ends a process that takes too much memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@step(name="worker.discards")
def discards(task_id: str) -> None:
    """From now on Celery does not run the task in this process, should its message come."""
    state.revoked.add(task_id)


@step(name="worker.computes")
def computes(seconds: float) -> int:
    """Holds the interpreter, as pure Python does."""
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        count += 1
    return os.getpid()


@step(name="worker.grows")
def grows(megabytes: int) -> int:
    """Takes memory, as a large table does, and keeps it."""
    TABLES.append(b"x" * (megabytes * 1_000_000))
    return os.getpid()


@step(name="worker.waits")
async def waits(name: str) -> str:
    """On the loop, until the gate opens or it is cancelled."""
    note(name, "began")
    try:
        while not (Path(os.environ[FOLDER]) / GATE).exists():
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        note(name, "cancelled")
        raise
    note(name, "ended")
    return name


@step(name="worker.objects")
async def objects(name: str) -> str:
    """The same, but it makes an error of its cancellation, as careless code does."""
    try:
        return await waits(name)
    except asyncio.CancelledError:
        raise ConnectionError("the connection was closed") from None


DEADLY: Final = "deadly"
"""The step whose task ends its process before it has claimed the step, as a library that crashes would."""


@signals.task_prerun.connect(weak=False)
def _crash(args: object = (), **_: object) -> None:
    if isinstance(args, (list, tuple)) and DEADLY in args:
        os.kill(os.getpid(), signal.SIGSEGV)


def note(name: str, what: str) -> None:
    """A line in the body's file: what, which process, and when by the clock that all processes share."""
    with (Path(os.environ[FOLDER]) / name).open("a") as file:
        file.write(f"{what} {os.getpid()} {time.monotonic()}\n")


def _jam() -> None:
    while (Path(os.environ[FOLDER]) / JAM).exists():
        time.sleep(0.05)


@signals.worker_ready.connect(weak=False)
def _prepare(sender: object = None, **_: object) -> None:
    """The consumer's loop can be stopped from outside."""
    hub = getattr(sender, "hub", None)
    if hub is not None:
        hub.call_repeatedly(0.1, _jam)
