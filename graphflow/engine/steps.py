"""What a worker does with a step: claim it, record facts, and tell how it ended. Every verb is fenced."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from convergio.graphflow import decide, draft, shortcut
from convergio.graphflow.board import scripts
from convergio.graphflow.board.connection import Link
from convergio.graphflow.engine.bell import Caller
from convergio.graphflow.engine.claims import AWAY, Claim, Claims
from convergio.graphflow.engine.drain import Drain
from convergio.graphflow.engine.handover import Grant, Grants, Handover, Nobody
from convergio.graphflow.engine.plans import Plans
from convergio.graphflow.engine.ringer import Ringer
from convergio.graphflow.flow import inputs
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.journal.blobs import Blobs, Opened
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import Nonces, RunRef
from convergio.graphflow.model.outcome import Outcome, Rows, encode
from convergio.graphflow.model.states import BlockedOn, StepState
from convergio.graphflow.model.workflow import Durability, Step

logger = logging.getLogger(__name__)

SPENT: Final = "spent."
"""Key prefix of recorded domain rows."""

GUARD_INTERVAL: Final = 0.02
"""Seconds between two looks at whether SQL has a fact."""

JOURNAL_PAUSE: Final = 1.0
"""Seconds between two tries to store what is too large for the board, while SQL is away."""

LONGEST_PATIENCE: Final = 15.0
"""Seconds after which a step that no worker knows is rung again, at most: it doubles from ring to ring up to there."""

LONGEST_TEXT: Final = 2_000
"""Characters of an error or a reason that are kept."""


class Steps:
    """The verbs of a worker process."""

    def __init__(
        self,
        link: Link,
        plans: Plans,
        ringer: Ringer,
        drain: Drain,
        nonces: Nonces,
        *,
        worker: str,
        blobs: Blobs | None = None,
        handover: Handover | None = None,
    ) -> None:
        """`blobs`: where values go that are too large to travel; without it they are refused.
        `handover`: who takes the next doorbell when a step has ended; without it the broker alone brings them."""
        self.link = link
        self.blobs = blobs
        self.plans = plans
        self.ringer = ringer
        self.drain = drain
        self.nonces = nonces
        self.worker = worker
        self.claims = Claims(link, expire=self._expire)
        self.grants = Grants(handover or Nobody(), worker=worker, unused=self._return)

    # --- taking a step --------------------------------------------------------------------------------------------

    def claim(self, ref: RunRef, *, step: str, ring: str, queue_list: str) -> Claim | None:
        """CLAIM. None: the doorbell was a duplicate, or the run is over; nothing was touched."""
        grant = self.grants.pop(ref, step, ring) or self._grant(ref, step, ring, queue_list)
        if isinstance(grant.answer, scripts.Refused):
            logger.info("doorbell %s/%s/%s: %s %s", ref, step, ring, grant.answer.why, grant.answer.state)
            return None
        claim = self._own(grant.answer, grant)
        self.claims.add(claim)
        return claim

    def _grant(self, ref: RunRef, step: str, ring: str, queue_list: str) -> Grant:
        nonce = self.nonces.next()
        sure_until = time.monotonic() + scripts.LEASE_MS / 1000
        take = partial(scripts.claim, self.link, ref, step=step, ring=ring, nonce=nonce, queue_list=queue_list)
        try:
            answer = take(worker=self.worker)
        except errors.BoardRebuilding:
            answer = take(worker=self.worker)  # by now the new epoch is known: its first doorbell must not get lost
        return Grant(answer=answer, nonce=nonce, sure_until=sure_until)

    def _own(self, held: scripts.Claimed, grant: Grant) -> Claim:
        spent = [rows for key, rows in held.records.items() if key.startswith(SPENT)]
        if self.blobs is not None and held.records:
            held = replace(held, records=Opened(self.blobs, held.ref.tenant, held.records))
        plan = self.plans.get(held.meta["digest"])
        claim = Claim(held=held, nonce=grant.nonce, plan=plan, sure_until=grant.sure_until)
        for rows in spent:
            claim.owe(rows)
        timeout = self.step(claim).timeout
        if timeout is not None:
            claim.deadline = time.monotonic() + timeout
        return claim

    def _return(self, grant: Grant) -> None:
        """A claim that came with a doorbell whose task never ran: it was revoked, or the worker stops."""
        if isinstance(grant.answer, scripts.Refused):
            return
        try:
            claim = self._own(grant.answer, grant)
            self.claims.add(claim)
            self.give_back(claim)
        except (errors.StaleFence, *AWAY) as error:
            logger.info("a claim that no task asked for: %s", error)

    def step(self, claim: Claim) -> Step:
        """The definition of the claimed step."""
        return claim.plan.step(claim.held.step)

    def names(self, claim: Claim) -> Mapping[str, Any]:
        """What the step's expressions may name: `input` and the outputs of earlier steps.

        One that is a blob is fetched when it is looked up: that raises JournalUnavailable.
        """
        held = claim.held
        values = {**inputs.seen(claim.plan, held.step, held.outputs), "input": held.input}
        return values if self.blobs is None else Opened(self.blobs, claim.held.ref.tenant, values)

    def arguments(self, claim: Claim) -> dict[str, Any]:
        """The values of the step's `with`. Raises ExpressionFailed, JournalUnavailable."""
        return inputs.arguments(self.step(claim), self.names(claim))

    def record(self, claim: Claim, key: str, value: Any) -> None:
        """Keep a fact that must not be bought twice: the step's next claim finds it in `held.records`.

        If the board is away, the process tells it later. Waits for SQL if the value is too large for the board, as what
        was bought must not be dropped. Raises InvalidPayload, PayloadTooLarge, StaleFence.
        """
        what = f"the record '{key}'"
        if self.blobs is None:
            self.claims.record(claim, key, encode(value, what=what))
            return
        text = self.blobs.text_of(value, what=what)
        while True:
            try:
                reference = self.blobs.kept(claim.held.ref.tenant, text)
                break
            except errors.JournalUnavailable as error:
                logger.warning("claim %s: %s waits for SQL: %s", claim.member, what, error)
                if claim.lost.wait(JOURNAL_PAUSE):
                    raise errors.StaleFence(run=claim.held.ref.run, step=claim.held.step) from error
        self.claims.record(claim, key, text if reference is None else json.dumps(reference))

    def guard(self, claim: Claim, key: str, value: Any) -> None:
        """RECORD, and come back when SQL has it: whatever is lost from now on, the next claim finds the fact.

        Holds the slot for one group commit. Raises what `record` raises, StaleFence also when the claim is lost.
        """
        self.record(claim, key, value)
        while not self.claims.is_safe(claim, key):
            if claim.lost.wait(GUARD_INTERVAL):
                raise errors.StaleFence(run=claim.held.ref.run, step=claim.held.step)

    def spend(self, claim: Claim, rows: Rows) -> None:
        """Domain rows that a failed attempt leaves behind; they travel in the step's outcome, whoever makes it."""
        key = f"{SPENT}{claim.nonce}"
        self.claims.record(claim, key, encode(rows, what=f"the record '{key}'"))  # no blob: a claim reads it at once
        claim.owe(rows)

    # --- telling how it ended -------------------------------------------------------------------------------------

    def succeed(self, claim: Claim, output: Any, *, tokens: int = 0) -> bool:
        """ARRIVE with an output. Raises InvalidPayload or PayloadTooLarge for one that cannot be stored.

        One that is too large to travel is stored first: that raises JournalUnavailable.
        """
        what = f"the output of step '{claim.held.step}'"
        if self.blobs is None:
            encode(output, what=what)
        else:
            reference = self.blobs.kept(claim.held.ref.tenant, self.blobs.text_of(output, what=what))
            output = output if reference is None else reference
        return self._arrive(claim, self._outcome(claim, StepState.SUCCEEDED, output=output, tokens=tokens))

    def fail(self, claim: Claim, error: errors.ConvergioError) -> bool:
        """The attempt failed: PARK for a retry if the policy allows one, else ARRIVE as FAILED."""
        step, held = self.step(claim), claim.held
        if error.retryable and held.attempt <= step.retry.max and step.retry.covers(error.code, *_classes(error)):
            return self._retry(claim, error)
        return self._arrive(claim, self._outcome(claim, StepState.FAILED, error=_bounded(error)))

    def block(self, claim: Claim, *, signal: str, data: Mapping[str, Any]) -> bool:
        """PARK until the signal of this name comes: no slot, no message. An earlier signal counts."""
        text = json.dumps(data, ensure_ascii=False)

        def deliver(held: scripts.Claimed) -> None:
            signalled = scripts.park(
                self.link,
                held,
                on=BlockedOn.SIGNAL,
                delay_ms=None,
                attempt=held.attempt,
                kind="step.blocked",
                data=text,
                detail=signal,
                look_back=signal,
            )
            if signalled:
                self._drain(held)

        return self.claims.settle(claim, deliver)

    def defer(self, claim: Claim, *, seconds: float, reason: str) -> bool:
        """PARK for a time: a pre-run hook said not now."""
        data = json.dumps({"reason": _storable(reason), "seconds": seconds}, ensure_ascii=False)
        return self._park_for(claim, BlockedOn.HOOK, seconds, claim.held.attempt, "step.deferred", data, "later")

    def look_again(self, claim: Claim, *, seconds: float, awaits: str) -> bool:
        """PARK for a time: what the body began goes on elsewhere. The same attempt looks again then."""
        said = _storable(awaits)
        data = json.dumps({"reason": f"it waits for {said}", "awaits": said, "seconds": seconds}, ensure_ascii=False)
        return self._park_for(claim, BlockedOn.HOOK, seconds, claim.held.attempt, "step.deferred", data, "later")

    def retry(self, claim: Claim, error: errors.ConvergioError, *, seconds: float) -> bool:
        """PARK for another attempt that the body itself asked for: its own limits count, not the policy's."""
        return self._retry_in(claim, error, seconds)

    def decline(self, claim: Claim, *, missing: str) -> bool:
        """DECLINE: another worker may know what this one does not. The step stays READY and is rung now and then."""
        count = int(claim.held.fence.split(".")[1])
        seconds = min(LONGEST_PATIENCE, 2.0 ** min(count, 10))
        facts = {"worker": self.worker, "missing": _storable(missing), "seconds": seconds}
        data = json.dumps(facts, ensure_ascii=False)

        def deliver(held: scripts.Claimed) -> None:
            scripts.decline(self.link, held, delay_ms=round(seconds * 1000), data=data)

        return self.claims.settle(claim, deliver)

    def give_back(self, claim: Claim) -> bool:
        """RING again without an outcome: this worker stops before the body has run."""

        def deliver(held: scripts.Claimed) -> None:
            was = f"{StepState.RUNNING}|{held.fence}"
            step = self.step(claim)
            sets = {f"d:{held.step}": ""}
            self.ringer.again(
                held.epoch, _caller(held), step, was=was, kind="step.given_back", lease=held.fence, sets=sets
            )

        return self.claims.settle(claim, deliver)

    def _outcome(self, claim: Claim, state: StepState, **rest: Any) -> Outcome:
        held = claim.held
        return Outcome(
            state=state, attempt=held.attempt, started_ms=held.at_ms, worker=self.worker, rows=claim.rows, **rest
        )

    def _arrive(self, claim: Claim, outcome: Outcome) -> bool:
        """Tells the outcome: by COMPLETE where what follows is simple, else by ARRIVE."""
        step = self.step(claim)
        kept = draft.kept(step, outcome)
        output = "" if kept is None else json.dumps(kept, ensure_ascii=False, separators=(",", ":"))
        told = {"output": output, "outcome": outcome.as_json()}
        durable = step.durability is Durability.STEP
        names = [] if durable else decide.wanted(claim.plan, step.name)
        followers = shortcut.followers(claim.plan, step.name) if outcome.state is StepState.SUCCEEDED else None

        def deliver(held: scripts.Claimed) -> int | None:
            token, then = self.nonces.next(), self.grants.ask(self.nonces.next())
            answer: scripts.Locked | scripts.Parked | None
            if followers is not None:
                following = [self._following(held, claim.plan, follower) for follower in followers]
                answer = scripts.complete(
                    self.link, held, **told, following=following, token=token, wanted=names, then=then
                )
            else:
                state = outcome.state
                answer = scripts.arrive(
                    self.link, held, **told, state=state, durable=durable, token=token, wanted=names, then=then
                )
            if isinstance(answer, scripts.Parked):
                return answer.sequence
            if answer is not None:
                self._follow(answer, held)
            return None

        return self.claims.settle(claim, deliver)

    def _following(self, held: scripts.Claimed, plan: Plan, follower: shortcut.Follower) -> scripts.Following:
        """The follower with its first doorbell, if it is no join."""
        bell = None
        if follower.edges == 1:
            step = plan.workflow.steps[follower.step]
            bell = self.ringer.doorbell(_caller(held), step, ring=f"{held.epoch.number}.1", fresh=False)
        return scripts.Following(
            step=follower.step, edges=follower.edges, references=plan.references[follower.step], bell=bell
        )

    def _follow(self, locked: scripts.Locked, held: scripts.Claimed) -> None:
        """The outcome is recorded: what follows from it is in the inbox, and the sweeper finds it there if we fail."""
        try:
            self.drain.run(locked, held.meta)
        except (*AWAY, errors.JournalUnavailable) as error:  # SQL: what is decided may look into a blob
            logger.warning("run %s: %s; its inbox is drained later", held.ref, error)

    def _drain(self, held: scripts.Claimed) -> None:
        try:
            locked = scripts.post(self.link, held.ref, entry="", token=self.nonces.next())
        except AWAY:
            return
        if locked is not None:
            self._follow(locked, held)

    def _retry(self, claim: Claim, error: errors.ConvergioError) -> bool:
        held, policy = claim.held, self.step(claim).retry
        seconds = policy.delay(held.attempt, f"{held.ref}/{held.step}")
        return self._retry_in(claim, error, max(seconds, getattr(error, "retry_after", None) or 0.0))

    def _retry_in(self, claim: Claim, error: errors.ConvergioError, seconds: float) -> bool:
        held = claim.held
        facts = {"error": _bounded(error), "attempt": held.attempt + 1, "seconds": round(seconds, 3)}
        data = json.dumps(facts, ensure_ascii=False)
        return self._park_for(claim, BlockedOn.RETRY, seconds, held.attempt + 1, "step.retry", data, error.code)

    def _park_for(
        self, claim: Claim, on: BlockedOn, seconds: float, attempt: int, kind: str, data: str, detail: str
    ) -> bool:
        def deliver(held: scripts.Claimed) -> None:
            delay = max(0, round(seconds * 1000))
            scripts.park(self.link, held, on=on, delay_ms=delay, attempt=attempt, kind=kind, data=data, detail=detail)

        return self.claims.settle(claim, deliver)

    def _expire(self, claim: Claim) -> None:
        """The attempt ran longer than its timeout: the step goes on without it; a late result is fenced."""
        claim.deadline = None
        timeout = self.step(claim).timeout
        error = errors.StepTimeout(f"step '{claim.held.step}' ran longer than {timeout} s")
        try:
            self.fail(claim, error)
        except errors.StaleFence as stale:
            logger.info("%s", stale)
        finally:
            claim.lost.set()
            if claim.on_lost is not None:
                claim.on_lost()


def _classes(error: errors.ConvergioError) -> list[str]:
    """The names of the classes of the exception behind an error, its bases included."""
    return [] if error.__cause__ is None else [one.__name__ for one in type(error.__cause__).__mro__]


def _caller(held: scripts.Claimed) -> Caller:
    return Caller(ref=held.ref, workflow=held.meta["workflow"], submitter=held.submitter)


def _bounded(error: errors.ConvergioError) -> dict[str, Any]:
    """An error's public form, small enough for any store."""
    facts = error.as_dict()
    texts = {name: None if facts[name] is None else _storable(facts[name]) for name in ("code", "message", "hint")}
    return {**texts, "retryable": bool(facts["retryable"])}


def _storable(value: object) -> str:
    """Text of anything, without NUL characters and lone surrogates: what a user's error says is not in our hands."""
    try:
        text = str(value)
    except Exception:  # noqa: BLE001  # somebody else's __str__ may do anything
        text = f"({type(value).__name__}, which cannot be shown)"
    return text[:LONGEST_TEXT].replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
