"""What the supervisor is told about one process, and what it tells about it."""

from __future__ import annotations

import enum
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


class State(enum.StrEnum):
    """Where a supervised process stands."""

    WAITING = "waiting"  # for the processes it needs
    STARTING = "starting"  # runs, does not say yet that it is ready
    READY = "ready"
    BACKOFF = "backoff"  # died, is started again in a moment
    HELD = "held"  # killed on request, stays down until it is released
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"  # did not become ready the first time


@dataclass(frozen=True, kw_only=True)
class Child:
    """One process to supervise.

    `env` is added to our own environment. `needs` names children listed before this one: it starts when they are ready
    and they stop only after it. `ready` is given the process's pid and asked until it is true; it answers within half a
    second and raises nothing. A child that `announces` says so itself instead, by `readiness.announce()`. With neither,
    a process counts as ready as soon as it runs, even one that ends at once. `repair` is given the last log lines of a
    process that died before it was ready, and returns whether it changed something that makes another try worth it. Log
    lines that contain one of `drop` are not logged.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    needs: tuple[str, ...] = ()
    ready: Callable[[int], bool] | None = None
    announces: bool = False
    ready_timeout_s: float = 30.0
    repair: Callable[[str], bool] | None = None
    restart: bool = True
    stop_signal: signal.Signals = signal.SIGTERM
    stop_grace_s: float = 10.0
    drop: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Status:
    """One process now: its pid while it runs, how often it was started again, and how it last ended."""

    name: str
    state: State
    pid: int | None
    restarts: int
    last_end: str | None
