"""OpenAI's protocol: OpenAI itself, Azure OpenAI, and whatever else speaks it (vLLM, llama.cpp, the embedded model)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Final

import httpx2
import openai
from autogen_core.models import ChatCompletionClient
from autogen_ext.models.openai import BaseOpenAIChatCompletionClient
from openai.types.chat import ChatCompletionChunk

from convergio.tasks.agents import failure, typed
from convergio.tasks.agents.failure import Failure, Way
from convergio.tasks.agents.model import ModelSettings
from convergio.tasks.agents.wire import MODEL_INFO, Heard, Request, is_here, set_only

AZURE_VERSION: Final = "2024-10-21"
"""The version of Azure's interface, unless the registry names another: the newest that is generally available."""


class Wire:
    """Connections to one endpoint."""

    def __init__(self, model: ModelSettings) -> None:
        self.connection = _azure(model) if model.kind == "azure" else _plain(model)

    def client(self, request: Request, heard: Heard) -> ChatCompletionClient:
        tapped: Any = _Tapped(self.connection, heard)
        made = arguments(request)
        return BaseOpenAIChatCompletionClient(
            tapped, create_args=made, model_info=MODEL_INFO, include_name_in_message=False
        )

    def failure(self, error: Exception) -> Failure:
        match error:
            case openai.APIStatusError():
                said, codes = failure.words_of(error.body, error), _codes(error)
                after = failure.retry_after(error.response.headers)
                status = error.status_code
                return Failure(way=Way.STATUS, reached=False, said=said, status=status, codes=codes, retry_after=after)
            case openai.APITimeoutError():
                return Failure(way=Way.SILENCE, reached=not isinstance(error.__cause__, httpx2.ConnectTimeout))
            case openai.APIConnectionError() if isinstance(error.__cause__, httpx2.ConnectError):
                return Failure(way=Way.NO_CONNECTION, reached=False)
            case openai.APIError():
                # An error event in the middle of a stream has no status; it is the server's trouble until it repeats.
                said = failure.words_of(error.body, error)
                return Failure(way=Way.BROKEN, reached=True, said=said, codes=_codes(error))
            case _:
                return failure.unreadable(error)

    async def close(self) -> None:
        await self.connection.close()


def _plain(model: ModelSettings) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=model.base_url,
        api_key=model.api_key,
        timeout=model.timeout_s,
        max_retries=0,  # the queue alone retries, otherwise attempts multiply
        http_client=_client(model),
    )


def _azure(model: ModelSettings) -> openai.AsyncAzureOpenAI:
    return openai.AsyncAzureOpenAI(
        azure_endpoint=model.base_url or "",
        api_key=model.api_key,
        api_version=model.api_version or AZURE_VERSION,
        timeout=model.timeout_s,
        max_retries=0,
        http_client=_client(model),
    )


def _client(model: ModelSettings) -> httpx2.AsyncClient | None:
    return openai.DefaultAsyncHttpxClient(trust_env=False) if is_here(model.base_url) else None


def arguments(request: Request) -> dict[str, Any]:
    """The request's fields. Without `stream_options` a streamed answer reports zero tokens."""
    spec, model, schema = request.spec, request.model, request.schema
    newer = model.kind == "azure" or model.base_url is None
    optional = {
        "temperature": model.temperature if spec.temperature is None else spec.temperature,
        "frequency_penalty": model.frequency_penalty,
        "stop": list(model.stop) if model.stop and schema is None else None,
        "response_format": None if schema is None else typed.response_format(schema),
    }
    return {
        "model": model.name,
        "stream_options": {"include_usage": True},
        "max_completion_tokens" if newer else "max_tokens": spec.max_tokens,  # OpenAI's newer models want that name
        **set_only(optional),
    }


class _Tapped:
    """The part of the SDK's client that AutoGen's uses. What it streams is heard on its way."""

    def __init__(self, connection: openai.AsyncOpenAI, heard: Heard) -> None:
        self.chat = self.completions = self
        self._connection = connection
        self._heard = heard

    async def create(self, **given: Any) -> AsyncGenerator[ChatCompletionChunk, None]:
        ask: Any = self._connection.chat.completions.create  # arguments by name have no overload of it
        stream: openai.AsyncStream[ChatCompletionChunk] = await ask(**given)
        self._heard.hang_up = stream.close
        return _heard(stream, self._heard)


async def _heard(
    stream: openai.AsyncStream[ChatCompletionChunk], heard: Heard
) -> AsyncGenerator[ChatCompletionChunk, None]:
    async for chunk in stream:
        if chunk.usage is not None:
            heard.counted(chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
        for choice in chunk.choices:
            heard.finish = choice.finish_reason or heard.finish
            heard.text(choice.delta.content)
            heard.refusal += choice.delta.refusal or ""
            for call in choice.delta.tool_calls or ():
                if call.function is not None:
                    heard.arguments(call.function.arguments)
        yield chunk


def _codes(error: openai.APIError) -> frozenset[str]:
    return frozenset(code for code in (error.code, error.type) if code)
