"""Runs, events and a domain's table, as the journal's tests need them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from convergio.graphflow.journal import database, schema, tables
from convergio.graphflow.journal.boards import Boards
from convergio.graphflow.journal.database import Database
from convergio.graphflow.journal.doors import Doors
from convergio.graphflow.journal.rows import NewRun, NewSignal, StreamEvent
from convergio.graphflow.journal.writer import Writer
from convergio.graphflow.model.states import StepState
from convergio.graphflow.model.workflow import Workflow
from tests import servers
from tests.waiting import wait_until

LEDGER = sa.Table(
    "ledger",
    sa.MetaData(),
    sa.Column("entry", sa.Text(), primary_key=True),
    sa.Column("tenant", sa.Text(), nullable=False),
    sa.Column("run_id", sa.Text(), nullable=False),
    sa.Column("amount", sa.BigInteger(), nullable=False),
    sa.Column("day", sa.Date()),
    sa.Column("note", sa.Text()),
)
"""A domain's own table, whose rows travel in outcomes."""


@contextmanager
def migrated(url: str) -> Generator[Database, None, None]:
    """The database with the journal's tables and the ledger."""
    schema.migrate(url)
    opened = database.connect(url, busy_timeout=30)  # patient: the machine may be busy
    try:
        with opened.write() as connection:
            LEDGER.metadata.create_all(connection)
        yield opened
    finally:
        opened.close()


def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """The body of a module's fixture with the params "sqlite" and "postgres": a database for each test is slow."""
    if request.param == "sqlite":
        with migrated(f"sqlite:///{tmp_path_factory.mktemp('journal') / 'journal.sqlite'}") as opened:
            yield opened
        return
    server: servers.PostgresServer = request.getfixturevalue("session_postgres")
    name = server.create()
    with migrated(server.url(name)) as opened:
        yield opened
    server.drop(name)


def emptied(opened: Database) -> Database:
    """The same database without a row."""
    with opened.write() as connection:
        for table in [LEDGER, *reversed(tables.metadata.sorted_tables)]:
            connection.execute(sa.delete(table))
    return opened


def workflow(name: str = "refund", version: int = 1) -> Workflow:
    document = {"workflow": name, "version": version, "steps": {"load": {"task": "billing.load"}}}
    return Workflow(name=name, version=version, steps={}, document=document)


def new_run(run_id: str = "run1", **changes: Any) -> NewRun:
    values: dict[str, Any] = {
        "run_id": run_id,
        "submitter": "amy",
        "workflow": workflow(),
        "input_json": '{"invoice": "F-17", "amount": 12}',
        "not_after_ms": 11_000,
        "created_ms": 1_000,
    }
    return NewRun(**{**values, **changes})


def new_signal(signal_id: str = "signal1", run_id: str = "run1", **changes: Any) -> NewSignal:
    values: dict[str, Any] = {
        "signal_id": signal_id,
        "tenant": "default",
        "submitter": "bob",
        "run_id": run_id,
        "name": "sign",
        "data": {"approve": True},
        "created_ms": 2_000,
    }
    return NewSignal(**{**values, **changes})


def event(seq: int, kind: str, run_id: str = "run1", **changes: Any) -> StreamEvent:
    values: dict[str, Any] = {
        "seq": seq,
        "type": kind,
        "tenant": "default",
        "submitter": "amy",
        "run_id": run_id,
        "run_seq": seq,
        "at_ms": 1_000 + seq,
        "data": {},
    }
    return StreamEvent(**{**values, **changes})


def outcome(
    seq: int,
    step: str = "load",
    run_id: str = "run1",
    *,
    state: StepState = StepState.SUCCEEDED,
    data: Mapping[str, Any] | None = None,
    **changes: Any,
) -> StreamEvent:
    body = {
        "state": state.value,
        "output": {"paid": True},
        "error": None,
        "attempt": 1,
        "started_ms": 1_000,
        "finished_ms": 1_100,
        "worker": "w1@host",
        "tokens": 7,
        "rows": {},
    }
    return event(seq, f"step.{state.value.lower()}", run_id, step=step, data={**body, **(data or {})}, **changes)


def writer(opened: Database) -> Writer:
    return Writer(opened, {"ledger": LEDGER})


class Stream:
    """A board's stream of one epoch, journaled group by group."""

    def __init__(self, opened: Database) -> None:
        epoch = Boards(opened).raise_epoch(None, "server", 1)
        assert epoch == 1
        self.writer = writer(opened)
        self.commit = self.writer.commit
        self.epoch = epoch
        self.high_water = 0

    def write(self, *events: StreamEvent) -> Any:
        """Commits the events and moves on."""
        newest = max(event.seq for event in events)
        done = self.commit(events, epoch=self.epoch, high_water=self.high_water, new_high_water=newest)
        self.high_water = newest
        return done


def rows_of(opened: Database, table: sa.Table) -> list[dict[str, Any]]:
    """All rows of a table, by their primary key."""
    with opened.read() as connection:
        return [row._asdict() for row in connection.execute(sa.select(table).order_by(*table.primary_key.columns))]


def accepted(opened: Database, *run_ids: str) -> Doors:
    """Doors through which these runs came."""
    doors = Doors(opened)
    for run_id in run_ids:
        assert doors.accept(new_run(run_id)).created
    return doors


# --- in a process of their own --------------------------------------------------------------------------------------


def migrate(url: str) -> tuple[str, ...]:
    """Migrates, and says where the database is then."""
    schema.migrate(url)
    return schema.current(url)


def salvage(url: str, worker: str, seqs: Sequence[int], chunk: int) -> list[str]:
    """Writes an outcome of `worker` for each step, some at a time; returns the steps of which it was the first.

    Says in the ledger that it is ready, and begins with epoch 2.
    """
    opened = database.connect(url, busy_timeout=30)
    try:
        with opened.write() as connection:
            connection.execute(sa.insert(LEDGER), {"entry": worker, "tenant": "t", "run_id": "r", "amount": 0})
        wait_until(lambda: (board := Boards(opened).current()) and board.epoch == 2)
        won: list[str] = []
        for start in range(0, len(seqs), chunk):
            group = [outcome(seq, f"step{seq}", data={"worker": worker}) for seq in seqs[start : start + chunk]]
            done = writer(opened).salvage(group, epoch=2, stream_epoch=1)
            won += [step for _run, step, _iteration in done.new_outcomes]
        return won
    finally:
        opened.close()
