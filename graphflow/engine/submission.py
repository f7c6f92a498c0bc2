"""Doors: how runs, signals and cancels get in. Always the row first (SQL), then the board."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from convergio.graphflow import talking
from convergio.graphflow.board import fields, scripts
from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.decision import Answer
from convergio.graphflow.engine import words
from convergio.graphflow.engine.claims import AWAY
from convergio.graphflow.engine.drain import Drain
from convergio.graphflow.engine.fork import Fork, Forked, planned
from convergio.graphflow.engine.pressure import Pressure
from convergio.graphflow.flow import inputs
from convergio.graphflow.flow.family import Find, family, nobody
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.journal.blobs import Blobs
from convergio.graphflow.journal.doors import Doors
from convergio.graphflow.journal.rows import Accepted, NewRun, NewSignal, Origin, RunRow, SignalRow
from convergio.graphflow.model import errors, ids
from convergio.graphflow.model.ids import Nonces, RunRef
from convergio.graphflow.model.outcome import encode
from convergio.graphflow.model.states import RunState
from convergio.graphflow.model.workflow import PRIORITIES, OnFailure, StepKind, Workflow

if TYPE_CHECKING:
    from convergio.graphflow.engine.starter import Starter

logger = logging.getLogger(__name__)

EARLY_LIMIT: Final = 256 * 1024
"""Bytes of signals of one name that a run keeps for a step that does not wait for them yet."""

START_WITHIN_MS: Final = 5_000
"""How long the submitter itself may start its run; after that the sweeper does. START refuses who comes later."""


MANY: Final = 200
"""Runs that are accepted together: the last of them has to be started before the sweeper thinks that nobody does it."""

Family = tuple[Mapping[str, str], tuple[Workflow, ...]]
"""The definitions of a run's children, theirs, and so on: digests by name, and whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What somebody wants to run. `key`: the same key means the same run. `priority`: None is the workflow's."""

    workflow: Workflow
    input: Any
    run_id: str = field(default_factory=ids.new_run_id)
    tenant: str = ids.DEFAULT_TENANT
    submitter: str = "anonymous"
    key: str | None = None
    priority: str | None = None

    def check(self, blobs: Blobs | None = None) -> str:
        """The input as JSON. Raises InvalidInput, InvalidPayload or PayloadTooLarge."""
        if not ids.RUN_ID.fullmatch(self.run_id):
            raise errors.InvalidInput(
                f"'{self.run_id}' cannot be a run id", hint="use letters, digits, - and _, at most 64"
            )
        if self.tenant in ids.RESERVED_TENANTS:
            raise errors.InvalidInput(
                f"'{self.tenant}' cannot be a tenant", hint="choose another name: this one is ours"
            )
        if not ids.TENANT.fullmatch(self.tenant):
            raise errors.InvalidInput(f"'{self.tenant}' cannot be a tenant", hint="use a-z, 0-9, - and _, at most 32")
        if self.priority is not None and self.priority not in PRIORITIES:
            raise errors.InvalidInput(f"'{self.priority}' is no priority", hint=f"use one of {', '.join(PRIORITIES)}")
        text = (encode if blobs is None else blobs.text_of)(self.input, what="the input")
        inputs.check_input(self.workflow, self.input)
        words.check_openings(self.workflow, self.input, size=len(text))
        return text


def _new_run(
    submission: Submission, input_json: str, now_ms: int, pins: Mapping[str, str], pinned: tuple[Workflow, ...]
) -> NewRun:
    return NewRun(
        run_id=submission.run_id,
        tenant=submission.tenant,
        submitter=submission.submitter,
        workflow=submission.workflow,
        input_json=input_json,
        start_key=submission.key,
        not_after_ms=now_ms + START_WITHIN_MS,
        created_ms=now_ms,
        priority=submission.priority or submission.workflow.priority,
        pins=pins,
        pinned=pinned,
    )


def meta_of(run: RunRow) -> dict[str, Any]:
    """What every script that touches the run wants to know of it."""
    return {
        "workflow": run.workflow,
        "digest": run.digest,
        "tenant": run.tenant,
        "submitter": run.submitter,
        "created_ms": run.created_ms,
        "priority": run.priority,
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
    """Submit, fork, signal, cancel: what the CLI, the public Celery entries and later the gateway call."""

    def __init__(
        self,
        link: Link,
        doors: Doors,
        starter: Starter,
        drain: Drain,
        nonces: Nonces,
        blobs: Blobs | None = None,
        pressure: Pressure | None = None,
        find: Find = nobody,
    ) -> None:
        """`blobs`: where inputs go that are too large to travel; without it they are refused. `pressure`: says when
        nothing new is accepted; without it everything is. `find`: the workflows that steps may start."""
        self.blobs = blobs
        self.pressure = pressure
        self.find = find
        self.link = link
        self.doors = doors
        self.starter = starter
        self.drain = drain
        self.nonces = nonces
        self._admitted = False

    def submit(self, submission: Submission) -> RunRow:
        """Accepts the run and starts it. Once this returns, the run is in SQL and cannot be lost.

        Raises InvalidInput and the like, UnknownWorkflow (a step's), KeyConflict, AnotherJournal, BoardUnavailable,
        JournalUnavailable, JournalBehind or BoardNearlyFull: then nothing was accepted.
        """
        return self.submit_many([submission])[0]

    def submit_many(self, submissions: Sequence[Submission]) -> list[RunRow]:
        """Accepts many runs, all of them or none, and starts them: far cheaper than one by one. In their order.

        At most `MANY` at a time: InvalidInput otherwise. Raises like `submit`.
        """
        if len(submissions) > MANY:
            raise errors.InvalidInput(f"{len(submissions)} runs at once", hint=f"submit {MANY} at a time at most")
        pins = {one.workflow.digest: one.workflow for one in submissions}
        families = {digest: self._pins(workflow) for digest, workflow in pins.items()}
        return [one.run for one in self._accept(submissions, None, families)] if submissions else []

    def fork(self, fork: Fork) -> Forked:
        """Accepts and starts a run that reuses outcomes of another one: a retry, a redrive or a fork.

        The other run stays as it is. What it bought is not bought again. Raises like `submit`, and UnknownRun,
        RunNotEnded, NothingToRetry, UnknownStep.
        """
        basis = self.doors.basis(fork.ref.tenant, fork.ref.run)
        pins: Family = basis.run.pins or {}, ()
        if fork.definition is not None:
            pins = self._pins(fork.definition)
        plan = planned(fork, basis, pins[0])
        submission = Submission(
            workflow=plan.workflow,
            input=plan.input,
            run_id=fork.run_id,
            tenant=fork.ref.tenant,
            submitter=fork.submitter,
            key=fork.key,
            priority=basis.run.priority if fork.definition is None else None,
        )
        (accepted,) = self._accept([submission], plan.origin, {plan.workflow.digest: pins})
        reused, steps = plan.origin.steps, len(plan.workflow.steps)
        return Forked(run=accepted.run, created=accepted.created, reused=reused, steps=steps)

    def _pins(self, workflow: Workflow) -> Family:
        """The definitions of a run's children, theirs, and so on: by name, and whole. Raises UnknownWorkflow."""
        found = family(workflow, self.find)
        return {name: one.digest for name, one in found.items()}, tuple(found.values())

    def _accept(
        self, submissions: Sequence[Submission], origin: Origin | None, families: Mapping[str, Family]
    ) -> list[Accepted]:
        texts = [one.check(self.blobs) for one in submissions]
        self._check_pressure(submissions)
        self._admit()
        given = [self._travels(one.tenant, text) for one, text in zip(submissions, texts, strict=True)]
        now = board_time(self.link)  # before the commit: the not-after time must not lie in the sweeper's past
        runs = [
            _new_run(one, input_json, now, *families[one.workflow.digest])
            for one, input_json in zip(submissions, given, strict=True)
        ]
        accepted = self.doors.accept_all(runs) if origin is None else [self.doors.fork(runs[0], origin)]
        for run, one in zip(runs, accepted, strict=True):
            if one.created:
                self._start(one.run, self.starter.plans.of(run.workflow), now + START_WITHIN_MS)
        return accepted

    def _travels(self, tenant: str, text: str) -> str:
        """The input, or what stands for one that is too large to travel."""
        reference = self.blobs.kept(tenant, text) if self.blobs is not None else None
        return text if reference is None else json.dumps(reference)

    def _admit(self) -> None:
        """Raises AnotherJournal if the board is not our journal's: nobody there would ever see the run's row."""
        if self._admitted:
            return
        self.link.journal = self.doors.identity()
        with suppress(errors.BoardRebuilding):
            self.link.refresh()
        self._admitted = True

    def _check_pressure(self, submissions: Sequence[Submission]) -> None:
        """Raises JournalBehind or BoardNearlyFull, but not for runs that were accepted before."""
        if self.pressure is None:
            return
        try:
            self.pressure.check()
        except errors.Overloaded as refusal:
            try:
                for one in submissions:
                    self.doors.run(one.tenant, one.run_id)
            except errors.UnknownRun:
                raise refusal from None

    def _start(self, run: RunRow, plan: Plan, not_after: int) -> None:
        try:
            try:
                self.starter.start(run, plan, not_after_ms=not_after)
            except errors.BoardRebuilding:
                # By now the new epoch is known, if there is one: the first run through this door must not wait for it.
                self.starter.start(run, plan, not_after_ms=not_after)
        except (*AWAY, errors.JournalUnavailable, errors.SubmitTooLate) as error:
            logger.warning("run %s is accepted; the sweeper starts it: %s", run.run_id, error)

    def signal(self, ref: RunRef, *, name: str, data: Any, by: str, signal_id: str | None = None) -> bool:
        """Keeps the signal in SQL, then wakes the run. False: this signal id was kept before.

        Raises UnknownRun, UnknownStep, InvalidPayload, PayloadTooLarge, TooManySignals, ConversationBusy,
        JournalUnavailable.
        """
        encode(data, what="the signal's data")
        run = self.doors.run(ref.tenant, ref.run)
        plan = self.starter.plans.get(run.digest)
        check_signal(plan, name, data)
        words.check_turn(self.link, plan, ref, name, data)
        self._check_early(ref, name)
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

    def _check_early(self, ref: RunRef, name: str) -> None:
        """Raises TooManySignals: what came early is one field of the run, and is written whole with each that comes."""
        try:
            run = self.link.keys(self.link.epoch()).run(ref)
            size = self.link.client.hstrlen(run, fields.early(name))
        except (*AWAY, *UNREACHABLE):
            return
        if size >= EARLY_LIMIT:
            said = f"{size} bytes of signals '{name}' wait already for their step"
            hint = "send it again when the step waits for it"
            raise errors.TooManySignals(said, hint=hint, run=ref.run, step=name)

    def cancel(self, ref: RunRef, *, by: str, reason: str = "") -> RunRow:
        """Asks for the run's end. A run that ended before is returned unchanged. Raises UnknownRun."""
        row = self.doors.request_cancel(ref.run, ref.tenant, by, reason or None, board_time(self.link))
        if not row.terminal:
            self.wake(ref, cancel_entry(row))
        return row

    def pause(self, ref: RunRef, *, by: str) -> RunRow:
        """From now on no step of the run is started; what runs ends. Returns the run's row. Raises UnknownRun."""
        return self._control(ref, self.doors.request_pause(ref.run, ref.tenant, by, board_time(self.link)))

    def resume(self, ref: RunRef, *, by: str) -> RunRow:
        """The run goes on where it was paused. Returns the run's row. Raises UnknownRun."""
        return self._control(ref, self.doors.request_resume(ref.run, ref.tenant), by)

    def _control(self, ref: RunRef, row: RunRow, by: str = "") -> RunRow:
        if not row.terminal:
            self.wake(ref, control_entry(row, by))
        return row

    def wake(self, ref: RunRef, entry: dict[str, Any]) -> None:
        """Puts the entry in the run's inbox and drains it. If that fails, the sweeper does it from the row."""
        wake(self.link, self.drain, self.nonces, ref, entry)


def wake(
    link: Link, drain: Drain, nonces: Nonces, ref: RunRef, entry: dict[str, Any] | None, arrived: Sequence[str] = ()
) -> Epoch | None:
    """POST and drain. None: a store is away, or the run is not on the board; the sweeper does it from the row.

    `arrived`: steps that are in the inbox already, as far as the caller knows."""
    text = json.dumps(entry, ensure_ascii=False) if entry else ""
    try:
        locked = _post(link, ref, text, nonces.next(), drain.ahead(ref, arrived))
        if locked is not None:
            drain.run(locked)
        return link.epoch()
    except (*AWAY, errors.JournalUnavailable, errors.UnknownRun) as error:
        logger.info("run %s is woken later: %s", ref, error)
        return None


def go_on(drain: Drain, locked: scripts.Locked) -> None:
    """Drains a run whose lock is held. If that fails, the sweeper does it when the lock is over."""
    try:
        drain.run(locked)
    except (*AWAY, errors.JournalUnavailable) as error:
        logger.info("run %s goes on later: %s", locked.ref, error)


def wake_once(link: Link, drain: Drain, nonces: Nonces, ref: RunRef, entry: dict[str, Any] | None) -> Epoch | None:
    """`wake` for who looks again and again at what is to be done: what is in the inbox already is not put there once
    more, or it would grow without end while it cannot be drained."""
    try:
        inbox = link.keys(link.epoch()).inbox(ref)
        known = entry is not None and link.client.lpos(inbox, json.dumps(entry, ensure_ascii=False)) is not None
    except (*AWAY, *UNREACHABLE) as error:
        logger.info("run %s is woken later: %s", ref, error)
        return None
    return wake(link, drain, nonces, ref, None if known else entry)


def _post(link: Link, ref: RunRef, entry: str, token: str, wanted: Sequence[str]) -> scripts.Locked | None:
    try:
        return scripts.post(link, ref, entry=entry, token=token, wanted=wanted)
    except errors.BoardRebuilding:
        # By now the new epoch is known, if there is one: who is first to meet it must not wait for the sweeper.
        return scripts.post(link, ref, entry=entry, token=token, wanted=wanted)


def signal_entry(row: NewSignal | SignalRow) -> dict[str, Any]:
    """A signal as the inbox holds it. The data says who decided."""
    data = row.data if isinstance(row.data, dict) else {"value": row.data}
    return {"t": "signal", "id": row.signal_id, "name": row.name, "data": {**data, "by": row.submitter}}


def cancel_entry(row: RunRow) -> dict[str, Any]:
    """A cancel as the inbox holds it."""
    return {"t": "cancel", "by": row.cancel_by or "", "reason": row.cancel_reason or ""}


def granted_version(run: RunRow) -> int:
    """The control version that the board knows: a wish that it has not granted yet is one ahead of it."""
    paused = run.state is RunState.PAUSED
    return run.control_version - ((run.paused_ms is not None) != paused)


def control_entry(row: RunRow, by: str = "") -> dict[str, Any]:
    """The wish to pause, or to go on, as the inbox holds it; of two the one with the higher control version counts."""
    wish = "resume" if row.paused_ms is None else "pause"
    return {"t": wish, "cv": row.control_version, "by": row.paused_by or by}


def check_decision(data: Any) -> None:
    """Raises InvalidInput unless `data` says approve or reject: an approval must never end by a slip."""
    said = data.get("decision") if isinstance(data, dict) else None
    if said not in ("approve", "reject"):
        hint = 'send {"decision": "approve"} or {"decision": "reject", "reason": "..."}'
        raise errors.InvalidInput("the signal's data does not say what was decided", hint=hint)


def check_answer(plan: Plan, data: Any) -> None:
    """Raises InvalidInput unless `data` says what to do about a step that has failed."""
    said = data.get("decision") if isinstance(data, dict) else None
    known = [answer.value for answer in Answer if plan.undone or answer is not Answer.COMPENSATE]
    if said not in known:
        hint = f'send {{"decision": "retry"}}; known: {", ".join(known)}'
        raise errors.InvalidInput("the signal's data does not say what to do about the step", hint=hint)


def check_signal(plan: Plan, name: str, data: Any) -> None:
    """Raises UnknownStep unless a step of the workflow waits for this signal, InvalidInput if an approval does and
    `data` is no decision."""
    waiters = plan.waiters.get(name)
    if waiters is None:
        known = ", ".join(plan.waiters) or "none"
        raise errors.UnknownStep(f"'{name}' waits for no signal", hint=f"signals of this workflow: {known}")
    steps = [plan.workflow.steps[step] for step in waiters]
    talk = talking.conversation_of(plan, name)
    if talk is not None and words.are_words(plan.workflow.steps[talk], data):
        return
    if any(step.kind is StepKind.APPROVAL for step in steps):
        check_decision(data)
    if any(step.on_failure is OnFailure.ASK for step in steps):
        check_answer(plan, data)
