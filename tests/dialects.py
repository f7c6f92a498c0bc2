"""The protocols of model providers, as the failing provider speaks them: what it says, and how it is asked."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from convergio.tasks.agents.model import Kind, ModelSettings
from tests.failing_provider import FailingProvider, Reply, chunk

Usage = tuple[int, int]
USAGE: Final[Usage] = (11, 7)


class Dialect(ABC):
    """One protocol."""

    kind: Kind = "openai"
    prefix = ""

    def model(self, server: FailingProvider, **given: Any) -> ModelSettings:
        """A model of this provider."""
        url = f"http://127.0.0.1:{server.server_port}{self.prefix}"
        made = ModelSettings(name="m", kind=self.kind, base_url=url, api_key="key-of-a-test", timeout_s=5.0)
        return replace(made, **given)

    @abstractmethod
    def parts(self, pieces: Sequence[str], finish: str | None, usage: Usage | None) -> list[str]:
        """A stream that says these pieces."""

    @abstractmethod
    def calls(self, name: str, arguments: Any) -> Reply:
        """An answer that wants a tool."""

    def says(self, *pieces: str, finish: str | None = "stop", usage: Usage | None = USAGE, **more: Any) -> Reply:
        return Reply(raw="".join(self.parts(pieces, finish, usage)).encode(), **more)

    def at_once(self, text: str) -> Reply:
        """An answer in as few pieces as the protocol has."""
        return self.says(text)

    def half(self, *pieces: str, **more: Any) -> Reply:
        """The beginning of an answer."""
        return Reply(raw="".join(self.parts(pieces, None, None)).encode(), **more)

    def refuses(self, status: int, message: str = "no", **more: Any) -> Reply:
        return Reply(status=status, body={"error": {"message": message, "type": "some_error"}}, **more)

    def garbage(self) -> Reply:
        return Reply(raw=b'data: {"choices": [{"delta": {"content": "Half\n\ndata: }{\n\n')

    @abstractmethod
    def images(self, request: Mapping[str, Any]) -> list[str]:
        """The images of a request, as base64."""


class OpenAI(Dialect):
    prefix = "/v1"

    def parts(self, pieces: Sequence[str], finish: str | None, usage: Usage | None) -> list[str]:
        events = [chunk(piece) for piece in pieces]
        events += [chunk(finish=finish)] if finish else []
        if usage is not None:
            events.append(chunk(usage={"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": 0}))
        return [f"data: {event}\n\n" for event in (*events, *(["[DONE]"] if finish else []))]

    def calls(self, name: str, arguments: Any) -> Reply:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        call = {"index": 0, "id": "call_0", "type": "function", "function": {"name": name, "arguments": text}}
        first = json.loads(chunk(""))
        first["choices"][0]["delta"] = {"tool_calls": [call]}
        rest = "".join(self.parts((), "tool_calls", USAGE))
        return Reply(raw=f"data: {json.dumps(first)}\n\n{rest}".encode())

    def images(self, request: Mapping[str, Any]) -> list[str]:
        urls = [part["image_url"]["url"] for part in _parts(request) if part["type"] == "image_url"]
        return [url.partition(";base64,")[2] for url in urls]


class Azure(OpenAI):
    kind: Kind = "azure"
    prefix = ""


class Anthropic(Dialect):
    kind: Kind = "anthropic"

    def parts(self, pieces: Sequence[str], finish: str | None, usage: Usage | None) -> list[str]:
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        said = [
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
            for piece in pieces
        ]
        return self._whole([block, *said], finish, usage)

    def _whole(self, blocks: list[dict[str, Any]], finish: str | None, usage: Usage | None) -> list[str]:
        given, written = usage or (0, 0)
        message: dict[str, Any] = {
            "id": "1",
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": "m",
            "stop_reason": None,
        }
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": {**message, "usage": {"input_tokens": given, "output_tokens": 1}}},
            *blocks,
        ]
        if finish is not None:
            events.append({"type": "content_block_stop", "index": 0})
            reason = {"stop": "end_turn", "length": "max_tokens"}.get(finish, finish)
            events.append(
                {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": written}}
            )
            events.append({"type": "message_stop"})
        return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]

    def calls(self, name: str, arguments: Any) -> Reply:
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        block: dict[str, Any] = {"type": "tool_use", "id": "toolu_1", "name": name, "input": {}}
        blocks: list[dict[str, Any]] = [
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": text}},
        ]
        return Reply(raw="".join(self._whole(blocks, "tool_use", USAGE)).encode())

    def garbage(self) -> Reply:
        return Reply(raw=b"event: content_block_delta\ndata: {]\n\n")

    def images(self, request: Mapping[str, Any]) -> list[str]:
        return [part["source"]["data"] for part in _parts(request) if part["type"] == "image"]


class Ollama(Dialect):
    kind: Kind = "ollama"

    def parts(self, pieces: Sequence[str], finish: str | None, usage: Usage | None) -> list[str]:
        return [*(self._line(piece) for piece in pieces), *([self._end(finish, usage)] if finish else [])]

    def _line(self, content: str, **more: Any) -> str:
        message = {"role": "assistant", "content": content, **more}
        return (
            json.dumps({"model": "m", "created_at": "2026-01-01T00:00:00Z", "message": message, "done": False}) + "\n"
        )

    def _end(self, finish: str, usage: Usage | None) -> str:
        end = {**json.loads(self._line("")), "done": True, "done_reason": finish}
        if usage is not None:
            end |= {"prompt_eval_count": usage[0], "eval_count": usage[1]}
        return json.dumps(end) + "\n"

    def calls(self, name: str, arguments: Any) -> Reply:
        call = {"function": {"name": name, "arguments": arguments}}
        return Reply(raw=(self._line("", tool_calls=[call]) + self._end("stop", USAGE)).encode())

    def refuses(self, status: int, message: str = "no", **more: Any) -> Reply:
        return Reply(status=status, body={"error": message}, **more)

    def at_once(self, text: str) -> Reply:
        end = json.loads(self._end("stop", USAGE))
        end["message"]["content"] = text
        return Reply(raw=json.dumps(end).encode() + b"\n")

    def garbage(self) -> Reply:
        return Reply(raw=b'{"model": "m", "message": {"content": "Half\n')

    def images(self, request: Mapping[str, Any]) -> list[str]:
        return [data for message in request["messages"] for data in message.get("images") or ()]


def _parts(request: Mapping[str, Any]) -> list[dict[str, Any]]:
    contents: list[Any] = [message["content"] for message in request["messages"]]
    return [part for content in contents if not isinstance(content, str) for part in content]


DIALECTS: Final[Mapping[str, Dialect]] = {one.kind: one for one in (OpenAI(), Azure(), Anthropic(), Ollama())}
