"""Threads as SQL has them, kept at hand by a worker: what was said once never changes."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from convergio.graphflow.client.past import Past
from convergio.graphflow.journal.blobs import Blobs
from convergio.graphflow.journal.database import Database
from convergio.graphflow.model import errors, reference
from convergio.tasks.conversation import people, tables, told
from convergio.tasks.conversation.thread import SPOKEN, Message

KEPT: Final = 256
"""Threads that a process keeps at hand."""

DEEPEST: Final = 100
"""Conversations that may go on from each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in a conversation: behind `turn` turns of it (None: behind all of them). `edit`: what was said last
    there, in other words."""

    run: str
    step: str
    turn: int | None = None
    edit: str | None = None

    def as_dict(self) -> dict[str, Any]:
        edited = {} if self.edit is None else {"edit": self.edit}
        return {"run": self.run, "step": self.step, "turn": self.turn, **edited}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """One run's part of a conversation, up to a place: all that was said, also what was taken back; the turns' rows."""

    place: Place
    messages: Sequence[Message]
    turns: Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class _Kept:
    end: int = 0
    messages: list[Message] = field(default_factory=list[Message])


class Archive:
    """The threads of one journal. Threads of a process may share it."""

    def __init__(self, database: Database, blobs: Blobs | None) -> None:
        self._database = database
        self._blobs = blobs
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, str], _Kept] = OrderedDict()

    def thread(self, tenant: str, run: str, step: str, end: int) -> list[Message]:
        """What was said in the turns before `end`. Only what is new is read. Raises JournalUnavailable."""
        key = (tenant, run, step)
        with self._lock:
            kept = self._kept.pop(key, None) or _Kept()
            known, first = list(kept.messages), kept.end
        if first < end:
            known += [self._opened(tenant, one) for one in tables.said(self._database, tenant, run, step, first, end)]
        with self._lock:
            self._kept[key] = _Kept(max(first, end), known)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return [message for message in known if message.iteration < end]

    def whole(self, tenant: str, run: str, step: str) -> list[Message]:
        """What was said in the turns that are in SQL now. Raises JournalUnavailable."""
        return self.thread(tenant, run, step, len(self.turns(tenant, run, step)))

    def before(self, tenant: str, place: Place) -> list[Message]:
        """The whole thread up to a place in an earlier conversation, and in those that it goes on from.

        Raises UnknownRun if there is no such conversation of this tenant, JournalUnavailable.
        """
        chapters = self.chapters(tenant, place)
        return [one for chapter in chapters for one in _edited(people.standing(chapter.messages), chapter.place.edit)]

    def chapters(self, tenant: str, place: Place) -> list[Chapter]:
        """The conversations that lead to a place, the first one first: what was said in each, and its turns.

        Raises UnknownRun if there is no such conversation of this tenant, JournalUnavailable.
        """
        found: list[Chapter] = []
        for _ in range(DEEPEST):
            rows = self.turns(tenant, place.run, place.step)
            if not rows or (place.turn or 0) > len(rows):
                said = f"no conversation '{place.run}/{place.step}' with {place.turn or 1} turns is in the journal"
                raise errors.UnknownRun(said, hint="convergio runs list")
            end = len(rows) if place.turn is None else place.turn
            messages = self.thread(tenant, place.run, place.step, end)
            found.append(Chapter(place=place, messages=messages, turns=rows[:end]))
            continues = rows[0]["continues"]
            if continues is None:
                return found[::-1]
            place = Place(**json.loads(continues))
        raise errors.UnknownRun(f"more than {DEEPEST} conversations go on from each other")

    def past(self, tenant: str, run: str) -> Past:
        """What was said in a run, for who cannot have it from its stream. Raises JournalUnavailable."""
        return told.past(self._database, self._blobs, tenant, run)

    def paces(self, tenant: str, run: str) -> Sequence[Mapping[str, Any]]:
        """How fast the turns were that a run took itself: a row each. Raises JournalUnavailable."""
        return tables.paced(self._database, tenant, run)

    def ended(self, tenant: str, run: str | None = None) -> Sequence[Mapping[str, Any]]:
        """The conversations that have ended, of one run or of all. Raises JournalUnavailable."""
        return tables.ended(self._database, tenant, run)

    def costs(self, tenant: str, run: str, step: str) -> Mapping[int, tuple[int, int]]:
        """What each turn that is in SQL has cost: tokens in and out. Raises JournalUnavailable."""
        return tables.costs(self._database, tenant, run, step)

    def turns(self, tenant: str, run: str, step: str) -> Sequence[Mapping[str, Any]]:
        """The turns that are in SQL, in order. Raises JournalUnavailable."""
        return tables.taken(self._database, tenant, run, step)

    def _opened(self, tenant: str, message: Message) -> Message:
        if self._blobs is None or reference.digest_of(message.body) is None:
            return message
        return replace(message, body=self._blobs.opened(tenant, message.body))


def _edited(thread: list[Message], text: str | None) -> list[Message]:
    """The thread with other words for what was said last."""
    if text is None:
        return thread
    place = max(place for place, message in enumerate(thread) if message.kind in SPOKEN)
    said = thread[place]
    return [*thread[:place], replace(said, body={**said.body, "text": text}), *thread[place + 1 :]]
