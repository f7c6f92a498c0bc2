"""Faults of callers: a door writes its row, as it must, and dies before the board hears of it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from convergio.benchmarks import shapes
from convergio.benchmarks.arena import now
from convergio.benchmarks.faults import PATIENCE, Field, Hit, hit
from convergio.benchmarks.graphs import Graph
from convergio.benchmarks.rig import wait_for
from convergio.benchmarks.traffic import SUBMITTER, Decision
from convergio.graphflow.engine.submission import START_WITHIN_MS, Submission
from convergio.graphflow.journal.rows import NewRun, NewSignal
from convergio.graphflow.model.ids import DEFAULT_TENANT

FEW = 3
"""Runs that are accepted and not started."""


@contextmanager
def rows_only(field: Field) -> Generator[int]:
    """Writes the rows of signals that approvals wait for, without waking their runs. How many."""
    traffic = field.traffic

    def waiting() -> list[Decision]:
        blocked = field.arena.journal.blocked("")
        return [decision for decision in traffic.pending if (decision.run, decision.step) in blocked]

    traffic.withhold.set()
    try:
        taken = wait_for(waiting, what="approvals that wait", timeout=PATIENCE, interval=0.05)
        traffic.pending = [decision for decision in traffic.pending if decision not in taken]
        for decision in taken:
            traffic.entrance.doors.signal(_signal(decision))
        yield len(taken)
    finally:
        traffic.withhold.clear()


def signal_without_wakeup(field: Field) -> Hit:
    """Signals whose door died after the row: the sweeper must find the rows."""
    with rows_only(field) as count:
        return hit(f"{count} rows of signals without a wake-up", now())


def run_without_start(field: Field) -> Hit:
    """Runs whose door died after the row: the sweeper must start them."""
    for _ in range(FEW):
        submission = field.traffic.add(_without_approvals(field))
        field.traffic.entrance.doors.accept(_run(submission))
    return hit(f"{FEW} runs accepted, and not started", now())


def _without_approvals(field: Field) -> Graph:
    """Nobody sends signals for these runs."""
    while True:
        graph = shapes.draw(f"half_{field.random.randrange(1_000_000)}", "chain", field.random)
        if not graph.approvals:
            return graph


def _signal(decision: Decision) -> NewSignal:
    return NewSignal(
        signal_id=decision.id,
        tenant=DEFAULT_TENANT,
        submitter=SUBMITTER,
        run_id=decision.run,
        name=decision.step,
        data=dict(decision.data),
        created_ms=now()[1],
    )


def _run(submission: Submission) -> NewRun:
    at_ms = now()[1]
    return NewRun(
        run_id=submission.run_id,
        submitter=submission.submitter,
        workflow=submission.workflow,
        input_json=submission.check(),
        not_after_ms=at_ms + START_WITHIN_MS,
        created_ms=at_ms,
    )
