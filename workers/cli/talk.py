"""What agents say, as a terminal shows it while they say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from convergio.graphflow.client.event import CUSTOM, MESSAGES, RESET, RESTARTED, RETOLD, Event
from convergio.graphflow.client.transcript import VOID, Transcript
from convergio.graphflow.engine.reason import RunView

Line = Callable[[str], object]


class Talk:
    """The events of turns and agents' steps as text: piece by piece where that can be, else a message at a time. What a
    screen has, it is not shown again: a snapshot adds what is missing. Of several who speak at once one is shown until
    it has ended; the others wait."""

    def __init__(self, line: Line, *, piece: Line | None = None) -> None:
        """`line` shows a whole line; `piece` a part of one, if parts can be shown."""
        self._line = line
        self._piece = piece
        self._said = Transcript()
        self._shown: dict[str, str] = {}
        self._now: Mapping[str, Any] = {}
        """the message that is being shown, as it was last"""
        self._going: set[str] = set()
        """messages that more is to come of"""
        self._waiting: dict[str, tuple[str, int]] = {}
        """messages, and where they were said, that came while another one was being shown"""
        self._aside: list[str] = []
        """lines that have to wait for the end of the one that is open"""

    @property
    def open(self) -> bool:
        """In the middle of a line."""
        return bool(self._now) and self._piece is not None

    @property
    def tail(self) -> str:
        """What is being said and was not shown yet, where parts cannot be shown."""
        return f"{self._now['name']}: {self._now['content']}" if self._now else ""

    def tell(self, event: Event) -> None:
        """One event; those that are not about what is said change nothing."""
        place = (event.step or "", event.iteration)
        if event.type == CUSTOM and event.data["name"] == RESTARTED:
            self._void(place)
            self._say("  (the turn begins anew, as its worker was lost or has failed)", place)
        elif event.type == RESET:
            self._end(keep=False)
        elif event.type == "TOOL_CALL_START":
            self._say(f"  uses {event.data['toolCallName']}", place)
        self._said.tell(event)
        everything = event.type == MESSAGES
        messages = self._said.messages if everything else self._said.of(*place)
        self._mark(event, messages)
        for message in messages:
            if message["role"] == "assistant" and "content" in message:
                self._show(message)
        if event.type in VOID:
            self._void(place)

    def _mark(self, event: Event, messages: Sequence[Mapping[str, Any]]) -> None:
        """Which messages go on."""
        name = event.data.get("messageId", "")
        if event.type in ("TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT"):
            self._going.add(name)
        elif event.type == "TEXT_MESSAGE_END":
            self._going.discard(name)
        elif event.type == MESSAGES or (event.type == CUSTOM and event.data["name"] == RETOLD):
            self._going -= {message["id"] for message in messages}

    def _void(self, place: tuple[str, int]) -> None:
        """What was said there is void."""
        for name in [name for name in self._shown if _place(name) == place]:
            del self._shown[name]
        self._waiting = {name: there for name, there in self._waiting.items() if there != place}
        if self._now and _place(self._now["id"]) == place:
            self._end(keep=False)

    def _say(self, line: str, place: tuple[str, int]) -> None:
        """A line about what is done there."""
        if self._now and _place(self._now["id"]) != place:
            self._aside.append(line)
            return
        self._end()
        self._line(line)

    def _show(self, message: Mapping[str, Any]) -> None:
        name, text = message["id"], message["content"]
        shown = self._shown.get(name, "")
        if text == shown and name != self._now.get("id"):
            return
        if self._now and name != self._now["id"]:
            self._waiting[name] = (message["step"], message["turn"] - 1)
            return
        if not self._now or not text.startswith(shown):
            self._begin(message)
            shown = ""
        self._now = dict(message)
        if self._piece is not None:
            self._piece(text[len(shown) :])
            self._shown[name] = text
        if name not in self._going:
            self._end()

    def _begin(self, message: Mapping[str, Any]) -> None:
        if self._piece is None:
            return
        if self._now:
            self._line("")
        self._piece(f"{message['name']}: ")

    def _end(self, *, keep: bool = True) -> None:
        """The line is over, and who has waited is shown. Without `keep` what was not shown of it is void."""
        now, self._now = self._now, {}
        if now and self._piece is not None:
            self._line("")
        elif now and keep:
            self._line(f"{now['name']}: {now['content']}")
            self._shown[now["id"]] = now["content"]
        aside, self._aside = self._aside, []
        for line in aside:
            self._line(line)
        while self._waiting and not self._now:
            name = next(iter(self._waiting))
            for message in self._said.of(*self._waiting.pop(name)):
                if message["id"] == name:
                    self._show(message)


def _place(name: str) -> tuple[str, int]:
    """Where a message was said, by its id: `STEP.TURN.n`."""
    step, turn, _ = name.rsplit(".", 2)
    return step, int(turn) - 1


class Listener:
    """A screen for a conversation alone: who said what, and nothing of the run around it."""

    def __init__(self) -> None:
        self._talk = Talk(click.echo, piece=lambda text: click.echo(text, nl=False))

    @property
    def speaking(self) -> bool:
        """In the middle of a line."""
        return self._talk.open

    def show(self, view: RunView) -> None:
        """Nothing: what is said says it all."""

    def tell(self, event: Event) -> None:
        """What an agent says."""
        self._talk.tell(event)

    def pause(self) -> None:
        """Nothing to pause."""

    def close(self) -> None:
        """Nothing to end."""
