"""Ollama's protocol. AutoGen's client asks and reads; what it loses on the way is mended here."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final, cast

import httpx
import ollama
from autogen_core.models import ChatCompletionClient
from autogen_ext.models.ollama._ollama_client import BaseOllamaChatCompletionClient

from convergio.tasks.agents import failure
from convergio.tasks.agents.failure import Failure, Way
from convergio.tasks.agents.model import NO_KEY, ModelSettings
from convergio.tasks.agents.wire import MODEL_INFO, Heard, Request, is_here, set_only

DEFAULT_URL: Final = "http://127.0.0.1:11434"


class Wire:
    """Connections to one endpoint."""

    def __init__(self, model: ModelSettings) -> None:
        url = model.base_url or DEFAULT_URL
        headers = {} if model.api_key == NO_KEY else {"Authorization": f"Bearer {model.api_key}"}
        self._connection = ollama.AsyncClient(url, timeout=model.timeout_s, headers=headers, trust_env=not is_here(url))

    def client(self, request: Request, heard: Heard) -> ChatCompletionClient:
        tapped: Any = _Tapped(self._connection, heard)
        return BaseOllamaChatCompletionClient(tapped, create_args=arguments(request), model_info=MODEL_INFO)

    def failure(self, error: Exception) -> Failure:
        match error:
            case ollama.ResponseError() if error.status_code >= 400:
                said, status, after = str(error.error)[: failure.LONGEST], error.status_code, _retry_after(error)
                return Failure(way=Way.STATUS, reached=False, said=said, status=status, retry_after=after)
            case ollama.ResponseError():
                return Failure(way=Way.BROKEN, reached=True, said=str(error.error)[: failure.LONGEST])
            case httpx.ConnectError() | ConnectionError():
                return Failure(way=Way.NO_CONNECTION, reached=False)
            case httpx.TimeoutException():
                return Failure(way=Way.SILENCE, reached=not isinstance(error, httpx.ConnectTimeout))
            case _:
                return failure.unreadable(error)

    async def close(self) -> None:
        connection: Any = self._connection  # its own types leave this one out
        await connection.close()


def arguments(request: Request) -> dict[str, Any]:
    """The request's fields, by Ollama's names for them."""
    spec, model = request.spec, request.model
    options = {
        "num_predict": spec.max_tokens,
        "temperature": model.temperature if spec.temperature is None else spec.temperature,
        "frequency_penalty": model.frequency_penalty,
        "stop": list(model.stop) if model.stop and request.schema is None else None,
    }
    schema = None if request.schema is None else dict(request.schema)
    return set_only({"model": model.name, "options": set_only(options), "format": schema})


class _Tapped:
    """The part of the SDK's client that AutoGen's uses. What it streams is heard on its way."""

    def __init__(self, connection: ollama.AsyncClient, heard: Heard) -> None:
        self._connection = connection
        self._heard = heard

    async def chat(self, **given: Any) -> AsyncGenerator[ollama.ChatResponse, None]:
        parts = cast(AsyncGenerator[ollama.ChatResponse, None], await self._connection.chat(**given))
        self._heard.hang_up = parts.aclose
        return _heard(parts, self._heard)


async def _heard(parts: AsyncIterator[ollama.ChatResponse], heard: Heard) -> AsyncGenerator[ollama.ChatResponse, None]:
    async for part in parts:
        heard.text(part.message.content)
        for call in part.message.tool_calls or ():
            heard.arguments(str(call.function.arguments))
        if part.done:
            heard.finish = part.done_reason or "stop"
            heard.counted(part.prompt_eval_count, part.eval_count)
        yield part


def _retry_after(error: ollama.ResponseError) -> float | None:
    """The SDK keeps the status alone; the response is in what it was raised for."""
    cause = error.__context__
    return failure.retry_after(cause.response.headers) if isinstance(cause, httpx.HTTPStatusError) else None
