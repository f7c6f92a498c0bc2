"""Concurrency keys: steps ask for theirs, leave it, and are rung once it is granted.

Who asks and who leaves is a timer that a decision wrote; what is granted is a timer, too. So all of this may be begun
by whoever comes by, and is ended by the sweeper if that one dies.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, cast

from convergio.graphflow import waiting
from convergio.graphflow.board import fields, scripts, turns
from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.decision import ASK, LEAVE
from convergio.graphflow.engine.claims import AWAY
from convergio.graphflow.engine.found import Found, find
from convergio.graphflow.engine.plans import Plans
from convergio.graphflow.engine.ringer import Ringer
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import BlockedOn
from convergio.graphflow.model.workflow import Step

logger = logging.getLogger(__name__)

AT_ONCE: Final = 100
"""Steps that one script asks for, or that are looked at for being granted; the sweeper goes on with more."""

Timer = tuple[str, str, int | None]


class Limits:
    """Asks, leaves and rings for steps with a concurrency key."""

    def __init__(self, link: Link, plans: Plans, ringer: Ringer) -> None:
        self.link = link
        self.plans = plans
        self.ringer = ringer

    # --- after a decision -----------------------------------------------------------------------------------------

    def follow(self, epoch: Epoch, ref: RunRef, plan: Plan, timers: Sequence[Timer]) -> None:
        """Does what a decision's timers say of concurrency keys. If the board is away the sweeper does it."""
        leaving = [plan.step(step) for step, on, due in timers if on == LEAVE and due is not None]
        asking = [plan.step(step) for step, on, due in timers if on == ASK and due is not None]
        with _left_to_the_sweeper():
            if leaving:
                self._leave(epoch, ref, leaving)
            if asking:
                self._ask(epoch, ref, asking)

    def _leave(self, epoch: Epoch, ref: RunRef, steps: Sequence[Step]) -> None:
        for key, some in self._by_key(epoch, ref, steps).items():
            leaving = [(step.name, _limit(step)) for step, _ in some]
            turns.leave(self.link, epoch, ref, key=key, leaving=leaving)
            self.serve(epoch, ref.tenant, key)

    def _ask(self, epoch: Epoch, ref: RunRef, steps: Sequence[Step]) -> None:
        for key, some in self._by_key(epoch, ref, steps).items():
            asking = [
                scripts.Asking(step=step.name, was=word.text, to=word.text, limit=_limit(step), timer=ASK)
                for step, word in some
                if word.blocked_on is BlockedOn.LIMIT
            ]
            for start in range(0, len(asking), AT_ONCE):
                turns.ask(self.link, epoch, ref, key=key, asking=asking[start : start + AT_ONCE])
            self.serve(epoch, ref.tenant, key)

    def _by_key(
        self, epoch: Epoch, ref: RunRef, steps: Sequence[Step]
    ) -> Mapping[str, Sequence[tuple[Step, fields.Word]]]:
        """The steps and their words, by their key."""
        names = [name for step in steps for name in (fields.key(step.name), fields.state(step.name))]
        values = cast("list[str | None]", self.link.client.hmget(self.link.keys(epoch).run(ref), names))
        found: defaultdict[str, list[tuple[Step, fields.Word]]] = defaultdict(list)
        for step, key, word in zip(steps, values[::2], values[1::2], strict=True):
            if key:
                found[key].append((step, fields.Word.parse(word)))
        return found

    # --- one step -------------------------------------------------------------------------------------------------

    def wait_turn(self, epoch: Epoch, found: Found, *, now_ms: int, timer: str = "") -> None:
        """The step waits for its key from now on, or goes on waiting; `timer` brought it here."""
        word, ref = found.word, found.caller.ref
        ring = f"{epoch.number}.{found.rings}"
        to = word.text if word.blocked_on is BlockedOn.LIMIT else fields.limited(now_ms, ring)
        limit = _limit(found.step)
        asking = scripts.Asking(step=found.step.name, was=word.text, to=to, limit=limit, timer=timer)
        turns.ask(self.link, epoch, ref, key=found.key, asking=[asking])
        self.serve(epoch, ref.tenant, found.key)

    def leave(self, epoch: Epoch, found: Found) -> None:
        """The step needs its key no more."""
        ref = found.caller.ref
        turns.leave(self.link, epoch, ref, key=found.key, leaving=[(found.step.name, _limit(found.step))])
        self.serve(epoch, ref.tenant, found.key)

    def key_of(self, epoch: Epoch, ref: RunRef, step: Step) -> str | None:
        """The step's key as it was when it asked; None for a step without one. Raises BoardUnavailable."""
        if step.concurrency is None:
            return None
        try:
            return cast("str | None", self.link.client.hget(self.link.keys(epoch).run(ref), fields.key(step.name)))
        except UNREACHABLE as error:
            raise unavailable(error) from error

    # --- what is granted ------------------------------------------------------------------------------------------

    def freed(self, epoch: Epoch, tenant: str, key: str | None) -> None:
        """A script has freed a key: rings who has it now. If the board is away the sweeper does it."""
        if key is not None:
            with _left_to_the_sweeper():
                self.serve(epoch, tenant, key)

    def serve(self, epoch: Epoch, tenant: str, key: str) -> None:
        """Rings the steps to which the key was granted, and that nobody has rung yet."""
        keys = self.link.keys(epoch)
        newest = cast("list[str]", self.link.client.zrevrange(keys.holders(tenant, key), 0, AT_ONCE - 1))
        if not newest:
            return
        due = self.link.client.zmscore(keys.timers, [f"{member}/{BlockedOn.LIMIT}" for member in newest])
        for member, at in zip(reversed(newest), reversed(due), strict=True):
            if at is not None:
                self._ring_member(epoch, member)

    def _ring_member(self, epoch: Epoch, member: str) -> None:
        run, step = member.rsplit("/", 1)
        found = find(self.link, self.plans, epoch, RunRef.parse(run), step)
        if found is not None and found.word.blocked_on is BlockedOn.LIMIT:
            self.ring(epoch, found)

    def ring(self, epoch: Epoch, found: Found) -> None:
        """Rings a step to which its key was granted."""
        patience, caller = found.step.queue_timeout, found.caller
        if patience is not None and found.rings == 0:
            # Before it is rung: should we die in between, the timer of a step that is not READY is dropped.
            due = self._now_ms() + round(patience * 1000)
            self.link.client.zadd(
                self.link.keys(epoch).timers, {f"{caller.ref}/{found.step.name}/{waiting.QUEUE}": due}
            )
        self.ringer.again(
            epoch,
            caller,
            found.step,
            was=found.word.text,
            kind="step.rung",
            side="L",
            timer=BlockedOn.LIMIT,
            data={"why": "granted"},
        )

    def _now_ms(self) -> int:
        seconds, micros = self.link.client.time()
        return seconds * 1000 + micros // 1000


@contextmanager
def _left_to_the_sweeper() -> Generator[None]:
    try:
        yield
    except (*AWAY, *UNREACHABLE) as error:
        logger.warning("concurrency keys: %s; the sweeper goes on with it", error)


def _limit(step: Step) -> int:
    assert step.concurrency is not None, "asked only of steps with a concurrency key"
    return step.concurrency.limit
