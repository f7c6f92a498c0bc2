"""Functions that the steps of these tests call: in the test's process, and in real workers (CONVERGIO_INCLUDE)."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any, Final, NoReturn

from celery.exceptions import Ignore, Reject

from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.flow.registry import step
from convergio.graphflow.model import errors
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks.conversation import speaker
from convergio.tasks.conversation.floor import SelectionContext

FOLDER: Final = "PROBE_FOLDER"
"""The variable that names the folder in which bodies note what they do: it outlives Redis, and them."""

GATE: Final = "gate"
"""The file in it that bodies named `hold` wait for."""


def _note(name: str, what: str) -> None:
    """A line in the body's file: what, which process, and when by the clock that all processes share."""
    with (Path(os.environ[FOLDER]) / name).open("a") as file:
        file.write(f"{what} {os.getpid()} {time.monotonic()}\n")


# --- well -------------------------------------------------------------------------------------------------------------


@step(name="probe.echo")
def echo(value: Any = None) -> dict[str, Any]:
    return {"value": value}


@step(name="probe.picky")
def picky(value: Any = None, index: int = 0) -> list[Any]:
    """Refuses "bad"."""
    if value == "bad":
        raise errors.Permanent(f"item {index} is bad")
    return [index, value]


@step(name="probe.lasts")
def lasts(seconds: float, name: str) -> str:
    """Takes its time, as a computation does."""
    _note(name, "began")
    time.sleep(seconds)
    _note(name, "ended")
    return name


@step(name="probe.hold")
def hold(name: str) -> str:
    """Until the gate opens; it cannot be interrupted."""
    _note(name, "began")
    while not (Path(os.environ[FOLDER]) / GATE).exists():
        time.sleep(0.02)
    _note(name, "ended")
    return name


@step(name="probe.sleeps")
async def sleeps(name: str) -> str:
    """A minute on the loop, unless it is cancelled."""
    _note(name, "began")
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        _note(name, "cancelled")
        raise
    return name


@step(name="probe.soon")
async def soon() -> str:
    await asyncio.sleep(0)
    return "soon"


def _quick() -> Workflow:
    made = WorkflowBuilder("quick", version=1)
    made.task("only", soon)
    return made.build()


QUICK: Final = _quick()
"""A workflow that whoever includes this module knows by name."""


# --- badly ------------------------------------------------------------------------------------------------------------


class Mute(Exception):
    """Cannot even say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


@step(name="probe.exits")
def exits() -> NoReturn:
    sys.exit(3)


@step(name="probe.interrupts")
def interrupts() -> NoReturn:
    raise KeyboardInterrupt


@step(name="probe.ignores")
def ignores() -> NoReturn:
    raise Ignore


@step(name="probe.rejects")
def rejects() -> NoReturn:
    raise Reject("not mine", requeue=True)


@step(name="probe.mute")
def mute() -> NoReturn:
    raise Mute


@step(name="probe.cancels_itself")
async def cancels_itself() -> NoReturn:
    raise asyncio.CancelledError


@step(name="probe.exits_on_the_loop")
async def exits_on_the_loop() -> NoReturn:
    sys.exit(3)


@step(name="probe.exits_in_a_task")
async def exits_in_a_task() -> None:
    """As AutoGen runs tools: in a task of its own, for which the body waits."""
    await asyncio.create_task(exits_on_the_loop())


@step(name="probe.raises")
def raises(kind: str) -> NoReturn:
    raise {
        "permanent of an exception": errors.Permanent(KeyError("a")),  # type: ignore[arg-type]  # people do that
        "lone surrogate": ValueError("half \ud800 a pair"),
        "nul": ValueError("a\x00b"),
        "huge": ValueError("x" * 1_000_000),
        "no text": ValueError(),
        "permanent of a mute": errors.Permanent(Mute()),  # type: ignore[arg-type]
    }[kind]


@step(name="probe.returns")
def returns(kind: str) -> Any:
    """What no store can keep."""
    nested: Any = []
    for _ in range(100_000 if kind == "too deep" else 0):
        nested = [nested]
    return {
        "nul": "a\x00b",
        "nul in a key": {"a\x00": 1},
        "nan": float("nan"),
        "infinity": [float("inf")],
        "set": {1, 2},
        "bytes": b"raw",
        "object": object(),
        "lone surrogate": "\ud800",
        "large": "x" * 33_000,
        "large in bytes": "€" * 11_000,
        "too deep": nested,
        "endless number": 10**5_000,
        "more than 64 bits": 2**70,
    }[kind]


@speaker.policy
def in_order(context: SelectionContext) -> str:
    """Who speaks next in a conversation: a policy as a user writes one."""
    said = sum(one.speaker in context.names for one in context.thread)
    return context.names[said % len(context.names)]
