"""What agents say, as a terminal shows it while they say it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from convergio.graphflow.client.event import CUSTOM, MESSAGES, RESET, RESTARTED, Event
from convergio.graphflow.client.transcript import Transcript
from convergio.graphflow.engine.reason import RunView

Line = Callable[[str], object]


class Talk:
    """The events of turns as text: piece by piece where that can be, else a message at a time. What a screen has, it
    is not shown again: a snapshot adds what is missing."""

    def __init__(self, line: Line, *, piece: Line | None = None) -> None:
        """`line` shows a whole line; `piece` a part of one, if parts can be shown."""
        self._line = line
        self._piece = piece
        self._said = Transcript()
        self._shown: dict[str, int] = {}
        self._now = ""

    @property
    def open(self) -> bool:
        """In the middle of a line."""
        return bool(self._now) and self._piece is not None

    @property
    def tail(self) -> str:
        """What is being said and was not shown yet, where parts cannot be shown."""
        said = (one for one in self._said.messages if one["id"] == self._now)
        return next((f"{one['name']}: {one['content']}" for one in said), "")

    def tell(self, event: Event) -> None:
        """One event; those that are not about what is said change nothing."""
        restarted = event.type == CUSTOM and event.data["name"] == RESTARTED
        if restarted or event.type == RESET:
            self._end(keep=False)
        if restarted:
            self._void(event)
            self._line("  (the turn begins anew, as its worker was lost or has failed)")
        self._said.tell(event)
        if event.type == "TOOL_CALL_START":
            self._end()
            self._line(f"  uses {event.data['toolCallName']}")
        everything = event.type == MESSAGES
        messages = self._said.messages if everything else self._said.of(event.step or "", event.iteration)
        for message in messages:
            if message["role"] == "assistant" and "content" in message:
                self._show(message)
        if event.type == "TEXT_MESSAGE_END" or everything:
            self._end()

    def _void(self, event: Event) -> None:
        for message in self._said.of(event.step or "", event.iteration):
            self._shown.pop(message["id"], None)

    def _show(self, message: Mapping[str, Any]) -> None:
        name, text = message["id"], message["content"]
        shown = self._shown.get(name, 0)
        if len(text) <= shown:
            return
        if name != self._now:
            self._end()
            self._now, shown = name, 0
            if self._piece is not None:
                self._piece(f"{message['name']}: ")
        if self._piece is not None:
            self._piece(text[shown:])
            self._shown[name] = len(text)

    def _end(self, *, keep: bool = True) -> None:
        """The line is over. Without `keep` what was not shown of it is void."""
        if self._now and self._piece is not None:
            self._line("")
        elif self._now and keep:
            said = next((one for one in self._said.messages if one["id"] == self._now), None)
            if said is not None:  # else it has been taken back since
                self._line(f"{said['name']}: {said['content']}")
                self._shown[self._now] = len(said["content"])
        self._now = ""


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
