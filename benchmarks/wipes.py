"""Faults of the board's data: `FLUSHALL` at every moment at which it might hurt."""

from __future__ import annotations

from convergio.benchmarks import doomed
from convergio.benchmarks.arena import SERVICES, now
from convergio.benchmarks.callers import rows_only
from convergio.benchmarks.faults import PATIENCE, Field, Hit, hit, wait_for_work
from convergio.benchmarks.kills import carried_out
from convergio.benchmarks.rig import wait_for


def _flush(field: Field, said: str, flushes: int = 1) -> Hit:
    if not field.arena.client.dbsize():
        raise RuntimeError("there was nothing to wipe")
    field.arena.client.flushall()
    return hit(said, now(), wiped=True, flushes=flushes)


def flushed(field: Field) -> Hit:
    """`FLUSHALL` at any moment."""
    wait_for_work(field)
    return _flush(field, "wiped")


def flushed_before_commit(field: Field) -> Hit:
    """`FLUSHALL` between outcomes and their commit: the service processes stand still until some wait for SQL."""
    with field.arena.frozen(SERVICES):
        count = wait_for(field.arena.unjournaled_outcomes, what="outcomes that wait for SQL", timeout=PATIENCE)
        return _flush(field, f"wiped with {count} outcomes that were not in SQL")


def flushed_before_wakeup(field: Field) -> Hit:
    """`FLUSHALL` between signals' rows and their wake-up: the rows must be found."""
    with rows_only(field) as count:
        return _flush(field, f"wiped after {count} rows of signals, before any wake-up")


def flushed_in_rebuild(field: Field) -> Hit:
    """`FLUSHALL`, and again while the board is rebuilt from the journal; the rebuild's phases take turns."""
    phase = doomed.REBUILD_PHASES[-1 - field.turn % len(doomed.REBUILD_PHASES)]
    field.arena.orders.give(doomed.WIPE, phase)
    _flush(field, "wiped")
    deed = carried_out(field)
    return hit(f"wiped, and again in the rebuild ({phase})", (deed.at, deed.ms), wiped=True, flushes=2)


def service_killed_in_rebuild(field: Field) -> Hit:
    """`FLUSHALL`, and the service process that rebuilds is killed; the rebuild's phases take turns."""
    phase = doomed.REBUILD_PHASES[-1 - field.turn % len(doomed.REBUILD_PHASES)]
    field.arena.orders.give(doomed.KILL, phase)
    _flush(field, "wiped")
    deed = carried_out(field)
    said = f"wiped, and the service killed in the rebuild ({phase})"
    return hit(said, (deed.at, deed.ms), wiped=True, pids=[deed.pid], kills=1, flushes=1)
