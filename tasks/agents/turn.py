"""What goes into an agent's turn and comes out of it: plain values, nothing of AutoGen's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from convergio.tasks.agents.model import ModelSettings
from convergio.tasks.agents.spec import AgentSpec
from convergio.tasks.conversation.thread import Kind, Message
from convergio.tasks.tools.tool import Tool

Emit = Callable[[str, Mapping[str, Any]], None]
"""Told what happens: a `delta` of text, `calls` of tools, their `results`."""

Part = tuple[Kind, Mapping[str, Any]]
"""A message of the turn: its kind and body."""


class Memory(Protocol):
    """The facts of a turn that must not be bought twice."""

    def get(self, key: str) -> Any:
        """The fact that an earlier claim of the turn recorded, or None."""
        ...

    async def keep(self, key: str, fact: Any, *, before_acting: bool) -> None:
        """Records a fact. `before_acting`: not until SQL has it may anything be done because of it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question to a model, beside the turn of an agent. `key`: that of its recorded answer; `place`: how many
    were asked before it in the conversation (a script goes by it)."""

    spec: AgentSpec
    model: ModelSettings
    text: str
    key: str
    place: int
    attempt: int
    deadline_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """One turn: who speaks, what is known, what may be used, to whom it may hand over. `key`: begins the idempotency
    keys of its tools; `calls`: the ids of its calls, which are ours: some servers call every one of them `call_0`.
    `untold`: answers of the speaker that a compacted thread has no more (a script goes on behind them)."""

    spec: AgentSpec
    model: ModelSettings
    thread: Sequence[Message]
    tools: Sequence[Tool]
    handoffs: Mapping[str, str]
    key: str
    calls: str
    attempt: int
    deadline_s: float
    untold: int = 0
