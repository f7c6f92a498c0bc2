"""What is made of each message of a thread, kept at hand: a thread only grows, so for the next turn only what is new is
made.

It is taken up only if what it was made of is a beginning of this thread; else it is made anew. Another worker, or a
fork, comes to the same.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

from convergio.tasks.conversation.thread import Message

T = TypeVar("T")

Kept = tuple[Sequence[Message], Sequence[T]]
"""A thread, and what was made of it."""

MOST: Final = 32_768
"""Messages of all threads together of which something is kept, about."""


class Grown(Generic[T]):
    """What was made of the latest threads. Threads of a process may share it."""

    def __init__(self, make: Callable[[str, Sequence[Message], int], Sequence[T]], most: int = MOST) -> None:
        """`make`: for somebody, of messages behind those of which so many were made."""
        self._make = make
        self._most = most
        self._size = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Kept[T]] = OrderedDict()

    def of(self, whose: str, thread: Sequence[Message]) -> list[T]:
        """What is made of this thread for somebody. Nobody may change what is in the list."""
        if not thread:
            return []
        key = (whose, thread[0].source, thread[0].at_ms, thread[0].text)
        with self._lock:
            known, made = self._kept.get(key, ((), ()))
        if list(thread[: len(known)]) != list(known):  # the same objects nearly always: that is quick
            known, made = (), ()
        found = [*made, *self._make(whose, thread[len(known) :], len(made))]
        self._keep(key, (thread, found))
        return found

    def _keep(self, key: Hashable, kept: Kept[T]) -> None:
        with self._lock:
            last = self._kept.pop(key, None)
            self._size += len(kept[0]) - (0 if last is None else len(last[0]))
            self._kept[key] = kept
            while self._size > self._most and len(self._kept) > 1:
                self._size -= len(self._kept.popitem(last=False)[1][0])
