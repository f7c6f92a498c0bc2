"""A conversation as people keep it: everything that was said, by whom, why it was their turn, and what it cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from convergio.graphflow.flow.team import HUMAN
from convergio.tasks.conversation import people
from convergio.tasks.conversation.archive import Chapter
from convergio.tasks.conversation.thread import Kind, Message


def as_data(chapters: Sequence[Chapter]) -> list[dict[str, Any]]:
    """The chapters as JSON: of each the run and step, its messages, and its turns, counted from 1."""
    return [
        {
            "run": chapter.place.run,
            "step": chapter.place.step,
            "messages": [_message(one, standing=one in standing) for one in chapter.messages],
            "turns": [_turn(row) for row in chapter.turns],
        }
        for chapter in chapters
        for standing in [people.standing(chapter.messages)]
    ]


def as_markdown(chapters: Sequence[Chapter]) -> str:
    """The chapters for people: a heading for each turn, the tools that it used, why it ended."""
    return "\n".join(line for chapter in as_data(chapters) for line in _lines(chapter))


def _message(message: Message, *, standing: bool) -> dict[str, Any]:
    facts = {"turn": message.iteration + 1, "seq": message.seq, "at_ms": message.at_ms, "source": message.source}
    return {**facts, "kind": message.kind.value, "standing": standing, **message.body}


def _turn(row: Mapping[str, Any]) -> dict[str, Any]:
    chosen, stop = (None if row[name] is None else json.loads(row[name]) for name in ("chosen", "stop"))
    tokens = {name: row[name] for name in ("calls", "input_tokens", "output_tokens")}
    following = None if row["next_chosen"] is None else json.loads(row["next_chosen"])
    return {
        "turn": row["iteration"] + 1,
        "speaker": row["speaker"],
        "chosen": chosen,
        "next": following,
        "stop": stop,
        **tokens,
    }


def _lines(chapter: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"# Conversation {chapter['run']}/{chapter['step']}", "")
    turns = {turn["turn"]: turn for turn in chapter["turns"]}
    for message in chapter["messages"]:
        yield from _said(message)
        last = turns.get(message["turn"])
        if last is not None and message is _last_of(chapter, message["turn"]):
            yield from _end(last)
    spent = [sum(turn[name] for turn in turns.values()) for name in ("calls", "input_tokens", "output_tokens")]
    yield from ("---", "", "{} turns, {} model calls, {} tokens in, {} out".format(len(turns), *spent), "")


def _last_of(chapter: Mapping[str, Any], turn: int) -> Mapping[str, Any]:
    messages: list[Mapping[str, Any]] = chapter["messages"]
    return [one for one in messages if one["turn"] == turn][-1]


def _said(message: Mapping[str, Any]) -> Iterator[str]:
    at = datetime.fromtimestamp(message["at_ms"] / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
    match message["kind"]:
        case Kind.CALLS:
            yield from (f"- {message['source']} uses `{one['name']}({one['arguments']})`" for one in message["calls"])
            yield ""
        case Kind.RESULTS:
            for one in message["results"]:
                yield from (f"- `{one['name']}` {'gave' if one['ok'] else 'failed'}:", "", *_fenced(one["text"]), "")
        case Kind.COMPACTED:
            said = message["text"] or "it is left out"
            yield from (
                f"*From here on agents are told of what was said before the last {message['kept']} messages:*",
                "",
            )
            yield from (f"> {line}" for line in said.splitlines())
            yield ""
        case _:
            by = f" ({message['by']})" if message["source"] == HUMAN and message.get("by") else ""
            back = "" if message["standing"] else ", taken back"
            yield from (f"## {message['turn']}. {message['source']}{by}, {at}{back}", "", message["text"], "")


def _fenced(text: str) -> list[str]:
    """Text as it is: the fence is longer than any in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [fence, text, fence]


def _end(turn: Mapping[str, Any]) -> Iterator[str]:
    if turn["stop"] is not None:
        yield from (f"*It ends here: {_because(turn['stop'])}.*", "")
    elif turn["next"] is not None:
        yield from (f"*Next: {turn['next']['speaker']}, who {turn['next']['reason']}.*", "")


def _because(stop: Mapping[str, Any]) -> str:
    told = stop.get("said") or stop.get("turns") or stop.get("to") or ""
    return f"by {stop['by']}" + (f" ({told})" if told != "" else "")
