"""Children in the journal: what is still to do about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from convergio.graphflow.journal import payload, tables
from convergio.graphflow.journal.boards import now_ms
from convergio.graphflow.journal.database import Database
from convergio.graphflow.journal.rows import ChildRow
from convergio.graphflow.model import instance
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import TERMINAL_RUN, RunState

_children: Final = tables.children.c
_parents: Final = tables.runs.alias("parent")
_own: Final = tables.runs.alias("own")
_newer: Final = tables.children.alias("newer")
_ENDED: Final = tuple(sorted(state.value for state in TERMINAL_RUN))


def _left() -> sa.ColumnElement[bool]:
    """Nobody waits for the child: its parent, or the step, has ended, or the step is at a later attempt."""
    step_ended = sa.exists().where(*_same_step(tables.outcomes.c))
    later = sa.exists().where(*_same_step(_newer.c), _newer.c.attempt > _children.attempt)
    return sa.or_(_parents.c.state.in_(_ENDED), step_ended, later)


def _same_step(other: Any) -> list[sa.ColumnElement[bool]]:
    return [getattr(other, name) == getattr(_children, name) for name in ("run_id", "step", "iteration")]


def _open_business() -> sa.Select[Any]:
    left = _left()
    to_start = sa.and_(_own.c.run_id.is_(None), sa.or_(left, _parents.c.state != RunState.PAUSED.value))
    to_cancel = sa.and_(left, _own.c.cancel_requested_ms.is_(None))
    own = (_own.c.state, _own.c.output, _own.c.error)
    return (
        sa.select(tables.children, left.label("left"), *own)
        .join(_parents, _parents.c.run_id == _children.run_id)
        .outerjoin(_own, _own.c.run_id == _children.child_id)
        .where(sa.text(f"children.{tables.OPEN_CHILDREN}"))
        .where(sa.or_(to_start, _own.c.state.in_(_ENDED), to_cancel))
        .order_by(_children.wanted_ms, _children.child_id)
    )


_OPEN_BUSINESS: Final = _open_business()


class Children:
    """What the rows of children, of their parents and of their own runs say together."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open_business(self, limit: int, offset: int = 0) -> list[ChildRow]:
        """Children that are to be started, told of, cancelled or settled; the oldest first.

        Those of a paused run are started when it goes on.
        """
        with self._database.read() as connection:
            return [_row(row) for row in connection.execute(_OPEN_BUSINESS.limit(limit).offset(offset))]

    def settle(self, children: Sequence[str]) -> None:
        """Nothing is to do about them any more."""
        if not children:
            return
        update = sa.update(tables.children).where(_children.child_id.in_(children)).values(settled_ms=now_ms())
        with self._database.write() as connection:
            connection.execute(update)


def _row(row: sa.Row[Any]) -> ChildRow:
    values = row._asdict()
    return ChildRow(
        ref=RunRef(tenant=values["tenant"], run=values["child_id"]),
        parent=RunRef(tenant=values["tenant"], run=values["run_id"]),
        submitter=values["submitter"],
        step=instance.named(values["step"], values["iteration"]),
        attempt=values["attempt"],
        workflow=values["workflow"],
        left=bool(values["left"]),
        state=None if values["state"] is None else RunState(values["state"]),
        output=payload.from_text(values["output"]),
        error=payload.from_text(values["error"]),
    )
