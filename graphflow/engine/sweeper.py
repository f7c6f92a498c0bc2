"""The sweeper: everything that time does. Every repair is fenced, and is an event.

Age alone never proves a loss. A lease is over only if this sweeper saw the board without a break for a full lease; a
doorbell is lost only if a canary rung after it was consumed and the step still waits for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar, cast

from convergio.graphflow import waiting
from convergio.graphflow.board import departure, fields, scripts
from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.decision import ASK, LEAVE
from convergio.graphflow.engine.drain import Drain
from convergio.graphflow.engine.found import Found, find
from convergio.graphflow.engine.plans import Plans
from convergio.graphflow.engine.pressure import Pressure
from convergio.graphflow.engine.ringer import Ringer
from convergio.graphflow.engine.starter import Starter
from convergio.graphflow.engine.submission import (
    board_time,
    cancel_entry,
    control_entry,
    ref_of,
    signal_entry,
    wake_once,
)
from convergio.graphflow.journal.history import History
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import Nonces, RunRef
from convergio.graphflow.model.states import BlockedOn, StepState

logger = logging.getLogger(__name__)

INTERVAL: Final = 0.5
GAP: Final = 2.0
"""Seconds between two sweeps after which the board was not watched without a break."""

BATCH: Final = 200
DELIVERIES: Final = 5
"""Claims of one step that may end in lease expiry, in a row, before the step is put in quarantine."""

LATER_MS: Final = 5_000
"""What went wrong is looked at again so much later: what comes after it in its batch comes first."""

INBOX_AGE_MS: Final = 1_000
ROW_AGE_MS: Final = 1_500
"""Age of a signal's row after which its wake-up counts as lost. Signals are idempotent, so too early is harmless."""


Row = TypeVar("Row")


class Sweeper:
    """One sweep after the other, twice a second. Called by the service process that leads."""

    def __init__(
        self,
        link: Link,
        plans: Plans,
        ringer: Ringer,
        drain: Drain,
        starter: Starter,
        history: History,
        nonces: Nonces,
        pressure: Pressure | None = None,
        *,
        keep_s: float = 0,
    ) -> None:
        """`pressure`: says when the journal is so far behind that what is held stays held. `keep_s`: seconds for which
        the streams of conversations outlast their runs on the board."""
        self.keep_s = keep_s
        self.pressure = pressure
        self.link = link
        self.plans = plans
        self.ringer = ringer
        self.drain = drain
        self.starter = starter
        self.history = history
        self.nonces = nonces
        self.repairs: dict[str, int] = {}
        self._offsets: dict[str, int] = {}
        self._watched: tuple[Epoch, float, float] | None = None

    # --- one sweep ------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """What only the board knows. Raises BoardUnavailable or BoardRebuilding; the next sweep goes on."""
        try:
            epoch = self.link.epoch()
            now_ms = board_time(self.link)
            if self._watched_for(epoch) * 1000 > scripts.LEASE_MS:
                self._leases(epoch, now_ms)
            self._timers(epoch, now_ms)
            if self.pressure is None or self.pressure.behind() is None:
                self._held(epoch, now_ms)
            self._inboxes(epoch, now_ms)
            self._leave(epoch, now_ms)
        except UNREACHABLE as error:
            self._watched = None
            raise unavailable(error) from error
        except (errors.BoardUnavailable, errors.BoardRebuilding):
            self._watched = None
            raise

    def apply_rows(self) -> None:
        """What SQL knows and the board may have missed: accepted runs, signals, cancels. Raises JournalUnavailable."""
        now_ms = board_time(self.link)
        for signal in self._page("signals", partial(self.history.unapplied_signals, now_ms - ROW_AGE_MS)):
            self._count("signals")
            self._wake(RunRef(tenant=signal.tenant, run=signal.run_id), signal_entry(signal))
        for run in self._page("controls", self.history.unsettled):
            self._count("controls")
            self._wake(ref_of(run), control_entry(run))
        for run in self._page("cancels", self.history.cancels_pending):
            self._count("cancels")
            self._wake(ref_of(run), cancel_entry(run))
        # Last: a server without memory starts no run, and what is above ends some.
        for row in self._page("started", partial(self.history.accepted_before, now_ms)):
            with self._alone(f"run {row.run_id}"):
                if self.starter.start(row, self.plans.get(row.digest), not_after_ms=None):
                    self._count("started")

    def _page(self, repair: str, rows: Callable[[int, int], list[Row]]) -> list[Row]:
        """The next rows of this kind: those that cannot be helped stay at the head, and must not starve the others."""
        offset = self._offsets.get(repair, 0)
        found = rows(BATCH, offset)
        self._offsets[repair] = offset + BATCH if len(found) == BATCH else 0
        return found

    def _watched_for(self, epoch: Epoch) -> float:
        """Seconds for which the board of `epoch` was seen without a break."""
        now = time.monotonic()
        if self._watched is None or self._watched[0] != epoch or now - self._watched[2] > GAP:
            self._watched = (epoch, now, now)
        self._watched = (epoch, self._watched[1], now)
        return now - self._watched[1]

    def _wake(self, ref: RunRef, entry: dict[str, Any] | None) -> None:
        with self._alone(f"run {ref}"):
            wake_once(self.link, self.drain, self.nonces, ref, entry)

    def _count(self, repair: str) -> None:
        self.repairs[repair] = self.repairs.get(repair, 0) + 1

    # --- leases, timers, held steps -------------------------------------------------------------------------------

    def _leases(self, epoch: Epoch, now_ms: int) -> None:
        self._each(epoch, self.link.keys(epoch).leases, now_ms, self._lease)

    def _lease(self, epoch: Epoch, found: Found, fence: str) -> bool:
        held = found.word.text == fields.running(fence)
        if held:
            self._expire(epoch, found, fence)
        return held

    def _expire(self, epoch: Epoch, found: Found, fence: str) -> None:
        """The worker died, or is cut off: the step is rung again at the consuming end, or put in quarantine."""
        deliveries = found.deliveries + 1
        self._count("expired")
        name = found.step.name
        if deliveries >= DELIVERIES:
            reason = f"{deliveries} workers in a row died, or lost their lease, while they ran this step"
            entry = {"t": "quarantine", "step": name, "was": found.word.text, "reason": reason}
            self._wake(found.caller.ref, entry)
            return
        logger.warning("lease of %s/%s is over (delivery %d): rung again", found.caller.ref, name, deliveries)
        self.ringer.again(
            epoch,
            found.caller,
            found.step,
            was=found.word.text,
            kind="step.expired",
            lease=fence,
            lease_must_be_over=True,
            sets={fields.deliveries(name): str(deliveries)},
            data={"deliveries": deliveries, "fence": fence},
        )

    def _timers(self, epoch: Epoch, now_ms: int) -> None:
        self._each(epoch, self.link.keys(epoch).timers, now_ms, self._timer)

    def _timer(self, epoch: Epoch, found: Found, on: str) -> bool:
        if waiting.is_verdict(found.step, on):
            return self._verdict(found, on)
        if on == LEAVE:
            self.drain.limits.leave(epoch, found)
            return True
        waits = found.word.blocked_on == (BlockedOn.LIMIT if on == ASK else on)
        if waits and on == BlockedOn.LIMIT:
            self.drain.limits.ring(epoch, found)
        elif waits and found.step.concurrency is not None:
            self.drain.limits.wait_turn(epoch, found, now_ms=board_time(self.link), timer=on)
        elif waits:
            was = found.word.text
            self.ringer.again(epoch, found.caller, found.step, was=was, kind="step.rung", timer=on, side="L")
        return waits

    def _verdict(self, found: Found, on: str) -> bool:
        """What the time means is decided like anything else that concerns the run; the decision drops the timer."""
        waits = found.word.state is StepState.READY if on == waiting.QUEUE else found.word.blocked_on == on
        if waits:
            self._wake(found.caller.ref, {"t": "timer", "step": found.step.name, "on": on, "was": found.word.text})
        return waits

    def _held(self, epoch: Epoch, now_ms: int) -> None:
        self._each(epoch, self.link.keys(epoch).held, now_ms, self._hold)

    def _hold(self, epoch: Epoch, found: Found, _: str) -> bool:
        waits = found.word.state is StepState.READY
        if found.word.blocked_on is BlockedOn.LIMIT:
            self.drain.limits.wait_turn(epoch, found, now_ms=board_time(self.link))
            return True
        if waits:
            self._count("held")
            self.ringer.again(epoch, found.caller, found.step, was=found.word.text, kind="step.rung", side="L")
        return waits

    def _each(self, epoch: Epoch, key: str, now_ms: int, repair: Callable[[Epoch, Found, str], bool]) -> None:
        """Repairs every member whose time has come: tenant/run/step and perhaps a fourth word. False: it is old."""
        members = cast("list[str]", self.link.client.zrangebyscore(key, "-inf", now_ms, start=0, num=BATCH))
        for member in members:
            tenant, run, step, *more = member.split("/")
            failed = partial(self.link.client.zadd, key, {member: now_ms + LATER_MS}, xx=True)
            with self._alone(member, failed):
                found = self.find(epoch, RunRef(tenant=tenant, run=run), step)
                if found is None or not repair(epoch, found, "".join(more)):
                    self.link.client.zrem(key, member)

    @contextmanager
    def _alone(self, what: str, failed: Callable[[], object] = lambda: None) -> Generator[None]:
        """What is wrong with one run must not keep the sweep from all others. A store that is away ends it.

        `failed`: does away with what went wrong for a while, that it does not stay at the head of a batch.
        """
        try:
            yield
        except (*UNREACHABLE, errors.BoardUnavailable, errors.BoardRebuilding, errors.JournalUnavailable):
            raise
        except Exception:
            self._count("failed")
            logger.exception("%s is left for a later sweep", what)
            failed()

    def find(self, epoch: Epoch, ref: RunRef, step: str) -> Found | None:
        """The step as the board has it; None if its run left the board."""
        return find(self.link, self.plans, epoch, ref, step)

    # --- inboxes, ended runs --------------------------------------------------------------------------------------

    def _inboxes(self, epoch: Epoch, now_ms: int) -> None:
        """Inboxes whose drainer died, or that a rebuild filled."""
        key = self.link.keys(epoch).inboxes
        old = cast("list[str]", self.link.client.zrangebyscore(key, "-inf", now_ms - INBOX_AGE_MS, start=0, num=BATCH))
        for member in old:
            # To the end of the line: what cannot be drained must not stay at the head of a batch.
            self.link.client.zadd(key, {member: now_ms}, xx=True)
            self._count("drained")
            self._wake(RunRef.parse(member), None)

    def _leave(self, epoch: Epoch, now_ms: int) -> None:
        keys = self.link.keys(epoch)
        ended = cast("list[str]", self.link.client.zrangebyscore(keys.done, "-inf", now_ms, start=0, num=BATCH))
        if ended:
            departure.forget(self.link, keys, [RunRef.parse(member) for member in ended], keep_s=self.keep_s)
