"""References to blobs: what stands for a value that is too large to travel (a claim check)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, cast

KEY: Final = "$blob"
_NAME: Final = re.compile(r"sha256:([0-9a-f]{64})")


def to(digest: str, size: int) -> dict[str, Any]:
    """The reference to a blob of `size` bytes, `digest` being the SHA-256 of its JSON in hexadecimal."""
    return {KEY: f"sha256:{digest}", "bytes": size}


def digest_of(value: object) -> str | None:
    """The digest that a reference names; None for any other value."""
    if not isinstance(value, dict):
        return None
    named = cast("Mapping[str, Any]", value)
    if named.keys() != {KEY, "bytes"}:
        return None
    match = _NAME.fullmatch(str(named[KEY]))
    return None if match is None else match[1]


def held(value: object) -> bool:
    """Whether the value is a reference, or holds one."""
    if isinstance(value, dict):
        named = cast("Mapping[str, Any]", value)
        return digest_of(named) is not None or any(map(held, named.values()))
    if isinstance(value, list):
        parts: list[Any] = value
        return any(map(held, parts))
    return False


def forged(value: object) -> bool:
    """Whether somebody's own value has a key that only references have."""
    if isinstance(value, dict):
        named = cast("Mapping[str, Any]", value)
        return KEY in named or any(map(forged, named.values()))
    if isinstance(value, list | tuple):
        return any(map(forged, cast("list[Any]", value)))
    return False
