"""Many rows of one table by one statement, the first row of a key wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from convergio.graphflow.journal.database import Database


class BulkInsert:
    """INSERT ... ON CONFLICT DO NOTHING RETURNING the primary key, for tables of texts and numbers only.

    On PostgreSQL the rows travel as one array for each column: psycopg takes 60 µs for each row of a long VALUES list,
    only to find its placeholders.
    """

    def __init__(self, database: Database, table: sa.Table) -> None:
        self._columns = table.c.keys()
        self._arrays = not database.is_sqlite
        insert = _from_arrays(table) if self._arrays else database.insert_once(table)
        self._statement = insert.returning(*table.primary_key.columns)

    def __call__(self, connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        """Inserts the rows, each with a value for every column. Returns the keys of those that are new."""
        if not rows:
            return []
        values = _transposed(rows, self._columns) if self._arrays else rows
        return [tuple(row) for row in connection.execute(self._statement, values)]


def _from_arrays(table: sa.Table) -> sa.Insert:
    arrays = [sa.bindparam(column.name, type_=postgresql.ARRAY(column.type)) for column in table.c]
    rows = sa.func.unnest(*arrays).table_valued(*(sa.column(column.name, column.type) for column in table.c))
    source = sa.select(*rows.render_derived(name="new").c)
    return postgresql.insert(table).from_select(table.c.keys(), source).on_conflict_do_nothing()


def _transposed(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, list[Any]]:
    return {column: [row[column] for row in rows] for column in columns}
