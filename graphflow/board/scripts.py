"""One typed function per Lua script.

What a script may answer is a type of `messages`; REBUILD is an exception (BoardRebuilding).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

from convergio.graphflow.board.connection import Call, Link, another_journal
from convergio.graphflow.board.keys import Epoch, Keys
from convergio.graphflow.board.messages import (
    Asking,
    Batch,
    Beat,
    Claimed,
    Doorbell,
    Following,
    Locked,
    Next,
    Parked,
    Refused,
    Ringing,
    Taken,
)
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef

__all__ = [
    "Asking", "Batch", "Beat", "Claimed", "Doorbell", "Following", "Locked", "Next", "Parked", "Refused",
    "Ringing", "Taken",
]  # fmt: skip

LEASE_MS: Final = 6_000
LOCK_MS: Final = 2_000


def claim(
    link: Link, ref: RunRef, *, step: str, ring: str, nonce: str, queue_list: str, worker: str, lease_ms: int = LEASE_MS
) -> Claimed | Refused:
    """CLAIM: take the step that this doorbell rang for."""
    epoch = link.epoch()
    keys = link.keys(epoch)
    names = [keys.epoch, keys.run(ref), keys.leases, keys.rung(queue_list), keys.feed(ref)]
    args = [epoch.number, step, ring, nonce, lease_ms, str(ref), worker]
    return _granted(link.call("claim", epoch, names, args), epoch, ref, step)


def _granted(answer: Sequence[Any], epoch: Epoch, ref: RunRef, step: str) -> Claimed | Refused:
    if answer[0] != "OK":
        return Refused(why=answer[0], state=answer[1] if len(answer) > 1 else "")
    _, fence, at, attempt, deliveries, meta, given, records, references, *outputs = answer
    return Claimed(
        epoch=epoch,
        ref=ref,
        step=step,
        fence=fence,
        at_ms=int(at),
        attempt=int(attempt),
        deliveries=int(deliveries),
        meta=_meta(meta),
        input=json.loads(given),
        records=parse_records(records),
        outputs={name: json.loads(text or "null") for name, text in zip(references.split(), outputs, strict=True)},
    )


@lru_cache(maxsize=1024)
def _meta(text: str) -> Mapping[str, Any]:
    """What is the same for all steps of a run is read once. Nobody writes to it."""
    facts: Mapping[str, Any] = json.loads(text)
    return facts


def parse_records(text: str) -> dict[str, Any]:
    """Recorded facts, a line each: key, tab, JSON. The first of a key counts."""
    facts: dict[str, Any] = {}
    for line in text.split("\n"):
        key, found, value = line.partition("\t")
        if found:
            facts.setdefault(key, json.loads(value))
    return facts


def beat(link: Link, epoch: Epoch, members: Sequence[str], *, lease_ms: int = LEASE_MS) -> Beat:
    """BEAT: prolong the leases of this process (members: tenant/run/step/fence)."""
    keys = link.keys(epoch)
    answer = link.call("beat", epoch, [keys.epoch, keys.leases, keys.released], [lease_ms, *members])
    return Beat(at_ms=int(answer[1]), released=int(answer[2]), lost=frozenset(answer[3:]))


def arrive(
    link: Link,
    held: Claimed,
    *,
    state: str,
    output: str,
    outcome: str,
    durable: bool,
    token: str,
    wanted: Sequence[str],
    then: Next | None = None,
    key: str | None = None,
) -> Locked | Parked | None:
    """ARRIVE: record the outcome, and, if asked to, TAKE `then` the next doorbell in the same move. `key`: the step's
    concurrency key, which it needs no more.

    None: somebody else drains the inbox. Raises StaleFence if the claim is not the owner.
    """
    epoch, ref = held.epoch, held.ref
    keys = link.keys(epoch)
    names = [keys.epoch, keys.run(ref), keys.leases, keys.inbox(ref), keys.inboxes, keys.journal, keys.feed(ref)]
    args = [epoch.number, held.step, held.fence, str(ref), held.submitter, state, output, outcome]
    args += ["step" if durable else "stream", token, LOCK_MS, *wanted]
    names += [keys.parked, keys.nudge, *([keys.timers, *keys.limit(ref.tenant, key)] if key is not None else [])]
    answer = _told(link, epoch, Call("arrive", names, args), then)
    if answer[0] == "PARKED":
        return Parked(sequence=int(answer[1]))
    _refuse(answer, held)
    return lock_of(answer, epoch, ref, token, wanted)


def complete(
    link: Link,
    held: Claimed,
    *,
    output: str,
    outcome: str,
    following: Sequence[Following],
    token: str,
    wanted: Sequence[str],
    then: Next | None = None,
) -> Locked | None:
    """COMPLETE: record a success and, if nothing contends, its consequences with it.

    If asked to, TAKE `then` the next doorbell in the same move.

    None: nothing is left to do here. Locked: it came to what ARRIVE does, and the inbox is ours to drain. Raises
    StaleFence if the claim is not the owner.
    """
    epoch, ref = held.epoch, held.ref
    keys = link.keys(epoch)
    names = [keys.epoch, keys.run(ref), keys.leases, keys.inbox(ref), keys.inboxes, keys.journal, keys.feed(ref)]
    order = _numbered(one.bell.queue_list for one in following if one.bell is not None)
    for name in order:
        names += [name, keys.rung(name)]
    args: list[Any] = [epoch.number, held.step, held.fence, str(ref), held.submitter, output, outcome, token, LOCK_MS]
    args.append(len(following))
    for one in following:
        bell = one.bell
        rings = ("", "", "") if bell is None else (order[bell.queue_list], bell.ring, bell.content)
        args += [one.step, one.edges, " ".join(one.references), *rings]
    answer = _told(link, epoch, Call("complete", names, [*args, *wanted]), then)
    _refuse(answer, held)
    return lock_of(answer, epoch, ref, token, wanted)


def _told(link: Link, epoch: Epoch, call: Call, then: Next | None) -> list[Any]:
    """What a script answers; `then` has the next doorbell, if it asks for one and there is one."""
    if then is None:
        return link.call(call.name, epoch, call.keys, call.args)
    keys = link.keys(epoch)
    args = [epoch.number, keys.live, then.nonce, LEASE_MS, then.worker, len(then.rivals)]
    take = Call("take", [keys.epoch, keys.leases, *then.rivals, *then.lists], args)
    answer, taken = link.call_both(epoch, call, take)
    if taken and taken[0] == "TAKEN":
        then.taken(_taken(taken, epoch))
    return answer


def _taken(answer: Sequence[Any], epoch: Epoch) -> Taken:
    queue_list, message, *doorbell = answer[1:]
    if not doorbell:
        return Taken(queue_list=queue_list, message=message)
    tenant, run, step, ring, claim = doorbell
    ref = RunRef(tenant=tenant, run=run)
    granted = _granted(claim, epoch, ref, step)
    return Taken(queue_list=queue_list, message=message, ref=ref, step=step, ring=ring, claim=granted)


def _numbered(lists: Iterable[str]) -> dict[str, int]:
    """Queue lists, each once, counted from 1: scripts name a list by its number among their keys."""
    return {name: number for number, name in enumerate(sorted(set(lists)), start=1)}


def _refuse(answer: Sequence[Any], held: Claimed) -> None:
    if answer[0] in ("FENCED", "GONE"):
        raise errors.StaleFence(run=held.ref.run, step=held.step, now=answer[1] if len(answer) > 1 else "gone")


def lock_of(answer: Sequence[Any], epoch: Epoch, ref: RunRef, token: str, wanted: Sequence[str]) -> Locked | None:
    """The run's lock, if that is what a script has answered."""
    if answer[0] != "LOCKED":
        return None
    entries = [json.loads(text) for text in answer[1]]
    values = dict(zip(wanted, answer[2], strict=True))
    return Locked(epoch=epoch, ref=ref, token=token, at_ms=int(answer[3]), entries=entries, values=values)


def post(link: Link, ref: RunRef, *, entry: str, token: str, wanted: Sequence[str] = ()) -> Locked | None:
    """POST: put `entry` in the run's inbox ("" = only take the lock).

    Raises UnknownRun if the run is not on the board.
    """
    epoch = link.epoch()
    call = posting(link.keys(epoch), ref, entry=entry, token=token, wanted=wanted)
    answer = link.call(call.name, epoch, call.keys, call.args)
    if answer[0] == "GONE":
        raise errors.UnknownRun(f"run {ref.run} is not on the board", hint="it ended, or was never started")
    return lock_of(answer, epoch, ref, token, wanted)


def posting(keys: Keys, ref: RunRef, *, entry: str, token: str, wanted: Sequence[str]) -> Call:
    """POST as a call, for who makes it together with another one."""
    names = [keys.epoch, keys.run(ref), keys.inbox(ref), keys.inboxes]
    return Call("post", names, [str(ref), entry, token, LOCK_MS, *wanted])


def commit(link: Link, locked: Locked, *, submitter: str, batch: Batch) -> list[Mapping[str, Any]] | None:
    """COMMIT: write a decision.

    The entries that are left (then the lock is kept), or None if the decision was overtaken.
    """
    call = _commit(link.keys(locked.epoch), locked.epoch, locked.ref, locked.token, submitter, batch)
    return _left(link.call(call.name, locked.epoch, call.keys, call.args))


def _commit(keys: Keys, epoch: Epoch, ref: RunRef, token: str, submitter: str, batch: Batch) -> Call:
    order = _numbered(bell.queue_list for bell in batch.bells)
    names = [keys.epoch, keys.run(ref), keys.inbox(ref), keys.inboxes, keys.timers, keys.leases, keys.journal]
    names += [keys.feed(ref), keys.parked, keys.nudge]
    for name in order:
        names += [name, keys.rung(name)]
    args: list[Any] = [epoch.number, token, LOCK_MS, str(ref), submitter, batch.consumed, secrets.token_hex(8)]
    args += [len(batch.writes), *_flat(batch.writes), len(batch.posts), *batch.posts]
    args += [len(batch.leases), *(f"{ref}/{lease}" for lease in batch.leases)]
    args += [len(batch.timers), *_flat((f"{ref}/{timer}", due) for timer, due in batch.timers)]
    args.append(len(batch.bells))
    for bell in batch.bells:
        side, by = ("R", bell.side) if bell.beside else (bell.side, "")
        args += [order[bell.queue_list], side, bell.content, by, bell.beside, f"{ref}/{bell.step}/{bell.ring}"]
    args += [len(batch.events), *_flat(batch.events)]
    return Call("commit", names, args)


def _left(answer: Sequence[Any]) -> list[Mapping[str, Any]] | None:
    return [json.loads(text) for text in answer[1]] if answer[0] == "OK" else None


def _flat(rows: Iterable[Sequence[Any]]) -> Iterable[Any]:
    return (value for row in rows for value in row)


def start(
    link: Link,
    ref: RunRef,
    *,
    not_after_ms: int | None,
    submitter: str,
    digest: str,
    plan: str,
    meta: str,
    given: str,
    size: int,
    control: int,
    token: str,
    wanted: Sequence[str],
    known: bool = False,
    first: Batch | None = None,
) -> Locked | None:
    """START: put an accepted run on the board. None: it is there already. Raises SubmitTooLate after `not_after_ms`.

    `known`: the board probably has the definition. `first`: the first decision, to COMMIT in the same move; then the
    entries are those that are left, perhaps none.
    """
    epoch = link.epoch()
    keys = link.keys(epoch)
    names = [keys.epoch, keys.run(ref), keys.runs, keys.plan(digest), keys.journal, keys.feed(ref)]
    names += [keys.inbox(ref), keys.inboxes]
    then = None if first is None else _commit(keys, epoch, ref, token, submitter, first)
    answer, committed = ["NOPLAN"], list[Any]()
    for text in ("", plan) if known else (plan,):
        args = [epoch.number, "" if not_after_ms is None else not_after_ms, str(ref), submitter, text, meta, given]
        call = Call("start", names, [*args, size, control, token, LOCK_MS, *wanted])
        answer, committed = link.call_both(epoch, call, then)
        if answer[0] != "NOPLAN":
            break
    if answer[0] == "LATE":
        raise errors.SubmitTooLate(run=ref.run)
    locked, left = lock_of(answer, epoch, ref, token, wanted), _left(committed) if committed else None
    return locked if locked is None or left is None else replace(locked, entries=left, values={})


def park(
    link: Link,
    held: Claimed,
    *,
    on: str,
    delay_ms: int | None,
    attempt: int,
    kind: str,
    data: str,
    detail: str = "",
    look_back: str = "",
    key: str | None = None,
) -> bool:
    """PARK: let the step wait without a slot, and without its concurrency `key`.

    True: the signal it waits for is in the inbox already.
    """
    epoch, ref = held.epoch, held.ref
    keys = link.keys(epoch)
    names = [keys.epoch, keys.run(ref), keys.leases, keys.timers, keys.inbox(ref), keys.inboxes, keys.journal]
    args = [epoch.number, held.step, held.fence, str(ref), held.submitter, on, "" if delay_ms is None else delay_ms]
    args += [attempt, kind, data, detail, look_back]
    names += [keys.feed(ref), keys.nudge, *keys.limit(ref.tenant, key)]
    answer = link.call("park", epoch, names, args)
    _refuse(answer, held)
    return bool(answer[0] == "SIGNALLED")


def decline(link: Link, held: Claimed, *, delay_ms: int, data: str) -> None:
    """DECLINE: give a step back that this worker cannot do; it is rung again after the delay. Raises StaleFence."""
    epoch, ref = held.epoch, held.ref
    keys = link.keys(epoch)
    names = [keys.epoch, keys.run(ref), keys.leases, keys.held, keys.feed(ref)]
    args = [epoch.number, held.step, held.fence, str(ref), delay_ms, data]
    _refuse(link.call("decline", epoch, names, args), held)


def ring(link: Link, epoch: Epoch, ref: RunRef, *, submitter: str, ringing: Ringing) -> bool:
    """RING: make a step READY again and push its doorbell. False: it was not in the state named any more."""
    keys = link.keys(epoch)
    bell = ringing.bell
    names = [keys.epoch, keys.run(ref), keys.leases, keys.timers, keys.held, bell.queue_list]
    names += [keys.rung(bell.queue_list), keys.journal, keys.feed(ref)]
    args: list[Any] = [
        epoch.number,
        bell.step,
        ringing.was,
        bell.ring,
        ringing.count,
        bell.side,
        bell.content,
        str(ref),
    ]
    args += [submitter, f"{ref}/{bell.step}/{ringing.lease}" if ringing.lease else ""]
    args += ["1" if ringing.lease_must_be_over else "", f"{ref}/{bell.step}/{ringing.timer}" if ringing.timer else ""]
    args += [ringing.kind, ringing.data, *_flat(ringing.sets.items())]
    return bool(link.call("ring", epoch, names, args)[0] == "OK")


def reassert(
    link: Link,
    ref: RunRef,
    *,
    step: str,
    nonce: str,
    lease_ms: int = LEASE_MS,
    key: str | None = None,
    limit: int | None = None,
) -> tuple[Epoch, str]:
    """REASSERT after a rebuild; the epoch and new fence of a body that still runs. `key`, `limit`: its concurrency key.

    Raises StaleFence.
    """
    epoch = link.epoch()
    keys = link.keys(epoch)
    names = [keys.epoch, keys.run(ref), keys.leases, keys.held, *keys.limit(ref.tenant, key)]
    args = [step, nonce, lease_ms, f"{ref}/{step}", "" if limit is None else limit]
    answer = link.call("reassert", epoch, names, args)
    if answer[0] != "OK":
        raise errors.StaleFence(run=ref.run, step=step, now=answer[1] if len(answer) > 1 else "gone")
    return epoch, answer[1]


def record(link: Link, held: Claimed, *, key: str, value: str) -> int:
    """RECORD a fact; its stream sequence. Raises StaleFence."""
    epoch, ref = held.epoch, held.ref
    keys = link.keys(epoch)
    names = [keys.epoch, keys.run(ref), keys.journal, keys.feed(ref)]
    args = [epoch.number, held.step, held.fence, str(ref), held.submitter, key, value]
    answer = link.call("record", epoch, names, args)
    _refuse(answer, held)
    return int(answer[1])


def begin(link: Link, epoch: Epoch, *, adopt: bool = False) -> bool:
    """A board of `epoch` is being made: no older one serves from now on. False: a later one is there, or was begun.

    It belongs to the link's journal. Raises AnotherJournal if it was another one's, unless we `adopt` it.
    """
    keys, journal = link.keys(epoch), link.journal or ""
    names = [keys.epoch, keys.rebuilding, keys.owner]
    answer = link.call("begin", epoch, names, [epoch.number, journal, int(adopt)])
    if answer[0] == "OTHER":
        raise another_journal(answer[1], journal)
    return bool(answer[0] == "OK")


def publish(link: Link, epoch: Epoch) -> bool:
    """Make `epoch` the board. False: the server was wiped since `begin`, or a later board was begun."""
    keys = link.keys(epoch)
    return bool(link.call("publish", epoch, [keys.epoch, keys.rebuilding], [epoch.number])[0] == "OK")


def eat(link: Link, *, queue_list: str, canary: str) -> bool:
    """A canary was consumed. False: it was not the list's current one."""
    epoch = link.epoch()
    keys = link.keys(epoch)
    return bool(link.call("eat", epoch, [keys.epoch, keys.canary(queue_list)], [canary])[0] == "OK")


def hatch(link: Link, epoch: Epoch, *, queue_list: str, canary: str, instead_of: str, content: bytes) -> bool:
    """Push a new canary at the producing end of a list. False: somebody else did."""
    keys = link.keys(epoch)
    names = [keys.epoch, keys.canary(queue_list), queue_list]
    return bool(link.call("hatch", epoch, names, [canary, instead_of, content])[0] == "OK")
