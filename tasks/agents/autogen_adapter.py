"""AutoGen's agents behind one door: answers here, turns and calls beside it.

Its agents and messages are used, its runtime and teams are not (they cannot resume). Importing this module takes
one to two seconds, so nothing imports it before the first agent step.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import Response
from autogen_agentchat.messages import ModelClientStreamingChunkEvent, TextMessage
from autogen_core import EVENT_LOGGER_NAME, ROOT_LOGGER_NAME, TRACE_LOGGER_NAME, CancellationToken
from autogen_core.models import ChatCompletionClient, CreateResult, LLMMessage, RequestUsage
from autogen_ext.models.replay import ReplayChatCompletionClient

from convergio.graphflow.model import errors
from convergio.tasks.agents import calling, deadline, metering, scripted, storable, typed, wire
from convergio.tasks.agents.calling import Chunks, as_text
from convergio.tasks.agents.model import SCRIPTED, Kind, ModelSettings
from convergio.tasks.agents.spec import AgentAnswer, AgentSpec

EMPTY: Final = "nothing to do if it passes; else give it more max_tokens, another prompt, or another model"
OnDelta = Callable[[str], None]
PROTOCOLS: Final[Mapping[Kind, str]] = {
    "openai": "convergio.tasks.agents.wire_openai",
    "azure": "convergio.tasks.agents.wire_openai",
    "anthropic": "convergio.tasks.agents.wire_anthropic",
    "ollama": "convergio.tasks.agents.wire_ollama",
}
PROMPT_LOGGERS: Final = (
    EVENT_LOGGER_NAME,
    TRACE_LOGGER_NAME,
    ROOT_LOGGER_NAME,
    "openai",
    "anthropic",
    "httpx",
    "httpx2",
)
"""They log whole prompts, AutoGen's already at INFO: a worker's log must not hold any."""


class AutogenRunner:
    """Answers for agents. One per process: it keeps the HTTP clients, which belong to the loop that first used them."""

    def __init__(self, gate: calling.Gate | None = None) -> None:
        """`gate`: where calls of models with limits wait; without one there are no limits."""
        self.watchdog = deadline.Watchdog()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wires: dict[tuple[object, ...], wire.Wire] = {}
        self._resting: dict[str, float] = {}
        self._gate = gate
        for name in PROMPT_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        # Where warnings are errors these would fail a turn: two handoffs at once (the first one counts), an answer
        # without text (which has its own error), chunks without any (some providers send them to keep a line open).
        for message in ("Multiple handoffs detected", "No text content", "Received more than"):
            warnings.filterwarnings("ignore", message=message)

    async def answer(
        self,
        spec: AgentSpec,
        model: ModelSettings,
        prompt: str,
        *,
        output_schema: Mapping[str, Any] | None = None,
        on_delta: OnDelta | None = None,
        on_usage: metering.OnUsage | None = None,
        deadline_s: float,
    ) -> AgentAnswer:
        """One answer of one agent, by a fresh agent that is thrown away afterwards.

        `on_delta` gets each piece of the text and `on_usage` each model call's usage as it is known, failed calls
        included; both are called on the loop, and what they raise ends the answer. `deadline_s` bounds everything.

        Raises: errors.StepTimeout, errors.ModelOutputInvalid, errors.Transient (of which there are several) and
        errors.ModelUnavailable (worth another attempt); errors.ModelRefused, errors.AnswerWithheld,
        errors.AnswerTooLong and errors.ContextTooLong (not worth one).
        """
        started = time.monotonic()
        book = metering.CallBook(model.title, on_usage)
        agent = self._agent(spec, self.client(spec, model, output_schema, book))
        try:
            text = await self.watchdog.run(_typed_or_prose(agent, prompt, output_schema, book, on_delta), deadline_s)
        finally:
            book.close()
        changed = storable.note(text)
        return AgentAnswer(
            text=storable.storable_text(text),
            output=None if output_schema is None else typed.parsed(text, output_schema),
            calls=tuple(book.booked),
            finish=book.finish,
            latency_s=time.monotonic() - started,
            notes=() if changed is None else (changed,),
        )

    async def close(self) -> None:
        """Closes the HTTP clients; call it on the loop that used them."""
        wires, self._wires = self._wires, {}
        for one in wires.values():
            await one.close()

    def _agent(self, spec: AgentSpec, client: ChatCompletionClient) -> AssistantAgent:
        return AssistantAgent(
            name=spec.name.replace("-", "_"),  # AutoGen takes Python identifiers only
            description=spec.description,
            system_message=spec.system_message,
            model_client=client,
            model_client_stream=True,
        )

    def client(
        self, spec: AgentSpec, model: ModelSettings, schema: Mapping[str, Any] | None, book: metering.CallBook
    ) -> ChatCompletionClient:
        """A client for one answer, over connections that are kept: the model's, and of those asked when it fails."""
        made = [(one.title, self._client(spec, one, schema, book)) for one in (model, *model.fallbacks)]
        return made[0][1] if len(made) == 1 else calling.Chain(model, made, self._resting)

    def _client(
        self, spec: AgentSpec, model: ModelSettings, schema: Mapping[str, Any] | None, book: metering.CallBook
    ) -> ChatCompletionClient:
        if model.scripted:
            return _ScriptedClient(spec, model, schema, book)
        request = wire.Request(spec=spec, model=model, schema=schema)
        return calling.ModelClient(self._wire(model), request, book, self._gate)

    def _wire(self, model: ModelSettings) -> wire.Wire:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # A client used on a second loop fails with "Event loop is closed"; the old loop's clients die with it.
            self._loop, self._wires = loop, {}
        key = (model.kind, model.base_url, model.api_key, model.api_version, model.timeout_s)
        if key not in self._wires:
            made: wire.Wire = protocol(model.kind).Wire(model)
            self._wires[key] = made
        return self._wires[key]


def protocol(kind: Kind) -> Any:
    """The module of a protocol. It is imported when a model first needs it. Raises InvalidSetting if it cannot be."""
    try:
        return importlib.import_module(PROTOCOLS[kind])
    except ModuleNotFoundError as error:
        hint = f"pip install 'convergio[{kind}]'"
        raise errors.InvalidSetting(f"models of {kind} need a package that is not here: {error}", hint=hint) from error


async def _typed_or_prose(
    agent: AssistantAgent,
    prompt: str,
    schema: Mapping[str, Any] | None,
    book: metering.CallBook,
    on_delta: OnDelta | None,
) -> str:
    if schema is None:
        return await converse(agent, prompt, book, on_delta)
    text = await converse(agent, f"{prompt}\n\n{typed.instruction(schema)}", book, on_delta)
    try:
        typed.parsed(text, schema)
    except errors.ModelOutputInvalid as problem:
        if book.finish == "length":
            raise errors.ModelOutputInvalid(f"{problem.message}; it was cut off", hint="raise max_tokens") from problem
        # One repair in the same context. Its text is not streamed: a reader takes the final text from the outcome.
        return await converse(agent, typed.repair(problem, schema), book, None)
    return text


async def converse(agent: AssistantAgent, said: str, book: metering.CallBook, on_delta: OnDelta | None) -> str:
    """What `agent` answers to `said`.

    Raises: what the model's client does, and errors.ModelOutputInvalid for an empty answer.
    """
    text = ""
    message = TextMessage(content=said, source="user")
    async with aclosing(agent.on_messages_stream([message], CancellationToken())) as events:
        async for event in events:
            if isinstance(event, ModelClientStreamingChunkEvent) and on_delta is not None:
                on_delta(storable.storable_text(event.content))
            elif isinstance(event, Response):
                text = event.chat_message.to_text()
    if not text.strip():
        raise errors.ModelOutputInvalid("the model answered nothing", hint=EMPTY)
    return text


class _ScriptedClient(ReplayChatCompletionClient):
    """Makes its answers up from the question, word by word, and counts words as tokens."""

    def __init__(
        self, spec: AgentSpec, model: ModelSettings, schema: Mapping[str, Any] | None, book: metering.CallBook
    ) -> None:
        super().__init__([], model_info=wire.MODEL_INFO)
        self._limit = spec.max_tokens
        self._pace_s = model.pace_s
        self._schema = schema
        self._book = book

    async def create_stream(self, messages: Sequence[LLMMessage], **options: Any) -> Chunks:
        asked = as_text(messages)
        call = self._book.start(asked, model=SCRIPTED)
        words = scripted.words(asked, self._schema)
        for word in words[: self._limit]:
            await asyncio.sleep(self._pace_s)
            hear(self._book, call, word)
            yield word
        usage = RequestUsage(prompt_tokens=len(asked.split()), completion_tokens=len(call.pieces))
        result = CreateResult(
            finish_reason="stop" if len(words) <= self._limit else "length",
            content="".join(call.pieces),
            usage=usage,
            cached=False,
        )
        hear(self._book, call, result)
        yield result


def hear(book: metering.CallBook, call: metering.Call, chunk: str | CreateResult) -> None:
    """Tells the book what came of a call: another piece, or its end."""
    if isinstance(chunk, str):
        call.pieces.append(chunk)
        return
    usage = chunk.usage
    book.end(
        call,
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        finish=chunk.finish_reason,
    )
