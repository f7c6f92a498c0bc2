"""How a process that was asked to stop ends: in its time, whatever its bodies do.

It is asked in a signal handler, where no lock may be taken: the handler writes into a pipe, and a thread that waits at
its other end does the work. First the consumer stops popping, or what is given back would come back.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

logger = logging.getLogger(__name__)

LISTENERS: Final = 1_024
"""Who may wait at one pipe: threads, a consumer's loop, prefork children; each reads one byte."""

PATIENCE: Final = 1.5
"""Seconds that the consumer has to stop popping: its last pop may wait one."""


class Pipe:
    """Wakes whoever waits at its end, in this process and in those that are forked from it."""

    def __init__(self) -> None:
        self.end, self._start = os.pipe()
        os.set_blocking(self._start, False)

    def ask(self) -> None:
        """Wakes all of them. May be called in a signal handler, and again."""
        with suppress(BlockingIOError):
            os.write(self._start, b"." * LISTENERS)

    def listen(self) -> None:
        """Waits until somebody asks."""
        os.read(self.end, 1)

    def close(self) -> None:
        os.close(self.end)
        os.close(self._start)


class Farewell:
    """The last `seconds` of a process, from the moment it is asked to stop by `pipe`."""

    def __init__(self, pipe: Pipe, seconds: float) -> None:
        self.pipe = pipe
        self.seconds = seconds
        self.deadline: float | None = None
        """time.monotonic() at which the process ends; None before it was asked"""
        self.quiet = threading.Event()
        """nothing is popped here any more"""
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, begin: Callable[[], None], *, then: Callable[[], None]) -> None:
        """When asked, calls `begin`. If the process still runs when its time is over, calls `then` and ends it."""
        self._thread = threading.Thread(target=self._watch, args=(begin, then), name="convergio-farewell", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The process ends by itself, and needs no watching any more."""
        self._over.set()
        if self._thread is not None:
            self.pipe.ask()
            self._thread.join(timeout=5)

    def _watch(self, begin: Callable[[], None], then: Callable[[], None]) -> None:
        self.pipe.listen()
        if self._over.is_set():
            return
        self.deadline = time.monotonic() + self.seconds
        try:
            self.quiet.wait(PATIENCE)
            begin()
            if not self._over.wait(self._left()):
                then()
        except Exception:  # what was begun goes on without us; the process must end all the same
            logger.exception("stopping")
        if not self._over.wait(self._left()):
            logger.warning("this process ends now: its %s s are over", self.seconds)
            os._exit(0)

    def _left(self) -> float:
        return 0.0 if self.deadline is None else max(0.0, self.deadline - time.monotonic())
