"""What was said in a conversation, by whichever runtime: lines, turns, and why it stopped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from convergio.graphflow.flow.team import HUMAN
from convergio.graphflow.flow.termination import Said
from convergio.tasks.conversation.review import KINDS
from convergio.tasks.conversation.thread import Kind, Message

COMPLETE: Final = "Digraph execution is complete"
"""AutoGen's word for a graph that nobody is left of."""

Turn = tuple[str, int]
"""Somebody's turn: who, and the how-manieth of theirs, from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A message or an inner event. `kind`: AutoGen's name for it; `said`: its text, or calls, or results."""

    source: str
    kind: str
    said: Any

    @property
    def text(self) -> str:
        """What was said, as conditions of edges read it."""
        return str(self.said[0] if isinstance(self.said, tuple) else self.said)

    def as_said(self) -> Said:
        """The line as termination conditions read it."""
        match self.kind:
            case "ToolCallRequestEvent":
                text = "\n".join(arguments for _, arguments in self.said)
                return Said(kind=self.kind, source=self.source, text=text)
            case "ToolCallExecutionEvent":
                text = "\n".join(text for _, text, _ in self.said)
                return Said(kind=self.kind, source=self.source, text=text, executed=tuple(one[0] for one in self.said))
            case "HandoffMessage":
                return Said(kind=self.kind, source=self.source, text=self.said[0], target=self.said[1])
            case _:
                return Said(kind=self.kind, source=self.source, text=self.said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """A conversation that is over."""

    lines: tuple[Line, ...]
    stop: str

    def turns(self) -> dict[Turn, tuple[Line, ...]]:
        """The lines of each turn, in the order in which the turns ended; lines of turns at once may be mixed."""
        open_lines: dict[str, list[Line]] = {}
        counts: Counter[str] = Counter()
        found: dict[Turn, tuple[Line, ...]] = {}
        for line in self.lines:
            if line.source == HUMAN:
                continue
            open_lines.setdefault(line.source, []).append(line)
            if not line.kind.endswith("Event"):
                found[line.source, counts[line.source]] = tuple(open_lines.pop(line.source))
                counts[line.source] += 1
        return found


def line_of(message: Message) -> Line:
    """A message of ours as a line."""
    body: Mapping[str, Any] = message.body
    said: Any = body.get("text")
    if message.kind is Kind.CALLS:
        said = tuple((one["name"], one["arguments"]) for one in body["calls"])
    elif message.kind is Kind.RESULTS:
        said = tuple((one["name"], one["text"], one["ok"]) for one in body["results"])
    elif message.kind is Kind.HANDOFF:
        said = (body["text"], body["target"])
    return Line(source=message.source, kind=KINDS[message.kind], said=said)


def stop_of(stop: Mapping[str, Any] | None) -> str:
    """Why a conversation of ours ended, in AutoGen's words."""
    match stop:
        case {"by": "condition", "said": said}:
            return str(said)
        case {"by": "turns", "turns": turns}:
            return f"Maximum number of turns {turns} reached."
        case {"by": "policy"}:
            return COMPLETE
        case _:
            return f"({stop})"
