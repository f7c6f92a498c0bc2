"""The claims of one process: which steps it owns, what it still owes the board about them, and which of them it lost.

Claims are not journaled. After a rebuild the process that still runs a body asserts its old claim on the new board; an
outcome that SQL does not have yet is kept here and offered again.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, cast

from convergio.graphflow.board import fields, scripts
from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.engine.outage import Outage
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors
from convergio.graphflow.model.outcome import Rows

logger = logging.getLogger(__name__)

AWAY: Final = (errors.BoardUnavailable, errors.BoardRebuilding)

Deliver = Callable[[scripts.Claimed], int | None]
"""Tells the board how a claim ended; the stream sequence to wait for, or None if nothing has to be kept."""


@dataclass(slots=True)
class Claim:
    """A step that this process owns. `held` changes when the claim is asserted again on a new board."""

    held: scripts.Claimed
    nonce: str
    plan: Plan
    sure_until: float = math.inf
    """time.monotonic() until which the lease lasts, whatever else happens"""
    deadline: float | None = None
    """time.monotonic() after which the attempt has timed out"""
    idle: float | None = None
    """seconds without a sign of life of the body after which the attempt has timed out"""
    signed: float = math.inf
    """time.monotonic() of the last sign of life"""
    deliver: Deliver | None = None
    """what the board still has to be told"""
    awaits: int | None = None
    """told, but not in SQL yet: the stream sequence that has to be released"""
    rows: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict[str, list[Mapping[str, Any]]])
    """rows of domain tables that travel in the outcome"""
    facts: dict[str, str] = field(default_factory=dict[str, str])
    """recorded facts (JSON), kept while the claim lasts: a new board has to be told them again"""
    unsaid: set[str] = field(default_factory=set[str])
    """keys of facts that the board does not have yet"""
    said: dict[str, tuple[Epoch, int]] = field(default_factory=dict[str, tuple[Epoch, int]])
    """keys of facts that the board has: its epoch, and the stream sequence that SQL must have"""
    lost: threading.Event = field(default_factory=threading.Event)
    on_lost: Callable[[], object] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def owe(self, rows: Rows) -> None:
        """Adds rows that the outcome takes along."""
        for table, more in rows.items():
            self.rows.setdefault(table, []).extend(more)

    def sign(self) -> None:
        """The body lives, and gets on with its work."""
        self.signed = time.monotonic()

    def is_overdue(self, now: float) -> bool:
        """Whether the attempt has timed out: it took too long, or nothing was heard of its body for too long."""
        late = self.deadline is not None and now > self.deadline
        return late or self.is_silent(now)

    def is_silent(self, now: float) -> bool:
        """Whether nothing was heard of the body for longer than its idle timeout."""
        return self.idle is not None and now > self.signed + self.idle

    @property
    def member(self) -> str:
        return f"{self.held.ref}/{self.held.step}/{self.held.fence}"

    def lose(self) -> None:
        """The step is another's by now, or goes on without this attempt: whoever runs its body is told."""
        self.lost.set()
        on_lost = self.on_lost  # read once: the body may end at this moment, and take it away
        if on_lost is not None:
            on_lost()

    @contextmanager
    def unless_told(self) -> Generator[bool]:
        """Whether nobody tells the board of this claim at this moment; nobody does until it is left then."""
        free = self.lock.acquire(blocking=False)
        try:
            yield free
        finally:
            if free:
                self.lock.release()


@contextmanager
def _alone(claim: Claim) -> Generator[None]:
    """What is wrong with one claim must not hold up the others. A board that is away does."""
    try:
        yield
    except AWAY:
        raise
    except Exception:
        logger.exception("claim %s", claim.member)


class Claims:
    """All claims of this process. `beat` and `catch_up` are called every half second, on threads of their own: what is
    told late may have to wait for a decision, or for SQL, and the leases of all others must not end meanwhile."""

    def __init__(self, link: Link, *, expire: Callable[[Claim], None] | None = None) -> None:
        self.link = link
        self.expire = expire
        self.fenced = 0
        self.released: tuple[Epoch, int] | None = None
        self._claims: dict[str, Claim] = {}
        self._outage = Outage(logger, "claims wait for the board")

    def __len__(self) -> int:
        return len(self._claims)

    def add(self, claim: Claim) -> None:
        self._claims[claim.nonce] = claim

    def settle(self, claim: Claim, deliver: Deliver) -> bool:
        """Tells the board how the claim ended. If the board is away, that is kept and told later; False then.

        Raises StaleFence if the step has another owner by now: its outcome is dropped.
        """
        with claim.lock:
            claim.deliver = deliver
            return self._tell(claim)

    def record(self, claim: Claim, key: str, fact: str) -> None:
        """Tells the board a fact. If the board is away, that is kept and told later. Raises StaleFence."""
        claim.sign()
        with claim.lock:
            claim.facts[key] = fact
            claim.unsaid.add(key)
            try:
                self._say(claim)
            except AWAY as error:
                logger.warning("claim %s: '%s' is recorded later: %s", claim.member, key, error)

    def is_safe(self, claim: Claim, key: str) -> bool:
        """Whether SQL has a recorded fact; False also while the board is away."""
        epoch, sequence = claim.said.get(key, (claim.held.epoch, None))
        if sequence is None or epoch != claim.held.epoch:
            return False
        try:
            return scripts.beat(self.link, epoch, []).released >= sequence
        except AWAY:
            return False

    def owing(self) -> int:
        """How many outcomes the board or SQL do not have yet."""
        return sum(1 for claim in self._snapshot() if claim.deliver is not None)

    def running(self) -> list[Claim]:
        """The claims whose bodies have not told yet how they ended."""
        return [claim for claim in self._snapshot() if claim.deliver is None]

    def beat(self) -> None:
        """Asserts claims on a new board, and prolongs leases. Waits for nobody but the board."""
        claims = self._snapshot()
        if not claims:
            return
        try:
            epoch = self.link.epoch()
            for claim in claims:
                if claim.held.epoch != epoch:
                    with _alone(claim):
                        self._reassert(claim)
            self._beat(epoch)
            self._outage.over()
        except AWAY as error:
            self._outage.met(error)

    def catch_up(self) -> None:
        """Tells what is owed, forgets what is safe in SQL, and ends attempts that have timed out."""
        try:
            for claim in self._snapshot():
                if claim.held.epoch == self.link.epoch():  # else a beat has to assert it first
                    with _alone(claim):
                        self._catch_up(claim)
        except AWAY as error:
            logger.info("what is owed is told later: %s", error)

    def _snapshot(self) -> list[Claim]:
        return list(self._claims.values())

    def _tell(self, claim: Claim) -> bool:
        deliver = claim.deliver
        if deliver is None:
            return True
        try:
            self._say(claim)
            claim.awaits = deliver(claim.held)
        except AWAY:
            return False
        except errors.StaleFence:
            self._lose(claim)
            raise
        except Exception:
            # What cannot be told now never can be: without beats its lease ends, and the sweeper counts the delivery.
            self._claims.pop(claim.nonce, None)
            claim.deliver = None
            raise
        if claim.awaits is None:
            self._claims.pop(claim.nonce, None)
            claim.deliver = None
        return True

    def _tell_late(self, claim: Claim) -> None:
        """What the board does not have yet. A claim that is another's by now is lost, whatever it was that told us."""
        if claim.deliver is not None:
            self._tell(claim)
            return
        try:
            self._say(claim)
        except errors.StaleFence:
            self._lose(claim)
            raise

    def _say(self, claim: Claim) -> None:
        for key in sorted(claim.unsaid):
            sequence = scripts.record(self.link, claim.held, key=key, value=claim.facts[key])
            claim.said[key] = (claim.held.epoch, sequence)
            claim.unsaid.discard(key)

    def _lose(self, claim: Claim) -> None:
        self.fenced += 1
        claim.deliver = None
        self._claims.pop(claim.nonce, None)
        claim.lose()

    def _reassert(self, claim: Claim) -> None:
        with claim.unless_told() as free:
            if not free:
                return  # it was told on the old board, which refuses: the next beat asserts it
            try:
                epoch, fence = self._again(claim)
            except errors.StaleFence:
                self._lose(claim)
                return
            claim.held = replace(claim.held, epoch=epoch, fence=fence)
            claim.awaits = None
            claim.unsaid = set(claim.facts)

    def _again(self, claim: Claim) -> tuple[Epoch, str]:
        """REASSERT. A step with a concurrency key holds that again, too. Raises StaleFence."""
        held, concurrency = claim.held, claim.plan.step(claim.held.step).concurrency
        again = partial(scripts.reassert, self.link, held.ref, step=held.step, nonce=claim.nonce)
        if concurrency is None:
            return again()
        run = self.link.keys(self.link.epoch()).run(held.ref)
        try:
            key = cast("str | None", self.link.client.hget(run, fields.key(held.step)))
        except UNREACHABLE as error:
            raise unavailable(error) from error
        return again(key=key, limit=concurrency.limit)

    def _beat(self, epoch: Epoch) -> None:
        live = [claim for claim in self._snapshot() if claim.held.epoch == epoch and claim.awaits is None]
        sure_until = time.monotonic() + scripts.LEASE_MS / 1000
        answer = scripts.beat(self.link, epoch, [claim.member for claim in live])
        self.released = (epoch, answer.released)
        for claim in live:
            if claim.member not in answer.lost:
                claim.sure_until = sure_until
            else:
                self._miss(claim)

    def _miss(self, claim: Claim) -> None:
        """The lease is gone. If the body is settling its outcome at this moment, the board's answer to that decides."""
        with claim.unless_told() as free:
            if free and claim.nonce in self._claims and claim.awaits is None and claim.deliver is None:
                self._lose(claim)

    def _catch_up(self, claim: Claim) -> None:
        with claim.unless_told() as free:
            if not free or self._is_settled(claim):
                return
        if claim.is_overdue(time.monotonic()) and self.expire is not None:
            self.expire(claim)

    def _is_settled(self, claim: Claim) -> bool:
        """Whether nothing is left but to wait: for SQL, or until a board that is away can be told."""
        if claim.awaits is not None and self.released is not None:
            epoch, high_water = self.released
            if claim.held.epoch == epoch and claim.awaits <= high_water:
                self._claims.pop(claim.nonce, None)
        elif claim.deliver is not None or claim.unsaid:
            try:
                self._tell_late(claim)
            except errors.StaleFence as error:
                logger.warning("%s", error)
        else:
            return False
        return True
