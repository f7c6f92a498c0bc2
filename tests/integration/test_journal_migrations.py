"""Migrations: from nothing to the newest tables, by several processes at once, with the domains' own branches."""

from __future__ import annotations

import multiprocessing
import re
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from convergio.graphflow.journal import database, schema, tables
from convergio.graphflow.journal.database import Database
from convergio.graphflow.journal.doors import Doors
from convergio.graphflow.model import errors
from convergio.graphflow.model.states import TERMINAL_STEP, RunState
from tests.integration import journal_samples as samples
from tests.waiting import wait_until

OURS = sorted(tables.metadata.tables)
REVISIONS = (
    "journal_0001",
    "journal_0002",
    "journal_0003",
    "journal_0004",
    "journal_0005",
    "journal_0006",
    "journal_0007",
    "journal_0008",
)

DOMAIN = """
import sqlalchemy as sa
from alembic import op

revision = "agents_0001"
down_revision = None
branch_labels = ("agents",)
depends_on = "journal_0001"


def upgrade():
    op.create_table("turns", sa.Column("run_id", sa.Text(), sa.ForeignKey("runs.run_id"), primary_key=True))
"""


@pytest.fixture
def domain(tmp_path: Path) -> Path:
    """The folder of a domain with a branch of its own; its name needs quoting."""
    folder = tmp_path / "100% agents" / "migrations"
    folder.mkdir(parents=True)
    (folder / "agents_0001_first.py").write_text(DOMAIN)
    return folder


@contextmanager
def opened(url: str) -> Generator[Database, None, None]:
    made = database.connect(url)
    try:
        yield made
    finally:
        made.close()


def table_names(url: str) -> list[str]:
    with opened(url) as made, made.read() as connection:
        return sorted(sa.inspect(connection).get_table_names())


def catalogue(connection: sa.Connection) -> dict[str, str]:
    """How the database itself describes every table, index and constraint of ours."""
    if connection.dialect.name == "sqlite":
        query = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'alembic%'"
    else:
        query = """
            SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace AND conrelid <> 'alembic_version'::regclass
            UNION SELECT indexname, indexdef FROM pg_indexes
            WHERE schemaname = 'public' AND tablename <> 'alembic_version'
            UNION SELECT table_name || '.' || column_name, data_type || ' ' || is_nullable || ordinal_position
            FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> 'alembic_version'
        """
    return {name: _in_parts(" ".join(text.split())) for name, text in connection.exec_driver_sql(query)}


def _in_parts(text: str) -> str:
    """A table's columns and constraints, sorted: SQLite writes a column that was added later behind the constraints."""
    if not text.startswith("CREATE TABLE"):
        return text
    head, _, body = text.partition(" (")
    body, _, tail = body.rpartition(")")
    parts = re.split(r", ?(?![^()]*\))", body)  # not at the commas inside of parentheses
    return f"{head} ({', '.join(sorted(part.strip() for part in parts))}){tail}"


# --- the tables -------------------------------------------------------------------------------------------------------


def test_migrating_makes_every_table_from_nothing(journal_url: str) -> None:
    assert schema.current(journal_url) == ()
    assert schema.pending(journal_url) == REVISIONS

    schema.migrate(journal_url)
    assert table_names(journal_url) == sorted(["alembic_version", *OURS])
    assert schema.current(journal_url) == REVISIONS[-1:]
    assert schema.pending(journal_url) == ()


def test_migrating_again_changes_nothing_and_keeps_the_rows(journal_url: str) -> None:
    with samples.migrated(journal_url) as made:
        samples.accepted(made, "run1")
        schema.migrate(journal_url)
        assert len(samples.rows_of(made, tables.runs)) == 1


def test_a_database_of_an_older_version_is_brought_to_this_one_with_its_rows(journal_url: str, domain: Path) -> None:
    older = schema._config([domain])
    with opened(journal_url) as made, made.write() as connection:
        older.attributes["connection"] = connection
        command.upgrade(older, "journal_0001")
        command.upgrade(older, "agents_0001")
        columns = "run_id, tenant, submitter, workflow, version, digest, input, state, control_version, priority"
        connection.exec_driver_sql("INSERT INTO definitions VALUES ('d', 'refund', 1, '{}', 1)")
        connection.exec_driver_sql(
            f"INSERT INTO runs ({columns}, not_after_ms, created_ms) "
            "VALUES ('run1', 'default', 'amy', 'refund', 1, 'd', '{}', 'ACCEPTED', 0, 'medium', 2, 1)"
        )
    assert schema.pending(journal_url, [domain]) == REVISIONS[1:]

    schema.migrate(journal_url, [domain])
    with opened(journal_url) as made:
        run = Doors(made).run("default", "run1")
    assert (run.state, run.forked_from, run.fork_kind, run.fork_step) == (RunState.ACCEPTED, None, None, None)
    assert schema.pending(journal_url, [domain]) == ()


def test_the_migrations_make_what_the_tables_say(journal_url: str) -> None:
    schema.migrate(journal_url)
    with opened(journal_url) as made, made.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, tables.metadata) == []


def test_the_migrations_make_every_constraint_and_index_to_the_letter(journal_url: str) -> None:
    """Alembic compares no CHECK constraints and no conditions of indexes: the database's own words do."""
    schema.migrate(journal_url)
    with opened(journal_url) as made, made.write() as connection:
        migrated = catalogue(connection)
        tables.metadata.drop_all(connection)
        tables.metadata.create_all(connection)
        created = catalogue(connection)
    assert migrated == created
    assert {index.name for table in tables.metadata.tables.values() for index in table.indexes} <= migrated.keys()


def test_the_states_are_checked_from_the_transition_table(journal_url: str) -> None:
    schema.migrate(journal_url)
    with opened(journal_url) as made, made.read() as connection:
        found = {
            table: next(
                str(check["sqltext"])
                for check in sa.inspect(connection).get_check_constraints(table)
                if check["name"] == f"ck_{table}_state"
            )
            for table in ("runs", "outcomes")
        }
    assert {state for state in RunState if f"'{state.value}'" in found["runs"]} == set(RunState)
    assert {state for state in TERMINAL_STEP if f"'{state.value}'" in found["outcomes"]} == set(TERMINAL_STEP)
    assert "RUNNING" not in found["outcomes"]


def test_every_row_that_belongs_to_a_run_says_tenant_and_submitter() -> None:
    for table in tables.metadata.tables.values():
        if "run_id" in table.c:
            assert {"tenant", "submitter"} <= set(table.c.keys()), table.name
            assert not table.c.tenant.nullable
            assert not table.c.submitter.nullable


# --- domains ----------------------------------------------------------------------------------------------------------


def test_a_domain_brings_its_own_branch(journal_url: str, domain: Path) -> None:
    schema.migrate(journal_url)
    assert schema.pending(journal_url, [domain]) == ("agents_0001",)

    schema.migrate(journal_url, [domain])
    assert "turns" in table_names(journal_url)
    assert "agents_0001" in schema.current(journal_url)
    assert schema.pending(journal_url, [domain]) == ()


def test_all_branches_are_migrated_from_nothing_in_the_order_they_need(journal_url: str, domain: Path) -> None:
    assert schema.pending(journal_url, [domain]) == ("journal_0001", "agents_0001", *REVISIONS[1:])

    schema.migrate(journal_url, [domain])
    assert table_names(journal_url) == sorted(["alembic_version", "turns", *OURS])
    assert schema.pending(journal_url, [domain]) == ()


def test_a_failing_migration_leaves_the_database_as_it_was(journal_url: str, domain: Path) -> None:
    (domain / "agents_0001_first.py").write_text(DOMAIN + "    raise RuntimeError('half way')\n")

    with pytest.raises(RuntimeError, match="half way"):
        schema.migrate(journal_url, [domain])
    assert table_names(journal_url) == []
    assert schema.current(journal_url) == ()


def test_a_database_of_a_newer_version_is_not_touched(journal_url: str, domain: Path) -> None:
    schema.migrate(journal_url, [domain])

    for call in (schema.migrate, schema.pending):
        with pytest.raises(errors.SchemaMismatch, match="agents_0001"):
            call(journal_url)


def test_a_folder_that_is_not_there_is_an_error(sqlite_url: str, tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        schema.migrate(sqlite_url, [tmp_path / "none"])


# --- at the same time -------------------------------------------------------------------------------------------------


def test_two_processes_that_migrate_at_once_do_it_once(journal_url: str) -> None:
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        answers = [pool.submit(samples.migrate, journal_url) for _ in range(3)]
        assert [answer.result(timeout=60) for answer in answers] == [REVISIONS[-1:]] * 3
    assert table_names(journal_url) == sorted(["alembic_version", *OURS])


def test_a_migration_waits_for_the_one_that_runs(postgres_url: str) -> None:
    with opened(postgres_url) as made, ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with made.write() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(schema._LOCK)))
            answer = pool.submit(samples.migrate, postgres_url)
            waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            wait_until(lambda: connection.exec_driver_sql(waits).first(), timeout=30)
            assert not answer.done()
        assert answer.result(timeout=30) == REVISIONS[-1:]
