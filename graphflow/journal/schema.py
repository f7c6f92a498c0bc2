"""Bringing a database to the newest tables: the journal's own and those of every domain. Imports Alembic (slow)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from convergio.graphflow.journal import database
from convergio.graphflow.model import errors

MIGRATIONS: Final = Path(__file__).parent / "migrations"

_LOCK: Final = 0x636F6E7665726769
"""Number of the advisory lock on PostgreSQL: the ASCII codes of "convergi"."""

_PATIENCE: Final = 60.0
"""Seconds to wait for another process that migrates."""


def migrate(url: str, locations: Sequence[Path] = ()) -> None:
    """Upgrades every branch to its head in one transaction; concurrent calls wait for each other.

    `locations`: folders with the revisions of other domains; the journal's own are always included. Raises
    `SchemaMismatch` if the database was migrated by a newer version, `JournalUnavailable` without SQL.
    """
    config = _config(locations)
    store = database.connect(url, busy_timeout=_PATIENCE, pool_size=1)
    try:
        with store.write() as connection:
            if not store.is_sqlite:  # SQLite's write lock is held already
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            _check_known(ScriptDirectory.from_config(config), _applied(connection))
            config.attributes["connection"] = connection
            command.upgrade(config, "heads")
    finally:
        store.close()


def current(url: str) -> tuple[str, ...]:
    """The revisions the database is at, one for each branch, sorted; empty for a database that was never migrated."""
    store = database.connect(url, pool_size=1)
    try:
        with store.read() as connection:
            return _applied(connection)
    finally:
        store.close()


def pending(url: str, locations: Sequence[Path] = ()) -> tuple[str, ...]:
    """The revisions that `migrate` would run, in its order. Raises `SchemaMismatch` as `migrate` does."""
    script, applied = ScriptDirectory.from_config(_config(locations)), current(url)
    _check_known(script, applied)
    done = _with_ancestors(script, applied)
    newest_first = [revision.revision for revision in script.walk_revisions()]
    return tuple(revision for revision in reversed(newest_first) if revision not in done)


def _config(locations: Sequence[Path]) -> Config:
    if missing := [str(folder) for folder in locations if not folder.is_dir()]:
        raise NotADirectoryError(f"no folder of revisions: {', '.join(missing)}")  # Alembic would pass over it
    config = Config()
    folders = [MIGRATIONS / "versions", *locations]
    options = {
        "script_location": str(MIGRATIONS),
        "path_separator": "newline",
        "version_locations": "\n".join(str(folder) for folder in folders),
    }
    for name, value in options.items():
        config.set_main_option(name, value.replace("%", "%%"))
    return config


def _applied(connection: sa.Connection) -> tuple[str, ...]:
    return tuple(sorted(MigrationContext.configure(connection).get_current_heads()))


def _check_known(script: ScriptDirectory, applied: Sequence[str]) -> None:
    known = {revision.revision for revision in script.walk_revisions()}
    if unknown := sorted(set(applied) - known):
        hint = "start that version again, or restore the backup made before it"
        raise errors.SchemaMismatch(f"the journal is at {', '.join(unknown)}, which this version lacks", hint=hint)


def _with_ancestors(script: ScriptDirectory, revisions: Sequence[str]) -> set[str]:
    """The revisions and all they stand on: what they revise, and what they depend on in other branches."""
    done: set[str] = set()
    waiting = list(revisions)
    while waiting:
        revision = script.get_revision(waiting.pop())
        if revision.revision not in done:
            done.add(revision.revision)
            waiting += [*_names(revision.down_revision), *_names(revision.dependencies)]
    return done


def _names(value: str | Sequence[str] | None) -> Sequence[str]:
    return [value] if isinstance(value, str) else value or ()
