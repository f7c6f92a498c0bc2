"""What a definition may hold so that every store can keep it: JSON, no NUL, whole Unicode, bounded nesting and size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from convergio.graphflow.flow import reader, refusal, values
from convergio.graphflow.model.errors import Problem

MOST_VALUES: Final = 2_000_000
HOPELESS: Final = frozenset({"TOO_DEEP", "TOO_LARGE"})
"""Codes after which a document is not looked at any further."""


def problems_of(document: Mapping[str, Any]) -> list[Problem]:
    """What in `document` cannot be stored, each with its path. A mapping that contains itself is TOO_DEEP."""
    found: list[Problem] = []
    todo: list[tuple[Any, tuple[str | int, ...]]] = [(document, ())]
    seen = 0
    while todo:
        value, path = todo.pop()
        seen += 1
        if len(path) > reader.DEEPEST:
            said = f"nests deeper than {reader.DEEPEST} levels"
            return [Problem(code="TOO_DEEP", path=refusal.path_of(path[:8]), message=said)]
        if seen > MOST_VALUES:
            said = f"has more than {MOST_VALUES:,} values"
            return [Problem(code="TOO_LARGE", path="", message=said)]
        if said := _unstorable(value):
            found.append(Problem(code="BAD_VALUE", path=refusal.path_of(path), message=said))
        todo.extend(_parts(value, path))
    return found[::-1]


def _parts(value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[Any, tuple[str | int, ...]]]:
    if values.is_map(value):
        for key, part in value.items():
            yield part, (*path, str(key))
            if not isinstance(key, str) or _unstorable(key):
                yield _BadKey(), (*path, repr(key))
    elif values.is_list(value):
        for place, part in enumerate(value):
            yield part, (*path, place)


class _BadKey:
    """Stands for a name that is no text, or not storable text."""


def _unstorable(value: Any) -> str:
    """Why a single value cannot be stored; empty if it can."""
    if isinstance(value, str):
        # the quick test first: nearly all text of a document is ASCII
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            return "has a lone surrogate"
        return "has a NUL character" if "\x00" in value else ""
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a finite number"
    if isinstance(value, _BadKey):
        return "is not a name: names are text"
    if value is None or isinstance(value, bool | int | float | list | tuple | Mapping):
        return ""
    return f"is of the type {type(value).__name__}, which JSON does not have"
