"""What an exception of the database layer means: the value is refused, or the journal is away."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from sqlalchemy import exc

from convergio.graphflow.model import errors

_VALUE_FAULTS: Final = (exc.DataError, exc.IntegrityError, exc.ProgrammingError, UnicodeError, OverflowError)
"""sqlite3 and psycopg raise the last two themselves, for lone surrogates and for numbers beyond 64 bits."""

_VALUE_STATES: Final = ("22", "23", "54", "42804")
"""PostgreSQL's codes and classes for a fault of the value: data, integrity, program limits, wrong type of a column."""

_NO_TABLE: Final = ("42P01", "42703")
_SQLITE_NO_TABLE: Final = ("no such table", "no such column", "has no column named")


@contextmanager
def translated(where: str) -> Generator[None, None, None]:
    """Turns the database layer's exceptions into `InvalidPayload` or `JournalUnavailable`, at the database `where`."""
    try:
        yield
    except (exc.StatementError, exc.TimeoutError, UnicodeError, OverflowError) as error:
        raise _meaning(error, where) from error


def _meaning(error: Exception, where: str) -> errors.ConvergioError:
    cause = getattr(error, "orig", None) or error
    text = str(cause).strip().partition("\n")[0] or type(cause).__name__
    state = str(getattr(cause, "sqlstate", None) or "")
    if state in _NO_TABLE or any(words in text for words in _SQLITE_NO_TABLE):
        return errors.JournalUnavailable(f"the journal's tables are missing or old: {text}", hint=_MIGRATE, at=where)
    if _is_value_fault(error, state):
        return errors.InvalidPayload(f"the journal refuses this value: {text}")
    return errors.JournalUnavailable(f"the SQL database does not answer: {text}", hint=_hint(text), at=where)


def _is_value_fault(error: Exception, state: str) -> bool:
    if state:
        return state.startswith(_VALUE_STATES)
    if isinstance(error, exc.DBAPIError) and error.connection_invalidated:
        return False
    # A StatementError that is no DBAPIError: a column's type could not take the value.
    unbound = isinstance(error, exc.StatementError) and not isinstance(error, exc.DBAPIError)
    return unbound or isinstance(error, _VALUE_FAULTS)


_MIGRATE: Final = "run `convergio migrate`"


def _hint(text: str) -> str:
    if "database is locked" in text or "lock timeout" in text:
        return "another transaction holds the lock; repeat the call"
    if "unable to open" in text or "readonly" in text:
        return "check that the directory of the database file exists and may be written"
    if "full" in text or "No space" in text:
        return "free some space on the database's disk"
    return "check that the database runs and that its URL is right, then repeat the call"
