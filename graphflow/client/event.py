"""What a reader of a run is told, event by event."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from convergio.graphflow.model import instance

STARTED: Final = "RUN_STARTED"
"""The first event of a run, and the first that any reader is told who begins to read."""

FINISHED: Final = "RUN_FINISHED"
"""The last event of a run that succeeded or was cancelled; see `lifecycle.ended`."""

FAILED: Final = "RUN_ERROR"
"""The last event of a run that failed; see `lifecycle.ended`."""

RESET: Final = "stream.reset"
"""The board was rebuilt: ids start anew. A snapshot follows."""

SNAPSHOT: Final = "run.snapshot"
"""Where the run and its steps are: `data` has `state` and `steps` (name -> state, on, since_ms)."""

MESSAGES: Final = "MESSAGES_SNAPSHOT"
"""What was said so far in the run's conversations, instead of all that a reader has: `data` has `messages`."""

CUSTOM: Final = "CUSTOM"
"""What AG-UI has no type for: `data` has `name` and `value`."""

RESTARTED: Final = "turn.restarted"
"""Name of a CUSTOM event: the turn begins anew, and what was said in it is void."""

RETOLD: Final = "turn.messages"
"""Name of a CUSTOM event: `value` has the `messages` of the turn so far, instead of those that a reader has."""

SPOKEN: Final = "STEP_FINISHED"
"""The turn has said all. `data` has `whole`: whether that is, message by message, what the thread gets of it, if this
`claim` ends the turn."""

OUTCOME: Final = "step.succeeded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event. `id` is `epoch-seq`: `events(after=id)` goes on behind it. `at_ms` is the board's time.

    `iteration`: which of the step's instances it is about: a round of a loop, an item of a map (see `model.instance`).
    """

    id: str
    type: str
    step: str | None = None
    at_ms: int = 0
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    iteration: int = 0

    @classmethod
    def of(cls, entry: str, values: Mapping[str, str]) -> Event:
        """From an entry of a run's feed."""
        step, iteration = instance.split(values["step"])
        return cls(
            id=entry,
            type=values["type"],
            step=step or None,
            iteration=iteration,
            at_ms=int(values["at"]),
            data=_data(values.get("data", "")),
        )

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and sequence number."""
        epoch, _, seq = self.id.partition("-")
        return int(epoch), int(seq)

    @property
    def final(self) -> bool:
        """Whether it is the last event of its run: there is one of these, and nothing behind it."""
        return self.type in (FINISHED, FAILED)

    def __str__(self) -> str:
        at = f"{datetime.fromtimestamp(self.at_ms / 1000, UTC).astimezone():%H:%M:%S} " if self.at_ms else ""
        named = instance.named(self.step or "", self.iteration)
        facts = ", ".join(f"{name}={value}" for name, value in self.data.items() if isinstance(value, str | int))
        return " ".join(part for part in (f"{at}{self.type}", instance.label(named), facts) if part)


def _data(text: str) -> Mapping[str, Any]:
    """The data of an event: an object, or the one word that `step.running` has."""
    if not text:
        return {}
    if not text.startswith("{"):
        return {"worker": text}
    value: dict[str, Any] = json.loads(text)
    return value
