"""Calls of models: each is booked, hung up with, and its failures are in our words; and who is asked instead."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, Final, Protocol, cast

from autogen_core import FunctionCall, Image
from autogen_core.models import AssistantMessage, ChatCompletionClient, CreateResult, LLMMessage, RequestUsage
from autogen_core.tools import Tool, ToolSchema
from autogen_ext.models.replay import ReplayChatCompletionClient

from convergio.graphflow.model import errors
from convergio.tasks.agents import failure, metering
from convergio.tasks.agents.failure import Way
from convergio.tasks.agents.model import PASSING, ModelSettings
from convergio.tasks.agents.wire import FINISHES, MODEL_INFO, PER_TOKEN, ROOM, Heard, Request, Wire

logger = logging.getLogger(__name__)

Chunks = AsyncGenerator[str | CreateResult, None]

UNSAFE: Final = re.compile(r"[^a-zA-Z0-9_-]")
LONGEST_NAME: Final = 64
"""What a tool's name may be, for every provider. Ours may have dots."""

REST_S: Final = 15.0
"""Seconds for which a model that has failed is not asked first, unless its provider names other ones."""


class Place(Protocol):
    """A place among the calls that a model's limits allow."""

    async def leave(self, *, tokens: int | None, hold_s: float) -> None:
        """The call has ended, with so many tokens if that is known. `hold_s`: nobody should ask before."""
        ...


class Gate(Protocol):
    """Where calls of models with limits wait for their turn."""

    async def enter(self, model: ModelSettings, tokens: int) -> Place:
        """A place for a call of so many tokens at most. Raises ModelBusy if there is none soon."""
        ...


class ModelClient(ReplayChatCompletionClient):
    """One model. What AutoGen's client for its protocol gives, and raises, goes through here."""

    def __init__(self, wire: Wire, request: Request, book: metering.CallBook, gate: Gate | None) -> None:
        super().__init__([], model_info=MODEL_INFO)
        self.model = request.model
        self._wire = wire
        self._request = request
        self._book = book
        self._gate = gate if request.model.limits else None

    async def create_stream(self, messages: Sequence[LLMMessage], **options: Any) -> Chunks:
        asked, images = as_text(messages), images_in(messages)
        if images and not self.model.vision:
            hint = "say `vision: true` of the model if it can (docs/models.md), or let an agent answer whose model can"
            raise errors.ImageRefused(f"{self.model.place} is not known to see images", hint=hint)
        most = metering.estimated_tokens(asked) + images * metering.TOKENS_PER_IMAGE + self._request.spec.max_tokens
        place = None if self._gate is None else await self._gate.enter(self.model, most)
        call = self._book.start(asked, model=self.model.title, images=images)
        heard = Heard(call=call, most=ROOM + PER_TOKEN * self._request.spec.max_tokens)
        hold = 0.0
        real, options["tools"] = _told(options.get("tools", ()))
        try:
            client = self._wire.client(self._request, heard)
            async with aclosing(_chunks(client, [_sayable(one) for one in messages], options)) as chunks:
                async for chunk in chunks:
                    if isinstance(chunk, str):
                        call.pieces.append(chunk)
                        yield chunk
                    else:
                        yield self._ended(call, heard, chunk, real)
        except errors.ConvergioError:
            raise
        except Exception as error:  # whatever an SDK makes of what it cannot read
            problem = self._wire.failure(error)
            if problem.way is Way.UNREADABLE and heard.hang_up is None:  # nothing was sent yet
                problem = replace(problem, reached=False, said=f"{type(error).__name__}: {error}"[: failure.LONGEST])
            if not problem.reached:
                self._book.drop(call)
            hold = problem.retry_after or 0.0
            raise failure.meaning(problem, self.model) from error
        finally:
            self._book.broke_off(call)
            await heard.close()
            if place is not None:
                await place.leave(tokens=None if heard.usage is None else sum(heard.usage), hold_s=hold)

    def _ended(self, call: metering.Call, heard: Heard, made: CreateResult, real: Mapping[str, str]) -> CreateResult:
        """The result as the provider meant it; AutoGen's clients lose some of it. `real`: names of tools."""
        text = "".join(call.pieces)
        if heard.finish is None and not (heard.usage and all(heard.usage)):
            hint = "nothing to do if it passes; else look at the provider, or at what is between it and here"
            raise errors.AnswerBroken(f"the answer of {self.model.place} broke off", hint=hint)
        finish = FINISHES.get(heard.finish or "", made.finish_reason)
        given, written = heard.usage or (0, 0)
        self._book.end(call, input_tokens=given, output_tokens=written, finish=finish)
        content = made.content or text  # one piece alone is lost by the client for Ollama
        if not content and (heard.refusal or finish == "content_filter"):
            raise failure.withheld(self.model, heard.refusal or "its filter took all of the answer away")
        if not isinstance(content, str):
            content = [replace(one, name=real.get(one.name, one.name)) for one in content]
        usage = RequestUsage(prompt_tokens=given, completion_tokens=written)
        return CreateResult(finish_reason=finish, content=content, usage=usage, cached=False, thought=made.thought)


class Chain(ReplayChatCompletionClient):
    """A model, and those that are asked when it fails. Once something was said, nobody else goes on with it."""

    def __init__(
        self, model: ModelSettings, clients: Sequence[tuple[str, ChatCompletionClient]], resting: dict[str, float]
    ) -> None:
        """`clients` by their titles, in the order in which they are asked. `resting`: until when somebody is not."""
        super().__init__([], model_info=MODEL_INFO)
        self._model = model
        self._clients = clients
        self._resting = resting

    async def create_stream(self, messages: Sequence[LLMMessage], **options: Any) -> Chunks:
        asked = self._awake()
        for place, (title, client) in enumerate(asked):
            said = False
            try:
                async with aclosing(_chunks(client, messages, options)) as chunks:
                    async for chunk in chunks:
                        said = True
                        yield chunk
                return
            except errors.ConvergioError as error:
                if error.code not in self._model.fall_on:
                    raise
                if error.code in PASSING:  # the next call would fail, too
                    self._resting[title] = time.monotonic() + (getattr(error, "retry_after", None) or REST_S)
                if said or place + 1 == len(asked):
                    raise
                logger.warning("model %s: %s; %s is asked instead", title, error.code, asked[place + 1][0])

    def _awake(self) -> Sequence[tuple[str, ChatCompletionClient]]:
        """Those that did not fail just now; all of them, if each did."""
        now = time.monotonic()
        return [one for one in self._clients if self._resting.get(one[0], 0.0) <= now] or self._clients


def _chunks(client: ChatCompletionClient, messages: Sequence[LLMMessage], options: Any) -> Chunks:
    return client.create_stream(messages, **options)


def as_text(messages: Sequence[LLMMessage]) -> str:
    """All that a model is asked, to count it. Images are counted apart."""
    return "\n".join([one.content if isinstance(one.content, str) else _parts(one.content) for one in messages])


def images_in(messages: Sequence[LLMMessage]) -> int:
    """How many images a model is given."""
    return sum(isinstance(part, Image) for one in messages if isinstance(one.content, list) for part in one.content)


def _parts(content: Sequence[object]) -> str:
    return " ".join(str(part) for part in content if not isinstance(part, Image))


def _sayable(message: LLMMessage) -> LLMMessage:
    """Calls of tools whose arguments were no JSON are told as what they were: some servers fail on them as they are."""
    if not isinstance(message, AssistantMessage) or isinstance(message.content, str):
        return message
    calls = [FunctionCall(id=one.id, name=_safe(one.name), arguments=_json(one.arguments)) for one in message.content]
    return AssistantMessage(content=calls, source=message.source, thought=message.thought)


def _told(tools: Sequence[Tool | ToolSchema]) -> tuple[dict[str, str], list[Tool | ToolSchema]]:
    """The tools by names that every provider takes, and what these stand for."""
    real: dict[str, str] = {}
    told: list[Tool | ToolSchema] = []
    for one in tools:
        if isinstance(one, Tool):  # a handoff
            told.append(one)
            continue
        safe = _safe(one["name"])
        real[safe] = one["name"]
        told.append(cast(ToolSchema, {**one, "name": safe}))
    return real, told


def _safe(name: str) -> str:
    return UNSAFE.sub("_", name)[:LONGEST_NAME]


def _json(text: str) -> str:
    with suppress(ValueError, RecursionError):
        if isinstance(json.loads(text), dict):
            return text
    return json.dumps({"not_json": text}, ensure_ascii=False)
