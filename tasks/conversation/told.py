"""What was said, as AG-UI's messages: from the thread, for readers who cannot have it from the stream any more.

The voice of a turn tells the same messages under the same ids while the turn lasts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from convergio.graphflow.client.past import Past, Turn
from convergio.graphflow.flow import values
from convergio.graphflow.flow.team import HUMAN
from convergio.graphflow.journal.blobs import Blobs
from convergio.graphflow.journal.database import Database
from convergio.graphflow.model import reference
from convergio.tasks.conversation import tables
from convergio.tasks.conversation.thread import Kind

Line = tuple[Kind, str, Mapping[str, Any]]
"""A message of the thread: its kind, source and body."""


def label(step: str, iteration: int) -> str:
    """What the ids of a turn's messages begin with."""
    return f"{step}.{iteration + 1}"


def messages(step: str, iteration: int, lines: Iterable[Line]) -> list[dict[str, Any]]:
    """The messages of one turn; the `n`-th has the id `STEP.TURN.n`, from 0, and results that of their call."""
    made: list[dict[str, Any]] = []
    for place, (kind, source, body) in enumerate(lines):
        made += _messages(f"{label(step, iteration)}.{place}", kind, source, body)
    return [{"id": one.pop("id"), "step": step, "turn": iteration + 1, **one} for one in made]


def _messages(name: str, kind: Kind, source: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    if kind is Kind.CALLS:
        calls = [
            {"id": one["id"], "type": "function", "function": {"name": one["name"], "arguments": one["arguments"]}}
            for one in body["calls"]
        ]
        return [{"id": name, "role": "assistant", "name": source, "toolCalls": calls}]
    if kind is Kind.RESULTS:
        return [
            {
                "id": result_id(name, one["id"]),
                "role": "tool",
                "toolCallId": one["id"],
                "content": one["text"],
                "ok": one["ok"],
            }
            for one in body["results"]
        ]
    role = role_of(kind, source)
    return [{"id": name, "role": role, "name": source, "content": body["text"]}]


def role_of(kind: Kind, source: str) -> str:
    """Whose words they are: an agent's, people's, or a summary of what was said."""
    if kind is Kind.COMPACTED:
        return "system"
    return "user" if source == HUMAN else "assistant"


def result_id(name: str, call: str) -> str:
    """The id of what a tool gave, among the results of one message."""
    return f"{name}.{call}"


def past(database: Database, blobs: Blobs | None, tenant: str, run: str) -> Past:
    """Turns and agents' answers of a run that are in SQL. Raises JournalUnavailable, Permanent for a lost blob."""
    found: dict[tuple[str, int], tuple[tuple[int, int], list[Line]]] = {}
    for row in tables.lines(database, tenant, run):
        body = row.body if blobs is None or reference.digest_of(row.body) is None else blobs.opened(tenant, row.body)
        found.setdefault((row.step, row.iteration), (row.at, []))[1].append((row.kind, row.source, body))
    turns = [_turn(step, iteration, at, lines) for (step, iteration), (at, lines) in found.items()]
    turns += [_answer(one, blobs, tenant) for one in tables.answers(database, tenant, run)]
    return Past(turns=turns, last=tables.last(database, tenant, run))


def _answer(found: tables.Answer, blobs: Blobs | None, tenant: str) -> Turn:
    """What an agent's step has answered. One that a person has settled with something else has said nothing."""
    output = found.output
    if blobs is not None and reference.digest_of(output) is not None:
        output = blobs.opened(tenant, output)
    text = output.get("text") if values.is_map(output) else None
    lines: list[Line] = [(Kind.TEXT, found.agent, {"text": text})] if isinstance(text, str) and text else []
    return _turn(found.step, found.iteration, found.at, lines)


def _turn(step: str, iteration: int, at: tuple[int, int], lines: Sequence[Line]) -> Turn:
    return Turn(step=step, iteration=iteration, at=at, messages=messages(step, iteration, lines))
