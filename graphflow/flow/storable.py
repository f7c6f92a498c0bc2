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

Path = tuple[str | int, ...]


def problems_of(document: Mapping[str, Any]) -> list[Problem]:
    """What in `document` cannot be stored, each with its path. A mapping that contains itself is TOO_DEEP."""
    found: list[Problem] = []
    containers: list[tuple[Any, Path]] = [(document, ())]
    seen = 0
    while containers:
        container, path = containers.pop()
        seen += 1 + len(container)
        if len(path) >= reader.DEEPEST:
            said = f"nests deeper than {reader.DEEPEST} levels"
            return [Problem(code="TOO_DEEP", path=refusal.path_of(path[:8]), message=said)]
        if seen > MOST_VALUES:
            return [Problem(code="TOO_LARGE", path="", message=f"has more than {MOST_VALUES:,} values")]
        for name, part in _parts(container):
            if values.is_map(part) or values.is_list(part):
                containers.append((part, (*path, name)))
            elif said := _unstorable(part):
                found.append(Problem(code="BAD_VALUE", path=refusal.path_of((*path, name)), message=said))
    return found


def _parts(container: Any) -> Iterator[tuple[str | int, Any]]:
    if not values.is_map(container):
        yield from enumerate(container)
        return
    for key, part in container.items():
        yield str(key), part
        if not isinstance(key, str) or _unstorable(key):
            yield repr(key), _BadName()


class _BadName:
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
    if isinstance(value, _BadName):
        return "is not a name: names are text"
    if value is None or isinstance(value, bool | int | float):
        return ""
    return f"is of the type {type(value).__name__}, which JSON does not have"
