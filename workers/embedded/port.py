"""A free loopback port for a server that keeps it over restarts."""

from __future__ import annotations

import random
import socket
import time

#: Below the ports that Linux (32768+) and macOS (49152+) give to outgoing connections. From inside that range a client
#: that retries while its server is down could be given the server's own port, connect to itself and keep it occupied.
RANGE = range(20000, 30000)

LOOPBACK = "127.0.0.1"


def free() -> int:
    """A port nobody listens on. Another process may take it before its server does; the server then fails to start."""
    # Random, so that two stacks that start at the same moment do not choose the same one.
    return next(port for port in random.sample(RANGE, len(RANGE)) if is_free(port))


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def becomes_free(port: int, *, within_s: float) -> bool:
    """Whether a server could listen on the port now or soon: one that was just killed holds it for a moment."""
    deadline = time.monotonic() + within_s
    while not is_free(port):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True
