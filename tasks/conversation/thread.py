"""The thread of a conversation: what was said, in order. It is only ever added to, and each turn is built from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What a message is. `body`: `text`; `calls` of tools (id, name, arguments); `results` (id, name, text, ok)."""

    TEXT = "text"
    CALLS = "calls"
    RESULTS = "results"


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
        return str(self.body["text"]) if self.kind is Kind.TEXT else ""


def heard_by(speaker: str, thread: Sequence[Message]) -> list[Message]:
    """What a speaker knows of the thread: all that was said, and its own dealings with tools."""
    return [message for message in thread if message.kind is Kind.TEXT or message.source == speaker]
