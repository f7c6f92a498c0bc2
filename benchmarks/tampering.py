"""Faults of messages: doorbells that come twice, and doorbells that never come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from convergio.benchmarks.arena import WORKERS, Arena, now
from convergio.benchmarks.faults import PATIENCE, Field, Hit, hit

PAUSE: Final = 2.0
"""Seconds that all workers may be stopped without losing a lease (6 s)."""

SEVERAL: Final = 5
"""So many doorbells are tampered with at once, if so many wait."""


def _with_backlog(field: Field, tamper: Callable[[list[tuple[str, str]]], None]) -> tuple[tuple[float, int], int]:
    """Shows `tamper` doorbells that wait, while no worker can take them. When it was, and how many there were."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with field.arena.frozen(WORKERS):
            found = _gathered(field.arena)
            if found:
                moment = now()
                tamper(found)
                return moment, len(found)
    raise RuntimeError("no doorbell waited in any list")


def _gathered(arena: Arena) -> list[tuple[str, str]]:
    """Doorbells that nobody takes: several, or those there are after `PAUSE` seconds."""
    until, found = time.monotonic() + PAUSE, arena.backlog()
    while len(found) < SEVERAL and time.monotonic() < until:
        time.sleep(0.01)
        found = arena.backlog()
    return found


def duplicated(field: Field) -> Hit:
    """Copies of doorbells, at both ends of their lists."""

    def tamper(found: list[tuple[str, str]]) -> None:
        for name, message in found[:20]:
            field.arena.client.lpush(name, message, message)
            field.arena.client.rpush(name, message)

    moment, count = _with_backlog(field, tamper)
    return hit(f"{min(count, 20)} doorbells duplicated", moment)


def dropped(field: Field) -> Hit:
    """Doorbells vanish from their lists; the canaries among them too, every other time."""
    gone: list[Any] = []

    def tamper(found: list[tuple[str, str]]) -> None:
        for name, message in field.random.sample(found, min(5, len(found))):
            gone.append(field.arena.client.lrem(name, 1, message))
        if field.turn % 2:
            for name in field.arena.lists():
                field.arena.client.delete(name)

    moment, _ = _with_backlog(field, tamper)
    return hit(f"{sum(gone)} doorbells dropped", moment)
