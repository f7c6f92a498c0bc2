"""What a turn, or an agent's step, tells the readers of its run meanwhile: AG-UI events, the first words at once.

What cannot be told because the board is away is told from the beginning of the turn when there is a board again: a new
one knows nothing of what was said.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from convergio.graphflow.board import voice
from convergio.graphflow.board.connection import Link
from convergio.graphflow.client.event import CUSTOM, RESTARTED, RETOLD, SPOKEN, Event
from convergio.graphflow.client.transcript import Transcript
from convergio.graphflow.engine.claims import AWAY, Claim
from convergio.graphflow.model import errors, instance
from convergio.tasks.conversation import told
from convergio.tasks.conversation.pace import Pace
from convergio.tasks.conversation.thread import Kind, Message

logger = logging.getLogger(__name__)

BATCH_S: Final = 0.03
"""Seconds for which words are gathered, after the first."""

PAUSE_S: Final = 0.25
"""Seconds between two tries while the board is away."""

LAST_WORDS_S: Final = 2.0
"""Seconds that the end of a turn waits for its readers' board, at most."""

RETELL_EVERY: Final = 5_000
"""Events of the run after which a turn tells again what it has said: a feed is cut to its last 10,000."""

LONGEST: Final = 32_768
"""Characters of a prompt that is told to readers; what is longer they get from the thread, when SQL has it."""

CONTENT: Final = "TEXT_MESSAGE_CONTENT"


class Voice:
    """The events of one turn or of one agent's step, on the process's event loop."""

    def __init__(self, link: Link, claim: Claim, *, speaker: str, added: Sequence[Message] = ()) -> None:
        """`added`: what the turn adds to the thread before anybody speaks, such as what begins the conversation."""
        self._link = link
        self._claim = claim
        self._speaker = speaker
        self._step, self._iteration = instance.split(claim.held.step)
        self._added = added
        self._said: list[tuple[str, dict[str, Any]]] = []
        self._new: list[tuple[str, dict[str, Any]]] = []
        self._board = claim.held.epoch
        self._until: int | None = None
        self._open = False
        self._place = 0
        self._batch = 0
        self._whole = False
        self._news = asyncio.Event()
        self._now = asyncio.Event()
        self._closing = False
        self._pump: asyncio.Task[None] | None = None
        self.pace = Pace()
        """how fast it was"""

    async def __aenter__(self) -> Self:
        self._pump = asyncio.create_task(self._run())
        self._say("STEP_STARTED", {"stepName": self._speaker})
        for message in self._added:
            self._line(message)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._pump is not None
        self._end_text()
        if kind is None:
            self._say(SPOKEN, {"stepName": self._speaker, "whole": self._whole})
        self._closing = True
        self._news.set()
        self._now.set()
        try:
            if kind is None:
                await asyncio.wait({self._pump}, timeout=LAST_WORDS_S)
        finally:
            self._pump.cancel()
            with suppress(asyncio.CancelledError):
                await self._pump

    @property
    def _message(self) -> str:
        """The id of the message that is being said."""
        return f"{told.label(self._step, self._iteration)}.{self._place}"

    def emit(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Something happens in the turn: a `delta` of text, `calls` of tools, their `results`."""
        if kind == "delta":
            self._text(str(facts["text"]))
            return
        self._end_text()
        message = self._message
        if kind == "calls":
            self.pace.calls()
            for call in facts["calls"]:
                about = {"toolCallId": call["id"]}
                begins = {"toolCallName": call["name"], "parentMessageId": message, "speaker": self._speaker}
                self._say("TOOL_CALL_START", {**about, **begins})
                self._say("TOOL_CALL_ARGS", {**about, "delta": call["arguments"]})
                self._say("TOOL_CALL_END", about)
        else:
            self.pace.results()
            for result in facts["results"]:
                about = {"messageId": told.result_id(message, result["id"]), "toolCallId": result["id"]}
                self._say("TOOL_CALL_RESULT", {**about, "content": result["text"], "ok": result["ok"]})
        self._place += 1

    def custom(self, name: str, value: Mapping[str, Any]) -> None:
        """What AG-UI has no type for."""
        self._end_text()
        self._say(CUSTOM, {"name": name, "value": value})

    def _line(self, message: Message) -> None:
        """What is known whole. A long text readers get from the thread, when SQL has it."""
        if message.kind in (Kind.CALLS, Kind.RESULTS):
            was, self._speaker = self._speaker, message.source
            self.emit(message.kind.value, message.body)
            self._speaker = was
            return
        if len(message.text) <= LONGEST:
            role = told.role_of(message.kind, message.source)
            about = {"messageId": self._message, "role": role, "name": message.source}
            self._say("TEXT_MESSAGE_CHUNK", {**about, "delta": message.text})
        self._place += 1

    def settle(self, messages: Sequence[Message]) -> None:
        """What the turn adds to the thread: what was not told yet is told, and readers hear whether that is all."""
        self._end_text()
        last = messages[-1]
        if last.kind is Kind.HANDOFF:
            self._text(last.text)
            self._end_text()
        lines = [(one.kind, one.source, one.body) for one in messages]
        self._whole = self._fold([*self._said, *self._new]) == told.messages(self._step, self._iteration, lines)

    def answered(self, text: str) -> None:
        """All that a step has to say, which is one message: told now, if it did not come in pieces."""
        if self.pace.chunks == 0:
            self._text(text)
        self._end_text()
        line = (Kind.TEXT, self._speaker, {"text": text})
        self._whole = self._fold([*self._said, *self._new]) == told.messages(self._step, self._iteration, [line])

    def _text(self, delta: str) -> None:
        message = {"messageId": self._message}
        self.pace.chunk()
        if not self._open:
            self._open = True
            self._say("TEXT_MESSAGE_START", {**message, "role": "assistant", "name": self._speaker})
            self._now.set()  # the first words do not wait for more
        if self._new[-1:] and self._new[-1][0] == CONTENT and self._new[-1][1]["messageId"] == message["messageId"]:
            self._new[-1][1]["delta"] += delta
            return
        self._say(CONTENT, {**message, "delta": delta})

    def _end_text(self) -> None:
        if self._open:
            self._say("TEXT_MESSAGE_END", {"messageId": self._message})
            self._open = False
            self._place += 1

    def _say(self, kind: str, data: dict[str, Any]) -> None:
        self._new.append((kind, data))
        self._news.set()

    def _fold(self, said: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
        """The turn's messages, as a reader has them."""
        transcript = Transcript()
        for kind, data in said:
            transcript.tell(Event(id="", type=kind, step=self._step, iteration=self._iteration, data=data))
        return transcript.of(self._step, self._iteration)

    async def _run(self) -> None:
        last = time.monotonic()  # that a turn begins is told with its first words, if these come soon
        while not (self._closing and not self._new):
            await self._news.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, last + BATCH_S - time.monotonic())):
                    await self._now.wait()
            self._news.clear()
            self._now.clear()
            last = time.monotonic()
            said, self._new = self._new, []
            if said and not await self._told(said):
                return
            if any(kind == CONTENT for kind, _ in said):
                self.pace.heard()
            if self._closing:
                self._news.set()
                self._now.set()

    async def _told(self, said: list[tuple[str, dict[str, Any]]]) -> bool:
        """Tells the board; False if the turn is another's by now."""
        before = len(self._said)
        self._said += said
        self._batch += 1
        again: list[tuple[str, dict[str, Any]]] = []
        while not self._claim.lost.is_set():
            held = self._claim.held
            known = held.epoch == self._board and before > 0
            telling = [*again, *said] if known else self._said
            until = self._until if known and not again else None
            try:
                number = await asyncio.to_thread(self._tell, telling, until)
            except (*AWAY, errors.StaleFence):
                # A claim that was not asserted on a new board yet is refused there; one that is lost will be told so.
                await asyncio.sleep(PAUSE_S)
                continue
            except Exception:  # readers miss something; the turn goes on
                logger.exception("claim %s: its readers are not told", self._claim.member)
                return False
            if number is None:
                again = [(CUSTOM, {"name": RETOLD, "value": {"messages": self._fold(self._said[:before])}})]
                continue
            if until is None:
                self._until = number - len(telling) + RETELL_EVERY
            self._board = held.epoch
            return True
        return False

    def _tell(self, said: Sequence[tuple[str, Mapping[str, Any]]], until: int | None) -> int | None:
        attempt = {"attempt": self._claim.held.attempt}
        anew = json.dumps({"name": RESTARTED, "value": attempt})
        by = {SPOKEN: {"claim": self._claim.held.fence}}
        words = [(kind, json.dumps({**data, **attempt, **by.get(kind, {})}, ensure_ascii=False)) for kind, data in said]
        return voice.speak(self._link, self._claim.held, batch=self._batch, anew=anew, said=words, until=until)
