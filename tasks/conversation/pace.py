"""How fast a turn's words came, and how fast they went on to readers: figures that are kept with the turn."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
        """The figures of the turn, at its end; times in microseconds. `model_ms`: what its model calls took."""
        wall_us, tools_us = _us(time.monotonic() - self.began), _us(self.tools_s)
        return {
            "first_token_us": None if self.first is None else _us(self.first - self.began),
            "first_told_us": None if self.first is None or self.told is None else _us(self.told - self.first),
            "gap_p50_us": _us(median(self.gaps)) if self.gaps else None,
            "gap_max_us": _us(max(self.gaps)) if self.gaps else None,
            "chunks": self.chunks,
            "output_tokens": output_tokens,
            "streamed_us": _us(sum(self.gaps)),
            "wall_us": wall_us,
            "model_us": model_ms * 1000,
            "tools_us": tools_us,
            "overhead_us": max(0, wall_us - tools_us - model_ms * 1000),
        }


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tempo:
    """How fast a conversation was: medians over its turns, in milliseconds, None where nothing was streamed.

    `first_token_ms`: from the turn's start to the model's first words; `first_told_ms`: from these to the board, where
    readers have them; `gap_ms`: between pieces of text, `gap_max_ms` the longest; `tokens_per_s`: while they came;
    `overhead_ms`: what a turn took beside its model calls and tools.
    """

    step: str
    turns: int
    first_token_ms: float | None
    first_told_ms: float | None
    gap_ms: float | None
    gap_max_ms: float | None
    tokens_per_s: float | None
    overhead_ms: float


def tempos(rows: Sequence[Mapping[str, Any]]) -> list[Tempo]:
    """Of each conversation of a run, from the rows of its turns."""
    steps = dict.fromkeys(row["step"] for row in rows)
    return [_tempo(step, [row for row in rows if row["step"] == step]) for step in steps]


def _tempo(step: str, rows: Sequence[Mapping[str, Any]]) -> Tempo:
    streamed = [row for row in rows if row["streamed_us"]]
    seconds = sum(row["streamed_us"] for row in streamed) / 1e6
    tokens = sum(row["output_tokens"] for row in streamed)
    longest = [row["gap_max_us"] for row in streamed if row["gap_max_us"] is not None]
    return Tempo(
        step=step,
        turns=len(rows),
        first_token_ms=_median(rows, "first_token_us"),
        first_told_ms=_median(rows, "first_told_us"),
        gap_ms=_median(rows, "gap_p50_us"),
        gap_max_ms=round(max(longest) / 1000, 3) if longest else None,
        tokens_per_s=round(tokens / seconds, 1) if seconds else None,
        overhead_ms=_median(rows, "overhead_us") or 0.0,
    )


def _median(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return round(median(values) / 1000, 3) if values else None
