"""One SQL database behind the journal: SQLite (WAL) or PostgreSQL."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final, Literal, cast

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.dialects import postgresql, sqlite

from convergio.graphflow.journal import faults
from convergio.graphflow.model import errors

Synchronous = Literal["FULL", "NORMAL"]
"""SQLite only. FULL: a commit survives a power cut. NORMAL: it survives any crash of ours, and is faster."""

OLDEST_SQLITE: Final = (3, 37)
"""The first with STRICT tables."""

PAGES_KIB: Final = 256
"""Of the pages of the file, what a connection to SQLite keeps for itself; the operating system keeps them for all."""

_READS: Final = "journal_reads"


class Database:
    """Transactions on one database. Safe to share by threads; a process makes its own after it was forked."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        snapshot = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        self._reader = engine.execution_options(**{_READS: True}, **snapshot)
        self.where = shown(engine.url)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is SQLite; PostgreSQL otherwise."""
        return self._engine.dialect.name == "sqlite"

    @contextmanager
    def write(self) -> Generator[sa.Connection, None, None]:
        """One writing transaction: committed at the end, rolled back by an exception."""
        with faults.translated(self.where), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Generator[sa.Connection, None, None]:
        """One read-only transaction: every statement in it sees the same moment."""
        with faults.translated(self.where), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def savepoint(self, connection: sa.Connection) -> Generator[None, None, None]:
        """A part of a writing transaction that can fail alone; its exceptions are translated."""
        with faults.translated(self.where), connection.begin_nested():
            yield

    def insert_once(self, table: sa.Table) -> sa.Insert:
        """INSERT ... ON CONFLICT DO NOTHING: the first row of a key wins."""
        insert = sqlite.insert if self.is_sqlite else postgresql.insert
        return insert(table).on_conflict_do_nothing()

    def close(self) -> None:
        """Ends every connection; the next use opens new ones."""
        self._engine.dispose()


def connect(url: str, *, synchronous: Synchronous = "FULL", busy_timeout: float = 5.0, pool_size: int = 5) -> Database:
    """The database at `url`; no connection is made yet.

    `busy_timeout`: seconds to wait for SQLite's write lock, a PostgreSQL lock or a free connection of the pool.
    Raises `InvalidSetting` for a URL that cannot be used; every later call may raise `JournalUnavailable`.
    """
    address = normalised(url)
    if address.get_backend_name() == "sqlite":
        return Database(_sqlite_engine(address, synchronous, busy_timeout, pool_size))
    return Database(_postgres_engine(address, busy_timeout, pool_size))


def normalised(url: str) -> sa.URL:
    """The SQLAlchemy address: `postgresql://` and `postgres://` mean psycopg 3; a SQLite URL must name a file."""
    hint = "use sqlite:///path/to/file or postgresql://user@host/database"
    try:
        address = sa.make_url(url)
    except exc.ArgumentError as error:
        raise errors.InvalidSetting("the SQL database's URL cannot be read", hint=hint) from error
    if address.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return address.set(drivername="postgresql+psycopg")
    if address.drivername in ("sqlite", "sqlite+pysqlite"):
        if address.database in (None, "", ":memory:"):
            raise errors.InvalidSetting("the journal cannot live in memory: its processes share it", hint=hint)
        return address.set(drivername="sqlite+pysqlite")
    raise errors.InvalidSetting(f"no journal on {address.drivername!r}", hint=hint)


def shown(url: sa.URL) -> str:
    """The address without passwords: PostgreSQL takes them among the parameters, too."""
    secret = {name: "***" for name in ("password", "sslpassword") if name in url.query}
    return url.update_query_dict(secret).render_as_string(hide_password=True)


# --- SQLite -------------------------------------------------------------------------------------------------------


def _sqlite_engine(address: sa.URL, synchronous: Synchronous, busy_timeout: float, pool_size: int) -> sa.Engine:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        hint = "use a Python with SQLite 3.37 or newer, or PostgreSQL"
        raise errors.InvalidSetting(f"this Python's SQLite {sqlite3.sqlite_version} is too old", hint=hint)
    engine = sa.create_engine(
        address, pool_size=pool_size, pool_timeout=busy_timeout, connect_args={"timeout": busy_timeout}
    )

    def prepare(connection: sqlite3.Connection, _record: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, never by the driver
        _enter_wal(connection, time.monotonic() + busy_timeout)
        connection.execute(f"PRAGMA synchronous={synchronous}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA cache_size=-{PAGES_KIB}")

    def begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get(_READS):
            connection.exec_driver_sql("BEGIN")
        else:
            _take_lock(cast("sqlite3.Connection", connection.connection.driver_connection), busy_timeout)

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", begin)
    return engine


def _enter_wal(connection: sqlite3.Connection, deadline: float) -> None:
    # The mode is kept in the file. Where two processes change it at once SQLite answers "locked" without waiting.
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            if mode != ("wal",):
                raise sqlite3.OperationalError("this file system carries no write-ahead log (WAL)")


def _take_lock(connection: sqlite3.Connection, busy_timeout: float) -> None:
    # A deferred transaction that turns into a writing one fails at once when another has written in between, whatever
    # the busy timeout: writers take the lock at their start. SQLite itself looks for it ever more rarely, every 100 ms
    # in the end, and a busy journaler would starve the doors: we look every millisecond.
    deadline = time.monotonic() + busy_timeout
    connection.execute("PRAGMA busy_timeout=0")
    try:
        while not _begun(connection, final=time.monotonic() > deadline):
            time.sleep(random.uniform(0.0005, 0.0015))
    finally:
        connection.execute(f"PRAGMA busy_timeout={int(busy_timeout * 1000)}")


def _begun(connection: sqlite3.Connection, *, final: bool) -> bool:
    statement = "BEGIN IMMEDIATE"
    try:
        connection.execute(statement)
    except sqlite3.OperationalError as error:
        if final or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise exc.OperationalError(statement, None, error) from error
        return False
    return True


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


def _postgres_engine(address: sa.URL, busy_timeout: float, pool_size: int) -> sa.Engine:
    engine = sa.create_engine(
        address,
        pool_size=pool_size,
        pool_timeout=busy_timeout,
        pool_pre_ping=True,
        isolation_level="READ COMMITTED",  # a lost ON CONFLICT must see the row it lost against
        connect_args={"connect_timeout": 3, "tcp_user_timeout": 5_000, "fallback_application_name": "convergio"},
    )

    def prepare(connection: Any, _record: Any) -> None:
        # A frozen process must not keep the board's row locked: its transaction ends after these limits.
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {int(busy_timeout * 1000)}")
            cursor.execute("SET idle_in_transaction_session_timeout = 10000")
        connection.commit()

    event.listen(engine, "connect", prepare)
    return engine
