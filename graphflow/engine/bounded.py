"""What somebody else's errors say, small enough and plain enough for any store."""

from __future__ import annotations

from typing import Any, Final

from convergio.graphflow.model import errors

LONGEST_TEXT: Final = 2_000
"""Characters of an error or a reason that are kept."""


def facts(error: errors.ConvergioError) -> dict[str, Any]:
    """An error's public form, small enough for any store."""
    facts = error.as_dict()
    texts = {name: None if facts[name] is None else text(facts[name]) for name in ("code", "message", "hint")}
    return {**texts, "retryable": bool(facts["retryable"])}


def text(value: object) -> str:
    """Text of anything, without NUL characters and lone surrogates: what a user's error says is not in our hands."""
    try:
        said = str(value)
    except Exception:  # noqa: BLE001  # somebody else's __str__ may do anything
        said = f"({type(value).__name__}, which cannot be shown)"
    return said[:LONGEST_TEXT].replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def classes(error: errors.ConvergioError) -> list[str]:
    """The names of the classes of the exception behind an error, its bases included."""
    return [] if error.__cause__ is None else [one.__name__ for one in type(error.__cause__).__mro__]
