"""Doors: how runs, signals and cancels get in. Always the row first (SQL), then the board."""

from __future__ import annotations

import json
import logging
import secrets
from dataclasses import dataclass, field
from typing import Any, Final

from convergio.graphflow.board import fields, scripts
from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.engine.claims import AWAY
from convergio.graphflow.engine.drain import Drain
from convergio.graphflow.engine.plans import Plans
from convergio.graphflow.flow import inputs
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.journal.doors import Doors
from convergio.graphflow.journal.rows import NewRun, NewSignal, RunRow, SignalRow
from convergio.graphflow.model import errors, ids
from convergio.graphflow.model.ids import Nonces, RunRef
from convergio.graphflow.model.outcome import encode
from convergio.graphflow.model.workflow import StepKind, Workflow, canonical

logger = logging.getLogger(__name__)

START_WITHIN_MS: Final = 10_000
"""How long the submitter itself may start its run; after that the sweeper does."""

START_NEEDS: Final = (fields.STATE, fields.OPEN, fields.INPUT)
"""Fields that are there when a run begins; all others are absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What somebody wants to run. `key`: the same key means the same run."""

    workflow: Workflow
    input: Any
    run_id: str = field(default_factory=ids.new_run_id)
    tenant: str = ids.DEFAULT_TENANT
    submitter: str = "anonymous"
    key: str | None = None

    def check(self) -> str:
        """The input as JSON. Raises InvalidInput, InvalidPayload or PayloadTooLarge."""
        if not ids.RUN_ID.fullmatch(self.run_id):
            raise errors.InvalidInput(
                f"'{self.run_id}' cannot be a run id", hint="use letters, digits, - and _, at most 64"
            )
        if not ids.TENANT.fullmatch(self.tenant):
            raise errors.InvalidInput(f"'{self.tenant}' cannot be a tenant", hint="use a-z, 0-9, - and _, at most 32")
        text = encode(self.input, what="the input")
        inputs.check_input(self.workflow, self.input)
        return text


class Starter:
    """Puts accepted runs on the board."""

    def __init__(self, link: Link, plans: Plans, drain: Drain, nonces: Nonces) -> None:
        self.link = link
        self.plans = plans
        self.drain = drain
        self.nonces = nonces

    def start(self, run: RunRow, plan: Plan, *, not_after_ms: int | None) -> bool:
        """START and the first decisions. False: the run was on the board before. Raises SubmitTooLate."""
        self.plans.add(run.digest, plan)
        meta = meta_of(run)
        locked = scripts.start(
            self.link,
            ref_of(run),
            not_after_ms=not_after_ms,
            submitter=run.submitter,
            digest=run.digest,
            plan=canonical(plan.workflow.document),
            meta=json.dumps(meta, ensure_ascii=False),
            given=json.dumps(run.input, ensure_ascii=False),
            size=len(plan.workflow.steps),
            control=run.control_version,
            token=self.nonces.next(),
            wanted=START_NEEDS,
        )
        if locked is None:
            return False
        if run.cancel_requested_ms is not None:
            locked = self._cancelled(run, locked)
        self.drain.run(locked, meta, blank=True)
        return True

    def _cancelled(self, run: RunRow, locked: scripts.Locked) -> scripts.Locked:
        """The cancel joins the start in one decision: between two, a worker could claim the first steps."""
        entry = json.dumps(cancel_entry(run), ensure_ascii=False)
        return scripts.post(self.link, locked.ref, entry=entry, token=locked.token, wanted=START_NEEDS) or locked


def meta_of(run: RunRow) -> dict[str, Any]:
    """What every script that touches the run wants to know of it."""
    return {
        "workflow": run.workflow,
        "digest": run.digest,
        "tenant": run.tenant,
        "submitter": run.submitter,
        "created_ms": run.created_ms,
    }


def ref_of(run: RunRow) -> RunRef:
    """Which run a row is."""
    return RunRef(tenant=run.tenant, run=run.run_id)


def board_time(link: Link) -> int:
    """Redis TIME in milliseconds. Raises BoardUnavailable."""
    try:
        seconds, micros = link.client.time()
    except UNREACHABLE as error:
        raise unavailable(error) from error
    return seconds * 1000 + micros // 1000


class Entrance:
    """Submit, signal, cancel: what the CLI, the public Celery entries and later the gateway call."""

    def __init__(self, link: Link, doors: Doors, starter: Starter, drain: Drain, nonces: Nonces) -> None:
        self.link = link
        self.doors = doors
        self.starter = starter
        self.drain = drain
        self.nonces = nonces

    def submit(self, submission: Submission) -> RunRow:
        """Accepts the run and starts it. Once this returns, the run is in SQL and cannot be lost.

        Raises InvalidInput and the like, KeyConflict, BoardUnavailable or JournalUnavailable: then nothing was
        accepted.
        """
        text = submission.check()
        now = board_time(self.link)  # before the commit: the not-after time must not lie in the sweeper's past
        not_after = now + START_WITHIN_MS
        accepted = self.doors.accept(
            NewRun(
                run_id=submission.run_id,
                tenant=submission.tenant,
                submitter=submission.submitter,
                workflow=submission.workflow,
                input_json=text,
                start_key=submission.key,
                not_after_ms=not_after,
                created_ms=now,
                priority=submission.workflow.priority,
            )
        )
        if accepted.created:
            self._start(accepted.run, Plan.of(submission.workflow), not_after)
        return accepted.run

    def _start(self, run: RunRow, plan: Plan, not_after: int) -> None:
        try:
            try:
                self.starter.start(run, plan, not_after_ms=not_after)
            except errors.BoardRebuilding:
                # By now the new epoch is known, if there is one: the first run through this door must not wait for it.
                self.starter.start(run, plan, not_after_ms=not_after)
        except (*AWAY, errors.SubmitTooLate) as error:
            logger.warning("run %s is accepted; the sweeper starts it: %s", run.run_id, error)

    def signal(self, ref: RunRef, *, name: str, data: Any, by: str, signal_id: str | None = None) -> bool:
        """Keeps the signal in SQL, then wakes the run. False: this signal id was kept before.

        Raises UnknownRun, UnknownStep, InvalidPayload, PayloadTooLarge, JournalUnavailable.
        """
        encode(data, what="the signal's data")
        check_decision(data)
        run = self.doors.run(ref.tenant, ref.run)
        check_signal(self.starter.plans.get(run.digest), name)
        created_ms = board_time(self.link)
        row = NewSignal(
            signal_id=signal_id or secrets.token_hex(16),
            tenant=ref.tenant,
            submitter=by,
            run_id=ref.run,
            name=name,
            data=data,
            created_ms=created_ms,
        )
        created = self.doors.signal(row)
        if not run.terminal:
            self.wake(ref, signal_entry(row))
        return created

    def cancel(self, ref: RunRef, *, by: str, reason: str = "") -> RunRow:
        """Asks for the run's end. A run that ended before is returned unchanged. Raises UnknownRun."""
        row = self.doors.request_cancel(ref.run, ref.tenant, by, reason or None, board_time(self.link))
        if not row.terminal:
            self.wake(ref, cancel_entry(row))
        return row

    def wake(self, ref: RunRef, entry: dict[str, Any]) -> None:
        """Puts the entry in the run's inbox and drains it. If that fails, the sweeper does it from the row."""
        wake(self.link, self.drain, self.nonces, ref, entry)


def wake(link: Link, drain: Drain, nonces: Nonces, ref: RunRef, entry: dict[str, Any] | None) -> Epoch | None:
    """POST and drain. None: the board is away, or the run is not on it; the row in SQL is applied by the sweeper."""
    text = json.dumps(entry, ensure_ascii=False) if entry else ""
    try:
        locked = scripts.post(link, ref, entry=text, token=nonces.next())
        if locked is not None:
            drain.run(locked)
        return link.epoch()
    except (*AWAY, errors.UnknownRun) as error:
        logger.info("run %s is woken later: %s", ref, error)
        return None


def signal_entry(row: NewSignal | SignalRow) -> dict[str, Any]:
    """A signal as the inbox holds it. The data says who decided."""
    data = row.data if isinstance(row.data, dict) else {"value": row.data}
    return {"t": "signal", "id": row.signal_id, "name": row.name, "data": {**data, "by": row.submitter}}


def cancel_entry(row: RunRow) -> dict[str, Any]:
    """A cancel as the inbox holds it."""
    return {"t": "cancel", "by": row.cancel_by or "", "reason": row.cancel_reason or ""}


def check_decision(data: Any) -> None:
    """Raises InvalidInput unless `data` says approve or reject: an approval must never end by a slip."""
    said = data.get("decision") if isinstance(data, dict) else None
    if said not in ("approve", "reject"):
        hint = 'send {"decision": "approve"} or {"decision": "reject", "reason": "..."}'
        raise errors.InvalidInput("the signal's data does not say what was decided", hint=hint)


def check_signal(plan: Plan, name: str) -> None:
    """Raises UnknownStep unless the workflow has an approval step of this name."""
    step = plan.workflow.steps.get(name)
    if step is None or step.kind is not StepKind.APPROVAL:
        known = [other.name for other in plan.workflow.steps.values() if other.kind is StepKind.APPROVAL]
        raise errors.UnknownStep(f"'{name}' waits for no signal", hint=f"signals of this workflow: {', '.join(known)}")
