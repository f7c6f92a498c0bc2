"""What agents are told of a long thread: what it began with, a summary, and what was said last. Pure functions.

A compaction is a message of the thread, before what is said in its turn. `kept`: how many messages before it agents are
still told; what is before those is in its text, or is left out. The thread itself keeps everything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from convergio.graphflow.flow.team import HUMAN
from convergio.tasks.agents.metering import estimated_tokens
from convergio.tasks.agents.spec import AgentSpec
from convergio.tasks.conversation.thread import Kind, Message

SUMMARIZER: Final = "(summary)"
"""Who sums up, in the ledger and in the thread: no agent has this name."""

LONGEST_SUMMARY: Final = 800
"""Tokens of a summary, at most."""

ROLE: Final = (
    "You sum up a conversation for those who go on with it. Keep what was asked for, what was decided and why, every "
    "figure, name and open question. Say nothing of your own."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """When agents are told less than everything: with more than so many `messages`, or `tokens` (an estimate). `keep`:
    messages that stay as they are, at most; `summarizer`: who sums up the others; None: nobody does."""

    messages: int | None
    tokens: int | None
    keep: int
    summarizer: AgentSpec | None

    @classmethod
    def of(cls, spec: Mapping[str, Any] | None) -> Policy | None:
        """By the team's document."""
        if spec is None:
            return None
        summarizer = AgentSpec(
            name=SUMMARIZER,
            description="",
            system_message=ROLE,
            model=spec["model"],
            max_tokens=LONGEST_SUMMARY,
            script=tuple(spec["script"]),
        )
        return cls(
            messages=spec["messages"],
            tokens=spec["tokens"],
            keep=spec["keep"],
            summarizer=summarizer if spec["by"] == "summary" else None,
        )


def context(thread: Sequence[Message]) -> list[Message]:
    """What agents are told of the thread."""
    last, kept = _last(thread)
    if last is None:
        return list(thread)
    place = thread.index(last)
    told = [*thread[place - kept : place], *thread[place + 1 :]]
    summary = [last] if last.text else []
    return [*thread[: min(1, place - kept)], *summary, *told]


def due(policy: Policy | None, thread: Sequence[Message]) -> int | None:
    """How many of the last messages stay as they are, if the thread is to be compacted now."""
    if policy is None:
        return None
    told = context(thread)
    long = policy.messages is not None and len(told) > policy.messages
    if not long and (policy.tokens is None or sum(estimated_tokens(_line(one)) for one in told) <= policy.tokens):
        return None
    last, kept = _last(thread)
    first = 1 if last is None else thread.index(last) - kept + 1
    place = next((at for at in range(max(first, len(thread) - policy.keep), len(thread)) if may_cut(thread, at)), None)
    return None if place is None else len(thread) - place


def may_cut(thread: Sequence[Message], place: int) -> bool:
    """Whether a thread may be cut before this message: between two turns, with no call of a tool open, and nobody asked
    who has not answered."""
    before, after = thread[place - 1], thread[place]
    if after.iteration == before.iteration and after.seq > before.seq:
        return False
    if before.kind is Kind.HANDOFF and before.body["target"] == HUMAN:
        return False
    asked = [call["id"] for one in thread[:place] if one.kind is Kind.CALLS for call in one.body["calls"]]
    given = {call["id"] for one in thread[:place] if one.kind is Kind.RESULTS for call in one.body["results"]}
    return given.issuperset(asked)


def question(thread: Sequence[Message], kept: int) -> str:
    """What whoever sums up is asked: all that agents were told so far and will not be told any more."""
    staying = {id(one) for one in thread[len(thread) - kept :]}
    lines = [_line(one) for one in context(thread) if id(one) not in staying]
    return "\n".join(["What was said:", *lines, "", "Sum it up."])


def made(thread: Sequence[Message]) -> int:
    """How many compactions the thread has."""
    return sum(one.kind is Kind.COMPACTED for one in thread)


def _last(thread: Sequence[Message]) -> tuple[Message | None, int]:
    found = next((one for one in reversed(thread) if one.kind is Kind.COMPACTED), None)
    return found, 0 if found is None else int(found.body["kept"])


def _line(message: Message) -> str:
    match message.kind:
        case Kind.CALLS:
            uses = (f"{one['name']}({one['arguments']})" for one in message.body["calls"])
            return f"{message.source} uses {'; '.join(uses)}"
        case Kind.RESULTS:
            return "\n".join(f"{one['name']} gave {json.dumps(one['text'])}" for one in message.body["results"])
        case _:
            return f"{message.source}: {message.text}"
