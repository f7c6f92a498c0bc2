"""A store that is away, in the log: when it goes, then once a minute, and when it is back. Not at each try."""

from __future__ import annotations

import logging
import time
from typing import Final

REMIND: Final = 60.0
"""Seconds between two lines on what is away in the same way."""


class Outage:
    """What one thread has said of the stores that it does without. It belongs to that thread."""

    def __init__(self, logger: logging.Logger, who: str) -> None:
        self._logger = logger
        self._who = who
        self._since: float | None = None
        self._said: dict[str, float] = {}

    def met(self, error: BaseException) -> None:
        """A try has failed with `error`."""
        now, kind = time.monotonic(), type(error).__name__
        if self._since is None:
            self._since = now
        if now - self._said.get(kind, -REMIND) >= REMIND:
            self._said[kind] = now
            lasting = f" (for {now - self._since:.0f} s)" if now > self._since else ""
            self._logger.warning("%s: %s%s", self._who, error, lasting)

    def over(self) -> None:
        """A try went well."""
        if self._since is not None:
            self._logger.warning("%s: goes on after %.1f s", self._who, time.monotonic() - self._since)
            self._since = None
            self._said.clear()
