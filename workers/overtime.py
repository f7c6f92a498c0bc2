"""A body that goes on although its step was taken from it: it timed out, was cancelled, or is another's by now.

A coroutine is cancelled then. A function cannot be, but in a prefork child it has a process to itself, which can end.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from celery import signals

logger = logging.getLogger(__name__)

GRACE: Final = 1.0
"""Seconds in which the body may see for itself that it should end."""


class Overtime:
    """Ends this prefork child if its body goes on; its parent forks another."""

    def __init__(self, last: Callable[[], None]) -> None:
        """`last` is called before the process ends: what it owes to others must be said."""
        self._last = last
        self._bodies = 0
        signals.task_postrun.connect(self._count, weak=False)

    def watch(self) -> Callable[[], None]:
        """Watches the body that begins now. What comes back is called, by any thread and however late, when the step of
        this body is not ours any more: the bodies after it have nothing to do with that."""
        return partial(self._begin, self._bodies)

    def _begin(self, body: int) -> None:
        timer = threading.Timer(GRACE, self._end, (body,))
        timer.daemon = True
        timer.start()

    def _count(self, **_: Any) -> None:
        self._bodies += 1

    def _end(self, body: int) -> None:
        if self._bodies == body:
            self._last()
        if self._bodies == body:
            logger.warning("the body goes on without its step: this child ends with it")
            os._exit(0)
