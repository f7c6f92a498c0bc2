"""What all faults share: where they strike, and what they report.

Each kind is a function that waits for a moment at which it hits something, strikes once, and reports it. One that finds
nothing to hit raises RuntimeError: a round that was not disturbed proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Final

from convergio.benchmarks.arena import Arena
from convergio.benchmarks.recovery import Disturbance
from convergio.benchmarks.rig import wait_for
from convergio.benchmarks.traffic import Traffic

PATIENCE: Final = 15.0
"""Seconds that a fault waits for something to hit."""


INTERVAL: Final = 0.02
"""Seconds between two looks at what bodies write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Where a fault strikes: in this arena, under this load; `turn`: how often this kind has struck before."""

    arena: Arena
    traffic: Traffic
    random: Random
    turn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A fault that struck, and what it hit in words."""

    said: str
    disturbance: Disturbance
    kills: int = 0
    flushes: int = 0
    rollbacks: int = 0


def hit(
    said: str,
    moment: tuple[float, int],
    *,
    wiped: bool = False,
    pids: Iterable[int | None] = (),
    over_ms: int | None = None,
    **counts: int,
) -> Hit:
    """A hit that struck at `moment`; `pids`: the processes whose bodies it touched."""
    processes = frozenset(pid for pid in pids if pid is not None)
    fault = Disturbance(at=moment[0], at_ms=moment[1], wiped=wiped, processes=processes, over_ms=over_ms)
    return Hit(said=said, disturbance=fault, **counts)


Inject = Callable[[Field], Hit]


def wait_for_work(field: Field) -> None:
    """Until some body runs: a fault on an idle system hits nothing."""
    wait_for(lambda: any(field.arena.busy().values()), what="work", timeout=PATIENCE, interval=INTERVAL)
