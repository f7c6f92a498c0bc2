"""A published board, and one process that plays with it: runs in chosen states, and all that is written anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

from convergio.graphflow.board import fields, releasing, scripts
from convergio.graphflow.board.connection import Link
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.board.messages import Waiting
from convergio.graphflow.model.ids import Nonces, RunRef

LIST: Final = "queue"
"""The queue list that doorbells of these tests go to."""

NEXT: Final = "next"
"""The queue list from which the next doorbell is taken in these tests."""

META: Final = '{"workflow":"demo","digest":"digest","submitter":"ann"}'
TIMES: Final = re.compile(r"\b1[6-9]\d{11}\b")


@dataclass(kw_only=True)
class Stage:
    """One process that plays with the board. `nonces` names its claims and locks."""

    link: Link
    nonces: Nonces = field(default_factory=Nonces)

    @property
    def client(self) -> Any:
        """The server itself. redis-py types its answers for every mode it has; here they are text."""
        return self.link.client

    @property
    def epoch(self) -> Epoch:
        return self.link.epoch()

    def key(self, ref: RunRef) -> str:
        """The run's hash."""
        return self.link.keys(self.epoch).run(ref)

    def now_ms(self) -> int:
        """Redis TIME."""
        seconds, micros = self.client.time()
        return int(seconds) * 1000 + int(micros) // 1000

    # --- what is there ----------------------------------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """Every key with its whole value, by name. What is made aside is nobody's yet, and expires by itself."""
        names = [name for name in sorted(self.client.scan_iter(count=1000)) if ":made:" not in name]
        return {name: self._value(name) for name in names}

    def _value(self, name: str) -> Any:
        client = self.client
        match client.type(name):
            case "string":
                return client.get(name)
            case "hash":
                return client.hgetall(name)
            case "list":
                return client.lrange(name, 0, -1)
            case "zset":
                return self.scores(name)
            case "stream":
                return client.xrange(name)
            case other:
                raise AssertionError(f"{name} is a {other}")

    def lasting(self) -> list[str]:
        """Keys that have no TTL."""
        return [name for name in self.client.scan_iter() if self.client.pttl(name) == -1]

    def word(self, ref: RunRef, step: str) -> str:
        """The step's state as the board writes it."""
        return self.client.hget(self.key(ref), fields.state(step)) or ""

    def values(self, ref: RunRef) -> dict[str, str]:
        """The run's hash."""
        return dict(self.client.hgetall(self.key(ref)))

    def inbox(self, ref: RunRef) -> list[str]:
        return list(self.client.lrange(self.link.keys(self.epoch).inbox(ref), 0, -1))

    def leases(self) -> dict[str, float]:
        return self.scores(self.link.keys(self.epoch).leases)

    def scores(self, key: str) -> dict[str, float]:
        """A sorted set."""
        return dict(self.client.zrange(key, 0, -1, withscores=True))

    def journaled(self) -> list[tuple[str, dict[str, str]]]:
        """The journal's stream."""
        return list(self.client.xrange(self.link.keys(self.epoch).journal))

    def feed(self, ref: RunRef) -> list[tuple[str, dict[str, str]]]:
        """What the run's readers are told."""
        return list(self.client.xrange(self.link.keys(self.epoch).feed(ref)))

    # --- how it got there -------------------------------------------------------------------------------------------

    def start(
        self,
        name: str = "r1",
        *,
        size: int = 3,
        wanted: Sequence[str] = (),
        known: bool = False,
        first: scripts.Batch | None = None,
    ) -> scripts.Locked | None:
        """START as the submitter does it."""
        return scripts.start(
            self.link,
            run_ref(name),
            not_after_ms=None,
            submitter="ann",
            digest="digest",
            plan="{}",
            meta=META,
            given='{"n":1}',
            size=size,
            control=0,
            token=self.nonces.next(),
            wanted=wanted,
            known=known,
            first=first,
        )

    def begun(self, name: str = "r1") -> RunRef:
        """A run on the board whose start was decided: its inbox is empty."""
        locked = self.start(name)
        assert locked is not None
        assert scripts.commit(self.link, locked, submitter="ann", batch=scripts.Batch(consumed=1)) == []
        return locked.ref

    def lock(self, ref: RunRef, entry: str = '{"t":"x"}', wanted: Sequence[str] = ()) -> scripts.Locked:
        """The run's lock, by an entry put in its inbox."""
        locked = scripts.post(self.link, ref, entry=entry, token=self.nonces.next(), wanted=wanted)
        assert locked is not None
        return locked

    def decided(self, ref: RunRef, **batch: Any) -> None:
        """One COMMIT that is not overtaken."""
        locked = self.lock(ref)
        made = scripts.Batch(consumed=len(locked.entries), **batch)
        assert scripts.commit(self.link, locked, submitter="ann", batch=made) == []

    def ready(self, ref: RunRef, step: str = "a") -> str:
        """The step becomes READY; its ring."""
        ring = f"{self.epoch.number}.1"
        bell = doorbell(step, ring)
        writes = [(fields.state(step), "", fields.ready(ring)), (fields.rings(step), "", "1")]
        self.decided(ref, writes=writes, bells=[bell], events=[("step.ready", step, "", "", "{}")])
        return ring

    def claim(self, ref: RunRef, step: str, ring: str, *, nonce: str | None = None, lease_ms: int = 6_000) -> Any:
        """CLAIM as a worker does it."""
        return scripts.claim(
            self.link,
            ref,
            step=step,
            ring=ring,
            nonce=nonce or self.nonces.next(),
            queue_list=LIST,
            worker="w1",
            lease_ms=lease_ms,
        )

    def running(self, ref: RunRef, step: str = "a", *, lease_ms: int = 6_000) -> scripts.Claimed:
        """The step is RUNNING in this process's hands."""
        held = self.claim(ref, step, self.ready(ref, step), lease_ms=lease_ms)
        assert isinstance(held, scripts.Claimed)
        return held

    def rung(self, name: str = "r2", *, step: str = "a", queue_list: str = NEXT) -> RunRef:
        """Another run, whose step is READY: its doorbell waits in a list, as a message that a worker can read."""
        ref, ring = self.begun(name), f"{self.epoch.number}.1"
        bell = doorbell(step, ring, queue_list=queue_list, ref=ref)
        writes = [(fields.state(step), "", fields.ready(ring)), (fields.rings(step), "", "1")]
        self.decided(ref, writes=writes, bells=[bell], events=[("step.ready", step, "", "", "{}")])
        return ref

    def next(self, *lists: str, nonce: str = "") -> tuple[scripts.Next, list[scripts.Taken]]:
        """What a worker wants besides, and what it will have been given."""
        taken: list[scripts.Taken] = []
        wanted = scripts.Next(
            lists=lists or (NEXT,), nonce=nonce or self.nonces.next(), worker="w1", taken=taken.append
        )
        return wanted, taken

    def rung_again(self, held: scripts.Claimed) -> str:
        """The claim's step is taken out of its hands and rung again; the new ring."""
        ring = f"{held.epoch.number}.2"
        assert scripts.ring(self.link, held.epoch, held.ref, submitter="ann", ringing=ringing(held, ring))
        return ring

    def arrive(
        self,
        held: scripts.Claimed,
        *,
        state: str = "SUCCEEDED",
        durable: bool = False,
        token: str = "",
        then: scripts.Next | None = None,
        key: str | None = None,
    ) -> scripts.Locked | scripts.Parked | None:
        """ARRIVE as a worker does it."""
        return scripts.arrive(
            self.link,
            held,
            state=state,
            output='{"x":1}',
            outcome='{"output":{"x":1}}',
            durable=durable,
            token=token or self.nonces.next(),
            wanted=[fields.state(held.step), "@open", "absent"],
            then=then,
            key=key,
        )

    def complete(
        self,
        held: scripts.Claimed,
        following: Sequence[scripts.Following] = (),
        *,
        token: str = "",
        then: scripts.Next | None = None,
    ) -> scripts.Locked | None:
        """COMPLETE as a worker does it."""
        return scripts.complete(
            self.link,
            held,
            output='{"x":1}',
            outcome='{"output":{"x":1}}',
            following=following,
            token=token or self.nonces.next(),
            wanted=[fields.state(held.step), "@open", "absent"],
            then=then,
        )

    def park(
        self,
        held: scripts.Claimed,
        *,
        on: str = "RETRY",
        delay_ms: int | None = 1_000,
        look_back: str = "",
        key: str | None = None,
    ) -> bool:
        """PARK as a worker does it."""
        return scripts.park(
            self.link,
            held,
            on=on,
            delay_ms=delay_ms,
            attempt=2,
            kind="step.retry",
            data='{"seconds":1}',
            detail="E",
            look_back=look_back,
            key=key,
        )

    def parked(self, ref: RunRef, step: str = "a") -> int:
        """An outcome that waits for the journal; its stream sequence."""
        answer = self.arrive(self.running(ref, step), durable=True)
        assert isinstance(answer, scripts.Parked)
        return answer.sequence

    def release(self, ref: RunRef, *steps: str, up_to: int) -> tuple[int, str]:
        """RELEASE as the journaler does it."""
        return released(self.link, self.epoch, ref, steps, grace_ms=60_000, high_water=up_to)


def released(
    link: Link, epoch: Epoch, ref: RunRef, steps: Sequence[str], *, grace_ms: int, high_water: int
) -> tuple[int, str]:
    """RELEASE of one run, whose inbox is left alone: how many outcomes went on, and the state that it ended in."""
    waiting = [Waiting(ref=ref, steps=steps)]
    (moved,) = releasing.release(link, epoch, waiting, grace_ms=grace_ms, high_water=high_water)
    return moved.outcomes, moved.ended


def run_ref(name: str = "r1") -> RunRef:
    return RunRef(tenant="default", run=name)


def doorbell(
    step: str, ring: str, side: str = "L", *, queue_list: str = LIST, ref: RunRef | None = None
) -> scripts.Doorbell:
    """For the run `ref` it is a message; without one it is a text that only looks different from others."""
    text = f"ding-{step}-{ring}" if ref is None else message(f"{ref.run}.{step}.{ring}", tenant=ref.tenant)
    return scripts.Doorbell(queue_list=queue_list, side=side, content=text.encode(), step=step, ring=ring)


def message(task_id: str, *, compact: bool = True, **headers: str) -> str:
    """A Celery message as kombu writes it; without spaces it is as the bell does."""
    known = {"lang": "py", "task": "convergio.step", "id": task_id, "shadow": "demo/step", "root_id": "r0"}
    whole: dict[str, Any] = {"body": "W10=", "headers": known | headers, "properties": {"correlation_id": task_id}}
    return json.dumps(whole, separators=(",", ":") if compact else None)


def rung_next(step: str, *references: str) -> scripts.Following:
    """A step whose only edge comes from the one that succeeds: it becomes READY by its first doorbell."""
    return scripts.Following(step=step, edges=1, references=references, bell=doorbell(step, "1.1"))


def joined(step: str, edges: int) -> scripts.Following:
    """A join of so many edges, one of which is taken now."""
    return scripts.Following(step=step, edges=edges, references=("a",))


def ringing(held: scripts.Claimed, ring: str, **more: Any) -> scripts.Ringing:
    """A claimed step is rung again."""
    count = int(ring.rsplit(".", 1)[1])
    was, bell = fields.running(held.fence), doorbell(held.step, ring, side="R")
    return scripts.Ringing(was=was, bell=bell, count=count, kind="step.rung", lease=held.fence, **more)


def timeless(dump: Any) -> Any:
    """A dump without the times in it: what two boards with the same history have in common."""
    if isinstance(dump, dict):
        return {_untimed(name): timeless(value) for name, value in cast("dict[str, Any]", dump).items()}
    if isinstance(dump, list | tuple):
        return [timeless(value) for value in cast("list[Any]", dump)]
    if isinstance(dump, float):
        return "T" if dump > 1e12 else dump
    return _untimed(dump) if isinstance(dump, str) else dump


def _untimed(text: str) -> str:
    return TIMES.sub("T", text)


def published(link: Link, epoch: Epoch) -> bool:
    """An empty board of `epoch`, made as a rebuild makes one; whether it is the board now."""
    return scripts.begin(link, epoch) and scripts.publish(link, epoch)


@contextmanager
def stage_on(url: str, number: int = 1) -> Generator[Stage]:
    """A stage on the server at `url`, with epoch `number` published."""
    link = Link(url)
    try:
        assert published(link, Epoch(number=number, server=link.server()))
        yield Stage(link=link)
    finally:
        link.close()
