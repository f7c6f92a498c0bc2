"""Conversations as values: who says what, which tools are used for it, and what goes wrong at first. Pure.

A talk is turned twice: into a team for the engine, whose agents have scripts, and into the thread that must come of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

TOOL: Final = "chaos_note"
"""The name of the tool that all agents have."""

FAILURES: Final = ("rate_limit", "unavailable", "broken_off")

Line = tuple[str, str, Any]
"""A message: its kind, whose it is, and what is in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """A turn. `notes`: answer by answer what is written down by the tool, before the `text` is said; `failure`: what
    goes wrong on the first attempt when the text is due."""

    text: str
    notes: tuple[tuple[str, ...], ...] = ()
    failure: str = ""

    @property
    def answers(self) -> int:
        """How often the model is asked and answers, all attempts together."""
        return len(self.notes) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """So many members speak by turns. `pace`: seconds before each of their words."""

    members: int
    turns: tuple[Speech, ...]
    pace: float = 0.0

    def speaker(self, turn: int) -> str:
        """Whose turn it is."""
        return f"m{turn % self.members}"

    def team(self) -> dict[str, Any]:
        """The team as people would write it."""
        names = [f"m{number}" for number in range(self.members)]
        agents = [
            {"name": name, "role": f"You are {name}.", "tools": [TOOL], "script": self._script(name)} for name in names
        ]
        return {"agents": agents, "policy": "round_robin", "stop": {"turns": len(self.turns)}}

    def _script(self, name: str) -> list[dict[str, Any]]:
        return [
            reply for turn, one in enumerate(self.turns) if self.speaker(turn) == name for reply in self._replies(one)
        ]

    def _replies(self, speech: Speech) -> Iterator[dict[str, Any]]:
        for some in speech.notes:
            yield {"call": [{"tool": TOOL, "arguments": {"text": text}} for text in some]}
        fails = {"fail": speech.failure} if speech.failure else {}
        yield {"say": speech.text, "pace": self.pace, **fails}

    def lines(self, turn: int, prompt: str) -> list[Line]:
        """What a turn adds to the thread."""
        speaker, speech = self.speaker(turn), self.turns[turn]
        found: list[Line] = [("text", "user", prompt)] if turn == 0 else []
        for some in speech.notes:
            found += [("calls", speaker, list(some)), ("results", speaker, [noted(text) for text in some])]
        return [*found, ("text", speaker, speech.text)]


def prompt(step: str, value: int) -> str:
    """What a talk begins with."""
    return f"{step} {value}"


def noted(text: str) -> str:
    """What the tool answers."""
    return f"noted: {text}"
