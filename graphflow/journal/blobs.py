"""Blobs: values too large for the board, kept in SQL under the digest of their JSON; a reference travels instead.

The same value is kept once for each tenant. Nothing is ever deleted: no count says who still refers to a blob.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Final, cast

import sqlalchemy as sa

from convergio.graphflow.journal import tables
from convergio.graphflow.journal.boards import now_ms
from convergio.graphflow.journal.database import Database
from convergio.graphflow.model import errors, reference
from convergio.graphflow.model.outcome import PAYLOAD_LIMIT, encode

LIMIT: Final = 16 * 1024 * 1024
"""Bytes of JSON that one value may have."""

MEMORY: Final = 64 * 1024 * 1024
"""Bytes of blobs that a process keeps at hand."""

_WIDEST: Final = 4
"""Bytes of one character, at most."""

_blobs: Final = tables.blobs.c


class Blobs:
    """The blobs of one journal. Threads may share it."""

    def __init__(self, database: Database, *, limit: int = LIMIT, memory: int = MEMORY) -> None:
        self._database = database
        self._limit = max(limit, PAYLOAD_LIMIT)
        self._memory = memory
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._size = 0

    def text_of(self, value: Any, *, what: str) -> str:
        """A value as JSON. Raises InvalidPayload, and PayloadTooLarge above the blobs' limit."""
        text = encode(value, what=what, limit=self._limit)
        if reference.KEY in text and reference.forged(value):
            hint = f"give the key '{reference.KEY}' another name"
            raise errors.InvalidPayload(f"{what} has a key '{reference.KEY}', which means a blob", hint=hint)
        return text

    def kept(self, tenant: str, text: str) -> dict[str, Any] | None:
        """Keeps JSON that is too large to travel: the reference to it. None if it may travel itself.

        Raises JournalUnavailable.
        """
        if len(text) * _WIDEST <= PAYLOAD_LIMIT:
            return None
        content = text.encode()
        if len(content) <= PAYLOAD_LIMIT:
            return None
        digest = hashlib.sha256(content).hexdigest()
        row = {"tenant": tenant, "digest": digest, "content": content, "created_ms": now_ms()}
        with self._database.write() as connection:
            connection.execute(self._database.insert_once(tables.blobs), row)
        self._remember((tenant, digest), content)
        return reference.to(digest, len(content))

    def opened(self, tenant: str, value: Any) -> Any:
        """The value itself, or the one that it refers to; in a list, each for itself: results of a map may be large.

        Raises JournalUnavailable, Permanent if there is no such blob.
        """
        digest = reference.digest_of(value)
        found = value if digest is None else self.value(tenant, digest)
        if not isinstance(found, list):
            return found
        parts: list[Any] = found
        return [self.opened(tenant, part) for part in parts] if any(map(reference.digest_of, parts)) else parts

    def value(self, tenant: str, digest: str) -> Any:
        """The value of a blob. Raises JournalUnavailable, Permanent if there is no such."""
        content = self._at_hand(tenant, digest)
        if content is None:
            with self._database.read() as connection:
                content = _content(connection, tenant, digest)
            self._remember((tenant, digest), content)
        return json.loads(content)

    def _at_hand(self, tenant: str, digest: str) -> bytes | None:
        with self._lock:
            content = self._known.get((tenant, digest))
            if content is not None:
                self._known.move_to_end((tenant, digest))
            return content

    def _remember(self, name: tuple[str, str], content: bytes) -> None:
        with self._lock:
            self._size += len(content) - len(self._known.pop(name, b""))
            self._known[name] = content
            while self._size > self._memory:
                self._size -= len(self._known.popitem(last=False)[1])


class Opened(Mapping[str, Any]):
    """Values by name; one that is a blob is fetched when it is asked for."""

    def __init__(self, blobs: Blobs, tenant: str, values: Mapping[str, Any]) -> None:
        self._blobs = blobs
        self._tenant = tenant
        self._values = values

    def __getitem__(self, name: str) -> Any:
        return self._blobs.opened(self._tenant, self._values[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values


def whole(connection: sa.Connection, tenant: str, value: Any) -> Any:
    """The value with everything it refers to, in a transaction that is open: a run's result may hold references."""
    digest = reference.digest_of(value)
    if digest is not None:
        content = _content(connection, tenant, digest)
        value = json.loads(content)
        return whole(connection, tenant, value) if reference.KEY.encode() in content else value
    if isinstance(value, dict):
        return {name: whole(connection, tenant, part) for name, part in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        parts: list[Any] = value
        return [whole(connection, tenant, part) for part in parts]
    return value


def _content(connection: sa.Connection, tenant: str, digest: str) -> bytes:
    select = sa.select(_blobs.content).where(_blobs.tenant == tenant, _blobs.digest == digest)
    content = connection.execute(select).scalar()
    if content is None:
        raise errors.Permanent(f"blob sha256:{digest} is not in the journal", hint="was the database restored?")
    return bytes(content)
