"""What `convergio doctor` wants of the Redis or Valkey server, and of the way to it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from convergio.workers.cli.check import Check, fail, ok, warn

if TYPE_CHECKING:
    from convergio.workers.cli.session import Session

OLDEST_REDIS: Final = (7, 0)
"""What scripts need came with it, and the tests run on it too. Valkey says 7.2 for its own compatibility."""

SUPPORTED_REDIS: Final = (7, 2)
"""The oldest that is promised (deploy/README.md)."""

SKEW: Final = 2.0
"""Seconds by which clocks may differ before times on the screen mislead. Nothing is decided by this machine's clock."""

FULL: Final = 0.8
"""Share of maxmemory from which on it is time to act: at all of it, new runs are refused."""


def redis_server(session: Session) -> Iterator[Check]:
    """Whether the server answers and can carry the board."""
    from convergio.graphflow.board.connection import UNREACHABLE, unavailable
    from convergio.workers.cli.up import masked

    client, url = session.core.link.client, masked(session.settings.redis_url)
    try:
        began = time.time()
        seconds, micros = client.time()
        ended = time.time()
        info: dict[str, Any] = client.info()
        tcp_keepalive = _configured(client, "tcp-keepalive")
    except UNREACHABLE as error:
        raise unavailable(error) from error
    yield _server(url, info)
    yield _eviction(info)
    yield _memory(info)
    yield _persistence(info)
    yield _skew(seconds + micros / 1e6 - (began + ended) / 2)
    yield _keepalive(session, tcp_keepalive)


def _configured(client: Any, name: str) -> str | None:
    """A setting of the server; None where we may not read it, as at most providers."""
    import redis

    try:
        return dict(client.config_get(name)).get(name)
    except redis.ResponseError:
        return None


def _server(url: str, info: Mapping[str, Any]) -> Check:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info["redis_version"])
    saw = f"{name} {version} at {url}"
    served = tuple(int(part) for part in str(info["redis_version"]).split(".")[:2])
    if served < OLDEST_REDIS:
        return fail("redis", saw, "use Redis 7.2 or newer, or Valkey; below 7.0 nothing runs")
    if info.get("cluster_enabled"):
        return fail("redis", f"{saw} is a cluster", "use one server or Sentinel: the board's scripts touch many slots")
    if info.get("role") == "slave":
        return fail("redis", f"{saw} is a replica, which refuses writes", "name the primary, or use a sentinel:// URL")
    if served < SUPPORTED_REDIS:
        return warn("redis", saw, "what is promised begins with 7.2: use Redis 7.2 or newer, or Valkey")
    return ok("redis", saw)


def _eviction(info: Mapping[str, Any]) -> Check:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        return ok("eviction", "noeviction")
    hint = "CONFIG SET maxmemory-policy noeviction: a board that forgets keys silently loses steps for a while"
    return fail("eviction", f"maxmemory-policy is {policy}", hint)


def _memory(info: Mapping[str, Any]) -> Check:
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not limit:
        return ok("memory", f"{used / 1e6:.0f} MB used, no limit set")
    saw = f"{used / 1e6:.0f} of {limit / 1e6:.0f} MB used"
    if used < FULL * limit:
        return ok("memory", saw)
    return warn("memory", saw, "CONFIG SET maxmemory higher: a full server starts no new run, and ends those it has")


def _persistence(info: Mapping[str, Any]) -> Check:
    if not info.get("aof_enabled"):
        hint = "CONFIG SET appendonly yes; without it every restart of Redis is a rebuild, and answers are forgotten"
        return warn("persistence", "append-only file is off", hint)
    if info.get("aof_last_write_status", "ok") != "ok":
        return fail(
            "persistence", "the last write of the append-only file failed", "look for room on the server's disk"
        )
    return ok("persistence", "append-only file is on")


def _skew(skew: float) -> Check:
    saw = f"Redis' clock is {abs(skew):.2f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    if abs(skew) > SKEW:
        return warn("clock", saw, "synchronise both by NTP; the engine goes by Redis' clock, people by this one")
    return ok("clock", saw)


def _keepalive(session: Session, tcp_keepalive: str | None) -> Check:
    """redis-py cannot keep a unix socket alive, and fails at the first result if it is told to."""
    conf = session.core.app.conf
    is_socket = "socket" in session.settings.redis_url.split("://")[0]
    wanted = bool(conf.redis_socket_keepalive or conf.broker_transport_options.get("socket_keepalive"))
    if is_socket and wanted:
        return fail("keepalive", "set on a unix socket", "unset redis_socket_keepalive: every result would fail")
    if is_socket:
        return ok("keepalive", "unix socket: none needed")
    if not wanted:
        hint = "unset the transport option socket_keepalive: a link that died without a word would be waited for"
        return warn("keepalive", "no TCP keepalive on the broker's connections", hint)
    if tcp_keepalive == "0":
        hint = "CONFIG SET tcp-keepalive 60: it keeps, and pops for, workers whose machine is gone"
        return warn("keepalive", "the server never asks whether its clients are still there", hint)
    return ok("keepalive", "TCP keepalive on both sides" if tcp_keepalive else "TCP keepalive on our side")
