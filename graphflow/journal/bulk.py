"""Many rows of one table by one statement, the first row of a key wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import chain
from operator import itemgetter
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from convergio.graphflow.journal.database import Database

CHUNK: Final = 256
"""Rows of one INSERT on SQLite, at most: it takes 32,766 parameters."""


class BulkInsert:
    """INSERT ... ON CONFLICT DO NOTHING RETURNING the primary key, for tables of texts and numbers only.

    On PostgreSQL the rows travel as one array for each column: psycopg takes 60 µs for each row of a long VALUES list,
    only to find its placeholders. On SQLite they go to the driver as they are: SQLAlchemy's way with parameters takes
    longer than the database.
    """

    def __init__(self, database: Database, table: sa.Table) -> None:
        self._columns = table.c.keys()
        self._picked = itemgetter(*self._columns)
        self._arrays = None if database.is_sqlite else _from_arrays(table).returning(*table.primary_key.columns)
        self._values = cache(partial(_of_values, table))

    def __call__(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        """Inserts the rows, each with a value for every column. Returns the keys of those that are new."""
        if not rows:
            return []
        if self._arrays is not None:
            return [tuple(row) for row in connection.execute(self._arrays, _transposed(rows, self._columns))]
        return self._insert_values(connection, rows)

    def _insert_values(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        new: list[tuple[Any, ...]] = []
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            values = tuple(chain.from_iterable(map(self._picked, chunk)))
            result = connection.exec_driver_sql(self._values(len(chunk)), values)
            assert result.cursor is not None, "RETURNING makes rows"
            new += result.cursor.fetchall()  # the driver's own tuples: SQLAlchemy would wrap each
            result.close()
        return new


def _of_values(table: sa.Table, rows: int) -> str:
    """The statement in SQLite's words, with `rows` times a placeholder for each column."""
    name = sqlite.dialect().identifier_preparer.quote
    columns = ", ".join(name(column.name) for column in table.c)
    values = ", ".join([f"({', '.join('?' * len(table.c))})"] * rows)
    keys = ", ".join(name(column.name) for column in table.primary_key.columns)
    return f"INSERT INTO {name(table.name)} ({columns}) VALUES {values} ON CONFLICT DO NOTHING RETURNING {keys}"


def _from_arrays(table: sa.Table) -> sa.Insert:
    arrays = [sa.bindparam(column.name, type_=postgresql.ARRAY(column.type)) for column in table.c]
    rows = sa.func.unnest(*arrays).table_valued(*(sa.column(column.name, column.type) for column in table.c))
    source = sa.select(*rows.render_derived(name="new").c)
    return postgresql.insert(table).from_select(table.c.keys(), source).on_conflict_do_nothing()


def _transposed(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, list[Any]]:
    return {column: [row[column] for row in rows] for column in columns}
