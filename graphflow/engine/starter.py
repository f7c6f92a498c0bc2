"""Putting accepted runs on the board: a plain one empty, a forked one with the outcomes that it reuses.

What a forked run begins with is what a rebuild would make of its rows. Other than after a rebuild, nobody can be
running its steps: they are rung at once.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from convergio.graphflow.board import adoption, fields, scripts
from convergio.graphflow.board.adoption import Beginning
from convergio.graphflow.board.connection import UNREACHABLE, Link
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.engine.bell import Caller
from convergio.graphflow.engine.claims import AWAY
from convergio.graphflow.engine.drain import Drain, keep, opened
from convergio.graphflow.engine.found import find
from convergio.graphflow.engine.plans import Plans
from convergio.graphflow.engine.restore import Restored, restore
from convergio.graphflow.engine.submission import (
    board_time,
    cancel_entry,
    control_entry,
    granted_version,
    meta_of,
    ref_of,
    wake,
)
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.journal.history import History
from convergio.graphflow.journal.rows import RunFacts, RunRow
from convergio.graphflow.model.ids import Nonces, RunRef
from convergio.graphflow.model.states import BlockedOn, RunState

logger = logging.getLogger(__name__)

START_NEEDS: Final = (fields.STATE, fields.OPEN, fields.INPUT)
"""Fields that are there when a run begins; all others are absent."""

STARTED: Final = "run.started"


class Starter:
    """Puts accepted runs on the board, each once, however many try."""

    def __init__(self, link: Link, plans: Plans, drain: Drain, nonces: Nonces, history: History) -> None:
        self.link = link
        self.plans = plans
        self.drain = drain
        self.nonces = nonces
        self.history = history
        self._told: tuple[Epoch | None, set[str]] = None, set()

    def start(self, run: RunRow, plan: Plan, *, not_after_ms: int | None) -> bool:
        """The run, and the first decisions. False: it was on the board before.

        Raises SubmitTooLate, BoardUnavailable, BoardRebuilding; JournalUnavailable for a forked run.
        """
        self.plans.add(run.digest, plan)
        if run.forked_from is not None:
            facts = self.history.facts(run.run_id)
            if facts.outcomes or facts.records:
                return self._adopt(facts, plan, not_after_ms)
        return self._start(run, plan, not_after_ms)

    # --- without a past -------------------------------------------------------------------------------------------

    def _start(self, run: RunRow, plan: Plan, not_after_ms: int | None) -> bool:
        meta, ref = meta_of(run), ref_of(run)
        given = json.dumps(run.input, ensure_ascii=False)
        wish = _wish(run)
        fields_then = {fields.STATE: RunState.RUNNING.value, fields.OPEN: str(plan.size), fields.INPUT: given}
        locked = scripts.start(
            self.link,
            ref,
            not_after_ms=not_after_ms,
            submitter=run.submitter,
            digest=run.digest,
            plan=plan.workflow.text,
            known=self._boarded(run.digest),
            meta=json.dumps(meta, ensure_ascii=False),
            given=given,
            size=plan.size,
            control=granted_version(run),
            token=self.nonces.next(),
            wanted=START_NEEDS,
            first=self.drain.first(ref, meta, plan, fields_then) if wish is None else None,
        )
        if locked is None:
            return False
        if wish is not None:
            locked = self._joined(wish, locked)
        if locked.entries:
            self.drain.run(locked, meta, blank=bool(locked.values))
        return True

    def _boarded(self, digest: str) -> bool:
        """Whether this process has put the definition on this board before; from now on it has."""
        epoch = self.link.epoch()
        if self._told[0] != epoch:
            self._told = epoch, set()
        known = digest in self._told[1]
        self._told[1].add(digest)
        return known

    def _joined(self, entry: Mapping[str, Any], locked: scripts.Locked) -> scripts.Locked:
        """The wish joins the start in one decision: between two, a worker could claim the first steps."""
        text = json.dumps(entry, ensure_ascii=False)
        return scripts.post(self.link, locked.ref, entry=text, token=locked.token, wanted=START_NEEDS) or locked

    # --- with outcomes of another run -----------------------------------------------------------------------------

    def _adopt(self, facts: RunFacts, plan: Plan, not_after_ms: int | None) -> bool:
        run = facts.run
        if run.state is not RunState.ACCEPTED:
            return False
        epoch = self.link.epoch()
        look = partial(opened, self.drain.blobs, run.tenant)
        made = restore(facts, plan, epoch=epoch.number, now_ms=board_time(self.link), opened=look)
        keep(self.drain.blobs, run.tenant, made.blobs)
        beginning = _beginning(run, made)
        adopted = adoption.adopt(
            self.link,
            epoch,
            ref_of(run),
            beginning,
            not_after_ms=not_after_ms,
            submitter=run.submitter,
            digest=run.digest,
            plan=plan.workflow.text,
            nonce=self.nonces.next(),
        )
        if adopted and beginning.inbox:
            wake(self.link, self.drain, self.nonces, ref_of(run), None)  # first: it may be a wish to cancel or to pause
        if adopted:
            self._ring(run, plan, epoch, made)
        return adopted

    def _ring(self, run: RunRow, plan: Plan, epoch: Epoch, made: Restored) -> None:
        """Rings what is READY. They are due among the held ones: if we fail here, the sweeper rings them."""
        caller = Caller.of(ref_of(run), meta_of(run))
        try:
            for name in made.held:
                was, step = made.values[fields.state(name)], plan.step(name)
                if step.concurrency is not None:
                    self._wait_turn(epoch, caller.ref, name)
                    continue
                self.drain.ringer.again(epoch, caller, step, was=was, kind="step.rung", side="L")
        except (*AWAY, *UNREACHABLE) as error:
            logger.warning("run %s: %s; its steps are rung by the next sweep", ref_of(run), error)

    def _wait_turn(self, epoch: Epoch, ref: RunRef, step: str) -> None:
        found = find(self.link, self.plans, epoch, ref, step)
        if found is not None and found.word.blocked_on is BlockedOn.LIMIT:
            self.drain.limits.wait_turn(epoch, found, now_ms=board_time(self.link))


def _wish(run: RunRow) -> Mapping[str, Any] | None:
    """What was asked of the run before it began."""
    if run.cancel_requested_ms is not None:
        return cancel_entry(run)
    return None if run.paused_ms is None else control_entry(run)


def _beginning(run: RunRow, made: Restored) -> Beginning:
    wish = _wish(run)
    entries: Sequence[Mapping[str, Any]] = [*([] if wish is None else [wish]), *made.inbox]
    return Beginning(
        values=made.values,
        held=made.held,
        inbox=[json.dumps(entry, ensure_ascii=False) for entry in entries],
        timers=made.timers,
        # That it started is told by the script that starts it: told before, the run would count as started.
        events=[(event.kind, event.step, event.data) for event in made.events if event.kind != STARTED],
        started=json.dumps({"forked_from": run.forked_from, "kind": run.fork_kind}),
    )
