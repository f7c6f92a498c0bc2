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
from typing import Any

from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.model import errors

logger = logging.getLogger(__name__)


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
        future = asyncio.run_coroutine_threadsafe(self._contained(coroutine), self.loop)
        claim.on_lost = future.cancel
        if claim.lost.is_set():
            future.cancel()
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

    async def _contained(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """asyncio lets these two end the whole loop, and every other step that runs on it."""
        if self.interrupted:
            coroutine.close()
            raise errors.WorkerStopping
        running = asyncio.current_task()
        assert running is not None
        self._running.add(running)
        try:
            return await coroutine
        except (SystemExit, KeyboardInterrupt) as error:
            hint = "a step must not end its process"
            raise errors.StepFailed(f"{type(error).__name__}: {error}", hint=hint) from error
        finally:
            self._running.discard(running)
