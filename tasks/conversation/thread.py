"""The thread of a conversation: what was said, in order. It is only ever added to, and each turn is built from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Kind(StrEnum):
    """What a message is. `body`: `text`, and `images` (media_type, data) if there are some; `calls` of tools (id,
    name, arguments); `results` (id, name, text, ok); of a handoff `text` and `target`; of a summary, which is what its
    tools gave, `text`; of a compaction `text` and `kept` (see `compaction`)."""

    TEXT = "text"
    CALLS = "calls"
    RESULTS = "results"
    HANDOFF = "handoff"
    SUMMARY = "summary"
    COMPACTED = "compacted"


SPOKEN: Final = (Kind.TEXT, Kind.HANDOFF, Kind.SUMMARY)
"""What everybody hears."""
DEALINGS: Final = (Kind.HANDOFF, Kind.SUMMARY)
"""What others hear, and the speaker knows from its dealings with tools."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message: the `seq`-th of the turn `iteration`, both from 0. `at_ms`: the worker's clock."""

    iteration: int
    seq: int
    kind: Kind
    source: str
    body: Mapping[str, Any]
    at_ms: int = 0

    @property
    def text(self) -> str:
        """What was said; nothing, if tools were called."""
        return str(self.body["text"]) if self.kind in (*SPOKEN, Kind.COMPACTED) else ""


def heard_by(speaker: str, thread: Sequence[Message]) -> list[Message]:
    """What a speaker knows of the thread: all that was said, and its own dealings with tools. Its own handoffs and
    summaries are such a dealing already."""
    return [message for message in thread if _heard(speaker, message)]


def _heard(speaker: str, message: Message) -> bool:
    own = message.source == speaker
    return not (own and message.kind in DEALINGS) and (own or message.kind in (*SPOKEN, Kind.COMPACTED))


def answers_of(speaker: str, thread: Sequence[Message]) -> int:
    """How many answers of its model a speaker knows of the thread: words, and calls of tools."""
    return sum(one.source == speaker and one.kind in (Kind.TEXT, Kind.CALLS) for one in thread)
