"""Which board is the valid one: the epoch, and how far its stream is journaled."""

from __future__ import annotations

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

    def raise_epoch(self, expected: int | None, server: str, schema: int) -> int | None:
        """Begins the epoch after `expected` (None: the first) with high water 0, on the Redis whose run_id is `server`.

        Returns the new epoch; None if the epoch is not `expected` any more: somebody else rebuilds. From here on no
        commit of the old epoch can succeed, so what is read from the journal now is all it will ever hold of it.
        """
        with self._database.write() as connection:
            if expected is None:
                first = {
                    "id": 1,
                    "epoch": 1,
                    "high_water": 0,
                    "schema": schema,
                    "server": server,
                    "updated_ms": now_ms(),
                }
                statement = self._database.insert_once(tables.boards).values(first).returning(tables.boards.c.epoch)
                return connection.execute(statement).scalar()
            update = sa.update(tables.boards).where(tables.boards.c.epoch == expected)
            update = update.values(epoch=expected + 1, high_water=0, schema=schema, server=server, updated_ms=now_ms())
            return connection.execute(update.returning(tables.boards.c.epoch)).scalar()


def now_ms() -> int:
    """This machine's clock, for a person to read only: nothing is decided by it."""
    return time.time_ns() // 1_000_000
