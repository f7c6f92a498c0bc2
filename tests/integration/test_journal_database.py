"""Connections and transactions: how SQLite is set up, what waits for whom, and what happens when SQL is away."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from convergio.graphflow.journal import database, schema, tables
from convergio.graphflow.journal.boards import Boards
from convergio.graphflow.journal.database import Database
from convergio.graphflow.journal.doors import Doors
from convergio.graphflow.journal.history import History
from convergio.graphflow.model import errors
from tests import servers
from tests.integration import journal_samples as samples
from tests.waiting import wait_until


@pytest.fixture
def journal(journal_url: str) -> Iterator[Database]:
    with samples.migrated(journal_url) as opened:
        yield opened


@pytest.fixture
def sqlite_journal(sqlite_url: str) -> Iterator[Database]:
    with samples.migrated(sqlite_url) as opened:
        yield opened


# --- SQLite -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("synchronous", "level"), [("FULL", 2), ("NORMAL", 1)])
def test_sqlite_writes_ahead_and_syncs_as_told(sqlite_url: str, synchronous: database.Synchronous, level: int) -> None:
    opened = database.connect(sqlite_url, synchronous=synchronous, busy_timeout=1.5)
    with opened.read() as connection:
        found = {
            pragma: connection.exec_driver_sql(f"PRAGMA {pragma}").scalar()
            for pragma in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "cache_size")
        }
    opened.close()
    assert found == {
        "journal_mode": "wal",
        "synchronous": level,
        "foreign_keys": 1,
        "busy_timeout": 1500,
        "cache_size": -database.PAGES_KIB,
    }


def test_sqlite_writers_that_read_first_wait_for_each_other(sqlite_journal: Database) -> None:
    """With a deferred BEGIN one of them would fail at once: it cannot turn its old snapshot into a writing one."""
    Boards(sqlite_journal).raise_epoch(None, "server", 1)
    barrier = threading.Barrier(2)

    def increment(_number: int) -> None:
        barrier.wait()
        for _ in range(20):
            with sqlite_journal.write() as connection:
                mark = connection.execute(sa.select(tables.boards.c.high_water)).scalar_one()
                connection.execute(sa.update(tables.boards).values(high_water=mark + 1))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(increment, range(2)))
    board = Boards(sqlite_journal).current()
    assert board is not None
    assert board.high_water == 40


def test_sqlite_readers_do_not_wait_for_a_writer(sqlite_journal: Database) -> None:
    doors = Doors(sqlite_journal)
    with sqlite_journal.write() as connection:
        connection.execute(sa.insert(tables.definitions), definition("d1"))
        assert History(sqlite_journal).definition("d1") is None
    assert History(sqlite_journal).definition("d1") == {}
    assert doors.accept(samples.new_run()).created


def test_a_sqlite_lock_that_does_not_end_is_reported_with_a_hint(sqlite_journal: Database, sqlite_url: str) -> None:
    impatient = database.connect(sqlite_url, busy_timeout=0.05)
    with sqlite_journal.write(), pytest.raises(errors.JournalUnavailable, match="another transaction holds") as caught:
        Doors(impatient).accept(samples.new_run())
    impatient.close()
    assert caught.value.retryable
    assert Doors(sqlite_journal).accept(samples.new_run()).created


def test_a_directory_that_does_not_exist_is_reported_with_a_hint(tmp_path: Path) -> None:
    opened = database.connect(f"sqlite:///{tmp_path / 'no' / 'journal.sqlite'}")

    with pytest.raises(errors.JournalUnavailable, match="check that the directory"):
        Boards(opened).current()


def test_sqlite_columns_refuse_what_postgres_refuses(sqlite_journal: Database) -> None:
    with pytest.raises(errors.InvalidPayload), sqlite_journal.write() as connection:
        connection.execute(sa.insert(tables.definitions), {**definition("d1"), "version": "one"})


def definition(digest: str) -> dict[str, object]:
    return {"digest": digest, "name": "refund", "version": 1, "document": "{}", "created_ms": 1}


# --- both -------------------------------------------------------------------------------------------------------------


def test_a_failing_transaction_leaves_nothing(journal: Database) -> None:
    def fail() -> None:
        with journal.write() as connection:
            connection.execute(sa.insert(tables.definitions), definition("d1"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert samples.rows_of(journal, tables.definitions) == []


def test_a_savepoint_fails_alone(journal: Database) -> None:
    def fail(connection: sa.Connection) -> None:
        with journal.savepoint(connection):
            connection.execute(sa.insert(tables.definitions), definition("d2"))
            connection.execute(sa.insert(tables.definitions), definition("d1"))

    with journal.write() as connection:
        connection.execute(sa.insert(tables.definitions), definition("d1"))
        with pytest.raises(errors.InvalidPayload):
            fail(connection)
        connection.execute(sa.insert(tables.definitions), definition("d3"))
    assert [row["digest"] for row in samples.rows_of(journal, tables.definitions)] == ["d1", "d3"]


def test_every_statement_of_a_read_sees_the_same_moment(journal: Database) -> None:
    doors = samples.accepted(journal, "run1")
    with journal.read() as connection:
        before = connection.execute(sa.select(sa.func.count()).select_from(tables.runs)).scalar_one()
        doors.accept(samples.new_run("run2"))
        after = connection.execute(sa.select(sa.func.count()).select_from(tables.runs)).scalar_one()
    assert before == after == 1


def test_a_run_without_its_definition_is_refused(journal: Database) -> None:
    row = {"run_id": "run1", "tenant": "t", "submitter": "s", "workflow": "w", "version": 1, "digest": "none"}
    row |= {
        "input": "{}",
        "state": "ACCEPTED",
        "control_version": 0,
        "priority": "p",
        "not_after_ms": 1,
        "created_ms": 1,
    }

    with pytest.raises(errors.InvalidPayload, match=r"(?i)foreign key"), journal.write() as connection:
        connection.execute(sa.insert(tables.runs), row)


def test_a_database_without_tables_says_what_to_do(journal_url: str) -> None:
    opened = database.connect(journal_url)
    for call in (lambda: Boards(opened).current(), lambda: Doors(opened).accept(samples.new_run())):
        with pytest.raises(errors.JournalUnavailable, match="convergio migrate"):
            call()
    opened.close()


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


def test_a_read_cannot_write_on_postgres(postgres_url: str) -> None:
    with samples.migrated(postgres_url) as opened:
        with pytest.raises(errors.JournalUnavailable, match="read-only"), opened.read() as connection:
            connection.execute(sa.insert(tables.definitions), definition("d1"))
        assert Doors(opened).accept(samples.new_run()).created


def test_a_frozen_transaction_on_postgres_is_ended_by_the_server(postgres_url: str) -> None:
    opened = database.connect(postgres_url, busy_timeout=2)
    with opened.write() as connection:
        limits = {
            name: connection.exec_driver_sql(f"SHOW {name}").scalar()
            for name in ("lock_timeout", "idle_in_transaction_session_timeout", "transaction_isolation")
        }
    opened.close()
    assert limits == {
        "lock_timeout": "2s",
        "idle_in_transaction_session_timeout": "10s",
        "transaction_isolation": "read committed",
    }


def test_a_lock_on_postgres_is_waited_for_only_so_long(postgres_url: str) -> None:
    with samples.migrated(postgres_url) as opened:
        Boards(opened).raise_epoch(None, "server", 1)
        impatient = database.connect(postgres_url, busy_timeout=0.2)
        with opened.write() as connection:
            connection.execute(sa.update(tables.boards).values(high_water=1))
            with pytest.raises(errors.JournalUnavailable, match=r"lock timeout.*another transaction holds"):
                Boards(impatient).raise_epoch(1, "server", 1)
        assert Boards(impatient).raise_epoch(1, "server", 1) == 2
        impatient.close()


def test_a_postgres_that_goes_away_and_comes_back_costs_an_error_and_nothing_else() -> None:
    with servers.postgres_running() as server, samples.migrated(server.url(server.create())) as opened:
        doors = samples.accepted(opened, "run1")
        stream = samples.Stream(opened)
        server.stop()
        for call in (
            lambda: doors.accept(samples.new_run("run2")),
            lambda: stream.write(samples.outcome(1)),
            lambda: History(opened).live_runs("", 10),
            lambda: Boards(opened).current(),
        ):
            with pytest.raises(errors.JournalUnavailable) as caught:
                call()
            assert caught.value.retryable
            assert caught.value.hint
        server.start()
        assert [run.run_id for run in History(opened).live_runs("", 10)] == ["run1"]
        assert stream.write(samples.outcome(1)).new_outcomes
        server.stop()
        server.start()  # nobody called in between: a connection of the pool is dead, and is found out before it is used
        assert doors.accept(samples.new_run("run2")).created


def test_a_commit_that_loses_its_connection_is_unavailable_and_wrote_nothing(postgres_url: str) -> None:
    with samples.migrated(postgres_url) as opened, samples.migrated(postgres_url) as other:

        def write() -> None:
            with opened.write() as connection:
                pid = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
                connection.execute(sa.insert(tables.definitions), definition("d1"))
                end_backend(other, pid)
                connection.execute(sa.insert(tables.definitions), definition("d2"))

        with pytest.raises(errors.JournalUnavailable):
            write()
        assert samples.rows_of(opened, tables.definitions) == []
        assert Doors(opened).accept(samples.new_run()).created


def end_backend(opened: Database, pid: int) -> None:
    """Ends a PostgreSQL session as an operator would, and waits until it is gone."""

    def gone() -> bool:
        with opened.read() as connection:
            return connection.exec_driver_sql(f"SELECT 1 FROM pg_stat_activity WHERE pid = {pid}").first() is None

    with opened.write() as connection:
        connection.exec_driver_sql(f"SELECT pg_terminate_backend({pid})")
    wait_until(gone)


# --- addresses --------------------------------------------------------------------------------------------------------


def test_nobody_listening_is_unavailable_without_the_password_in_the_message() -> None:
    opened = database.connect(f"postgresql://amy:s3cret@127.0.0.1:{servers.free_port()}/journal")

    with pytest.raises(errors.JournalUnavailable, match="does not answer") as caught:
        Boards(opened).current()
    assert "s3cret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_a_migration_without_a_server_is_unavailable() -> None:
    with pytest.raises(errors.JournalUnavailable):
        schema.migrate(f"postgresql://amy@127.0.0.1:{servers.free_port()}/journal")


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").write_text("these are not the pages of a database " * 100)

    with pytest.raises(errors.JournalUnavailable, match="not a database"):
        schema.migrate(f"sqlite:///{tmp_path / 'journal.sqlite'}")


def test_a_file_without_write_permission_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    schema.migrate(f"sqlite:///{path}")
    opened = database.connect(f"sqlite:///file:{path}?mode=ro&uri=true")

    with pytest.raises(errors.JournalUnavailable, match="check that the directory"):
        Doors(opened).accept(samples.new_run())
    opened.close()
    with sqlite3.connect(path) as raw:
        assert raw.execute("SELECT count(*) FROM runs").fetchone() == (0,)
    raw.close()
