"""What callers may write: runs, signals and control. The row is first, the board follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from convergio.graphflow.journal import payload, tables
from convergio.graphflow.journal.boards import identity_of
from convergio.graphflow.journal.database import Database
from convergio.graphflow.journal.history import find_definition, find_run, unknown_run
from convergio.graphflow.journal.rows import Accepted, Basis, NewRun, NewSignal, Origin, Parent, RunRow, SignalRow
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.states import TERMINAL_RUN, RunState, StepState
from convergio.graphflow.model.workflow import Workflow

_runs: Final = tables.runs.c
_signals: Final = tables.signals.c
_LIVE: Final = sa.text(tables.LIVE_RUNS)

COPIED_AT_ONCE: Final = 500
"""Steps whose rows one statement copies: both databases take only so many parameters."""

PINNED: Final = 1_000
"""Digests that are remembered."""


class Doors:
    """Submits, forks, signals and cancels. Each method may be repeated: it answers what the first call did."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert_definitions = database.insert_once(tables.definitions)
        self._insert_run = database.insert_once(tables.runs).returning(tables.runs)
        self._pinned: set[str] = set()
        """digests of definitions that are in the journal, for sure unless somebody puts another one in its place"""

    def identity(self) -> str:
        """The journal's own id."""
        return identity_of(self._database)

    def accept(self, run: NewRun) -> Accepted:
        """Pins the definition and accepts the run; once this returns, the run cannot be lost.

        The same run id or start key with the same workflow and input gives the run that was accepted first. Raises
        `KeyConflict` if it was used for something else, `InvalidInput` or `InvalidPayload` for a value SQL refuses.
        """
        return self._accept([run], None)[0]

    def accept_all(self, runs: Sequence[NewRun]) -> list[Accepted]:
        """The same for many runs in one transaction: all of them, or none."""
        return self._accept(runs, None)

    def fork(self, run: NewRun, origin: Origin) -> Accepted:
        """Accepts a run that begins with outcomes of another one: its row and its copies of them are one transaction.

        A copied outcome says whose it is and has no tokens: they were paid for in the run that it comes from. Raises
        like `accept`, and `UnknownRun` if the journal has not got the outcomes any more.
        """
        return self._accept([run], origin)[0]

    def _accept(self, runs: Sequence[NewRun], origin: Origin | None) -> list[Accepted]:
        columns = [{**_run_columns(run), **_origin_columns(origin)} for run in runs]
        needed = {one.digest: one for run in runs for one in (run.workflow, *run.pinned)}
        unknown = [one for digest, one in needed.items() if digest not in self._pinned]
        try:
            accepted = self._insert(runs, origin, columns, unknown)
        except errors.InvalidPayload:
            if len(unknown) == len(needed):
                raise
            self._pinned.clear()  # the journal may be another one, without what was pinned: that is said again
            return self._accept(runs, origin)
        if len(self._pinned) > PINNED:
            self._pinned.clear()
        self._pinned.update(needed)
        return accepted

    def _insert(
        self,
        runs: Sequence[NewRun],
        origin: Origin | None,
        columns: Sequence[dict[str, Any]],
        unknown: Sequence[Workflow],
    ) -> list[Accepted]:
        with self._database.write() as connection:
            if unknown:
                definitions = [_definition_columns(one, runs[0].created_ms) for one in unknown]
                connection.execute(self._insert_definitions, definitions)
            return [self._insert_one(connection, *one, origin) for one in zip(runs, columns, strict=True)]

    def _insert_one(
        self, connection: sa.Connection, run: NewRun, columns: dict[str, Any], origin: Origin | None
    ) -> Accepted:
        row = connection.execute(self._insert_run, columns).first()
        if row is None:
            found = connection.execute(sa.select(tables.runs).where(_same_run(run))).all()
            return Accepted(run=_the_same(run, columns, [RunRow.of(row) for row in found]), created=False)
        if origin is not None:
            _copy(connection, run, origin)
        return Accepted(run=RunRow.of(row), created=True)

    def basis(self, tenant: str, run_id: str) -> Basis:
        """What another run can be made from. Raises `UnknownRun`, also for another tenant's run."""
        outcomes = tables.outcomes.c
        columns = (outcomes.step, outcomes.iteration, outcomes.state)
        ends = sa.select(*columns).where(outcomes.run_id == run_id).order_by(outcomes.iteration)
        with self._database.read() as connection:
            run = find_run(connection, tenant, run_id)
            states = {
                instance.named(step, iteration): StepState(state) for step, iteration, state in connection.execute(ends)
            }
            return Basis(run=run, document=find_definition(connection, run.digest), ends=states)

    def run(self, tenant: str, run_id: str) -> RunRow:
        """One run. Raises `UnknownRun`, also for another tenant's run."""
        with self._database.read() as connection:
            return find_run(connection, tenant, run_id)

    def signal(self, signal: NewSignal) -> bool:
        """Keeps a signal to be applied; False if it was kept before. One for an ended run is kept as dropped.

        Raises `UnknownRun`; `KeyConflict` if the id belongs to another signal.
        """
        columns = _signal_columns(signal)
        with self._database.write() as connection:
            # Locked against the journaler: a signal that misses the end of its run must not stay open for ever.
            lock = sa.select(_runs.state).where(_runs.run_id == signal.run_id, _runs.tenant == signal.tenant)
            state = connection.execute(lock.with_for_update(read=True)).scalar()
            if state is None:
                raise unknown_run(signal.tenant, signal.run_id)
            ended = RunState(state) in TERMINAL_RUN
            columns["dropped_ms"] = signal.created_ms if ended else None
            insert = self._database.insert_once(tables.signals).returning(_signals.signal_id)
            if connection.execute(insert, columns).first() is not None:
                return True
            kept = sa.select(tables.signals).where(_signals.signal_id == signal.signal_id)
            before = SignalRow.of(connection.execute(kept).one())
        if any(getattr(before, name) != getattr(signal, name) for name in ("tenant", "run_id", "name", "data")):
            raise errors.KeyConflict("this signal id was used before for another signal", signal=signal.signal_id)
        return False

    def request_cancel(self, run_id: str, tenant: str, by: str, reason: str | None, at_ms: int) -> RunRow:
        """Asks for the run's end and raises its control version, once; an ended run is returned as it is.

        Raises `UnknownRun`.
        """
        ask = (
            sa.update(tables.runs)
            .where(_runs.run_id == run_id, _runs.tenant == tenant, _runs.cancel_requested_ms.is_(None), _LIVE)
            .values(
                cancel_requested_ms=at_ms,
                cancel_reason=None if reason is None else payload.plain(reason, what="the reason"),
                cancel_by=payload.plain(by, what="the name of who cancels"),
                control_version=_runs.control_version + 1,
            )
            .returning(tables.runs)
        )
        with self._database.write() as connection:
            row = connection.execute(ask).first()
            return find_run(connection, tenant, run_id) if row is None else RunRow.of(row)

    def request_pause(self, run_id: str, tenant: str, by: str, at_ms: int) -> RunRow:
        """Asks that the run be paused, and raises its control version; a run that is, or has ended, stays as it is.

        Raises `UnknownRun`.
        """
        values = {"paused_ms": at_ms, "paused_by": payload.plain(by, what="the name of who pauses")}
        return self._control(run_id, tenant, _runs.paused_ms.is_(None), values)

    def request_resume(self, run_id: str, tenant: str) -> RunRow:
        """Asks that the run go on, and raises its control version; one that is not to be paused stays as it is.

        Raises `UnknownRun`.
        """
        return self._control(run_id, tenant, _runs.paused_ms.is_not(None), {"paused_ms": None, "paused_by": None})

    def _control(self, run_id: str, tenant: str, when: sa.ColumnElement[bool], values: dict[str, Any]) -> RunRow:
        ask = (
            sa.update(tables.runs)
            .where(_runs.run_id == run_id, _runs.tenant == tenant, when, _LIVE)
            .values(control_version=_runs.control_version + 1, **values)
            .returning(tables.runs)
        )
        with self._database.write() as connection:
            row = connection.execute(ask).first()
            return find_run(connection, tenant, run_id) if row is None else RunRow.of(row)


# --- rows ---------------------------------------------------------------------------------------------------------


def _definition_columns(workflow: Workflow, created_ms: int) -> dict[str, Any]:
    return {
        "digest": workflow.digest,
        "name": workflow.name,
        "version": workflow.version,
        "document": payload.plain(workflow.text, what="the definition"),
        "created_ms": created_ms,
    }


def _run_columns(run: NewRun) -> dict[str, Any]:
    if run.start_key is not None and len(run.start_key) > tables.KEY_LIMIT:
        raise errors.InvalidInput(f"the key is longer than {tables.KEY_LIMIT} characters", hint="use its hash")
    texts = {
        "run_id": run.run_id,
        "tenant": run.tenant,
        "submitter": run.submitter,
        "start_key": run.start_key,
        "priority": run.priority,
        "trace": run.trace,
    }
    return {
        **{name: None if text is None else payload.plain(text, what=name) for name, text in texts.items()},
        "workflow": run.workflow.name,
        "version": run.workflow.version,
        "digest": run.workflow.digest,
        "input": payload.reread(run.input_json, what="the input"),
        "state": RunState.ACCEPTED.value,
        "control_version": 0,
        "not_after_ms": run.not_after_ms,
        "created_ms": run.created_ms,
        "pins": payload.to_text(run.pins, what="the definitions of children") if run.pins else None,
        **_parent_columns(run.parent),
    }


def _parent_columns(parent: Parent | None) -> dict[str, Any]:
    if parent is None:
        return {}
    return {"parent_run": parent.run_id, "parent_step": parent.step, "depth": parent.depth}


def _origin_columns(origin: Origin | None) -> dict[str, Any]:
    if origin is None:
        return {}
    return {"forked_from": origin.run_id, "fork_kind": origin.kind.value, "fork_step": origin.step}


def _signal_columns(signal: NewSignal) -> dict[str, Any]:
    texts = ("signal_id", "tenant", "submitter", "run_id", "name")
    return {
        **{name: payload.plain(getattr(signal, name), what=name) for name in texts},
        "data": payload.to_null(signal.data, what="the signal's data"),
        "created_ms": signal.created_ms,
    }


# --- what a run has from another ------------------------------------------------------------------------------------


def _copy(connection: sa.Connection, run: NewRun, origin: Origin) -> None:
    """Copies keep their place in the streams, so that they are replayed in the order in which they came."""
    outcomes = tables.outcomes
    own = {name: sa.literal(getattr(run, name)) for name in ("run_id", "tenant", "submitter")}
    # A copy of a copy names the run that did the work.
    free = {"tokens": sa.literal(0), "reused_from": sa.func.coalesce(outcomes.c.reused_from, outcomes.c.run_id)}
    copied = _copy_rows(connection, outcomes, origin.reused, origin.run_id, {**own, **free})
    if copied < len(origin.reused):
        raise errors.UnknownRun(f"the outcomes of run '{origin.run_id}' are gone", hint="start the workflow anew")
    _copy_rows(connection, tables.records, origin.resumed, origin.run_id, own)


def _copy_rows(
    connection: sa.Connection,
    table: sa.Table,
    wanted: Sequence[str],
    run_id: str,
    changed: Mapping[str, sa.ColumnElement[Any]],
) -> int:
    """Copies the rows of these instances of the run's steps, with some columns changed. Returns how many."""
    of_tenant = (table.c.run_id == run_id) & (table.c.tenant == changed["tenant"])
    values = [changed.get(name, column) for name, column in table.c.items()]
    copied = 0
    for which in _chosen(table, wanted):
        rows = sa.select(*values).where(of_tenant, which)
        insert = sa.insert(table).from_select(list(table.c.keys()), rows)
        copied += connection.execute(insert, execution_options={"preserve_rowcount": True}).rowcount
    return copied


def _chosen(table: sa.Table, wanted: Sequence[str]) -> Iterator[sa.ColumnElement[bool]]:
    """Conditions that choose the rows of these instances, each for some hundreds of them."""
    first: list[str] = []
    later: dict[str, list[int]] = {}
    for step, iteration in map(instance.split, wanted):
        if iteration:
            later.setdefault(step, []).append(iteration)
        else:
            first.append(step)
    for start in range(0, len(first), COPIED_AT_ONCE):
        yield (table.c.iteration == 0) & table.c.step.in_(first[start : start + COPIED_AT_ONCE])
    for step, iterations in later.items():
        for start in range(0, len(iterations), COPIED_AT_ONCE):
            yield (table.c.step == step) & table.c.iteration.in_(iterations[start : start + COPIED_AT_ONCE])


# --- the same run again -------------------------------------------------------------------------------------------


def _same_run(run: NewRun) -> sa.ColumnElement[bool]:
    by_id = _runs.run_id == run.run_id
    if run.start_key is None:
        return by_id
    return by_id | ((_runs.tenant == run.tenant) & (_runs.start_key == run.start_key))


def _the_same(run: NewRun, columns: dict[str, Any], found: list[RunRow]) -> RunRow:
    """The run that was accepted before; the definition may be newer by now: a call repeated over a deployment."""
    origin = columns.get("forked_from"), columns.get("fork_kind"), columns.get("fork_step")
    wanted = (run.tenant, run.workflow.name, run.start_key, columns["input"], *origin)
    for row in found:
        given = payload.to_text(row.input, what="the input")
        made_from = row.forked_from, row.fork_kind, row.fork_step
        edited = row.forked_from is not None and row.digest != run.workflow.digest
        if edited or (row.tenant, row.workflow, row.start_key, given, *made_from) != wanted:
            what = "run id" if row.run_id == run.run_id else "key"
            hint = f"use another {what}, or repeat the call as it was"
            raise errors.KeyConflict(f"this {what} was used before with another workflow or input", hint=hint)
    return found[0]
