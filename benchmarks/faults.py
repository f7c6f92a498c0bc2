"""The faults: one function per kind. Each waits for a moment at which it hits something, strikes once, and reports it.

A fault that finds nothing to hit raises RuntimeError: a round that was not disturbed proves nothing.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Any, Final, cast

from convergio.benchmarks import doomed
from convergio.benchmarks.arena import SERVICES, VALKEY, WORKERS, Arena, now
from convergio.benchmarks.effects import Execution
from convergio.benchmarks.recovery import Disturbance
from convergio.benchmarks.rig import wait_for
from convergio.benchmarks.traffic import SUBMITTER, Decision, Traffic
from convergio.graphflow.journal.rows import NewSignal
from convergio.graphflow.model.ids import DEFAULT_TENANT

PATIENCE: Final = 15.0
"""Seconds that a fault waits for something to hit."""

PAUSE: Final = 2.0
"""Seconds that all workers may be stopped without losing a lease (6 s)."""

SEVERAL: Final = 5
"""So many doorbells are tampered with at once, if so many wait."""

STALE: Final = 12.0
"""Seconds after which a stopped worker's step must run elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Where a fault strikes: in this arena, under this load; `turn`: how often this kind has struck before."""

    arena: Arena
    traffic: Traffic
    random: Random
    turn: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A fault that struck, and what it hit in words."""

    said: str
    disturbance: Disturbance
    kills: int = 0
    flushes: int = 0
    rollbacks: int = 0


def hit(said: str, moment: tuple[float, int], *, wiped: bool = False, pid: int | None = None, **counts: int) -> Hit:
    """A hit that struck at `moment`."""
    processes = frozenset([] if pid is None else [pid])
    fault = Disturbance(at=moment[0], at_ms=moment[1], wiped=wiped, processes=processes)
    return Hit(said=said, disturbance=fault, **counts)


# --- processes ----------------------------------------------------------------------------------------------------


def _busy_worker(field: Field) -> str:
    """One that runs a body at this moment."""

    def found() -> list[str]:
        return [name for name, count in field.arena.busy().items() if count]

    return field.random.choice(wait_for(found, what="a worker that is busy", timeout=PATIENCE))


def worker_killed(field: Field) -> Hit:
    """`kill -9` of a worker that runs steps."""
    name = _busy_worker(field)
    moment = now()
    pid = field.arena.supervisor.kill(name)
    return hit(f"{name} killed", moment, pid=pid, kills=1)


def worker_stopped(field: Field) -> Hit:
    """SIGTERM to a worker that runs steps; it is started again."""
    name = _busy_worker(field)
    moment, pid = now(), field.arena.pid(name)
    field.arena.supervisor.restart(name)
    return hit(f"{name} stopped", moment, pid=pid)


def worker_frozen(field: Field) -> Hit:
    """SIGSTOP past the lease: the step runs elsewhere, and the old owner's result must be refused."""
    name = _busy_worker(field)
    moment, pid = now(), field.arena.pid(name)
    with field.arena.frozen([name]):
        stale = [one for one in field.arena.effects.running() if one.pid == pid]
        if not stale:
            raise RuntimeError(f"{name} ran nothing when it was frozen")
        again = wait_for(lambda: _taken_over(field, stale), what="its steps to run elsewhere", timeout=STALE)
    nonces = {one.nonce for one in again}
    wait_for(lambda: _fenced(field, nonces), what="the old owner to be refused", timeout=PATIENCE)
    return hit(f"{name} frozen with {len(stale)} steps", moment, pid=pid)


def _taken_over(field: Field, stale: list[Execution]) -> list[Execution]:
    """The stale executions whose steps run, or ran, somewhere else by now."""
    done = field.arena.effects.all()
    return [
        old
        for old in stale
        if any(
            one.run == old.run and one.step == old.step and one.pid != old.pid and one.began > old.began for one in done
        )
    ]


def _fenced(field: Field, nonces: set[str]) -> bool:
    return any(one.nonce in nonces and one.fenced is not None for one in field.arena.effects.all())


def service_killed(field: Field) -> Hit:
    """`kill -9` of the service process that leads, at any moment."""
    name = field.arena.leader()
    moment = now()
    pid = field.arena.supervisor.kill(name)
    return hit(f"{name} killed", moment, pid=pid, kills=1)


def service_killed_in_phase(field: Field) -> Hit:
    """`kill -9` of a service process at the beginning of a phase; the phases take turns."""
    phase = doomed.PHASES[field.turn % len(doomed.PHASES)]
    field.arena.orders.give(doomed.KILL, phase)
    deed = _carried_out(field)
    return hit(f"service killed before {phase}", (deed.at, deed.ms), pid=deed.pid, kills=1)


def _carried_out(field: Field) -> doomed.Deed:
    try:
        return cast(
            doomed.Deed, wait_for(field.arena.orders.done, what="the order to be carried out", timeout=PATIENCE)
        )
    finally:
        field.arena.orders.withdraw()


# --- the board is wiped -------------------------------------------------------------------------------------------


def _flush(field: Field, said: str, flushes: int = 1) -> Hit:
    if not field.arena.client.dbsize():
        raise RuntimeError("there was nothing to wipe")
    moment = now()
    field.arena.client.flushall()
    return hit(said, moment, wiped=True, flushes=flushes)


def flushed(field: Field) -> Hit:
    """`FLUSHALL` at any moment."""
    wait_for(lambda: any(field.arena.busy().values()), what="work", timeout=PATIENCE)
    return _flush(field, "wiped")


def flushed_before_commit(field: Field) -> Hit:
    """`FLUSHALL` between outcomes and their commit: the service processes stand still until some wait for SQL."""
    with field.arena.frozen(SERVICES):
        count = wait_for(field.arena.unjournaled_outcomes, what="outcomes that wait for SQL", timeout=PATIENCE)
        return _flush(field, f"wiped with {count} outcomes that were not in SQL")


def flushed_before_wakeup(field: Field) -> Hit:
    """`FLUSHALL` between signals' rows and their wake-up: the sweeper must find the rows."""
    traffic = field.traffic
    doors = traffic.entrance.doors

    def waiting() -> list[Decision]:
        blocked = field.arena.journal.blocked("")
        return [decision for decision in traffic.pending if (decision.run, decision.step) in blocked]

    try:
        taken = wait_for(waiting, what="approvals that wait", timeout=PATIENCE, interval=0.05)
        traffic.pending = [decision for decision in traffic.pending if decision not in taken]
        for decision in taken:
            doors.signal(_row(decision))
        return _flush(field, f"wiped after {len(taken)} rows of signals, before any wake-up")
    finally:
        traffic.withhold.clear()


def _row(decision: Decision) -> NewSignal:
    return NewSignal(
        signal_id=decision.id,
        tenant=DEFAULT_TENANT,
        submitter=SUBMITTER,
        run_id=decision.run,
        name=decision.step,
        data=dict(decision.data),
        created_ms=now()[1],
    )


def flushed_in_rebuild(field: Field) -> Hit:
    """`FLUSHALL`, and again while the board is rebuilt from the journal; the rebuild's phases take turns."""
    phase = doomed.REBUILD_PHASES[-1 - field.turn % len(doomed.REBUILD_PHASES)]
    field.arena.orders.give(doomed.WIPE, phase)
    _flush(field, "wiped")
    deed = _carried_out(field)
    return hit(f"wiped, and again in the rebuild ({phase})", (deed.at, deed.ms), wiped=True, flushes=2)


def service_killed_in_rebuild(field: Field) -> Hit:
    """`FLUSHALL`, and the service process that rebuilds is killed; the rebuild's phases take turns."""
    phase = doomed.REBUILD_PHASES[-1 - field.turn % len(doomed.REBUILD_PHASES)]
    field.arena.orders.give(doomed.KILL, phase)
    _flush(field, "wiped")
    deed = _carried_out(field)
    said = f"wiped, and the service killed in the rebuild ({phase})"
    return hit(said, (deed.at, deed.ms), wiped=True, pid=deed.pid, kills=1, flushes=1)


# --- messages -----------------------------------------------------------------------------------------------------


def _with_backlog(field: Field, tamper: Callable[[list[tuple[str, str]]], None]) -> tuple[tuple[float, int], int]:
    """Shows `tamper` doorbells that wait, while no worker can take them. When it was, and how many there were."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with field.arena.frozen(WORKERS):
            found = _gathered(field.arena)
            if found:
                moment = now()
                tamper(found)
                return moment, len(found)
    raise RuntimeError("no doorbell waited in any list")


def _gathered(arena: Arena) -> list[tuple[str, str]]:
    """Doorbells that nobody takes: several, or those there are after `PAUSE` seconds."""
    until, found = time.monotonic() + PAUSE, arena.backlog()
    while len(found) < SEVERAL and time.monotonic() < until:
        time.sleep(0.01)
        found = arena.backlog()
    return found


def duplicated(field: Field) -> Hit:
    """Copies of doorbells, at both ends of their lists."""

    def tamper(found: list[tuple[str, str]]) -> None:
        for name, message in found[:20]:
            field.arena.client.lpush(name, message, message)
            field.arena.client.rpush(name, message)

    moment, count = _with_backlog(field, tamper)
    return hit(f"{min(count, 20)} doorbells duplicated", moment)


def dropped(field: Field) -> Hit:
    """Doorbells vanish from their lists; the canaries among them too, every other time."""
    gone: list[Any] = []

    def tamper(found: list[tuple[str, str]]) -> None:
        for name, message in field.random.sample(found, min(5, len(found))):
            gone.append(field.arena.client.lrem(name, 1, message))
        if field.turn % 2:
            for name in field.arena.lists():
                field.arena.client.delete(name)

    moment, _ = _with_backlog(field, tamper)
    return hit(f"{sum(gone)} doorbells dropped", moment)


# --- the server ---------------------------------------------------------------------------------------------------


def valkey_killed(field: Field) -> Hit:
    """`kill -9` of Valkey; it is started again on its files."""
    moment = now()
    if field.arena.supervisor.kill(VALKEY) is None:
        raise RuntimeError("Valkey did not run")
    return hit("Valkey killed", moment, wiped=True, kills=1)


def rolled_back(field: Field) -> Hit:
    """`kill -9` of Valkey, which is started again without the end of its append-only file."""
    wait_for(lambda: any(field.arena.busy().values()), what="work", timeout=PATIENCE)
    moment = now()
    field.arena.supervisor.hold(VALKEY)
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
    return hit(f"Valkey frozen for {seconds:.1f} s", moment)


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


KINDS: Final[Mapping[str, Callable[[Field], Hit]]] = MappingProxyType(
    {
        inject.__name__: inject
        for inject in (
            worker_killed,
            flushed,
            worker_frozen,
            flushed_before_commit,
            service_killed,
            flushed_before_wakeup,
            duplicated,
            flushed_in_rebuild,
            dropped,
            valkey_killed,
            service_killed_in_phase,
            rolled_back,
            disconnected,
            service_killed_in_rebuild,
            valkey_frozen,
            scripts_flushed,
            worker_stopped,
        )
    }
)
"""Every kind, in the order in which rounds take them."""
