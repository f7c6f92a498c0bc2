"""What the scripted model answers in a turn, when an agent has a script: the same thread, the same answer.

Which of its replies is due is read from what it is given: as many as the agent has made before. Nothing is counted in
a process, so any worker goes on where the last one was.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from convergio.graphflow.model import errors

OVER: Final = "(nothing more)"
"""What an agent says whose script is at its end."""

FAILURES: Final[Mapping[str, Callable[[], errors.ConvergioError]]] = {
    "rate_limit": partial(errors.Transient, "the scripted model answered 429", retry_after=0.1),
    "unavailable": partial(errors.ModelUnavailable, "no connection to the scripted model"),
    "refused": partial(errors.ModelRefused, "the scripted model answered 400"),
    "broken_off": partial(errors.Transient, "the scripted model's answer broke off"),
}
"""A new error each time: one that is raised again keeps the frames of all times before, and what these refer to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer: words, or tools to call (name, arguments as text). `failure`: what goes wrong instead."""

    words: tuple[str, ...]
    calls: tuple[tuple[str, str], ...]
    pace: float
    failure: str | None


def due(script: Sequence[Mapping[str, Any]], made: int, attempt: int) -> Reply:
    """The reply of an agent that has made so many before, in this attempt of its turn."""
    if made >= len(script):
        return Reply(words=(OVER,), calls=(), pace=0.0, failure=None)
    written = script[made]
    fails = written["fail"] is not None and attempt <= written["times"]
    return Reply(
        words=tuple(piece for piece in re.split(r"(?<= )", written["say"]) if piece),
        calls=tuple((one["tool"], _arguments(one["arguments"])) for one in written["call"]),
        pace=written["pace"],
        failure=written["fail"] if fails else None,
    )


def _arguments(given: Mapping[str, Any] | str) -> str:
    return given if isinstance(given, str) else json.dumps(given)
