"""What a turn tells the readers of its run while it lasts: AG-UI events, in order, the first at once.

What cannot be told because the board is away is told from the beginning of the turn when there is a board again: a new
one knows nothing of what was said.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from convergio.graphflow.board import voice
from convergio.graphflow.board.connection import Link
from convergio.graphflow.engine.claims import AWAY, Claim
from convergio.graphflow.model import errors

logger = logging.getLogger(__name__)

BATCH_S: Final = 0.03
"""Seconds for which words are gathered, after the first."""

PAUSE_S: Final = 0.25
"""Seconds between two tries while the board is away."""

LAST_WORDS_S: Final = 2.0
"""Seconds that the end of a turn waits for its readers' board, at most."""

CONTENT: Final = "TEXT_MESSAGE_CONTENT"
RESTARTED: Final = "turn.restarted"


class Voice:
    """The events of one turn, on the process's event loop."""

    def __init__(self, link: Link, claim: Claim, *, speaker: str, message: str) -> None:
        self._link = link
        self._claim = claim
        self._speaker = speaker
        self._message = message
        self._said: list[tuple[str, dict[str, Any]]] = []
        self._new: list[tuple[str, dict[str, Any]]] = []
        self._board = claim.held.epoch
        self._open = False
        self._part = 0
        self._batch = 0
        self._news = asyncio.Event()
        self._closing = False
        self._pump: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._pump = asyncio.create_task(self._run())
        self._say("STEP_STARTED", {"stepName": self._speaker})
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._pump is not None
        self._end_text()
        self._closing = True
        self._news.set()
        try:
            if kind is None:
                await asyncio.wait({self._pump}, timeout=LAST_WORDS_S)
        finally:
            self._pump.cancel()
            with suppress(asyncio.CancelledError):
                await self._pump

    def emit(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Something happens in the turn: a `delta` of text, `calls` of tools, their `results`."""
        if kind == "delta":
            self._text(str(facts["text"]))
            return
        self._end_text()
        if kind == "calls":
            for call in facts["calls"]:
                about = {"toolCallId": call["id"]}
                self._say("TOOL_CALL_START", {**about, "toolCallName": call["name"], "parentMessageId": self._message})
                self._say("TOOL_CALL_ARGS", {**about, "delta": call["arguments"]})
                self._say("TOOL_CALL_END", about)
        else:
            for result in facts["results"]:
                about = {"messageId": f"{self._message}.{result['id']}", "toolCallId": result["id"]}
                self._say("TOOL_CALL_RESULT", {**about, "content": result["text"], "ok": result["ok"]})

    def custom(self, name: str, value: Mapping[str, Any]) -> None:
        """What AG-UI has no type for."""
        self._end_text()
        self._say("CUSTOM", {"name": name, "value": value})

    def _text(self, delta: str) -> None:
        message = {"messageId": f"{self._message}.{self._part}"}
        if not self._open:
            self._open = True
            self._say("TEXT_MESSAGE_START", {**message, "role": "assistant", "name": self._speaker})
        if self._new and self._new[-1][0] == CONTENT:
            self._new[-1][1]["delta"] += delta
            return
        self._say(CONTENT, {**message, "delta": delta})

    def _end_text(self) -> None:
        if self._open:
            self._say("TEXT_MESSAGE_END", {"messageId": f"{self._message}.{self._part}"})
            self._open = False
            self._part += 1

    def _say(self, kind: str, data: dict[str, Any]) -> None:
        self._new.append((kind, data))
        self._news.set()

    async def _run(self) -> None:
        last = 0.0
        while not (self._closing and not self._new):
            await self._news.wait()
            if not self._closing:
                await asyncio.sleep(max(0.0, last + BATCH_S - time.monotonic()))
            self._news.clear()
            last = time.monotonic()
            said, self._new = self._new, []
            if said and not await self._told(said):
                return
            if self._closing:
                self._news.set()

    async def _told(self, said: list[tuple[str, dict[str, Any]]]) -> bool:
        """Tells the board; False if the turn is another's by now."""
        self._said += said
        self._batch += 1
        while not self._claim.lost.is_set():
            held = self._claim.held
            telling = said if held.epoch == self._board else self._said
            try:
                await asyncio.to_thread(self._tell, telling)
            except (*AWAY, errors.StaleFence):
                # A claim that was not asserted on a new board yet is refused there; one that is lost will be told so.
                await asyncio.sleep(PAUSE_S)
                continue
            except Exception:  # readers miss something; the turn goes on
                logger.exception("claim %s: its readers are not told", self._claim.member)
                return False
            self._board = held.epoch
            return True
        return False

    def _tell(self, said: list[tuple[str, dict[str, Any]]]) -> None:
        attempt = {"attempt": self._claim.held.attempt}
        anew = json.dumps({"name": RESTARTED, "value": attempt})
        words = [(kind, json.dumps({**data, **attempt}, ensure_ascii=False)) for kind, data in said]
        voice.speak(self._link, self._claim.held, batch=self._batch, anew=anew, said=words)
