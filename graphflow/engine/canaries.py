"""Lost, or only queued? One canary doorbell per queue list tells: what was rung before it in that list has been popped.

Steps rung before the canary and still READY with that ring two seconds after it was consumed are lost, and are rung
again at the consuming end. The canary is also the liveness probe of the queue's workers, and the measure of its wait.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final, cast

from convergio.graphflow.board import fields, scripts
from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.board.keys import Epoch, Keys
from convergio.graphflow.engine.bell import CONTINUATION, FRESH, LISTS, QUEUES, Bell, canary_route, route_of
from convergio.graphflow.engine.found import Found
from convergio.graphflow.engine.submission import board_time, wake
from convergio.graphflow.engine.sweeper import BATCH, Sweeper
from convergio.graphflow.model.ids import DEFAULT_TENANT, Nonces, RunRef

logger = logging.getLogger(__name__)

PROOF_MS: Final = 2_000
"""How long after the canary's end a popped doorbell may take to its claim; so much longer after each that was lost."""

EVERY_MS: Final = 1_000
"""Least age of a consumed canary before the next one is pushed."""

UNCLAIMED: Final = 5
"""Doorbells of one step that may get lost in a row, before the step is put in quarantine."""

CANARY_RUN: Final = "canary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """The canary of one queue list. Times in milliseconds of Redis TIME."""

    queue: str
    priority: int
    queue_list: str
    id: str = ""
    pushed_ms: int = 0
    eaten_ms: int | None = None
    rung: int = 0
    """doorbells of the list that nobody has claimed yet"""

    @property
    def probes(self) -> bool:
        """Whether it is pushed though nothing is rung: on the lists of most steps, to see that somebody is there."""
        return self.priority in (CONTINUATION, FRESH)

    def wait_ms(self, now_ms: int) -> int:
        """How long it took from push to consumption, or how long it has waited."""
        return (self.eaten_ms or now_ms) - self.pushed_ms if self.id else 0


class Canaries:
    """Watches the queue lists. `watch` is called once a second by the process that leads."""

    def __init__(self, link: Link, bell: Bell, sweeper: Sweeper, nonces: Nonces) -> None:
        self.link = link
        self.bell = bell
        self.sweeper = sweeper
        self.nonces = nonces

    def watch(self) -> list[Canary]:
        """Rings what is proven lost, and pushes canaries where there is none.

        Raises BoardUnavailable, BoardRebuilding.
        """
        try:
            epoch, now_ms = self.link.epoch(), board_time(self.link)
            seen = self.look(epoch)
            for canary in seen:
                self._watch(epoch, canary, now_ms)
        except UNREACHABLE as error:
            raise unavailable(error) from error
        return seen

    def look(self, epoch: Epoch) -> list[Canary]:
        """The canaries of all lists as they are now."""
        keys, routes = self.link.keys(epoch), [(queue, priority) for queue in QUEUES for priority in LISTS]
        lists = [self.bell.list_of(canary_route(*route)) for route in routes]
        with self.link.client.pipeline(transaction=False) as pipe:
            for queue_list in lists:
                pipe.hgetall(keys.canary(queue_list))
                pipe.zcard(keys.rung(queue_list))
            answers = pipe.execute()
        return [
            Canary(
                queue=queue,
                priority=priority,
                queue_list=queue_list,
                id=values.get("id", ""),
                pushed_ms=int(values.get("pushed", 0)),
                eaten_ms=int(values["eaten"]) if "eaten" in values else None,
                rung=rung,
            )
            for (queue, priority), queue_list, values, rung in zip(
                routes, lists, answers[::2], answers[1::2], strict=True
            )
        ]

    def _watch(self, epoch: Epoch, canary: Canary, now_ms: int) -> None:
        keys = self.link.keys(epoch)
        if canary.eaten_ms is not None and now_ms - canary.eaten_ms < PROOF_MS:
            return
        if canary.eaten_ms is not None:
            self._ring_lost(epoch, keys, canary, now_ms)
        if not canary.id or canary.eaten_ms is not None:
            if canary.rung or (canary.probes and now_ms - canary.pushed_ms > 10 * EVERY_MS):
                self._hatch(epoch, canary)
        elif now_ms - canary.pushed_ms > PROOF_MS and not self.link.client.llen(canary.queue_list):
            self._hatch(epoch, canary)  # the list is empty and nobody reported it: this canary got lost itself

    def _hatch(self, epoch: Epoch, canary: Canary) -> None:
        name = self.nonces.next()
        content = self.bell.render(
            canary_route(canary.queue, canary.priority),
            tenant=DEFAULT_TENANT,
            submitter="convergio",
            run=CANARY_RUN,
            step=canary.queue_list,
            ring=name,
            label=f"canary/{canary.queue}",
        )
        scripts.hatch(
            self.link, epoch, queue_list=canary.queue_list, canary=name, instead_of=canary.id, content=content
        )

    def _ring_lost(self, epoch: Epoch, keys: Keys, canary: Canary, now_ms: int) -> None:
        """What was rung before the consumed canary was pushed, and is still unclaimed.

        A machine that is slow is not to lose its steps: each ring waits longer than the one before it, and has the
        name of the first, whose doorbell may yet come.
        """
        key = keys.rung(canary.queue_list)
        lost = self.link.client.zrangebyscore(
            key, "-inf", f"({canary.pushed_ms}", start=0, num=BATCH, withscores=True, score_cast_func=int
        )
        for member, rung_ms in cast("list[tuple[str, int]]", lost):
            tenant, run, step, ring = member.split("/")
            ref = RunRef(tenant=tenant, run=run)
            found = self.sweeper.find(epoch, ref, step)
            if found is None or found.word.text != fields.ready(ring):
                self.link.client.zrem(key, member)
                continue
            unclaimed = found.unclaimed + 1
            if now_ms - rung_ms < PROOF_MS * unclaimed:
                continue
            if unclaimed >= UNCLAIMED:
                reason = f"{unclaimed} doorbells in a row were taken by a worker that died before it claimed the step"
                entry = {"t": "quarantine", "step": step, "was": found.word.text, "reason": reason}
                wake(self.link, self.sweeper.drain, self.nonces, ref, entry)
                continue
            logger.warning("doorbell %s got lost: rung again", member)
            self.sweeper.repairs["rerung"] = self.sweeper.repairs.get("rerung", 0) + 1
            self._ring_again(epoch, found, unclaimed)
            if self._list_again(found) != canary.queue_list:
                self.link.client.zrem(key, member)  # it waits in the other list now

    def _ring_again(self, epoch: Epoch, found: Found, unclaimed: int) -> None:
        self.sweeper.ringer.again(
            epoch,
            found.caller,
            found.step,
            was=found.word.text,
            kind="step.rung",
            sets={fields.unclaimed(found.step.name): str(unclaimed)},
            data={"why": "lost"},
            same=True,
        )

    def _list_again(self, found: Found) -> str:
        return self.bell.list_of(route_of(found.step, priority=found.caller.priority, fresh=False))
