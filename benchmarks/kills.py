"""Faults of processes: workers and service processes that are killed, stopped or frozen."""

from __future__ import annotations

import os
import signal
import time
from typing import Final, cast

from convergio.benchmarks import doomed
from convergio.benchmarks.arena import PREFORK, now
from convergio.benchmarks.effects import Execution
from convergio.benchmarks.faults import INTERVAL, PATIENCE, Field, Hit, hit
from convergio.benchmarks.rig import wait_for

STALE: Final = 20.0
"""Seconds within which a frozen worker's step must run elsewhere."""


def _busy_worker(field: Field) -> str:
    """One that runs a body at this moment."""

    def found() -> list[str]:
        return [name for name, count in field.arena.busy().items() if count]

    return field.random.choice(wait_for(found, what="a worker that is busy", timeout=PATIENCE, interval=INTERVAL))


def worker_killed(field: Field) -> Hit:
    """`kill -9` of a worker that runs steps. Its children, if it has some, end with it."""
    name = _busy_worker(field)
    moment, pids = now(), field.arena.pids(name)
    killed = field.arena.supervisor.kill(name)
    return hit(f"{name} killed", moment, pids=[killed, *pids], kills=1)


def child_killed(field: Field) -> Hit:
    """`kill -9` of a prefork worker's child that runs a step: its parent goes on."""

    def found() -> list[int]:
        children = field.arena.pids(PREFORK)[1:]
        return [one.pid for one in field.arena.effects.running() if one.pid in children]

    pid = field.random.choice(wait_for(found, what="a child that runs a step", timeout=PATIENCE, interval=INTERVAL))
    moment = now()
    os.kill(pid, signal.SIGKILL)
    return hit(f"a child of {PREFORK} killed", moment, pids=[pid], kills=1)


def worker_stopped(field: Field) -> Hit:
    """SIGTERM to a worker that runs steps; it is started again."""
    name = _busy_worker(field)
    moment, pids = now(), field.arena.pids(name)
    field.arena.supervisor.restart(name)
    return hit(f"{name} stopped", moment, pids=pids)


def worker_frozen(field: Field) -> Hit:
    """SIGSTOP past the lease: the step runs elsewhere, and the old owner's result must be refused."""
    deadline, found = time.monotonic() + PATIENCE, None
    while found is None:
        if time.monotonic() > deadline:
            raise RuntimeError("no worker was busy for long enough to be frozen in a step")
        found = _freeze(field, _busy_worker(field))
    return found


def _freeze(field: Field, name: str) -> Hit | None:
    """None: its last body ended before it could be frozen, or its run ended without it."""
    moment, pids = now(), field.arena.pids(name)
    with field.arena.frozen([name]):
        stale = [one for one in field.arena.effects.running() if one.pid in pids]
        if not stale:
            return None
        wait_for(
            lambda: _taken_over(field, stale) or _is_over(field, stale),
            what="its steps to run elsewhere",
            timeout=STALE,
            interval=INTERVAL,
        )
        again = _taken_over(field, stale)
        if not again:
            return None
    nonces = {one.nonce for one in again}
    wait_for(lambda: _fenced(field, nonces), what="the old owner to be refused", timeout=PATIENCE, interval=INTERVAL)
    return hit(f"{name} frozen with {len(stale)} steps", moment, pids=pids)


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


def _is_over(field: Field, stale: list[Execution]) -> bool:
    """Whether nobody need run them again: another step has ended their runs, or they were told just in time."""
    waiting = set(field.arena.journal.unfinished([one.run for one in stale]))
    return all(one.run not in waiting or field.arena.journal.has_outcome(one.run, one.step) for one in stale)


def _fenced(field: Field, nonces: set[str]) -> bool:
    return any(one.nonce in nonces and one.fenced is not None for one in field.arena.effects.all())


def service_killed(field: Field) -> Hit:
    """`kill -9` of the service process that leads, at any moment."""
    name = field.arena.leader()
    moment = now()
    pid = field.arena.supervisor.kill(name)
    return hit(f"{name} killed", moment, pids=[pid], kills=1)


def service_killed_in_phase(field: Field) -> Hit:
    """`kill -9` of a service process at the beginning of a phase; the phases take turns."""
    phase = doomed.PHASES[field.turn % len(doomed.PHASES)]
    field.arena.orders.give(doomed.KILL, phase)
    deed = carried_out(field)
    return hit(f"service killed before {phase}", (deed.at, deed.ms), pids=[deed.pid], kills=1)


def carried_out(field: Field) -> doomed.Deed:
    """The deed that was ordered, once it is done."""
    try:
        return cast(
            doomed.Deed, wait_for(field.arena.orders.done, what="the order to be carried out", timeout=PATIENCE)
        )
    finally:
        field.arena.orders.withdraw()
