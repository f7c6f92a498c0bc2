"""The beat thread of a worker process: it lives in the process that runs the bodies, so it dies with them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from convergio.graphflow.engine.claims import Claims

logger = logging.getLogger(__name__)

INTERVAL: Final = 0.5
"""Seconds between two pulses: a cancel reaches a running step within one, a lease (6 s) survives several lost ones."""


class Beats:
    """Pulses the claims of this process until it is stopped."""

    def __init__(self, claims: Claims, *, after: Callable[[], None] | None = None) -> None:
        """`after` is called after each pulse that found claims."""
        self.claims = claims
        self.after = after
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="convergio-beats", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _beat(self) -> None:
        while not self._stop.wait(INTERVAL):
            try:
                self.claims.pulse()
                if self.after is not None and len(self.claims):
                    self.after()
            except Exception:  # the thread must outlive what one pulse meets; a lost lease is repaired by the sweeper
                logger.exception("a pulse failed")
