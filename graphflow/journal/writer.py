"""The journaler's group commit: many events of the board's stream, one transaction."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import sqlalchemy as sa

from convergio.graphflow.journal import payload, tables
from convergio.graphflow.journal.boards import now_ms
from convergio.graphflow.journal.bulk import BulkInsert
from convergio.graphflow.journal.database import Database
from convergio.graphflow.journal.group import Group
from convergio.graphflow.journal.rows import Committed, StreamEvent
from convergio.graphflow.model import errors
from convergio.graphflow.model.states import RunState
from convergio.graphflow.model.workflow import EMPTY

_boards: Final = tables.boards.c
_runs: Final = tables.runs.c
_signals: Final = tables.signals.c
_LIVE: Final = sa.text(tables.LIVE_RUNS)

_MOVE: Final = (
    sa.update(tables.boards)
    .where(_boards.epoch == sa.bindparam("the_epoch"), _boards.high_water == sa.bindparam("the_high_water"))
    .values(high_water=sa.bindparam("new_high_water"), updated_ms=sa.bindparam("now_ms"))
)
_TOUCH: Final = (
    sa.update(tables.boards).where(_boards.epoch == sa.bindparam("the_epoch")).values(updated_ms=sa.bindparam("now_ms"))
)
_START: Final = (
    sa.update(tables.runs)
    .where(_runs.run_id == sa.bindparam("the_run"), _runs.state == RunState.ACCEPTED.value)
    .values(state=RunState.RUNNING.value, started_ms=sa.bindparam("started_ms"))
)
_CONTROL: Final = (
    sa.update(tables.runs)
    .where(_runs.run_id == sa.bindparam("the_run"), _runs.state.in_([RunState.RUNNING.value, RunState.PAUSED.value]))
    .values(state=sa.bindparam("state"))
)
_ENDING: Final = (
    sa.select(_runs.run_id)
    .where(_runs.run_id.in_(sa.bindparam("the_runs", expanding=True)), _LIVE)
    .order_by(_runs.run_id)
    .with_for_update()
)
_FINISH: Final = (
    sa.update(tables.runs)
    .where(_runs.run_id == sa.bindparam("the_run"))
    .values({name: sa.bindparam(name) for name in ("state", "finished_ms", "output", "error")})
)
_APPLY: Final = (
    sa.update(tables.signals)
    .where(_signals.signal_id == sa.bindparam("the_signal"), _signals.applied_ms.is_(None))
    .values(applied_ms=sa.bindparam("applied_ms"))
)
_DROP: Final = (
    sa.update(tables.signals)
    .where(_signals.run_id == sa.bindparam("the_run"), sa.text(tables.OPEN_SIGNALS))
    .values(dropped_ms=sa.bindparam("dropped_ms"))
)

PLAIN: Final = (sa.Text, sa.Integer, sa.Boolean)
"""Types of columns whose values go to the driver as they are."""


class Writer:
    """Writes what runs do. `domain_tables`: the tables whose rows may travel in an outcome, by name."""

    def __init__(self, database: Database, domain_tables: Mapping[str, sa.Table] = EMPTY) -> None:
        self._database = database
        self._domain_tables = domain_tables
        self._insert_outcomes = BulkInsert(database, tables.outcomes)
        self._insert_events = BulkInsert(database, tables.events)
        self._insert_records = BulkInsert(database, tables.records)
        self._insert_children = BulkInsert(database, tables.children)
        self._insert_domain = {
            (name, tuple(sorted(table.c.keys()))): BulkInsert(database, table)
            for name, table in domain_tables.items()
            if all(isinstance(column.type, PLAIN) for column in table.c)
        }
        """by table, and by the columns of rows that have a value for each of them"""

    def commit(self, events: Sequence[StreamEvent], *, epoch: int, high_water: int, new_high_water: int) -> Committed:
        """Writes the events that follow `high_water` in the stream of `epoch`: all of them, or nothing.

        An event that SQL refuses is kept as a dead event and reported, the others are written. Raises `EpochLost` if
        the journal follows another epoch or another journaler moved the high water, `JournalUnavailable` without SQL.
        """
        marks = {"the_epoch": epoch, "the_high_water": high_water, "new_high_water": new_high_water}
        return self._write(_MOVE, marks, events, epoch)

    def salvage(self, events: Sequence[StreamEvent], *, epoch: int, stream_epoch: int) -> Committed:
        """Writes events of the older stream `stream_epoch` after the epoch was raised to `epoch`.

        Those that are in the journal already change nothing, so it may start anywhere in that stream. Raises
        `EpochLost` if the epoch was raised again.
        """
        return self._write(_TOUCH, {"the_epoch": epoch}, events, stream_epoch)

    def _write(
        self, guard: sa.Update, marks: Mapping[str, int], events: Sequence[StreamEvent], epoch: int
    ) -> Committed:
        try:
            with self._guarded(guard, marks) as connection:
                return self._apply(connection, Group(epoch, self._domain_tables).add(events)) if events else Committed()
        except errors.InvalidPayload:  # seldom, so that the way above has no savepoint
            with self._guarded(guard, marks) as connection:
                return self._settle(connection, events, epoch)

    @contextmanager
    def _guarded(self, guard: sa.Update, marks: Mapping[str, int]) -> Generator[sa.Connection]:
        """A transaction that has the board's row. Raises `EpochLost`."""
        with self._database.write() as connection:
            # First, not last: the row's lock makes rivals wait here, before they hold rows that we need.
            if connection.execute(guard, {**marks, "now_ms": now_ms()}).rowcount != 1:
                raise errors.EpochLost
            yield connection

    def _settle(self, connection: sa.Connection, events: Sequence[StreamEvent], epoch: int) -> Committed:
        """Writes the events together; where SQL refuses that, each half alone, down to the event at fault."""
        try:
            with self._database.savepoint(connection):
                return self._apply(connection, Group(epoch, self._domain_tables).add(events))
        except errors.InvalidPayload as refusal:
            if len(events) == 1:
                self._bury(connection, events[0], epoch, refusal)
                return Committed(refused=tuple(events))
        middle = len(events) // 2
        first = self._settle(connection, events[:middle], epoch)
        second = self._settle(connection, events[middle:], epoch)
        return Committed(
            new_outcomes=first.new_outcomes | second.new_outcomes,
            refused=first.refused + second.refused,
            finished_runs=first.finished_runs + second.finished_runs,
        )

    def _apply(self, connection: sa.Connection, group: Group) -> Committed:
        keys = self._insert_outcomes(connection, list(group.outcomes.values()))
        new = frozenset((key[0], key[1], key[2]) for key in keys)
        for (name, columns), rows in group.domain_rows(new).items():
            insert = self._insert_domain.get((name, columns))
            if insert is not None:
                insert(connection, rows)
            else:
                connection.execute(self._database.insert_once(self._domain_tables[name]), rows)
        self._insert_events(connection, group.events)
        self._insert_records(connection, group.records)
        self._insert_children(connection, group.children)
        if group.started:
            connection.execute(_START, group.started)
        if group.controlled:
            connection.execute(_CONTROL, group.controlled)
        if group.applied:
            connection.execute(_APPLY, group.applied)
        return Committed(new_outcomes=new, finished_runs=self._finish(connection, group))

    def _finish(self, connection: sa.Connection, group: Group) -> tuple[str, ...]:
        if not group.finished:
            return ()
        ending = set(connection.execute(_ENDING, {"the_runs": list(group.finished)}).scalars())
        rows = [columns for run_id, columns in group.finished.items() if run_id in ending]
        if rows:
            connection.execute(_FINISH, rows)
            drops = [{"the_run": columns["the_run"], "dropped_ms": columns["finished_ms"]} for columns in rows]
            connection.execute(_DROP, drops)
        return tuple(columns["the_run"] for columns in rows)

    def _bury(self, connection: sa.Connection, event: StreamEvent, epoch: int, refusal: errors.InvalidPayload) -> None:
        row = {
            "epoch": epoch,
            "stream_seq": event.seq,
            "run_id": _printable(event.run_id),
            "step": None if event.step is None else _printable(event.step),
            "tenant": _printable(event.tenant),
            "submitter": _printable(event.submitter),
            "reason": _printable(refusal.message),
            "body": payload.to_any_text(_body(event)),
            "at_ms": now_ms(),
        }
        connection.execute(self._database.insert_once(tables.dead_events), row)


def _body(event: StreamEvent) -> dict[str, Any]:
    names = ("type", "iteration", "run_seq", "at_ms")
    return {**{name: getattr(event, name) for name in names}, "data": event.data}


def _printable(text: str) -> str:
    """`text` without what a database refuses: what it refused was perhaps this text."""
    return text.encode("unicode_escape", "backslashreplace").decode("ascii")
