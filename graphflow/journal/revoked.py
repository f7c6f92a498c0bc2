"""Signatures that count no more, kept in SQL: every worker of the journal learns of them, whatever Redis forgets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import sqlalchemy as sa

from convergio.graphflow.journal import tables
from convergio.graphflow.journal.boards import now_ms
from convergio.graphflow.journal.database import Database
from convergio.graphflow.model import errors
from convergio.graphflow.signature import Revoked

Kind = Literal["key", "sha256"]

FRESH_S: Final = 1.0
"""Seconds that what was read holds: so long after a revocation a worker may still ask an agent."""

_revoked: Final = tables.revoked_signatures.c


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """What counts no more: the id of a key, or the SHA-256 of a definition's file in hexadecimal digits."""

    kind: Kind
    value: str
    reason: str
    by: str
    at_ms: int


class RevokedSignatures:
    """The revocations of one journal. Nothing takes one back: a definition that counts again has a new signature by
    another key, or another content."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def revoke(self, kind: Kind, values: Sequence[str], *, reason: str, by: str) -> int:
        """Keeps revocations; how many of them are new. Raises JournalUnavailable."""
        rows = [
            {"kind": kind, "value": value, "reason": reason, "revoked_by": by, "revoked_ms": now_ms()}
            for value in dict.fromkeys(values)
        ]
        insert = self._database.insert_once(tables.revoked_signatures).returning(_revoked.value)
        with self._database.write() as connection:
            return len(connection.execute(insert, rows).all()) if rows else 0

    def all(self) -> list[Revocation]:
        """Every revocation, the oldest first. Raises JournalUnavailable."""
        found = sa.select(tables.revoked_signatures).order_by(_revoked.revoked_ms, _revoked.kind, _revoked.value)
        with self._database.read() as connection:
            return [
                Revocation(
                    kind=row["kind"],
                    value=row["value"],
                    reason=row["reason"],
                    by=row["revoked_by"],
                    at_ms=row["revoked_ms"],
                )
                for row in connection.execute(found).mappings()
            ]

    def now(self) -> Revoked:
        """What counts no more. Raises JournalUnavailable."""
        found = self.all()
        return Revoked(
            keys=frozenset(one.value for one in found if one.kind == "key"),
            files=frozenset(one.value for one in found if one.kind == "sha256"),
        )


class Recent:
    """What was revoked, read at most once a second; threads may share it.

    While SQL is away what was read last goes on to hold: no step is begun meanwhile that was not begun by SQL.
    """

    def __init__(self, read: Callable[[], Revoked], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._known: Revoked | None = None
        self._until = 0.0

    def __call__(self) -> Revoked:
        """What counts no more. Raises JournalUnavailable if that has never been read."""
        with self._lock:
            if self._known is None or self._clock() >= self._until:
                try:
                    self._known = self._read()
                except errors.JournalUnavailable:
                    if self._known is None:
                        raise
                self._until = self._clock() + FRESH_S
            return self._known
