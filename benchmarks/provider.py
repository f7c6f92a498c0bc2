"""A model provider for benchmarks: a real HTTP server that streams as OpenAI's API does, in a process of its own.

Every piece of text it sends is the time at which it sends it: nanoseconds of the machine's monotonic clock, which is
the same in every process. It is no model; what is measured is everything around one.
"""

from __future__ import annotations

import http.client
import http.server
import json
import socket
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

from convergio.benchmarks import rig
from convergio.workers.embedded import port

NAME: Final = "stamps"
"""The name of its model."""

HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How it answers: after so many seconds, in so many pieces, one every so many seconds."""

    first_s: float = 0.05
    chunks: int = 40
    gap_s: float = 0.02


class Provider(http.server.ThreadingHTTPServer):
    """Answers every request at its pace."""

    daemon_threads = True

    def __init__(self, number: int, pace: Pace) -> None:
        super().__init__((HOST, number), _Answer)
        self.pace = pace


class _Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 0

    def do_POST(self) -> None:
        pace = cast(Provider, self.server).pace
        self.rfile.read(int(self.headers["content-length"]))
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        due = time.monotonic() + pace.first_s
        for _ in range(pace.chunks):
            time.sleep(max(0.0, due - time.monotonic()))
            due += pace.gap_s
            self._send(_chunk({"content": f"{time.monotonic_ns()} "}))
        self._send(_chunk({}, finish="stop"))
        usage = {"prompt_tokens": 20, "completion_tokens": pace.chunks, "total_tokens": 20 + pace.chunks}
        self._send({**_chunk({}), "choices": [], "usage": usage})
        self._piece(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _send(self, body: Any) -> None:
        self._piece(f"data: {json.dumps(body)}\n\n".encode())

    def _piece(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


def _chunk(delta: dict[str, str], *, finish: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": NAME, "choices": [choice]}


@contextmanager
def running(place: rig.Folder, pace: Pace) -> Generator[str]:
    """The provider's address, for as long as it runs."""
    number = port.free()
    argv = [sys.executable, "-m", "convergio.benchmarks.provider"]
    argv += [str(number), str(pace.first_s), str(pace.chunks), str(pace.gap_s)]
    with rig.processes(place, [argv], {}):
        rig.wait_for(lambda: _listens(number), what="the provider", interval=0.02)
        yield f"http://{HOST}:{number}/v1"


def _listens(number: int) -> bool:
    try:
        socket.create_connection((HOST, number), timeout=1).close()
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One answer, read by nothing but a socket: seconds from the request to its end, and from each piece's time to
    its arrival."""

    seconds: float
    delays: list[float]


def heard(url: str) -> Heard:
    """Asks for one answer and reads it: the least that reading a stream can cost."""
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=60)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    began, delays, last = time.monotonic_ns(), list[float](), 0
    connection.request("POST", "/v1/chat/completions", b"{}", {"content-type": "application/json"})
    answer = connection.getresponse()
    for line in answer:
        now = time.monotonic_ns()
        if not line.startswith(b"data: {"):
            continue
        choices = json.loads(line[6:])["choices"]
        text = choices[0]["delta"].get("content") if choices else None
        if text:
            delays.append((now - int(text)) / 1e9)
            last = now
    connection.close()
    return Heard(seconds=(last - began) / 1e9, delays=delays)


def main() -> None:
    """`python -m convergio.benchmarks.provider PORT FIRST_S CHUNKS GAP_S`."""
    number, first, chunks, gap = sys.argv[1:]
    Provider(int(number), Pace(first_s=float(first), chunks=int(chunks), gap_s=float(gap))).serve_forever()


if __name__ == "__main__":
    main()
