"""The beat threads of a worker process: they live in the process that runs the bodies, so they die with them.

One prolongs leases, the other tells what is owed: that may have to wait for a decision, or for SQL.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from convergio.graphflow.engine.claims import Claims

logger = logging.getLogger(__name__)

INTERVAL: Final = 0.5
"""Seconds between two beats: a cancel reaches a running step within one, a lease (6 s) survives several lost ones."""


class Beats:
    """Beats for the claims of this process until it is stopped."""

    def __init__(self, claims: Claims, *, after: Callable[[], None] | None = None) -> None:
        """`after` is called after each beat that found claims."""
        self.claims = claims
        self.after = after
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(self._beat,), name="convergio-beats", daemon=True),
            threading.Thread(target=self._repeat, args=(claims.catch_up,), name="convergio-arrears", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=5)

    def _beat(self) -> None:
        self.claims.beat()
        if self.after is not None and len(self.claims):
            self.after()

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                work()
            except Exception:  # the thread must outlive what it meets; a lost lease is repaired by the sweeper
                logger.exception("%s failed", threading.current_thread().name)
