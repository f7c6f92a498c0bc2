"""JSON values on their way into an expression and out of it: what is refused, how big they are, what they become."""

from __future__ import annotations

import base64
import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeGuard

DEEPEST: Final = 64
"""Levels of nesting. The binding converts and compares values by recursion and takes the process down at a few
thousand."""

INT_MIN, INT_MAX = -(2**63), 2**63 - 1

_SCALAR: Final = 1
_TEXT_CHUNK: Final = 512
_ENTRY: Final = 3


def is_map(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """Whether the value is a mapping of any kind."""
    # dicts first: the general question costs a microsecond, and definitions ask it a million times
    return isinstance(value, dict) or isinstance(value, Mapping)  # noqa: SIM101


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether the value is a list or a tuple."""
    return isinstance(value, list | tuple)


def survey(value: Any) -> int:
    """Checks that `value` may enter an expression; its weight (about one per number, more for maps and long text).

    ValueError in words, never with the value itself: it may be private.
    """
    weight, pending = 0, [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if depth > DEEPEST:
            raise ValueError(f"a value is nested deeper than {DEEPEST} levels")
        if is_map(item):
            weight += _ENTRY * (1 + len(item))
            pending.extend((part, depth + 1) for part in _entries(item))
        elif is_list(item):
            weight += _SCALAR
            pending.extend((part, depth + 1) for part in item)
        else:
            weight += _scalar(item)
    return weight


def _entries(item: Mapping[Any, Any]) -> Iterable[Any]:
    if not all(isinstance(key, str) for key in item):
        raise ValueError("a map has a key that is not text")
    return item.values()


def _scalar(item: Any) -> int:
    if isinstance(item, str):
        return _SCALAR + len(item) // _TEXT_CHUNK
    if item is None or isinstance(item, bool | float):
        return _SCALAR
    if not isinstance(item, int):
        raise ValueError(f"a value of type {type(item).__name__} is not JSON")
    if not INT_MIN <= item <= INT_MAX:
        # the binding would silently turn it into a double
        raise ValueError("a whole number has more than 64 bits")
    return _SCALAR


def plain(value: Any) -> Any:
    """An expression's result as JSON, by the protobuf JSON mapping: times as RFC 3339, durations as `1.5s`, bytes as
    base64, keys as text. ValueError in words for what JSON does not have (NaN, infinity, optionals)."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("the result is not a finite number")
        return value
    if is_list(value):
        return [plain(item) for item in value]
    if is_map(value):
        return {_key(key): plain(item) for key, item in value.items()}
    return _special(value)


def _key(key: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    return str(key)


def _special(value: Any) -> str:
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, datetime.timedelta):
        whole, rest = divmod(abs(value), datetime.timedelta(seconds=1))
        fraction = f".{rest.microseconds:06d}".rstrip("0") if rest else ""
        return f"{'-' if value < datetime.timedelta() else ''}{whole}{fraction}s"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise ValueError(f"the result is {type(value).__name__}, which JSON does not have")
