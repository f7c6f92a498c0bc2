"""What the journal remembers: reads for people, for the sweeper and for the rebuilder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from convergio.graphflow.journal import blobs, payload, tables
from convergio.graphflow.journal.database import Database
from convergio.graphflow.journal.rows import (
    RETRIES,
    Counts,
    DeadEventRow,
    EventRow,
    OutcomeRow,
    RecordRow,
    RunFacts,
    RunRow,
    SignalRow,
)
from convergio.graphflow.model import errors, reference
from convergio.graphflow.model.states import RunState, StepState

_runs: Final = tables.runs.c
_signals: Final = tables.signals.c
_LIVE: Final = sa.text(tables.LIVE_RUNS)

Row = TypeVar("Row", OutcomeRow, EventRow, RecordRow, SignalRow)


class History:
    """Reads. Those that take a tenant answer for it alone; the others are for the service process, over all tenants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def close(self) -> None:
        """Ends its connections."""
        self._database.close()

    @property
    def database(self) -> Database:
        """Where domains read their own tables."""
        return self._database

    # --- for people -----------------------------------------------------------------------------------------------

    def run(self, tenant: str, run_id: str) -> RunRow:
        """One run. Raises `UnknownRun`, also for another tenant's run."""
        with self._database.read() as connection:
            return find_run(connection, tenant, run_id)

    def runs(
        self,
        tenant: str,
        *,
        workflow: str | None = None,
        state: RunState | None = None,
        before: tuple[int, str] | None = None,
        limit: int = 50,
    ) -> list[RunRow]:
        """A tenant's runs, newest first; `before` is the `cursor` of the last one seen."""
        select = sa.select(tables.runs).where(_runs.tenant == tenant)
        if workflow is not None:
            select = select.where(_runs.workflow == workflow)
        if state is not None:
            select = select.where(_runs.state == state.value)
        if before is not None:
            select = select.where(sa.tuple_(_runs.created_ms, _runs.run_id) < sa.tuple_(*before))
        return self._runs(select.order_by(_runs.created_ms.desc(), _runs.run_id.desc()).limit(limit))

    def untried(
        self,
        tenant: str,
        *,
        state: RunState,
        workflow: str | None = None,
        since_ms: int = 0,
        quarantined: bool = False,
        limit: int = 100,
    ) -> list[RunRow]:
        """Runs that ended in `state`, at `since_ms` or later, and that nobody has retried yet; the first ended first.

        `quarantined`: only those with a step in quarantine.
        """
        again, outcomes = tables.runs.alias("again"), tables.outcomes.c
        retried = sa.exists().where(again.c.forked_from == _runs.run_id, again.c.fork_kind.in_(RETRIES))
        select = sa.select(tables.runs).where(_runs.tenant == tenant, _runs.state == state.value, ~retried)
        select = select.where(_runs.finished_ms >= since_ms)
        if workflow is not None:
            select = select.where(_runs.workflow == workflow)
        if quarantined:
            held = outcomes.state == StepState.QUARANTINED.value
            select = select.where(sa.exists().where(outcomes.run_id == _runs.run_id, held))
        return self._runs(select.order_by(_runs.finished_ms, _runs.run_id).limit(limit))

    def like(self, tenant: str, prefix: str, limit: int = 6) -> list[str]:
        """Run ids of a tenant that begin with `prefix`, the newest first."""
        # No LIKE: SQLite's does not tell cases apart, and PostgreSQL's does.
        begins = sa.func.substr(_runs.run_id, 1, len(prefix)) == prefix
        select = (
            sa.select(_runs.run_id).where(_runs.tenant == tenant, begins).order_by(_runs.run_id.desc()).limit(limit)
        )
        with self._database.read() as connection:
            return list(connection.execute(select).scalars())

    def timeline(self, tenant: str, run_id: str) -> tuple[OutcomeRow | EventRow, ...]:
        """All that happened to a run, in order. Raises `UnknownRun`."""
        with self._database.read() as connection:
            find_run(connection, tenant, run_id)
            outcomes = _of_runs(connection, tables.outcomes, OutcomeRow.of, [run_id])
            events = _of_runs(connection, tables.events, EventRow.of, [run_id])
        order = attrgetter("epoch", "stream_seq")
        return tuple(sorted([*outcomes.get(run_id, ()), *events.get(run_id, ())], key=order))

    def definition(self, digest: str) -> dict[str, Any] | None:
        """The document that runs of this digest are pinned to."""
        with self._database.read() as connection:
            return _documents(connection, {digest}).get(digest)

    def dead_events(self, limit: int = 50) -> list[DeadEventRow]:
        """The newest events that SQL refused."""
        newest = sa.select(tables.dead_events).order_by(tables.dead_events.c.at_ms.desc()).limit(limit)
        with self._database.read() as connection:
            return [DeadEventRow.of(row) for row in connection.execute(newest)]

    # --- for the service process ----------------------------------------------------------------------------------

    def runs_of(self, run_ids: Sequence[str]) -> list[RunRow]:
        """Runs by their ids; those that do not exist are left out. For some hundreds of ids a call."""
        return self._runs(sa.select(tables.runs).where(_runs.run_id.in_(run_ids)))

    def whole(self, tenant: str, value: Any) -> Any:
        """The value with everything it refers to; no references, no statement. Raises `Permanent` for a lost blob."""
        if not reference.held(value):
            return value
        with self._database.read() as connection:
            return blobs.whole(connection, tenant, value)

    def events(self, run_ids: Sequence[str], kind: str) -> list[EventRow]:
        """Events of one type of some runs, each run's in order."""
        events = tables.events.c
        select = sa.select(tables.events).where(events.run_id.in_(run_ids), events.type == kind)
        with self._database.read() as connection:
            return [EventRow.of(row) for row in connection.execute(select.order_by(*_ORDER["events"]))]

    def outcomes(self, run_id: str, steps: Sequence[str]) -> list[OutcomeRow]:
        """The outcomes of some of a run's steps, in order; no steps, no statement."""
        if not steps:
            return []
        outcomes = tables.outcomes.c
        select = sa.select(tables.outcomes).where(outcomes.run_id == run_id, outcomes.step.in_(steps))
        with self._database.read() as connection:
            return [OutcomeRow.of(row) for row in connection.execute(select.order_by(*_ORDER["outcomes"]))]

    # --- for workers ----------------------------------------------------------------------------------------------

    def cached(self, tenant: str, digest: str, since_ms: int) -> OutcomeRow | None:
        """The newest success of the tenant that came of the same call at `since_ms` or later."""
        outcomes = tables.outcomes.c
        same = (outcomes.tenant == tenant) & (outcomes.cache_digest == digest) & (outcomes.finished_ms >= since_ms)
        known = sa.text(tables.CACHED_OUTCOMES)
        select = sa.select(tables.outcomes).where(known, same, outcomes.state == StepState.SUCCEEDED.value)
        with self._database.read() as connection:
            row = connection.execute(select.order_by(outcomes.finished_ms.desc()).limit(1)).first()
        return None if row is None else OutcomeRow.of(row)

    # --- for the sweeper ------------------------------------------------------------------------------------------

    def accepted_before(self, not_after_ms: int, limit: int, offset: int = 0) -> list[RunRow]:
        """Runs that were accepted, whose not-after time has passed, and that nobody started; the oldest first."""
        overdue = sa.select(tables.runs).where(sa.text(tables.ACCEPTED_RUNS), _runs.not_after_ms < not_after_ms)
        return self._runs(overdue.order_by(_runs.not_after_ms, _runs.run_id).limit(limit).offset(offset))

    def unapplied_signals(self, before_ms: int, limit: int, offset: int = 0) -> list[SignalRow]:
        """Signals of live runs kept before `before_ms` that no event has applied; the oldest first."""
        select = (
            sa.select(tables.signals)
            .join(tables.runs, _runs.run_id == _signals.run_id)
            .where(sa.text(tables.OPEN_SIGNALS), _LIVE, _signals.created_ms < before_ms)
            .order_by(_signals.created_ms, _signals.signal_id)
            .limit(limit)
            .offset(offset)
        )
        with self._database.read() as connection:
            return [SignalRow.of(row) for row in connection.execute(select)]

    def cancels_pending(self, limit: int, offset: int = 0) -> list[RunRow]:
        """Live runs that somebody asked to cancel; the oldest request first."""
        pending = sa.select(tables.runs).where(sa.text(tables.CANCELLING_RUNS))
        return self._runs(pending.order_by(_runs.cancel_requested_ms, _runs.run_id).limit(limit).offset(offset))

    def unsettled(self, limit: int, offset: int = 0) -> list[RunRow]:
        """Runs that are to be paused or to go on, and have not done it yet; by run id."""
        unsettled = sa.select(tables.runs).where(sa.text(tables.UNSETTLED_RUNS))
        return self._runs(unsettled.order_by(_runs.run_id).limit(limit).offset(offset))

    def counts(self) -> Counts:
        """How many runs are live by state, signals open, and events dead."""
        live = sa.select(_runs.state, sa.func.count()).where(_LIVE).group_by(_runs.state)
        signals = sa.select(sa.func.count()).select_from(tables.signals).where(sa.text(tables.OPEN_SIGNALS))
        dead = sa.select(sa.func.count()).select_from(tables.dead_events)
        with self._database.read() as connection:
            return Counts(
                live_runs={RunState(state): count for state, count in connection.execute(live)},
                open_signals=connection.execute(signals).scalar_one(),
                dead_events=connection.execute(dead).scalar_one(),
            )

    # --- for the rebuilder ----------------------------------------------------------------------------------------

    def live_runs(self, after: str, limit: int) -> list[RunRow]:
        """Runs that have not ended, by run id, the ids greater than `after` ("" at first)."""
        live = sa.select(tables.runs).where(_LIVE, _runs.run_id > after)
        return self._runs(live.order_by(_runs.run_id).limit(limit))

    def facts(self, run_id: str) -> RunFacts:
        """All of one run. Raises `UnknownRun`."""
        found = self.facts_of([run_id])
        if not found:
            raise errors.UnknownRun(f"no run {run_id!r}")
        return found[0]

    def facts_of(self, run_ids: Sequence[str]) -> list[RunFacts]:
        """All of many runs in six statements; runs that do not exist are left out. For some hundreds of ids a call."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(tables.runs).where(_runs.run_id.in_(run_ids)))
            runs = [RunRow.of(row) for row in rows]
            documents = _documents(connection, {run.digest for run in runs})
            outcomes = _of_runs(connection, tables.outcomes, OutcomeRow.of, run_ids)
            events = _of_runs(connection, tables.events, EventRow.of, run_ids)
            records = _of_runs(connection, tables.records, RecordRow.of, run_ids)
            signals = _of_runs(connection, tables.signals, SignalRow.of, run_ids)
        return [
            RunFacts(
                run=run,
                document=documents[run.digest],
                outcomes=outcomes.get(run.run_id, ()),
                events=events.get(run.run_id, ()),
                records=records.get(run.run_id, ()),
                signals=signals.get(run.run_id, ()),
            )
            for run in runs
        ]

    def _runs(self, select: sa.Select[Any]) -> list[RunRow]:
        with self._database.read() as connection:
            return [RunRow.of(row) for row in connection.execute(select)]


_ORDER: Final[Mapping[str, Sequence[sa.Column[Any]]]] = {
    "outcomes": (tables.outcomes.c.epoch, tables.outcomes.c.stream_seq),
    "events": (tables.events.c.epoch, tables.events.c.stream_seq),
    "records": (tables.records.c.at_ms, tables.records.c.step, tables.records.c.iteration, tables.records.c.key),
    "signals": (tables.signals.c.created_ms, tables.signals.c.signal_id),
}


def find_run(connection: sa.Connection, tenant: str, run_id: str) -> RunRow:
    """The run, with whole values for its blobs, inside a transaction that is open already. Raises `UnknownRun`."""
    select = sa.select(tables.runs).where(_runs.run_id == run_id, _runs.tenant == tenant)
    row = connection.execute(select).first()
    if row is None:
        raise unknown_run(tenant, run_id)
    found = RunRow.of(row)
    given, output = (blobs.whole(connection, tenant, value) for value in (found.input, found.output))
    return replace(found, input=given, output=output)


def find_definition(connection: sa.Connection, digest: str) -> dict[str, Any]:
    """The pinned document of a run, inside a transaction that is open already."""
    return _documents(connection, {digest})[digest]


def unknown_run(tenant: str, run_id: str) -> errors.UnknownRun:
    """The error for a run that the tenant does not have."""
    return errors.UnknownRun(f"no run {run_id!r}", hint="`convergio runs list` shows the runs", tenant=tenant)


def _of_runs(
    connection: sa.Connection,
    table: sa.Table,
    decode: Callable[[sa.Row[Any]], Row],
    run_ids: Sequence[str],
) -> dict[str, tuple[Row, ...]]:
    """The table's rows by run, each run's in their order."""
    select = sa.select(table).where(table.c.run_id.in_(run_ids)).order_by(table.c.run_id, *_ORDER[table.name])
    rows = [decode(row) for row in connection.execute(select)]
    return {run_id: tuple(group) for run_id, group in groupby(rows, key=attrgetter("run_id"))}


def _documents(connection: sa.Connection, digests: set[str]) -> dict[str, dict[str, Any]]:
    table = tables.definitions.c
    select = sa.select(table.digest, table.document).where(table.digest.in_(digests))
    return {digest: payload.from_text(document) for digest, document in connection.execute(select)}
