"""A stub of a model provider in trouble, and how tests ask an agent through it. It is not a model and gives no answers
of its own: every reply is laid down by the test."""

from __future__ import annotations

import asyncio
import http.server
import json
import select
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

from convergio.tasks.agents.autogen_adapter import AutogenRunner
from convergio.tasks.agents.model import ModelSettings
from convergio.tasks.agents.spec import AgentAnswer, AgentSpec, ModelUsage

DOMIK: Final = AgentSpec(name="domik", description="Analyst", system_message="You are an analyst.", max_tokens=60)
RISK: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["level", "why"],
    "properties": {"level": {"enum": ["low", "high"]}, "why": {"type": "string"}},
    "additionalProperties": False,
}
USAGE: Final = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def ask(
    model: ModelSettings,
    prompt: str = "Is Poland a good market?",
    *,
    spec: AgentSpec = DOMIK,
    schema: Mapping[str, Any] | None = None,
    on_delta: Callable[[str], None] | None = None,
    on_usage: Callable[[ModelUsage], None] | None = None,
    deadline_s: float = 20.0,
) -> AgentAnswer:
    async def asked() -> AgentAnswer:
        runner = AutogenRunner()
        try:
            return await runner.answer(
                spec,
                model,
                prompt,
                output_schema=schema,
                on_delta=on_delta,
                on_usage=on_usage,
                deadline_s=deadline_s,
            )
        finally:
            await runner.close()

    return asyncio.run(asked())


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the failing provider sends: a status with JSON, or a stream of events that may break off. `raw`: the very
    bytes instead. `hangs`: nothing at all; `stalls`: it stops after what it sent, and waits until somebody hangs up."""

    status: int = 200
    headers: Mapping[str, str] | None = None
    body: Any = None
    events: Sequence[str] = ()
    raw: bytes | None = None
    breaks_off: bool = False
    hangs: bool = False
    stalls: bool = False

    @property
    def payload(self) -> bytes:
        if self.raw is not None:
            return self.raw
        return ("".join(f"data: {event}\n\n" for event in self.events) or json.dumps(self.body)).encode()


class FailingProvider(http.server.ThreadingHTTPServer):
    """Stands for a model provider in trouble. It is not a model: every reply is laid down by the test."""

    daemon_threads = True

    def __init__(self, replies: Sequence[Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.replies = list(replies)
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.hung_up: list[float] = []
        """when somebody hung up on a reply that stalls or hangs, by the monotonic clock"""
        self.stopped = threading.Event()
        self.lock = threading.Lock()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def provider(self) -> FailingProvider:
        return cast(FailingProvider, self.server)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.provider.lock:
            self.provider.requests.append(body)
            self.provider.paths.append(self.path)
            self.provider.headers.append(dict(self.headers.items()))
            place = min(len(self.provider.requests), len(self.provider.replies)) - 1
        reply = self.provider.replies[place]
        if not reply.hangs:
            self._send(reply)
        if reply.hangs or reply.stalls:
            self._wait_for_the_end()
        self.close_connection = True

    def _send(self, reply: Reply) -> None:
        streamed = reply.events or reply.raw is not None
        self.send_response(reply.status)
        self.send_header("content-type", "text/event-stream" if streamed else "application/json")
        self.send_header("content-length", str(len(reply.payload) + (1000 if reply.breaks_off or reply.stalls else 0)))
        for name, value in (reply.headers or {}).items():
            self.send_header(name, value)
        self.send_header("connection", "close")  # or the client's next request may find a connection that just ended
        self.end_headers()
        self.wfile.write(reply.payload)
        self.wfile.flush()

    def _wait_for_the_end(self) -> None:
        while not self.provider.stopped.is_set():
            readable, _, _ = select.select([self.connection], [], [], 0.02)
            if readable and not self.connection.recv(1):
                self.provider.hung_up.append(time.monotonic())
                return

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def chunk(text: str | None = None, *, finish: str | None = None, usage: Mapping[str, int] | None = None) -> str:
    delta = {} if text is None else {"content": text}
    choices = [] if usage is not None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    body = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}
    return json.dumps(body | ({"usage": usage} if usage is not None else {}))


def says(*texts: str, finish: str | None = "stop", usage: Mapping[str, int] | None = USAGE) -> Reply:
    events = [chunk(text) for text in texts]
    events += [chunk(finish=finish)] if finish else []
    events += [chunk(usage=usage)] if usage is not None else []
    return Reply(events=(*events, "[DONE]"))


def refuses(status: int, message: str = "no", *, headers: Mapping[str, str] | None = None, **error: Any) -> Reply:
    return Reply(status=status, headers=headers, body={"error": {"message": message, **error}})


@contextmanager
def failing_provider(*replies: Reply, timeout_s: float = 5.0) -> Generator[ModelSettings]:
    with serving(*replies) as server:
        yield endpoint(server, timeout_s)


@contextmanager
def serving(*replies: Reply) -> Generator[FailingProvider]:
    with FailingProvider(replies) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()


def endpoint(server: FailingProvider, timeout_s: float = 5.0) -> ModelSettings:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return ModelSettings(name="m", base_url=url, api_key="key-of-a-test", timeout_s=timeout_s)
