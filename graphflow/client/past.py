"""What the journal can tell a reader of a run whose stream was trimmed, or is gone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Position = tuple[int, int]
"""Epoch and sequence number of an event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A turn that SQL has. `at`: where it ended in the run's stream; `messages`: as AG-UI has them."""

    step: str
    iteration: int
    at: Position
    messages: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """The turns that SQL has of a run, in the order of the thread. `last`: the last position that it knows, if the
    run has ended."""

    turns: Sequence[Turn] = field(default=())
    last: Position | None = None

    @property
    def instances(self) -> Mapping[tuple[str, int], Turn]:
        """The turns by step and iteration."""
        return {(turn.step, turn.iteration): turn for turn in self.turns}

    def as_dict(self) -> dict[str, Any]:
        """As JSON can carry it."""
        turns = [
            {"step": one.step, "iteration": one.iteration, "at": list(one.at), "messages": list(one.messages)}
            for one in self.turns
        ]
        return {"turns": turns, "last": None if self.last is None else list(self.last)}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Past:
        """The inverse of `as_dict`."""
        turns = [
            Turn(step=one["step"], iteration=one["iteration"], at=_position(one["at"]), messages=list(one["messages"]))
            for one in facts["turns"]
        ]
        return cls(turns=turns, last=None if facts["last"] is None else _position(facts["last"]))


def _position(pair: Sequence[int]) -> Position:
    epoch, seq = pair
    return epoch, seq


Recall = Callable[[], Past]
"""Asks the journal. Raises JournalUnavailable, and what else asking may raise."""
