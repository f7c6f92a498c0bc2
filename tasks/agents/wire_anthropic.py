"""Anthropic's protocol. AutoGen's client asks and reads; what it cannot say or hear is mended here."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import anthropic
import httpx2
from anthropic.types import RawMessageStreamEvent
from autogen_core.models import ChatCompletionClient
from autogen_ext.models.anthropic import BaseAnthropicChatCompletionClient

from convergio.tasks.agents import failure
from convergio.tasks.agents.failure import Failure, Way
from convergio.tasks.agents.model import ModelSettings
from convergio.tasks.agents.wire import MODEL_INFO, Heard, Request, is_here, set_only


class Wire:
    """Connections to one endpoint."""

    def __init__(self, model: ModelSettings) -> None:
        self._connection = anthropic.AsyncAnthropic(
            base_url=model.base_url,
            api_key=model.api_key,
            timeout=model.timeout_s,
            max_retries=0,  # the queue alone retries, otherwise attempts multiply
            http_client=anthropic.DefaultAsyncHttpxClient(trust_env=False) if is_here(model.base_url) else None,
        )

    def client(self, request: Request, heard: Heard) -> ChatCompletionClient:
        tapped: Any = _Tapped(self._connection, heard, request)
        made = arguments(request)
        return BaseAnthropicChatCompletionClient(tapped, create_args=made, model_info=MODEL_INFO)

    def failure(self, error: Exception) -> Failure:
        match error:
            case anthropic.APIStatusError():
                return _status(error)
            case anthropic.APITimeoutError():
                return Failure(way=Way.SILENCE, reached=not isinstance(error.__cause__, httpx2.ConnectTimeout))
            case anthropic.APIConnectionError() if isinstance(error.__cause__, httpx2.ConnectError):
                return Failure(way=Way.NO_CONNECTION, reached=False)
            case httpx2.TimeoutException():  # in the middle of a stream
                return Failure(way=Way.SILENCE, reached=True)
            case anthropic.APIError():
                return Failure(way=Way.BROKEN, reached=True, said=failure.words_of(error.body, error))
            case _:
                return failure.unreadable(error)

    async def close(self) -> None:
        await self._connection.close()


def _status(error: anthropic.APIStatusError) -> Failure:
    """An error event in the middle of an answer comes with the answer's own status."""
    said, codes = failure.words_of(error.body, error), frozenset({str(error.type)} if error.type else ())
    if error.status_code < 400:
        return Failure(way=Way.BROKEN, reached=True, said=said, codes=codes)
    after, status = failure.retry_after(error.response.headers), error.status_code
    return Failure(way=Way.STATUS, reached=False, said=said, status=status, codes=codes, retry_after=after)


def arguments(request: Request) -> dict[str, Any]:
    """The request's fields. AutoGen's client has no place for a schema: the prompt says it."""
    spec, model = request.spec, request.model
    optional = {
        "temperature": model.temperature if spec.temperature is None else spec.temperature,
        "stop_sequences": list(model.stop) if model.stop and request.schema is None else None,
    }
    return {"model": model.name, "max_tokens": spec.max_tokens, **set_only(optional)}


class _Tapped:
    """The part of the SDK's client that AutoGen's uses. What it streams is heard on its way."""

    def __init__(self, connection: anthropic.AsyncAnthropic, heard: Heard, request: Request) -> None:
        self.messages = self
        self._connection = connection
        self._heard = heard
        self._temperature = "temperature" in arguments(request)

    async def create(self, **given: Any) -> AsyncGenerator[RawMessageStreamEvent, None]:
        temperature = given.pop("temperature", None)  # the SDK knows it no more; AutoGen always sends one
        if self._temperature:
            given["extra_body"] = {"temperature": temperature}
        if given["messages"] and given["messages"][-1]["role"] == "assistant":
            # Whoever spoke last speaks again: newer models take no answer that is begun for them.
            given["messages"] = [*given["messages"], {"role": "user", "content": "Go on."}]
        ask: Any = self._connection.messages.create  # arguments by name have no overload of it
        stream: anthropic.AsyncStream[RawMessageStreamEvent] = await ask(**given)
        self._heard.hang_up = stream.close
        return _heard(stream, self._heard)


async def _heard(
    stream: anthropic.AsyncStream[RawMessageStreamEvent], heard: Heard
) -> AsyncGenerator[RawMessageStreamEvent, None]:
    given = 0
    async for event in stream:
        match event.type:
            case "message_start":
                given = _all_input(event.message.usage)
            case "content_block_delta" if event.delta.type == "text_delta":
                heard.text(event.delta.text)
            case "content_block_delta" if event.delta.type == "input_json_delta":
                heard.arguments(event.delta.partial_json)
            case "message_delta":
                heard.finish = event.delta.stop_reason or heard.finish
                heard.counted(given, event.usage.output_tokens)
            case _:
                pass
        yield event
    if heard.finish == "refusal":
        heard.refusal = heard.refusal or "the model refused"


def _all_input(usage: anthropic.types.Usage) -> int:
    """Tokens of the prompt, those of the provider's cache included, which it counts apart."""
    return usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
