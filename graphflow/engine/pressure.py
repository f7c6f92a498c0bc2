"""How far the journal is behind the board, and how full Redis is: past a limit nothing new is taken on.

What runs goes on: its outcomes must be told, and that makes room. Looked at twice a second at most, so that asking
costs nothing; a store that does not answer is no reason to refuse anything, others say that it is away.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import Any, Final, cast

from convergio.graphflow.board.connection import UNREACHABLE, Link
from convergio.graphflow.model import errors

logger = logging.getLogger(__name__)

EVERY: Final = 0.5
"""Seconds for which a look counts."""

RETRY_AFTER: Final = 5.0
"""Seconds after which it is worth to ask again, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`events`, `seconds`: how far the journal may be behind; `memory`: share of Redis' maxmemory that may be used."""

    events: int = 100_000
    seconds: float = 300.0
    memory: float = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Lag:
    """Events that SQL does not have, and for how many seconds the oldest has waited."""

    events: int
    seconds: float

    def __str__(self) -> str:
        return f"the journal (SQL) is {self.events} events and {self.seconds:.0f} s behind"


class Pressure:
    """What one process knows of it. Safe for threads: at worst two look at once."""

    def __init__(self, link: Link, limits: Limits) -> None:
        self.link = link
        self.limits = limits
        self._lag: tuple[float, Lag] = (-math.inf, Lag(events=0, seconds=0.0))
        self._share: tuple[float, float] = (-math.inf, 0.0)

    def behind(self) -> Lag | None:
        """The lag, if it is beyond its limit."""
        now = time.monotonic()
        if now - self._lag[0] >= EVERY:
            self._lag = now, self._look()
        lag = self._lag[1]
        return lag if lag.events > self.limits.events or lag.seconds > self.limits.seconds else None

    def check(self) -> None:
        """Raises JournalBehind or BoardNearlyFull: no run should be accepted now."""
        lag = self.behind()
        if lag is not None:
            raise errors.JournalBehind(f"{lag}", retry_after=max(RETRY_AFTER, min(60.0, lag.seconds / 10)))
        share = self._used()
        if share > self.limits.memory:
            said = f"Redis uses {share:.0%} of its memory; at {self.limits.memory:.0%} new runs are refused"
            raise errors.BoardNearlyFull(said, retry_after=RETRY_AFTER)

    def _look(self) -> Lag:
        try:
            epoch = self.link.epoch()
            keys, client = self.link.keys(epoch), self.link.client
            released = cast("str | None", client.get(keys.released))
            newest = cast("list[tuple[str, Any]]", client.xrevrange(keys.journal, count=1))
            if released is None or not newest:
                return Lag(events=0, seconds=0.0)
            events = int(newest[0][0].rsplit("-", 1)[1]) - int(released)
            after = f"({epoch.number}-{released}"
            oldest = cast("list[tuple[str, dict[str, str]]]", client.xrange(keys.journal, min=after, count=1))
            if events <= 0 or not oldest:
                return Lag(events=0, seconds=0.0)
            seconds, micros = client.time()
            waited = seconds + micros / 1e6 - int(oldest[0][1]["a"]) / 1000
            return Lag(events=events, seconds=max(0.0, waited))
        except (*UNREACHABLE, errors.BoardUnavailable, errors.BoardRebuilding) as error:
            logger.info("nobody knows how far the journal is behind: %s", error)
            return Lag(events=0, seconds=0.0)

    def _used(self) -> float:
        """The share of its memory that Redis uses; 0 where it has no limit."""
        now = time.monotonic()
        if now - self._share[0] >= EVERY:
            self._share = now, self._ask_memory()
        return self._share[1]

    def _ask_memory(self) -> float:
        try:
            memory = self.link.client.info("memory")
        except UNREACHABLE as error:
            logger.info("nobody knows how full Redis is: %s", error)
            return 0.0
        most = int(memory.get("maxmemory", 0))
        return int(memory["used_memory"]) / most if most else 0.0
