"""Who does a job that only one process should do. Saves work; safety comes from fences, not from here."""

from __future__ import annotations

import time
from typing import Final

import redis

from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.board.keys import Keys

LEASE_MS: Final = 3_000

SURE: Final = 1.0
"""Seconds for which a lease that was just prolonged need not be asked for again."""


class Leader:
    """A lease on a role. It is asked for again before every round of work."""

    def __init__(self, link: Link, role: str, name: str) -> None:
        self.link = link
        self.key = Keys(link.prefix, 0).leader(role)
        self.name = name
        self._sure_until = 0.0

    def holds(self) -> bool:
        """Takes or prolongs the lease. Raises BoardUnavailable."""
        client, now = self.link.client, time.monotonic()
        if now < self._sure_until:
            return True
        try:
            owner = client.get(self.key)  # asked first: a server without memory answers it, and takes no SET
            if owner is None:
                return bool(client.set(self.key, self.name, nx=True, px=LEASE_MS))
            if owner != self.name or not client.pexpire(self.key, LEASE_MS):
                return False
            self._sure_until = now + SURE
            return True
        except redis.OutOfMemoryError:
            return True  # a full server takes no lease of anybody: too many leaders are safe, none would be the end
        except UNREACHABLE as error:
            raise unavailable(error) from error

    def resign(self) -> None:
        """Gives the lease up, so that another process need not wait for its end."""
        self._sure_until = 0.0
        try:
            if self.link.client.get(self.key) == self.name:
                self.link.client.delete(self.key)
        except UNREACHABLE:
            return
