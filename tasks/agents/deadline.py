"""A deadline that holds even when what it bounds does not answer to being cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from convergio.graphflow.model import errors

logger = logging.getLogger(__name__)

T = TypeVar("T")

GRACE_S = 0.5
"""How long a cancelled body may take to clean up before it is left behind."""


class Watchdog:
    """Runs bodies under a deadline; keeps those that could not be ended, so that they are neither awaited nor lost.

    AutoGen 0.7.5 hangs in ways its own cancellation token cannot end (a tool call that is cancelled, a workbench that
    raises). Nothing here can help against a body that blocks the event loop itself.
    """

    def __init__(self, *, grace_s: float = GRACE_S) -> None:
        self._grace_s = grace_s
        self.abandoned: set[asyncio.Task[Any]] = set()

    async def run(self, body: Coroutine[Any, Any, T], deadline_s: float) -> T:
        """The result of `body`; after `deadline_s` seconds, or when the caller is cancelled, `body` is given up.

        Raises: errors.StepTimeout at the deadline.
        """
        task = asyncio.ensure_future(body)
        try:
            await asyncio.wait({task}, timeout=deadline_s)
        except asyncio.CancelledError:
            await self._give_up(task)
            raise
        if task.done():
            return task.result()
        await self._give_up(task)
        raise errors.StepTimeout(f"no answer within {deadline_s:g} s", hint="raise the step's timeout, or shorten it")

    async def _give_up(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        await asyncio.wait({task}, timeout=self._grace_s)
        self.abandoned.add(task)
        task.add_done_callback(self._bury)
        if not task.done():
            logger.warning("a body goes on %g s after it was cancelled; %d do", self._grace_s, len(self.abandoned))

    def _bury(self, task: asyncio.Task[Any]) -> None:
        self.abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # read, or asyncio complains that nobody did
