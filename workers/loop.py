"""One asyncio loop per process, for its whole life: model and tool coroutines run on it, so HTTP clients are reused.

A task's thread waits for its coroutine here. Threads have no time limits, so deadlines and cancellation live in the
loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any

from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.model import errors


class Loop:
    """The loop and its thread. Made after the fork, closed with the process."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="convergio-loop", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, coroutine: Coroutine[Any, Any, Any], claim: Claim) -> Any:
        """Runs the coroutine while this thread waits. When the claim is lost, it is cancelled and StaleFence raised.

        Raises CancelledError if the coroutine cancelled itself.
        """
        future = asyncio.run_coroutine_threadsafe(_contained(coroutine), self.loop)
        claim.on_lost = future.cancel
        if claim.lost.is_set():
            future.cancel()
        try:
            return future.result()
        except CancelledError as error:
            if not claim.lost.is_set():
                raise
            raise errors.StaleFence(run=claim.held.ref.run, step=claim.held.step) from error
        finally:
            claim.on_lost = None

    def close(self) -> None:
        """Stops the loop; what still runs on it is dropped."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():  # a coroutine that blocks the loop keeps it
            self.loop.close()


async def _contained(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """asyncio lets these two end the whole loop, and every other step that runs on it."""
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise errors.StepFailed(f"{type(error).__name__}: {error}", hint="a step must not end its process") from error
