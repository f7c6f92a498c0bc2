"""Draining a run's inbox (flat combining).

Whoever holds the run's lock decides on everything in it; nobody waits for the lock.
"""

from __future__ import annotations

import dataclasses
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, cast

from convergio.graphflow import decide
from convergio.graphflow.board import fields, scripts
from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.decision import START, Decision, Event, Unloaded, View
from convergio.graphflow.engine.beginnings import Beginnings
from convergio.graphflow.engine.bell import Caller
from convergio.graphflow.engine.limits import Limits
from convergio.graphflow.engine.placing import Placing
from convergio.graphflow.engine.plans import Plans
from convergio.graphflow.engine.ringer import Ringer
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.journal.blobs import Blobs
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef

KNOWN: Final = 4_096
"""Runs of which a process remembers what they are made of."""

FORESEEN: Final = 50
"""Arrivals whose fields are read with the run's lock, at most."""


class Drain:
    """Decides and commits until the inbox is empty, or until somebody else holds the lock."""

    def __init__(self, link: Link, plans: Plans, ringer: Ringer, blobs: Blobs | None = None) -> None:
        """`blobs`: where large values are that a decision has to look into, and where it leaves those that it makes."""
        self.blobs = blobs
        self.link = link
        self.plans = plans
        self.ringer = ringer
        self.limits = Limits(link, plans, ringer)
        self.placing = Placing(link, ringer)
        self.beginnings = Beginnings()
        self._digests: OrderedDict[RunRef, str] = OrderedDict()

    def ahead(self, ref: RunRef, arrived: Sequence[str]) -> list[str]:
        """The fields that draining a run will need when these steps have arrived: read together with its lock, they
        save round trips. A run that was never drained here is not known that well."""
        digest = self._digests.get(ref)
        plan = None if digest is None or len(arrived) > FORESEEN else self.plans.known(digest)
        return list(dict.fromkeys([fields.META, *([] if plan is None else _probably(plan, arrived))]))

    def run(self, locked: scripts.Locked, meta: Mapping[str, Any] | None = None, *, blank: bool = False) -> None:
        """Drains the run whose lock is held.

        `meta` is the run's @meta, if the caller has it; `blank`: it was just made.
        """
        meta = meta or self.meta(locked)
        caller = Caller.of(locked.ref, meta)
        plan = self.plans.get(meta["digest"])
        self._remember(locked.ref, meta["digest"])
        turn: scripts.Locked | None = locked
        view = View(dict(locked.values), blank=blank)
        while turn is not None:
            decision = self._decide(turn, plan, view)
            keep(self.blobs, locked.ref.tenant, decision.blobs)
            left = scripts.commit(
                self.link, turn, submitter=caller.submitter, batch=self._batch(decision, plan, caller)
            )
            if left is not None:
                self.limits.follow(turn.epoch, turn.ref, plan, decision.timers)
            if left is None:
                turn = scripts.post(self.link, turn.ref, entry="", token=turn.token)
            else:
                turn = _next(turn, left) if left else None
            # Workers write states without the lock: what was read for other entries may be old. Large values never are.
            view = View({}, blobs=view.blobs, lists=view.lists)

    def first(
        self, ref: RunRef, meta: Mapping[str, Any], plan: Plan, values: Mapping[str, str]
    ) -> scripts.Batch | None:
        """The first decision on a run that has nothing but these fields, to be committed by the script that starts it.

        None: it depends on the time or on what is elsewhere, and is made under the run's lock.
        """
        number = self.link.epoch().number
        made = self.beginnings.decision(plan, values, epoch=number)
        return None if made is None else self._batch(made, plan, Caller.of(ref, meta))

    def meta(self, locked: scripts.Locked) -> Mapping[str, Any]:
        """The run's @meta, from the board."""
        text = locked.values.get(fields.META) or self._load(locked, [])[fields.META]
        return cast("Mapping[str, Any]", json.loads(text))

    def _remember(self, ref: RunRef, digest: str) -> None:
        self._digests[ref] = digest
        with suppress(KeyError):  # another thread drains, too
            self._digests.move_to_end(ref)
            while len(self._digests) > KNOWN:
                self._digests.popitem(last=False)

    def _decide(self, locked: scripts.Locked, plan: Plan, view: View) -> Decision:
        while True:
            try:
                return decide.decide(plan, view, locked.entries, epoch=locked.epoch.number, now_ms=locked.at_ms)
            except Unloaded as missing:
                for digest in missing.blobs:
                    view.blobs[digest] = opened(self.blobs, locked.ref.tenant, digest)
                if missing.everything:
                    view.values.update(self._states(locked))
                    view.complete = True
                elif missing.names:
                    names = {*missing.names, *_probably(plan, _arrivals(locked.entries))} - view.values.keys()
                    view.values.update(self._load(locked, sorted(names)))

    def _load(self, locked: scripts.Locked, names: Sequence[str]) -> dict[str, str]:
        run = self.link.keys(locked.epoch).run(locked.ref)
        try:
            meta, *values = cast("list[str | None]", self.link.client.hmget(run, [fields.META, *names]))
        except UNREACHABLE as error:
            raise unavailable(error) from error
        if meta is None:  # a run that is locked is on the board: the board is gone, and COMMIT would say so
            raise errors.BoardRebuilding(f"run {locked.ref} went with its board while it was decided")
        return {fields.META: meta, **{name: value or "" for name, value in zip(names, values, strict=True)}}

    def _states(self, locked: scripts.Locked) -> dict[str, str]:
        run = self.link.keys(locked.epoch).run(locked.ref)
        try:
            return dict(self.link.client.hscan_iter(run, match="s:*", count=500))
        except UNREACHABLE as error:
            raise unavailable(error) from error

    def _batch(self, decision: Decision, plan: Plan, caller: Caller) -> scripts.Batch:
        return scripts.Batch(
            consumed=decision.consumed,
            writes=[(name, was, to) for name, (was, to) in decision.writes.items()],
            posts=[json.dumps(entry, ensure_ascii=False) for entry in decision.posts],
            leases=[f"{step}/{fence}" for step, fence in decision.leases],
            timers=[(f"{step}/{on}", "" if due is None else str(due)) for step, on, due in decision.timers],
            bells=self.placing.bells(decision.rings, plan, caller),
            events=[_event(event, caller.ref) for event in decision.events],
        )


def opened(blobs: Blobs | None, tenant: str, digest: str) -> Any:
    """A large value that a decision looks into. Raises JournalUnavailable: without it the run waits."""
    if blobs is None:
        raise errors.JournalUnavailable("no database is configured, which has what is too large for the board")
    return blobs.value(tenant, digest)


def keep(blobs: Blobs | None, tenant: str, texts: Iterable[str]) -> None:
    """Keeps large values that a decision made, before anything refers to them. Raises JournalUnavailable."""
    for text in texts:
        if blobs is None:
            raise errors.JournalUnavailable("no database is configured, to keep what is too large for the board")
        blobs.kept(tenant, text)


def _event(event: Event, ref: RunRef) -> tuple[str, str, str, str, str]:
    flags = "" if not event.journal else "jp" if event.park else "j"
    return event.kind, event.step, flags, f"{ref}/{event.step or START}", event.data


def _next(turn: scripts.Locked, left: Sequence[Mapping[str, Any]]) -> scripts.Locked:
    return dataclasses.replace(turn, entries=left)


def _arrivals(entries: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    return (str(entry["step"]) for entry in entries if entry["t"] == "arrived")


def _probably(plan: Plan, arrived: Iterable[str]) -> Iterable[str]:
    """Fields that these arrivals will need: one round trip instead of one per field."""
    for step in arrived:
        yield from decide.wanted(plan, step)
