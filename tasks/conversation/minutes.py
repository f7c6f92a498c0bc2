"""Agendas kept at hand: a thread only grows, so what was heard of it is not heard again for the next choice.

What comes of it is what a fresh reading gives: an agenda is taken up only if it has heard a beginning of this thread,
in this team; else it is made anew. Another worker, or a fork, comes to the same.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from convergio.tasks.conversation.agenda import Agenda
from convergio.tasks.conversation.floor import Candidate, SelectionContext, Utterance
from convergio.tasks.conversation.reading import Reader

KEPT: Final = 256
"""Agendas that a process keeps at hand."""

Key = tuple[tuple[Candidate, ...], Utterance | None]
Heard = tuple[Utterance, ...]


class Minutes:
    """The agendas of one reader. `window`: messages that are read at least, beside the first."""

    def __init__(self, reader: Reader, window: int) -> None:
        self._reader = reader
        self._window = window
        self._kept: OrderedDict[Key, tuple[Heard, Agenda]] = OrderedDict()

    def of(self, context: SelectionContext) -> Agenda:
        """The agenda of this moment; nobody may change it."""
        thread = windowed(context.thread, self._window)
        key = (context.candidates, thread[0] if thread else None)
        kept = self._kept.pop(key, None)
        if kept is None or kept[0] != thread[: len(kept[0])]:
            kept = ((), Agenda(context.candidates, self._reader))
        heard, agenda = kept
        for said in thread[len(heard) :]:
            agenda.hear(said)
        self._kept[key] = (thread, agenda)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return agenda


def windowed(thread: Heard, window: int) -> Heard:
    """The first message and the latest: as many as the window has, and up to half as many again.

    Where it begins moves on by half a window at once: in between, a thread only grows.
    """
    step = max(1, window // 2)
    skipped = max(0, len(thread) - 1 - window) // step * step
    return thread if not skipped else (thread[0], *thread[1 + skipped :])
