"""Lengths of time and moments as people write them."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import Final

UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST: Final = 366 * 86400.0
PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$"
EXPECTED: Final = "write a duration such as 250ms, 30s, 5m, 2h or 1d, or a number of seconds"
EXPECTED_MOMENT: Final = "give a time with its zone, such as 2026-12-24T18:00:00Z"
_DURATION: Final = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)(ms|s|m|h|d)")


def seconds(value: object) -> float:
    """Seconds of `30s`, `5m`, `2h`, `1d`, `250ms` or of a plain number. ValueError in words otherwise."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("is not a duration")
    length = _of_text(value) if isinstance(value, str) else float(min(value, 10**18))
    if not math.isfinite(length) or length < 0:
        raise ValueError(f"{value} is not a length of time")
    if length > LONGEST:
        raise ValueError(f"{str(value)[:40]} is longer than a year")
    return length


def _of_text(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"'{text[:40]}' is not a duration")
    return float(match[1]) * UNITS[match[2]]


def moment_ms(value: object) -> int:
    """Milliseconds since 1970 (UTC) of RFC 3339 text such as `2026-12-24T18:00:00Z`. ValueError in words otherwise."""
    if not isinstance(value, str):
        raise ValueError("is not a time")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(f"gives '{value[:40]}', which is not a time") from None
    if moment.tzinfo is None:
        raise ValueError(f"gives '{value[:40]}', a time without a zone")
    return round(moment.timestamp() * 1000)
