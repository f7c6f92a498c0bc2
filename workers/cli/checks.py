"""What `convergio doctor` looks at: each check says OK, WARN or FAIL, what it saw, and what to do."""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from convergio.graphflow.model import errors
from convergio.graphflow.model.states import RunState
from convergio.workers.cli.check import Check, Level, fail, ok, warn
from convergio.workers.cli.redis_checks import redis_server

if TYPE_CHECKING:
    from convergio.graphflow.board.keys import Keys
    from convergio.workers.cli.session import Session

OLDEST_PYTHON: Final = (3, 11)
OLDEST_SQLITE: Final = (3, 37, 0)
OLD_CANARY_MS: Final = 15_000
"""A doorbell that is not answered for so long has nobody to answer it, or waits behind many others."""


def every(session: Session) -> Iterator[Check]:
    """All checks, in the order in which one thing rests on another."""
    yield from _guarded("python", python)
    yield from _guarded("model", lambda: model(session))
    yield from _guarded("definitions", lambda: definitions(session))
    journal_there = yield from _remembered("journal", lambda: journal(session))
    redis_there = yield from _remembered("redis", lambda: redis_server(session))
    if not redis_there:
        return
    yield from _guarded("board", lambda: board(session, with_journal=journal_there))
    yield from _guarded("service", lambda: service(session))
    yield from _guarded("workers", lambda: workers(session))
    yield from _guarded("visibility", lambda: visibility(session))
    yield from _guarded("probe", lambda: signs(session))


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


def definitions(session: Session) -> Iterator[Check]:
    """Whether what must be signed is, and for how long yet. Nothing where nobody has to sign."""
    from convergio.graphflow.trust import HINTS, State
    from convergio.workers import boot

    settings = session.settings
    if not (settings.trusted_keys or settings.require_signed):
        return
    found = boot.verdicts(settings, boot.definitions(settings), session.revoked)
    for path, one in found.items():
        if not one.sound:
            yield fail("definition", one.why, HINTS[one.state].format(path=path))
        elif one.state is State.EXPIRING:
            yield warn("definition", one.why, f"convergio agents sign --key FILE.key {path}")
    yield ok("definitions", f"{sum(one.sound for one in found.values())} of {len(found)} files of yours count")


# --- the journal --------------------------------------------------------------------------------------------------


def journal(session: Session) -> Iterator[Check]:
    """Whether SQL answers, has the tables of this version, and refused nothing."""
    from convergio.graphflow.journal import schema
    from convergio.workers import boot
    from convergio.workers.cli.up import masked

    url = boot.journal_url(session.settings)
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


# --- the board and who serves it ----------------------------------------------------------------------------------


def board(session: Session, *, with_journal: bool) -> Iterator[Check]:
    """Whether there is a board, and whether the journal follows it."""
    from convergio.graphflow.journal.boards import Boards

    link, boards = session.core.link, Boards(session.database)
    link.journal = boards.identity() if with_journal else None
    try:
        epoch = link.refresh()
    except errors.BoardRebuilding:
        hint = "the service process makes it within a second: convergio up, or convergio worker"
        yield fail("board", "there is no board, or another server made it", hint)
        return
    client, keys = link.client, link.keys(epoch)
    live, timers = client.zcard(keys.runs), client.zcard(keys.timers)
    saw = f"epoch {epoch.number}, schema {epoch.schema}, {live} live runs, {timers} timers"
    row = boards.current() if with_journal else None
    if row is not None and row.epoch != epoch.number:
        yield fail("board", f"{saw}; the journal follows epoch {row.epoch}", "wait a moment, or: convergio rebuild")
        return
    yield ok("board", saw)
    if with_journal and (missing := min(_left_out(session, keys) for _ in range(2))) > 0:
        hint = "`convergio runs why RUN` names them by their state, the service process's log says why"
        yield warn("runs", f"{missing} runs that SQL has as live are not on the board", hint)


def _left_out(session: Session, keys: Keys) -> int:
    """How many runs more than the board SQL has; one that starts or ends at this moment is on either side."""
    there = session.core.link.client.zcard(keys.runs)
    counts = session.history.counts().live_runs
    return sum(count for state, count in counts.items() if state is not RunState.ACCEPTED) - there


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
    from convergio.graphflow.engine.bell import LISTS, QUEUES, canary_route
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
        for priority in LISTS if queue in QUEUES else ():
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


def visibility(session: Session) -> Iterator[Check]:
    """Whether all that consume public entries redeliver them after the same time: the shortest counts for everybody."""
    from convergio.workers import rollcall

    ours = session.settings.visibility_timeout
    others = {
        name: seconds for name, seconds in rollcall.visibility_timeouts(session.core.app).items() if seconds != ours
    }
    if not others:
        yield ok("visibility", f"a public entry of a dead worker runs again after {ours} s")
        return
    saw = f"{ours} s here, and {', '.join(f'{seconds} s at {name}' for name, seconds in sorted(others.items()))}"
    yield warn(
        "visibility", saw, "set CONVERGIO_VISIBILITY_TIMEOUT to one value everywhere: the shortest counts for all"
    )


def signs(session: Session) -> Iterator[Check]:
    """Whether the workers that run in HOME consume: some run, and do not."""
    from convergio.workers import probe

    seen = probe.look(session.settings.home.absolute() / probe.FOLDER)
    for worker in seen:
        if not worker.lives(probe.WITHIN):
            hint = "end it: whoever supervises it starts another; its log says what it waits for"
            yield fail("probe", f"it runs, and does not consume. {worker.words}", hint)
    if seen and all(worker.lives(probe.WITHIN) for worker in seen):
        yield ok("probe", f"{len(seen)} worker processes of this directory consume")
