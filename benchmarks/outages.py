"""Faults of the servers: Valkey killed, rolled back, frozen, cut off or demoted, and the journal away."""

from __future__ import annotations

import os
import signal
import time

from convergio.benchmarks.arena import VALKEY, now
from convergio.benchmarks.faults import Field, Hit, hit, wait_for_work


def valkey_killed(field: Field) -> Hit:
    """`kill -9` of Valkey; it is started again on its files."""
    if field.arena.supervisor.kill(VALKEY) is None:
        raise RuntimeError("Valkey did not run")
    return hit("Valkey killed", now(), wiped=True, kills=1)


def rolled_back(field: Field) -> Hit:
    """`kill -9` of Valkey, which is started again without the end of its append-only file."""
    wait_for_work(field)
    field.arena.supervisor.hold(VALKEY)
    moment = now()
    try:
        cut = _cut(field)
    finally:
        field.arena.supervisor.release(VALKEY)
    return hit(f"Valkey restarted without its last {cut} bytes", moment, wiped=True, kills=1, rollbacks=1)


def _cut(field: Field) -> int:
    files = (field.arena.folder / "valkey").glob("appendonlydir/*.incr.aof")
    newest = max(files, key=lambda path: path.stat().st_mtime)
    size = newest.stat().st_size
    if not size:
        raise RuntimeError("the append-only file was empty")
    cut = field.random.randint(1, min(size, 64 * 1024))
    os.truncate(newest, size - cut)
    return cut


def valkey_frozen(field: Field) -> Hit:
    """SIGSTOP of Valkey, for less or more than a lease: connections stay open, nothing answers. Nothing is lost."""
    pid, moment = field.arena.pid(VALKEY), now()
    seconds = field.random.uniform(1.0, 8.0)
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)
    return hit(f"Valkey frozen for {seconds:.1f} s", moment, over_ms=now()[1])


def demoted(field: Field) -> Hit:
    """Valkey becomes a replica of nobody for a while: it answers, and refuses writes."""
    moment, seconds = now(), field.random.uniform(0.5, 4.0)
    field.arena.client.replicaof("127.0.0.1", "1")
    try:
        time.sleep(seconds)
    finally:
        field.arena.client.replicaof("NO", "ONE")
    return hit(f"Valkey read-only for {seconds:.1f} s", moment, over_ms=now()[1])


def journal_away(field: Field) -> Hit:
    """PostgreSQL is stopped and started again; of SQLite, somebody else holds the write lock."""
    wait_for_work(field)
    moment, seconds = now(), field.random.uniform(1.0, 8.0)
    with field.arena.sql.away():
        time.sleep(seconds)
    return hit(f"the journal away for {seconds:.1f} s", moment, over_ms=now()[1])


def disconnected(field: Field) -> Hit:
    """`CLIENT KILL`: every connection of every process is cut."""
    moment = now()
    count = field.arena.client.client_kill_filter(_type="normal", skipme=True)
    if not count:
        raise RuntimeError("nobody was connected")
    return hit(f"{count} connections cut", moment)


def scripts_flushed(field: Field) -> Hit:
    """`SCRIPT FLUSH`: every script must be sent again."""
    moment = now()
    field.arena.client.script_flush("SYNC")
    return hit("scripts flushed", moment)
