"""What `convergio doctor` looks at: each check says OK, WARN or FAIL, what it saw, and what to do."""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from convergio.graphflow.model import errors

if TYPE_CHECKING:
    from convergio.workers.cli.session import Session

OLDEST_PYTHON: Final = (3, 11)
OLDEST_SQLITE: Final = (3, 37, 0)
OLDEST_REDIS: Final = (7, 0)
"""XADD with an id of which only the first part is given."""

SKEW: Final = 2.0
"""Seconds by which clocks may differ before times on the screen mislead. Nothing is decided by this machine's clock."""

OLD_CANARY_MS: Final = 15_000
"""A doorbell that is not answered for so long has nobody to answer it, or waits behind many others."""


class Level(StrEnum):
    """How a check ended."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the doctor. `hint`: what to do about it."""

    name: str
    level: Level
    saw: str
    hint: str = ""


def ok(name: str, saw: str) -> Check:
    """All is well."""
    return Check(name=name, level=Level.OK, saw=saw)


def warn(name: str, saw: str, hint: str) -> Check:
    """It works, but not as it should."""
    return Check(name=name, level=Level.WARN, saw=saw, hint=hint)


def fail(name: str, saw: str, hint: str) -> Check:
    """It does not work."""
    return Check(name=name, level=Level.FAIL, saw=saw, hint=hint)


def every(session: Session) -> Iterator[Check]:
    """All checks, in the order in which one thing rests on another."""
    yield from _guarded("python", python)
    yield from _guarded("model", lambda: model(session))
    journal_there = yield from _remembered("journal", lambda: journal(session))
    redis_there = yield from _remembered("redis", lambda: redis_server(session))
    if not redis_there:
        return
    yield from _guarded("board", lambda: board(session, with_journal=journal_there))
    yield from _guarded("service", lambda: service(session))
    yield from _guarded("workers", lambda: workers(session))


def _guarded(name: str, check: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The check; an error of it is a failed check."""
    try:
        yield from check()
    except errors.ConvergioError as error:
        yield fail(name, f"{error.code}  {error.message}", error.hint or "")


def _remembered(name: str, check: Callable[[], Iterator[Check]]) -> Generator[Check, None, bool]:
    """The same; returns whether what is checked is there at all."""
    found = list(_guarded(name, check))
    yield from found
    return all(one.level is not Level.FAIL for one in found if one.name == name)


# --- this machine -------------------------------------------------------------------------------------------------


def python() -> Iterator[Check]:
    """Python and the SQLite that comes with it."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield fail("python", version, "use Python 3.11 or newer")
    else:
        yield ok("python", version)
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        yield fail("sqlite", sqlite3.sqlite_version, "use a Python with SQLite 3.37 or newer, or PostgreSQL")
    else:
        yield ok("sqlite", sqlite3.sqlite_version)


def model(session: Session) -> Iterator[Check]:
    """Which model answers; whether the embedded one is there and whole."""
    from convergio.workers.cli import local
    from convergio.workers.embedded import model_file

    which = local.brain(session.settings)
    if which.options is not None:
        path = model_file.find()
        with tempfile.TemporaryDirectory() as elsewhere:  # a check makes no data directory
            home = session.settings.home
            model_file.verify(path, cache=(home if home.is_dir() else Path(elsewhere)) / "model.json")
        yield ok("model", f"{which.words} ({path.name}, checksum right)")
    elif which.env and session.settings.model_name != local.SCRIPTED:
        yield warn("model", which.words, model_file.HINT)
    else:
        yield ok("model", which.words)


# --- the journal --------------------------------------------------------------------------------------------------


def journal(session: Session) -> Iterator[Check]:
    """Whether SQL answers, has the tables of this version, and refused nothing."""
    from convergio.graphflow.journal import schema
    from convergio.workers import boot
    from convergio.workers.cli.up import masked

    url = session.settings.journal_url
    where = masked(url)
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        yield fail("journal", f"there is no {where}", "start a stack: convergio up; or set CONVERGIO_JOURNAL_URL")
        return
    pending = schema.pending(url, boot.migrations())
    if pending:
        yield fail("journal", f"{where}: {len(pending)} migrations are not applied", "run `convergio migrate`")
        return
    counts = session.history.counts()
    live = ", ".join(f"{count} {state.lower()}" for state, count in counts.live_runs.items()) or "no live runs"
    yield ok("journal", f"{where}: {live}, {counts.open_signals} open signals")
    if counts.dead_events:
        hint = "look at the table dead_events: each row has its reason"
        yield warn("journal", f"SQL refused {counts.dead_events} events", hint)


# --- Redis --------------------------------------------------------------------------------------------------------


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
    except UNREACHABLE as error:
        raise unavailable(error) from error
    yield _version(url, info)
    yield from _suited(info)
    yield _skew(seconds + micros / 1e6 - (began + ended) / 2)
    yield _keepalive(session)


def _version(url: str, info: Mapping[str, Any]) -> Check:
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info["redis_version"])
    saw = f"{name} {version} at {url}"
    if tuple(int(part) for part in str(info["redis_version"]).split(".")[:2]) < OLDEST_REDIS:
        return fail("redis", saw, "use Redis 7.0 or newer, or Valkey")
    if info.get("cluster_enabled"):
        return fail("redis", f"{saw} is a cluster", "use one server or Sentinel: the board's scripts touch many slots")
    return ok("redis", saw)


def _suited(info: Mapping[str, Any]) -> Iterator[Check]:
    policy = str(info.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        yield ok("eviction", "noeviction")
    else:
        hint = "CONFIG SET maxmemory-policy noeviction: a board that forgets keys silently loses steps for a while"
        yield fail("eviction", f"maxmemory-policy is {policy}", hint)
    if info.get("aof_enabled"):
        yield ok("persistence", "append-only file is on")
    else:
        hint = "CONFIG SET appendonly yes; without it every restart of Redis is a rebuild, and answers are forgotten"
        yield warn("persistence", "append-only file is off", hint)


def _skew(skew: float) -> Check:
    saw = f"Redis' clock is {abs(skew):.2f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    if abs(skew) > SKEW:
        return warn("clock", saw, "synchronise both by NTP; the engine goes by Redis' clock, people by this one")
    return ok("clock", saw)


def _keepalive(session: Session) -> Check:
    """redis-py cannot keep a unix socket alive, and fails at the first result if it is told to."""
    conf = session.core.app.conf
    is_socket = "socket" in session.settings.redis_url.split("://")[0]
    wanted = bool(conf.redis_socket_keepalive or conf.broker_transport_options.get("socket_keepalive"))
    if is_socket and wanted:
        return fail("keepalive", "set on a unix socket", "unset redis_socket_keepalive: every result would fail")
    return ok("keepalive", "unix socket: none needed" if is_socket else "TCP keepalive on the broker's connections")


# --- the board and who serves it ----------------------------------------------------------------------------------


def board(session: Session, *, with_journal: bool) -> Iterator[Check]:
    """Whether there is a board, and whether the journal follows it."""
    from convergio.graphflow.journal.boards import Boards

    link = session.core.link
    try:
        epoch = link.refresh()
    except errors.BoardRebuilding:
        hint = "the service process makes it within a second: convergio up, or convergio worker"
        yield fail("board", "there is no board, or another server made it", hint)
        return
    client, keys = link.client, link.keys(epoch)
    live, timers = client.zcard(keys.runs), client.zcard(keys.timers)
    saw = f"epoch {epoch.number}, {live} live runs, {timers} timers"
    row = Boards(session.database).current() if with_journal else None
    if row is not None and row.epoch != epoch.number:
        yield fail("board", f"{saw}; the journal follows epoch {row.epoch}", "wait a moment, or: convergio rebuild")
        return
    yield ok("board", saw)


def service(session: Session) -> Iterator[Check]:
    """Whether journaler and sweeper have a leader."""
    link = session.core.link
    for role in ("journaler", "sweeper"):
        leader = link.client.get(link.keys(link.epoch()).leader(role))
        if leader:
            yield ok(role, str(leader))
        else:
            yield fail(role, "nobody has this role", "start the service process: convergio up, or convergio worker")


def workers(session: Session) -> Iterator[Check]:
    """Who serves which queue, and for how long a doorbell waits there."""
    from convergio.graphflow.engine.bell import CONTINUATION, FRESH, QUEUES, canary_route
    from convergio.graphflow.engine.submission import board_time
    from convergio.tasks.transport import ENTRY_QUEUE
    from convergio.workers import rollcall

    link, served = session.core.link, rollcall.queues(session.core.app)
    now_ms, keys = board_time(link), link.keys(link.epoch())
    for queue in (*QUEUES, ENTRY_QUEUE):
        if queue not in served:
            yield fail(f"queue {queue}", "NO_WORKER: no worker serves it", f"convergio worker -Q {queue}")
            continue
        waits: list[int] = []
        for priority in (CONTINUATION, FRESH) if queue in QUEUES else ():
            name = session.core.ringer.bell.list_of(canary_route(queue, priority))
            canary = cast("dict[str, str]", link.client.hgetall(keys.canary(name)))
            if canary:
                waits.append(int(canary.get("eaten", now_ms)) - int(canary["pushed"]))
        yield _queue(queue, served[queue], max(waits, default=None))


def _queue(queue: str, names: list[str], wait_ms: int | None) -> Check:
    who = f"{len(names)} workers ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
    if wait_ms is None:
        return ok(f"queue {queue}", who)
    saw = f"{who}; the last canary waited {wait_ms / 1000:.2f} s"
    if wait_ms > OLD_CANARY_MS:
        return warn(f"queue {queue}", saw, f"all are busy: convergio worker -Q {queue}")
    return ok(f"queue {queue}", saw)
