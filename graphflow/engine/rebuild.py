"""A new board from the journal.

Raise the epoch, write every live run under the new epoch's keys, publish the epoch last.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Final, cast

from convergio.graphflow.board import fields, scripts
from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.board.keys import SCHEMA, Epoch, Keys, glob
from convergio.graphflow.decision import Event
from convergio.graphflow.engine.drain import keep, opened
from convergio.graphflow.engine.journaler import event_of
from convergio.graphflow.engine.leader import Leader
from convergio.graphflow.engine.plans import Plans
from convergio.graphflow.engine.restore import restore
from convergio.graphflow.engine.submission import board_time, ref_of
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.journal.blobs import Blobs
from convergio.graphflow.journal.boards import Boards
from convergio.graphflow.journal.history import History
from convergio.graphflow.journal.rows import BoardRow, RunFacts
from convergio.graphflow.journal.writer import Writer
from convergio.graphflow.model import errors
from convergio.graphflow.model.workflow import canonical

logger = logging.getLogger(__name__)

PAGE: Final = 100
CHUNK: Final = 400

Phase = Callable[[str], None]


def _silent(phase: str) -> None:
    """Nobody wants to know."""


class Rebuilder:
    """Makes a new board.

    A lease keeps the others waiting meanwhile; SQL elects one, and only the newest can be published.
    """

    def __init__(
        self,
        link: Link,
        boards: Boards,
        history: History,
        writer: Writer,
        plans: Plans,
        lease: Leader,
        blobs: Blobs | None = None,
    ) -> None:
        self.blobs = blobs
        self.link = link
        self.boards = boards
        self.history = history
        self.writer = writer
        self.plans = plans
        self.lease = lease
        self._making = threading.Lock()
        self._admitted = False

    def admit(self) -> None:
        """Raises AnotherJournal if the board is not our journal's; once it is known to be, nobody is asked again, as
        the link compares at every new epoch. Raises JournalUnavailable, BoardUnavailable."""
        if self._admitted:
            return
        self.link.journal = self.boards.identity()
        with suppress(errors.BoardRebuilding):
            self.link.refresh()
        self._admitted = True

    def needed(self) -> bool:
        """Whether the board is missing, or is not the one that the journal follows. Raises AnotherJournal."""
        self.admit()
        try:
            self.link.refresh()
        except errors.BoardRebuilding:
            return True
        return self.stranded()

    def stranded(self) -> bool:
        """Whether there is a board, and the journal follows another epoch: somebody began a rebuild and died."""
        epoch, row = self.link.epoch(), self.boards.current()
        return row is None or row.epoch != epoch.number

    def ensure(self, phase: Phase = _silent) -> bool:
        """Whether there is a board. Makes one where there is none, unless another process does already.

        False too when the new board was wiped before it was whole: ask again. Raises BoardUnavailable,
        JournalUnavailable.
        """
        if not self.needed():
            return True
        with self._alone() as alone:
            # Asked again under the lease: its last holder may just have made the board.
            return alone and (not self.needed() or self._rebuild(phase) is not None)

    def rebuild(self, *, adopt: bool = False) -> Epoch | None:
        """A new board in place of this one. Its epoch, or None if another process makes one. Raises like `ensure`.

        `adopt`: also in place of another journal's, of which nothing is saved.
        """
        if adopt:
            self.link.journal = self.boards.identity()
        else:
            self.admit()
        with self._alone() as alone:
            return self._rebuild(_silent, adopt=adopt) if alone else None

    @contextmanager
    def _alone(self) -> Generator[bool]:
        """Whether nobody else rebuilds: no other process, and no other thread of this one, whose lease is ours too."""
        if not self._making.acquire(blocking=False):
            yield False
            return
        try:
            if not self.lease.holds():
                yield False
                return
            try:
                yield True
            finally:
                self.lease.resign()
        finally:
            self._making.release()

    def _rebuild(self, phase: Phase, *, adopt: bool = False) -> Epoch | None:
        phase("rebuild")
        before = self.boards.current()
        server = self.link.server()
        strange = adopt and self._is_anothers()
        above = max(self._numbers(), default=0) if strange else 0
        number = self.boards.raise_epoch(before.epoch if before else None, server, SCHEMA, above=above)
        if number is None:
            return None
        epoch = Epoch(number=number, server=server)
        started = time.monotonic()
        phase("raised")
        try:
            # Before anything is read: what the old board would still take on could not be salvaged any more.
            if not scripts.begin(self.link, epoch, adopt=adopt):
                return None
            older = self._older(epoch)
            saved = 0 if strange else sum(self._salvage(number, before, epoch) for number in older)
            phase("salvaged")
            runs = self._write_runs(epoch)
            phase("written")
            published = scripts.publish(self.link, epoch)
        except UNREACHABLE as error:
            raise unavailable(error) from error
        if not published:
            logger.warning("epoch %d: the board was wiped, or begun anew, before it was whole", number)
            return None
        seconds = time.monotonic() - started
        logger.warning("epoch %d: board rebuilt with %d runs, %d facts saved, %.2f s", number, runs, saved, seconds)
        for other in older:
            self._sweep_out(other)
        return epoch

    def _is_anothers(self) -> bool:
        owner = self.link.client.get(Keys(self.link.prefix, 0).owner)
        return owner not in (None, self.link.journal)

    def _older(self, epoch: Epoch) -> list[int]:
        """Epochs of which a stream is left, the newest first: the last one's, and those of rebuilders that died."""
        return sorted((number for number in self._streams() if number < epoch.number), reverse=True)

    def _streams(self) -> Iterable[int]:
        pattern = re.compile(rf"{re.escape(self.link.prefix)}:(\d+):journal")
        begins = glob(self.link.prefix)
        names = cast("Iterable[str]", self.link.client.scan_iter(match=f"{begins}:*:journal", count=1000))
        return (int(match[1]) for name in names if (match := pattern.fullmatch(name)))

    def _numbers(self) -> Iterable[int]:
        """Epochs that somebody had on this board: the one that is there, that is being made, and of streams."""
        names = Keys(self.link.prefix, 0)
        there, making = cast("list[str | None]", self.link.client.mget(names.epoch, names.rebuilding))
        return [*self._streams(), *([Epoch.parse(there).number] if there else []), *([int(making)] if making else [])]

    def _salvage(self, number: int, before: BoardRow | None, epoch: Epoch) -> int:
        """Facts that an old board still holds and SQL does not: they were accepted under a fence, so they are true."""
        stream, saved = self.link.keys(Epoch(number=number, server="")).journal, 0
        after = before.high_water if before is not None and number == before.epoch else 0
        while True:
            found = self.link.client.xrange(stream, min=f"({number}-{after}", count=PAGE * 5)
            entries = cast("list[tuple[str, dict[str, str]]]", found)
            if not entries:
                return saved
            events = [event_of(entry, values) for entry, values in entries]
            self.writer.salvage(events, epoch=epoch.number, stream_epoch=number)
            saved, after = saved + len(events), events[-1].seq

    def _write_runs(self, epoch: Epoch) -> int:
        keys, count, after, held = self.link.keys(epoch), 0, "", list[str]()
        queues: dict[str, list[tuple[int, str]]] = {}
        # Sequence 0 is taken by this entry: readers of the stream ask for what is after `high water 0`.
        client = self.link.client
        client.xadd(keys.journal, {"t": "board.rebuilt", "r": "-/-", "u": "", "s": "", "q": "0", "a": "0", "d": "{}"},
                    id=f"{epoch.number}-0")  # fmt: skip
        client.set(keys.released, 0)
        now_ms = board_time(self.link)
        while True:
            rows = self.history.live_runs(after, PAGE)
            if not rows:
                break
            after = rows[-1].run_id
            for facts in self.history.facts_of([row.run_id for row in rows]):
                held += self._write_run(facts, epoch, keys, now_ms, queues)
                count += 1
            self.lease.holds()  # prolongs it: a large board takes longer to write than the lease lasts
        due = board_time(self.link) + scripts.LEASE_MS  # from now on: while the board is made nobody can assert a claim
        for part in _chunks(held):
            client.zadd(keys.held, dict.fromkeys(part, due))
        for name, waiting in queues.items():
            self._write_queue(name, waiting, due)
        return count

    def _write_queue(self, name: str, waiting: list[tuple[int, str]], due: int) -> None:
        """Who waits for a concurrency key, or had it, in the old order; until `due` it is kept for who still runs."""
        members = [member for _, member in sorted(waiting)]
        for part in _chunks(list(enumerate(members, start=1))):
            self.link.client.zadd(name, {member: turn for turn, member in part})
        self.link.client.zadd(name, {"@": -due})

    def _write_run(
        self, facts: RunFacts, epoch: Epoch, keys: Keys, now_ms: int, queues: dict[str, list[tuple[int, str]]]
    ) -> list[str]:
        """Puts one run on the new board. Returns its READY steps, as members of the sorted set of held ones.

        `queues`: since when who waits for which concurrency key; the run's steps are added.
        """
        ref = ref_of(facts.run)
        try:
            plan = self._plan(facts)
            look = partial(opened, self.blobs, ref.tenant)
            made = restore(facts, plan, epoch=epoch.number, now_ms=now_ms, opened=look)
            keep(self.blobs, ref.tenant, made.blobs)
        except errors.JournalUnavailable:
            raise
        except Exception:  # it stays in SQL, for a version that can read it: the others must not wait for that
            logger.exception("run %s is left out of the board", ref)
            return []
        made.values[fields.SEQ] = str(len(made.events))
        with self.link.client.pipeline(transaction=False) as pipe:
            for part in _chunks(list(made.values.items())):
                pipe.hset(keys.run(ref), mapping=dict(part))
            pipe.set(keys.plan(facts.run.digest), plan.workflow.text)
            pipe.zadd(keys.runs, {str(ref): facts.run.started_ms or now_ms})
            for member, due in made.timers.items():
                pipe.zadd(keys.timers, {f"{ref}/{member}": due})
            for part in _chunks(made.inbox):
                pipe.rpush(keys.inbox(ref), *(json.dumps(entry, ensure_ascii=False) for entry in part))
                pipe.zadd(keys.inboxes, {str(ref): now_ms})
            for seq, event in enumerate(made.events, start=1):
                pipe.xadd(keys.journal, _entry(event, facts, seq, now_ms), id=f"{epoch.number}-*")
            pipe.execute()
        for step, since in made.limited.items():
            concurrency = plan.step(step).concurrency
            assert concurrency is not None, "only such steps wait for a key"
            queue = keys.waiters(ref.tenant, made.values[fields.key(step)])
            queues.setdefault(queue, []).append((since, f"{ref}/{step}/{concurrency.limit}"))
        return [f"{ref}/{step}" for step in made.held]

    def _plan(self, facts: RunFacts) -> Plan:
        plan = Plan.from_json(canonical(facts.document))
        self.plans.add(facts.run.digest, plan)
        return plan

    def _sweep_out(self, old: int) -> None:
        """Keys of an older epoch: nobody reads them any more. SCAN is fine here, this is no hot path."""
        try:
            begins = f"{glob(self.link.prefix)}:{old}"
            names = cast("Iterable[str]", self.link.client.scan_iter(match=f"{begins}:*", count=1000))
            for part in _chunks(list(names)):
                self.link.client.unlink(*part)
        except UNREACHABLE as error:
            logger.warning("keys of epoch %d stay on the board: %s", old, error)


def _entry(event: Event, facts: RunFacts, seq: int, now_ms: int) -> dict[Any, Any]:
    ref, submitter = str(ref_of(facts.run)), facts.run.submitter
    at = event.at_ms or now_ms
    return {"t": event.kind, "r": ref, "u": submitter, "s": event.step, "q": seq, "a": at, "d": event.data}


def _chunks(items: list[Any]) -> Iterable[list[Any]]:
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
