"""Which board is the valid one: the epoch, and how far its stream is journaled."""

from __future__ import annotations

import secrets
import time

import sqlalchemy as sa

from convergio.graphflow.journal import tables
from convergio.graphflow.journal.database import Database
from convergio.graphflow.journal.rows import BoardRow


class Boards:
    """The one row that elects: the journaler of an epoch, and the rebuilder that raises it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def current(self) -> BoardRow | None:
        """The board that the journal follows; None before the first."""
        columns = [column for column in tables.boards.c if column.name != "id"]
        with self._database.read() as connection:
            row = connection.execute(sa.select(*columns)).mappings().first()
        return None if row is None else BoardRow(**row)

    def identity(self) -> str:
        """The journal's own id: random, and the same for as long as the database, or a copy of it, lives."""
        return identity_of(self._database)

    def raise_epoch(self, expected: int | None, server: str, schema: int, *, above: int = 0) -> int | None:
        """Begins the epoch after `expected` (None: the first) with high water 0, on the Redis whose run_id is `server`.

        `above`: the new one is greater than this number, too: another journal had a board there.

        Returns the new epoch; None if the epoch is not `expected` any more: somebody else rebuilds. From here on no
        commit of the old epoch can succeed, so what is read from the journal now is all it will ever hold of it.
        """
        with self._database.write() as connection:
            if expected is None:
                first = {
                    "id": 1,
                    "epoch": above + 1,
                    "high_water": 0,
                    "schema": schema,
                    "server": server,
                    "updated_ms": now_ms(),
                }
                statement = self._database.insert_once(tables.boards).values(first).returning(tables.boards.c.epoch)
                return connection.execute(statement).scalar()
            update = sa.update(tables.boards).where(tables.boards.c.epoch == expected)
            update = update.values(
                epoch=max(expected, above) + 1, high_water=0, schema=schema, server=server, updated_ms=now_ms()
            )
            return connection.execute(update.returning(tables.boards.c.epoch)).scalar()


def identity_of(database: Database) -> str:
    """The journal's own id, which is made when somebody first asks. Raises JournalUnavailable."""
    select = sa.select(tables.identity.c.journal)
    with database.read() as connection:
        found = connection.execute(select).scalar()
    if found is not None:
        return str(found)
    with database.write() as connection:
        connection.execute(database.insert_once(tables.identity), {"id": 1, "journal": secrets.token_hex(16)})
        return str(connection.execute(select).scalar_one())


def now_ms() -> int:
    """This machine's clock, for a person to read only: nothing is decided by it."""
    return time.time_ns() // 1_000_000
