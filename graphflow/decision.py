"""The words between a decision and the shell around it: what was read, what is to be written. Values only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

START: Final = "@"
"""Stands where a step's name stands for what concerns the run itself."""

ASK: Final = "ASK"
LEAVE: Final = "LEAVE"
"""Timers that are due at once: a step asks for its concurrency key, or needs it no more."""

Entry = Mapping[str, Any]


class Answer(StrEnum):
    """What somebody may say: once more, go on without it, fail, or fail when all is undone."""

    RETRY = "retry"
    SKIP = "skip"
    FAIL = "fail"
    COMPENSATE = "compensate"


class Unloaded(Exception):
    """The decision needs fields that were not read yet; with `everything` it needs every step's state; `blobs`: digests
    of large values that it has to look into."""

    def __init__(self, names: Iterable[str] = (), *, everything: bool = False, blobs: Iterable[str] = ()) -> None:
        self.names = tuple(names)
        self.everything = everything
        self.blobs = tuple(blobs)
        super().__init__(*self.names)


@dataclass(slots=True)
class View:
    """Fields of a run's hash, as read under its lock.

    "" is an absent field; `complete`: every step's state was read.
    """

    values: dict[str, str]
    complete: bool = False
    blank: bool = False
    """the run was made a moment ago: a field that was not read is absent"""
    blobs: dict[str, Any] = field(default_factory=dict[str, Any])
    """large values by their digests"""
    ended: frozenset[str] = frozenset()
    """on a new board: instances that SQL knows to have ended"""
    lists: dict[str, Sequence[Any]] = field(default_factory=dict[str, Sequence[Any]])
    """what maps are over, by instance: worked out once, however many decisions deal it"""

    def get(self, name: str) -> str:
        """The field's value; raises Unloaded if nobody read it."""
        try:
            return self.values[name]
        except KeyError:
            if self.knows(name):
                return ""
            raise Unloaded([name]) from None

    def knows(self, name: str) -> bool:
        """Whether `get` has an answer."""
        return name in self.values or self.blank or (self.complete and name.startswith("s:"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event to tell. `journal`: SQL gets it too. `park`: what it says is released only when SQL has it.

    `at_ms`: when it happened, if that was before it is told.
    """

    kind: str
    step: str = ""
    data: str = "{}"
    journal: bool = True
    park: bool = False
    at_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """A doorbell to push. `fresh`: the run begins with it (continuations go first)."""

    step: str
    ring: str
    fresh: bool


@dataclass(slots=True)
class Decision:
    """What to write in one COMMIT, all or nothing."""

    writes: dict[str, tuple[str, str]] = field(default_factory=dict)
    """field -> (value it must have, value it gets)"""
    rings: list[Ring] = field(default_factory=list)
    leases: list[tuple[str, str]] = field(default_factory=list)
    """(step, fence) to drop"""
    timers: list[tuple[str, str, int | None]] = field(default_factory=list)
    """(step, what it waits for, when that is due in ms of the board's clock; None = no longer)"""
    events: list[Event] = field(default_factory=list)
    posts: list[Entry] = field(default_factory=list)
    """entries for the inbox: what did not fit"""
    blobs: list[str] = field(default_factory=list[str])
    """JSON that is too large to travel, kept before the commit: what is written refers to it"""
    consumed: int = 0
    """entries of the inbox that are wholly dealt with"""
