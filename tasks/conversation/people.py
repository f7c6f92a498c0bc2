"""What people say while a conversation goes on, and what it does to the thread. Pure functions over what is persisted.

The thread is only ever added to. Words that take something back say so: `voids` is the turn from which on nothing
counts that was said before them in their run; readers of the thread leave that out.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from convergio.graphflow.flow.team import HUMAN
from convergio.graphflow.talking import SAID, TEXT
from convergio.tasks.conversation.thread import Kind, Message

ROLLBACK: Final = "rollback"

LONGEST_QUESTION: Final = 2_000
"""Characters of what an agent asked that are shown where people are told that it waits."""

CUT: Final = "the turn was cut before this tool had an answer"

Part = tuple[str, Kind, Mapping[str, Any]]
"""A message to be: who says it, its kind and body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """What somebody said. `how`: as an answer, from the queue, or as what cut a turn (interrupt, rollback)."""

    text: str
    by: str
    how: str

    def as_dict(self) -> dict[str, Any]:
        return {"text": self.text, "by": self.by, "how": self.how}


def words_of(records: Mapping[str, Any]) -> list[Words]:
    """What was said to a turn, in order."""
    facts = [records[key] for key in sorted(records) if key.startswith(SAID)]
    return [Words(text=fact[TEXT], by=fact["by"], how=fact["how"]) for fact in facts]


def parts(words: Sequence[Words], records: Mapping[str, Any], heard: Sequence[Message], *, cut: str) -> list[Part]:
    """The messages of a turn that is people's. `records`: of the turn; `cut`: whose turn it was, if it was cut: its
    dealings with tools stand, as they were."""
    made: list[Part] = []
    if not any(one.how == ROLLBACK for one in words):
        made += _dealings(records, cut)
    for one in words:
        body: dict[str, Any] = {"text": one.text, "by": one.by}
        if one.how == ROLLBACK:
            body["voids"] = _last_turn(heard)
        made.append((HUMAN, Kind.TEXT, body))
    return made


def _dealings(records: Mapping[str, Any], speaker: str) -> list[Part]:
    """What was asked of tools, and what they gave, as far as it is recorded."""
    made: list[Part] = []
    place = 1
    while (answer := records.get(f"model.{place}")) is not None:
        place += 1
        if isinstance(answer["content"], str):
            continue
        calls = [{name: call[name] for name in ("id", "name", "arguments")} for call in answer["content"]]
        made += [
            (speaker, Kind.CALLS, {"calls": calls}),
            (speaker, Kind.RESULTS, {"results": _results(records, calls)}),
        ]
    return made


def _results(records: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = [(call, records.get(f"tool.{call['id']}") or {"text": CUT, "ok": False}) for call in calls]
    return [{"id": call["id"], "name": call["name"], "text": fact["text"], "ok": fact["ok"]} for call, fact in found]


def standing(thread: Sequence[Message]) -> list[Message]:
    """The thread of one run without what was taken back."""
    found: list[Message] = []
    for message in thread:
        voids = message.body.get("voids") if message.source == HUMAN else None
        if voids is not None:
            found = [one for one in found if one.iteration < voids]
        found.append(message)
    return found


def last_words(thread: Sequence[Message]) -> int:
    """The place of what people said last; 0 if they said nothing."""
    return next((place for place in range(len(thread) - 1, 0, -1) if _is_words(thread[place])), 0)


def turns(thread: Sequence[Message]) -> int:
    """How many turns a thread has, be it of several runs."""
    following = itertools.pairwise(thread)
    return bool(thread) + sum(one.iteration != last.iteration or one.seq <= last.seq for last, one in following)


def question(thread: Sequence[Message]) -> tuple[str, str]:
    """Who waits for people, and what was said before: the last text, or with what was handed over."""
    since = thread[last_words(thread) + 1 :]
    handed = next((one for one in reversed(since) if one.kind is Kind.HANDOFF), None)
    if handed is None:
        return "", ""
    texts = [one for one in since if one.kind is Kind.TEXT and one.source == handed.source]
    return handed.source, (texts[-1] if texts else handed).text[:LONGEST_QUESTION]


def _last_turn(thread: Sequence[Message]) -> int:
    """The turn in which people spoke last."""
    return thread[last_words(thread)].iteration if thread else 0


def _is_words(message: Message) -> bool:
    return message.source == HUMAN and message.kind is Kind.TEXT
