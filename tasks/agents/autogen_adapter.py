"""AutoGen's agents behind one door: the only module that imports `autogen_*`.

Its agents and messages are used, its runtime and teams are not (they cannot resume). Importing this module takes
one to two seconds, so nothing imports it before the first agent step.
"""

from __future__ import annotations

import asyncio
import logging
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final
from urllib.parse import urlsplit

import openai
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import Response
from autogen_agentchat.messages import ModelClientStreamingChunkEvent, TextMessage
from autogen_core import EVENT_LOGGER_NAME, ROOT_LOGGER_NAME, TRACE_LOGGER_NAME, CancellationToken
from autogen_core.models import ChatCompletionClient, CreateResult, LLMMessage, ModelInfo, RequestUsage
from autogen_ext.models.openai import BaseOpenAIChatCompletionClient
from autogen_ext.models.replay import ReplayChatCompletionClient

from convergio.graphflow.model import errors
from convergio.tasks.agents import deadline, metering, provider, scripted, storable, typed
from convergio.tasks.agents.model import ModelSettings
from convergio.tasks.agents.spec import AgentAnswer, AgentSpec

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
OnDelta = Callable[[str], None]
Chunks = AsyncGenerator[str | CreateResult, None]

MODEL_INFO: Final = ModelInfo(
    vision=False,
    function_calling=True,
    json_output=True,
    structured_output=True,
    family="unknown",
    multiple_system_messages=False,
)
PROMPT_LOGGERS: Final = (EVENT_LOGGER_NAME, TRACE_LOGGER_NAME, ROOT_LOGGER_NAME, "openai")
"""They log whole prompts, AutoGen's already at INFO: a worker's log must not hold any."""


class AutogenRunner:
    """Answers for agents. One per process: it keeps the HTTP clients, which belong to the loop that first used them."""

    def __init__(self) -> None:
        self.watchdog = deadline.Watchdog()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: dict[tuple[str | None, str, float], openai.AsyncOpenAI] = {}
        for name in PROMPT_LOGGERS:
            logging.getLogger(name).setLevel(logging.WARNING)
        # Where warnings are errors, a model that hands over twice at once would fail its turn: the first one counts.
        warnings.filterwarnings("ignore", message="Multiple handoffs detected")

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

        Raises: errors.StepTimeout, errors.ModelOutputInvalid, errors.Transient and errors.ModelUnavailable (worth
        another attempt); errors.ModelRefused and errors.ContextTooLong (not worth one).
        """
        started = time.monotonic()
        model = model.named(spec.model)
        book = metering.CallBook(model.name, on_usage)
        agent = self._agent(spec, self.client(spec, model, output_schema, book))
        try:
            text = await self.watchdog.run(_typed_or_prose(agent, prompt, output_schema, book, on_delta), deadline_s)
        except openai.OpenAIError as error:
            raise provider.translated(error, model) from error
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
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            await connection.close()

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
        """A client for one answer, over a connection that is kept."""
        if model.scripted:
            return _ScriptedClient(spec, model, schema, book)
        return _OpenAIClient(self._connection(model), _arguments(spec, model, schema), book)

    def _connection(self, model: ModelSettings) -> openai.AsyncOpenAI:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # A client used on a second loop fails with "Event loop is closed"; the old loop's clients die with it.
            self._loop, self._connections = loop, {}
        key = (model.base_url, model.api_key, model.timeout_s)
        if key not in self._connections:
            self._connections[key] = _connected(model)
        return self._connections[key]


def _connected(model: ModelSettings) -> openai.AsyncOpenAI:
    host = urlsplit(model.base_url or "").hostname or ""
    return openai.AsyncOpenAI(
        base_url=model.base_url,
        api_key=model.api_key,
        timeout=model.timeout_s,
        max_retries=0,  # the queue alone retries, otherwise attempts multiply
        # A person's HTTP_PROXY must not be asked for this machine's own address.
        http_client=openai.DefaultAsyncHttpxClient(trust_env=False) if host in LOOPBACK else None,
    )


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

    Raises: errors.Transient if the stream ended without saying why; errors.ModelOutputInvalid for an empty answer.
    """
    text = ""
    message = TextMessage(content=said, source="user")
    async with aclosing(agent.on_messages_stream([message], CancellationToken())) as events:
        async for event in events:
            if isinstance(event, ModelClientStreamingChunkEvent) and on_delta is not None:
                on_delta(storable.storable_text(event.content))
            elif isinstance(event, Response):
                text = event.chat_message.to_text()
    if book.finish == "unknown" and book.booked and book.booked[-1].estimated:
        raise errors.Transient("the model's answer broke off")
    if not text.strip():
        raise errors.ModelOutputInvalid("the model answered nothing")
    return text


def _arguments(spec: AgentSpec, model: ModelSettings, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """The request's fields. Without `stream_options` a streamed answer reports zero tokens."""
    limit = "max_completion_tokens" if model.base_url is None else "max_tokens"  # OpenAI's newer models want this name
    optional = {
        "temperature": model.temperature if spec.temperature is None else spec.temperature,
        "frequency_penalty": model.frequency_penalty,
        "stop": list(model.stop) if model.stop and schema is None else None,
        "response_format": None if schema is None else typed.response_format(schema),
    }
    return {
        "model": model.name,
        "stream_options": {"include_usage": True},
        limit: spec.max_tokens,
        **{name: value for name, value in optional.items() if value is not None},
    }


class _OpenAIClient(BaseOpenAIChatCompletionClient):
    """AutoGen's client over a shared connection, with one attempt's arguments and its book."""

    def __init__(self, connection: openai.AsyncOpenAI, arguments: dict[str, Any], book: metering.CallBook) -> None:
        super().__init__(connection, create_args=arguments, model_info=MODEL_INFO, include_name_in_message=False)
        self._book = book

    async def create_stream(self, messages: Sequence[LLMMessage], **options: Any) -> Chunks:
        call = self._book.start(as_text(messages))
        try:
            async with aclosing(super().create_stream(messages, **options)) as chunks:
                async for chunk in chunks:
                    hear(self._book, call, chunk)
                    yield chunk
        except openai.OpenAIError as error:
            if provider.never_reached(error):
                self._book.drop(call)
            raise


class _ScriptedClient(ReplayChatCompletionClient):
    """Makes its answers up from the question, word by word, and counts words as tokens."""

    def __init__(
        self, spec: AgentSpec, model: ModelSettings, schema: Mapping[str, Any] | None, book: metering.CallBook
    ) -> None:
        super().__init__([], model_info=MODEL_INFO)
        self._limit = spec.max_tokens
        self._pace_s = model.pace_s
        self._schema = schema
        self._book = book

    async def create_stream(self, messages: Sequence[LLMMessage], **options: Any) -> Chunks:
        asked = as_text(messages)
        call = self._book.start(asked)
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


def as_text(messages: Sequence[LLMMessage]) -> str:
    """All that a model is asked, to count it."""
    return "\n".join(str(message.content) for message in messages)
