"""JSON as the journal keeps it: canonical text, the same bytes on both databases."""

from __future__ import annotations

import json
from typing import Any

from convergio.graphflow.model import errors, outcome

_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def to_text(value: Any, *, what: str) -> str:
    """`value` as canonical JSON. Raises `InvalidPayload` for what either database would refuse."""
    try:
        text = _encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise errors.InvalidPayload(f"{what} is not JSON: {error}") from error
    if outcome.has_nul(text):
        raise _nul(what)
    return text


def to_null(value: Any, *, what: str) -> str | None:
    """The same for a nullable column: None is NULL."""
    return None if value is None else to_text(value, what=what)


def to_any_text(value: Any) -> str:
    """JSON text of whatever it is, for a person to look at: pure ASCII, so that no database refuses it."""
    return json.dumps(value, sort_keys=True, default=repr)


def from_text(text: str | None) -> Any:
    """The value again; NULL is None."""
    return None if text is None else json.loads(text)


def reread(text: str, *, what: str) -> str:
    """Somebody's JSON text as canonical JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise errors.InvalidPayload(f"{what} is not JSON: {error}") from error
    return to_text(value, what=what)


def plain(text: str, *, what: str) -> str:
    """`text` itself. SQLite would keep a NUL character that PostgreSQL refuses: here both refuse it."""
    if "\x00" in text:
        raise _nul(what)
    return text


def _nul(what: str) -> errors.InvalidPayload:
    return errors.InvalidPayload(f"{what} holds a NUL character", hint="remove \\x00 from its strings")
