"""How fast a turn's words came, and how fast they went on to readers: figures that are kept with the turn."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(slots=True)
class Pace:
    """Told as it happens, on the loop's thread. Times of `time.monotonic()`, in seconds."""

    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    """the first piece of text from the model"""
    told: float | None = None
    """when the board had it, and with it every reader"""
    last: float | None = None
    chunks: int = 0
    gaps: list[float] = field(default_factory=list[float])
    tools_s: float = 0.0
    _called: float | None = None

    def chunk(self) -> None:
        """A piece of text came from the model."""
        now = time.monotonic()
        self.chunks += 1
        if self.first is None:
            self.first = now
        elif self.last is not None:
            self.gaps.append(now - self.last)
        self.last = now

    def heard(self) -> None:
        """The board has what was said until now."""
        self.told = self.told or time.monotonic()

    def calls(self) -> None:
        """Tools are called: the next piece does not come late because of the model."""
        self._called, self.last = time.monotonic(), None

    def results(self) -> None:
        """Tools have answered."""
        if self._called is not None:
            self.tools_s += time.monotonic() - self._called
            self._called = None

    def row(self, *, output_tokens: int, model_ms: int) -> Mapping[str, Any]:
        """The figures of the turn; times in microseconds. `model_ms`: what its model calls took."""
        now = time.monotonic()
        wall, streamed = now - self.began, sum(self.gaps)
        rate = output_tokens / streamed if streamed else None
        return {
            "first_token_us": None if self.first is None else _us(self.first - self.began),
            "first_told_us": None if self.first is None or self.told is None else _us(self.told - self.first),
            "chunks": self.chunks,
            "gap_p50_us": _us(median(self.gaps)) if self.gaps else None,
            "gap_max_us": _us(max(self.gaps)) if self.gaps else None,
            "tokens_per_1000_s": None if rate is None else round(rate * 1000),
            "wall_us": _us(wall),
            "model_us": model_ms * 1000,
            "tools_us": _us(self.tools_s),
            "overhead_us": max(0, _us(wall - self.tools_s) - model_ms * 1000),
        }


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)
