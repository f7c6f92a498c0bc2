"""A conversation as the conditions read it that end it: its turns, from the persisted thread and the ledger alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from convergio.graphflow.flow import termination
from convergio.graphflow.flow.termination import Said, Turn
from convergio.tasks.conversation.thread import Kind, Message

Cost = tuple[int, int]
"""Tokens that went in, and that came out."""

KINDS: Final[Mapping[Kind, str]] = {
    Kind.TEXT: "TextMessage",
    Kind.HANDOFF: "HandoffMessage",
    Kind.SUMMARY: "ToolCallSummaryMessage",
    Kind.CALLS: "ToolCallRequestEvent",
    Kind.RESULTS: "ToolCallExecutionEvent",
}
"""AutoGen's names for what is in a thread."""

Recall = Callable[[], Sequence[Turn]]
"""The turns so far; they are read only if somebody asks."""


def turns(thread: Sequence[Message], costs: Mapping[int, Cost]) -> list[Turn]:
    """What people said last, and then turn after turn. `thread`: from there on; `costs`: by turn, from 0."""
    first, *rest = thread
    found, turn = [Turn(said=(_said(first),))], None
    for message in rest:
        if message.kind is Kind.COMPACTED:
            continue
        if message.iteration != turn:
            turn = message.iteration
            spent = costs.get(turn, (0, 0))
            found.append(Turn(said=(), prompt_tokens=spent[0], completion_tokens=spent[1]))
        elapsed = max(0.0, (message.at_ms - first.at_ms) / 1000)
        found[-1] = replace(found[-1], said=(*found[-1].said, _said(message)), elapsed_s=elapsed)
    return found


def over(stop: Mapping[str, Any], *, number: int, said: str, recall: Recall) -> dict[str, Any] | None:
    """Why the conversation ends with this turn; None if it goes on. `number`: how many there were, with this one."""
    for word in stop["mention"]:
        if word in said:
            return {"by": "mention", "said": word}
    if stop["condition"] is not None:
        found = met(stop, recall())
        if found is not None:
            return found
    return {"by": "turns", "turns": number} if number >= stop["turns"] else None


def met(stop: Mapping[str, Any], turns: Sequence[Turn]) -> dict[str, Any] | None:
    """Why the condition ends it after these turns; None if it does not. There is a condition."""
    found = termination.read(stop["condition"]).met(turns)
    return None if found is None else {"by": "condition", "said": found.content, "source": found.source}


def _said(message: Message) -> Said:
    kind, body = KINDS[message.kind], message.body
    if message.kind is Kind.CALLS:
        text = "\n".join(str(one["arguments"]) for one in body["calls"])
        return Said(kind=kind, source=message.source, text=text)
    if message.kind is Kind.RESULTS:
        text, names = "\n".join(one["text"] for one in body["results"]), tuple(one["name"] for one in body["results"])
        return Said(kind=kind, source=message.source, text=text, executed=names)
    return Said(kind=kind, source=message.source, text=message.text, target=body.get("target"))
