"""What a choice of speaker is made from, and what comes of it: plain values over a persisted thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

STOP: Final = ""
"""Name of the candidate that ends the conversation: no agent can have it."""

USER: Final = "user"
"""Who speaks in the name of the people outside; never chosen."""

NOTHING: Final[Mapping[str, Mapping[str, float]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Somebody who may speak. Everything but the name may be left out.

    `phases`: what it is good at, by the names of the configuration; none = by its domains. `depth`: how hard a matter
    it is meant for, 0 to 1. `seconds`: how long an answer of it usually takes. `record`: share of its turns that
    helped in the past, 0 to 1. None = not known.
    """

    name: str
    description: str = ""
    domains: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    phases: tuple[str, ...] = ()
    partners: tuple[str, ...] = ()
    depth: float | None = None
    seconds: float | None = None
    record: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolEvent:
    """A tool was called: its name, and whether it answered."""

    name: str
    ok: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """One message of the thread, in order of `index`. `handoff`: whom the speaker handed the floor to."""

    index: int
    speaker: str
    text: str
    tools: tuple[ToolEvent, ...] = ()
    handoff: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionContext:
    """The team, in its order, and the thread so far. `may_stop`: whether ending is one of the choices."""

    candidates: tuple[Candidate, ...]
    thread: tuple[Utterance, ...] = ()
    may_stop: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates' names, in the team's order."""
        return tuple(candidate.name for candidate in self.candidates)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Who speaks next (STOP: nobody), why, and what each candidate had: {candidate: {factor: value}}.

    `margin`: how far the first was ahead of the second; `asked`: whether a model was asked.
    """

    speaker: str
    policy: str
    reason: str
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: NOTHING)
    totals: Mapping[str, float] = field(default_factory=lambda: MappingProxyType[str, float]({}))
    margin: float | None = None
    asked: bool = False
