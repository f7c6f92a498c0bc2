"""The journaler: event stream -> SQL in group commits -> RELEASE what waited, and decide on it -> trim behind a tail.

What is there is committed, the next group collects meanwhile; while nothing waits for SQL it may collect longer. There
is one journaler for the board; that only one writes is kept by the row (epoch, high water) in SQL, not by the leader's
lease.
"""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, cast

from convergio.graphflow import nested
from convergio.graphflow.board import releasing
from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.board.messages import Waiting
from convergio.graphflow.engine.drain import Drain
from convergio.graphflow.engine.submission import go_on
from convergio.graphflow.journal.boards import Boards
from convergio.graphflow.journal.rows import StreamEvent
from convergio.graphflow.journal.writer import Writer
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.ids import CHILD, Nonces, RunRef
from convergio.graphflow.model.states import TERMINAL_RUN

logger = logging.getLogger(__name__)

GROUP: Final = 500
TAIL: Final = 1_000
"""Events that stay in the stream behind the high water, for who looks at it."""

GRACE_MS: Final = 60_000
"""How long an ended run stays on the board for its readers."""

RELEASE_CHUNK: Final = 500

LOCKED_AT_ONCE: Final = 50
"""Runs whose locks are taken in one move, and decided on one after the other: all well before a lock is over."""

GATHER: Final = 0.3
"""Seconds that the next group collects while nothing waits for the journal: fewer, larger commits."""

RUN_END: Final = "@"
"""Stands for a step where it is the run's own end that waits for SQL."""

ENDS: Final = frozenset(f"run.{state.lower()}" for state in TERMINAL_RUN)

TRIM_EVERY: Final = 1_000
"""Events between two trims of the stream."""


class Finished(Protocol):
    """Called with runs that ended, and are in SQL, before RELEASE tells their readers; perhaps more than once."""

    def __call__(self, refs: Sequence[RunRef]) -> None: ...


class Decided(Protocol):
    """Called after RELEASE with an approval that a signal has decided; the decision is in SQL by then."""

    def __call__(self, ref: RunRef, step: str) -> None: ...


class Journaler:
    """One group after the other. `step` is called in a loop by the service process."""

    def __init__(
        self,
        link: Link,
        boards: Boards,
        writer: Writer,
        drain: Drain,
        nonces: Nonces,
        *,
        finished: Finished,
        decided: Decided = lambda ref, step: None,
        children: Callable[[], None] = lambda: None,
    ) -> None:
        """`children`: told when something is to be done about children, and that is in SQL."""
        self.link = link
        self.boards = boards
        self.writer = writer
        self.drain = drain
        self.nonces = nonces
        self.finished = finished
        self.decided = decided
        self.children = children
        self.committed = 0
        self.took = 0.0
        self._awaited = False
        self._owes_release = False
        self._trimmed = 0
        self._at: tuple[Epoch, int] | None = None

    def step(self, wait_ms: int = 200, between: Callable[[str], None] = lambda phase: None) -> int:
        """Journals one group. Returns how many events it had. `between` is told the phase that begins (for tests).

        Raises BoardUnavailable, BoardRebuilding or JournalUnavailable; nothing is lost then, the next call goes on.
        """
        epoch, high_water = self._position()
        if self._owes_release:
            self.release(epoch, high_water)
        events = self._read(epoch, high_water, wait_ms)
        if not events:
            return 0
        began = time.monotonic()
        last = events[-1].seq
        between("commit")
        try:
            done = self.writer.commit(events, epoch=epoch.number, high_water=high_water, new_high_water=last)
        except errors.EpochLost:
            self._at = None
            return 0
        self._at = (epoch, last)
        self._owes_release = True
        self.committed += len(events)
        for event in done.refused:
            logger.error("SQL refused event %s of run %s; it is kept as a dead event", event.type, event.run_id)
        between("release")
        self.release(epoch, last)
        for event in events:
            if event.type == "signal.applied" and event.step and event.data.get("how") == "applied":
                named = instance.named(event.step, event.iteration)
                self.decided(RunRef(tenant=event.tenant, run=event.run_id), named)
        if any(map(_concerns_children, events)):
            self.children()
        if last - self._trimmed >= TRIM_EVERY:
            between("trim")
            self._trim(epoch, last)
        self.took = time.monotonic() - began
        return len(events)

    def gather(self) -> None:
        """Lets the next group collect until something waits for it, at most GATHER. Raises BoardUnavailable."""
        if self._awaited or self._at is None:
            return
        try:
            self.link.client.blpop([self.link.keys(self._at[0]).nudge], timeout=GATHER)
        except UNREACHABLE as error:
            raise unavailable(error) from error

    def _position(self) -> tuple[Epoch, int]:
        """Where to go on. Read from SQL whenever the epoch changed: a new leader knows nothing else."""
        epoch = self.link.epoch()
        if self._at is None or self._at[0] != epoch:
            row = self.boards.current()
            if row is None or row.epoch != epoch.number:
                raise errors.BoardRebuilding("the journal follows another epoch than the board")
            self._at = (epoch, row.high_water)
            self._trimmed = row.high_water
            self.release(epoch, row.high_water)
        return self._at

    def _read(self, epoch: Epoch, after: int, wait_ms: int) -> list[StreamEvent]:
        name = self.link.keys(epoch).journal
        try:
            answer = self.link.client.xread({name: f"{epoch.number}-{after}"}, count=GROUP, block=wait_ms)
        except UNREACHABLE as error:
            raise unavailable(error) from error
        streams = cast("list[tuple[str, list[tuple[str, dict[str, str]]]]]", answer or [])
        return [event_of(entry, fields) for _, entries in streams for entry, fields in entries]

    def release(self, epoch: Epoch, high_water: int) -> None:
        """Lets go on what waited for SQL, and tells who asked when a run has ended."""
        while True:
            parked, waiting = releasing.reach(self.link, epoch, high_water=high_water, limit=RELEASE_CHUNK)
            self._awaited = waiting > len(parked)  # who comes from now on waits for a later event, and nudges
            if parked:
                self._release(epoch, parked, high_water)
            if len(parked) < RELEASE_CHUNK:  # there are no more: what has been released does not wait any longer
                self._owes_release = False
                return

    def _release(self, epoch: Epoch, members: Sequence[str], high_water: int) -> None:
        by_run: defaultdict[RunRef, list[str]] = defaultdict(list)
        for member in members:
            run, step = member.rsplit("/", 1)
            by_run[RunRef.parse(run)].append(step)
        ended = [ref for ref, steps in by_run.items() if RUN_END in steps]
        if ended:
            self.finished(ended)  # before, not after: who dies in between does it again, and nobody waits for ever
        waiting = [self._waiting(ref, steps) for ref, steps in by_run.items()]
        for first in range(0, len(waiting), LOCKED_AT_ONCE):
            some = waiting[first : first + LOCKED_AT_ONCE]
            for released in releasing.release(self.link, epoch, some, grace_ms=GRACE_MS, high_water=high_water):
                if released.locked is not None:
                    go_on(self.drain, released.locked)

    def _waiting(self, ref: RunRef, steps: Sequence[str]) -> Waiting:
        """What a run waits for, and what is needed to decide on the outcomes among it."""
        arrived = [step for step in steps if step != RUN_END]
        if not arrived:
            return Waiting(ref=ref, steps=steps)
        return Waiting(ref=ref, steps=steps, token=self.nonces.next(), wanted=self.drain.ahead(ref, arrived))

    def _trim(self, epoch: Epoch, last: int) -> None:
        self._trimmed = last
        try:
            behind = max(0, last - TAIL)
            self.link.client.xtrim(self.link.keys(epoch).journal, minid=f"{epoch.number}-{behind}", approximate=True)
        except UNREACHABLE as error:
            raise unavailable(error) from error


def _concerns_children(event: StreamEvent) -> bool:
    """A child is wanted, or not any more, or has ended; or its parent, which was paused, goes on."""
    ended = event.type in ENDS and event.run_id.startswith(CHILD)
    return ended or event.type in (nested.WANTED, nested.LEFT, "run.resumed")


def event_of(entry: str, fields: Mapping[str, str]) -> StreamEvent:
    """An entry of the journal stream as a value."""
    ref = RunRef.parse(fields["r"])
    data: dict[str, Any] = json.loads(fields["d"] or "{}")
    step, iteration = instance.split(fields["s"])
    return StreamEvent(
        seq=int(entry.rsplit("-", 1)[1]),
        type=fields["t"],
        tenant=ref.tenant,
        submitter=fields["u"],
        run_id=ref.run,
        step=step or None,
        iteration=iteration,
        run_seq=int(fields["q"]),
        at_ms=int(fields["a"]),
        data=data,
    )
