"""What agents say, as a terminal shows it while they say it."""

from __future__ import annotations

from collections.abc import Callable

import click

from convergio.graphflow.client.event import RESET, Event
from convergio.graphflow.engine.reason import RunView

Line = Callable[[str], object]


class Talk:
    """The events of turns as text: piece by piece where that can be, else a message at a time."""

    def __init__(self, line: Line, *, piece: Line | None = None) -> None:
        """`line` shows a whole line; `piece` a part of one, if parts can be shown."""
        self._line = line
        self._piece = piece
        self._text = ""
        self.open = False
        """in the middle of a line"""

    @property
    def saying(self) -> str:
        """What was said so far of a message that is shown when it is whole."""
        return self._text

    def tell(self, event: Event) -> None:
        """One event; those that are not about what is said change nothing."""
        data = event.data
        match event.type:
            case "TEXT_MESSAGE_START":
                self.open = True
                self._say(f"{data['name']}: ")
            case "TEXT_MESSAGE_CONTENT":
                self._say(data["delta"])
            case "TEXT_MESSAGE_END":
                self._end()
            case "TOOL_CALL_START":
                self._line(f"  uses {data['toolCallName']}")
            case "CUSTOM" if data["name"] == "turn.restarted":
                self._cut("the turn begins anew, as its worker was lost or has failed")
            case _ if event.type == RESET:
                self._cut("")
            case _:
                pass

    def _say(self, text: str) -> None:
        if self._piece is not None:
            self._piece(text)
        else:
            self._text += text

    def _end(self) -> None:
        if self.open:
            self._line("" if self._piece is not None else self._text)
        self.open, self._text = False, ""

    def _cut(self, why: str) -> None:
        if self._piece is not None:
            self._end()
        self.open, self._text = False, ""
        if why:
            self._line(f"  ({why})")


class Listener:
    """A screen for a conversation alone: who said what, and nothing of the run around it."""

    def __init__(self) -> None:
        self._talk = Talk(click.echo, piece=lambda text: click.echo(text, nl=False))

    def show(self, view: RunView) -> None:
        """Nothing: what is said says it all."""

    def tell(self, event: Event) -> None:
        """What an agent says."""
        self._talk.tell(event)

    def pause(self) -> None:
        """Nothing to pause."""

    def close(self) -> None:
        """Nothing to end."""
