"""One asyncio loop per process, for its whole life: model and tool coroutines run on it, so HTTP clients are reused.

A task's thread waits for its coroutine here. Threads have no time limits, so deadlines and cancellation live in the
loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, Final

from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.model import errors

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 2.0
"""Seconds a cancelled coroutine has for its end before its thread goes on without it."""


class Loop:
    """The loop and its thread. Made after the fork, closed with the process."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.interrupted = False
        self._running: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._serve, name="convergio-loop", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        while True:
            try:
                self.loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                # Of a task that a body made: asyncio lets it end the loop, and with it every other step here.
                logger.warning("a task on the loop wants its process to end, which goes on: %r", error)
            else:
                return

    def run(self, coroutine: Coroutine[Any, Any, Any], claim: Claim) -> Any:
        """Runs the coroutine while this thread waits. When the claim is lost, it is cancelled and StaleFence raised.

        Raises WorkerStopping if `interrupt` ended it, and CancelledError if the coroutine cancelled itself.
        """
        begun: list[asyncio.Task[Any]] = []
        future = asyncio.run_coroutine_threadsafe(self._contained(coroutine, begun), self.loop)

        def cut() -> None:
            if not begun:
                future.cancel()
                return
            # The coroutine first, and this thread once it has ended: what it has cost is known then. One that does
            # not end when it is cancelled is left behind.
            begun[0].cancel()
            self.loop.call_later(PATIENCE_S, future.cancel)

        claim.on_lost = lambda: self.loop.call_soon_threadsafe(cut)
        if claim.lost.is_set():
            self.loop.call_soon_threadsafe(cut)
        try:
            return future.result()
        except BaseException as error:
            if isinstance(error, CancelledError) and claim.lost.is_set():
                raise errors.StaleFence(run=claim.held.ref.run, step=claim.held.step) from error
            if self.interrupted:  # whatever a cancelled coroutine makes of it
                raise errors.WorkerStopping from error
            raise
        finally:
            claim.on_lost = None

    def interrupt(self) -> None:
        """The process stops: cancels every coroutine, also those that come later. One that ended first has a result."""
        self.loop.call_soon_threadsafe(self._interrupt)

    def close(self) -> None:
        """Stops the loop; what still runs on it is dropped."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():  # a coroutine that blocks the loop keeps it
            self.loop.close()

    def _interrupt(self) -> None:
        self.interrupted = True
        for task in self._running:
            task.cancel()

    async def _contained(self, coroutine: Coroutine[Any, Any, Any], begun: list[asyncio.Task[Any]]) -> Any:
        """asyncio lets these two end the whole loop, and every other step that runs on it."""
        if self.interrupted:
            coroutine.close()
            raise errors.WorkerStopping
        running = asyncio.current_task()
        assert running is not None
        self._running.add(running)
        begun.append(running)
        try:
            return await coroutine
        except (SystemExit, KeyboardInterrupt) as error:
            hint = "a step must not end its process"
            raise errors.StepFailed(f"{type(error).__name__}: {error}", hint=hint) from error
        finally:
            self._running.discard(running)
