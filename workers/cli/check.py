"""One finding of `convergio doctor`: OK, WARN or FAIL, what was seen, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How a check ended."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the doctor. `hint`: what to do about it."""

    name: str
    level: Level
    saw: str
    hint: str = ""


def ok(name: str, saw: str) -> Check:
    """All is well."""
    return Check(name=name, level=Level.OK, saw=saw)


def warn(name: str, saw: str, hint: str) -> Check:
    """It works, but not as it should."""
    return Check(name=name, level=Level.WARN, saw=saw, hint=hint)


def fail(name: str, saw: str, hint: str) -> Check:
    """It does not work."""
    return Check(name=name, level=Level.FAIL, saw=saw, hint=hint)
