"""What a worker does with a step: claim it, record facts, and tell how it ended. Every verb is fenced."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from convergio.graphflow import asking, decide, draft, shortcut
from convergio.graphflow.board import scripts
from convergio.graphflow.board.connection import UNREACHABLE, Link
from convergio.graphflow.engine import bounded, declined
from convergio.graphflow.engine.bell import Caller
from convergio.graphflow.engine.claims import AWAY, Claim, Claims
from convergio.graphflow.engine.drain import Drain
from convergio.graphflow.engine.found import find
from convergio.graphflow.engine.handover import Grant, Grants, Handover, Nobody
from convergio.graphflow.engine.plans import Plans
from convergio.graphflow.engine.pressure import Pressure
from convergio.graphflow.engine.ringer import Ringer
from convergio.graphflow.engine.submission import wake
from convergio.graphflow.flow import inputs
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.journal.blobs import Blobs, Opened
from convergio.graphflow.journal.history import History
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.ids import Nonces, RunRef
from convergio.graphflow.model.outcome import Outcome, Rows, compact, encode
from convergio.graphflow.model.states import BlockedOn, StepState
from convergio.graphflow.model.workflow import Durability, OnFailure, Step

logger = logging.getLogger(__name__)

SPENT: Final = "spent."
"""Key prefix of recorded domain rows."""

GUARD_INTERVAL: Final = 0.02
"""Seconds between two looks at whether SQL has a fact."""

JOURNAL_PAUSE: Final = 1.0
"""Seconds between two tries to store what is too large for the board, while SQL is away."""

HELD_UP: Final = 1.0
"""Seconds that a step is held at least while the journal is too far behind."""


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
        pressure: Pressure | None = None,
        history: History | None = None,
    ) -> None:
        """`blobs`: where values go that are too large to travel; without it they are refused. `handover`: who takes the
        next doorbell when a step has ended; without it the broker alone brings them. `pressure`: says when no step
        should begin of which SQL would hear later; without it all may. `history`: where outcomes are looked up that
        may be used again; without it none is."""
        self.pressure = pressure
        self.history = history
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
        """CLAIM. None: a duplicate, or the run is over; or its definition cannot be read here: it is given back."""
        grant = self.grants.pop(ref, step, ring) or self._grant(ref, step, ring, queue_list)
        if isinstance(grant.answer, scripts.Refused):
            logger.info("doorbell %s/%s/%s: %s %s", ref, step, ring, grant.answer.why, grant.answer.state)
            if grant.answer.why == "STOPPED":
                self._shelve(ref, step, ring)
            return None
        return self._own(grant.answer, grant)

    def _grant(self, ref: RunRef, step: str, ring: str, queue_list: str) -> Grant:
        nonce = self.nonces.next()
        sure_until = time.monotonic() + scripts.LEASE_MS / 1000
        take = partial(scripts.claim, self.link, ref, step=step, ring=ring, nonce=nonce, queue_list=queue_list)
        try:
            answer = take(worker=self.worker)
        except errors.BoardRebuilding:
            answer = take(worker=self.worker)  # by now the new epoch is known: its first doorbell must not get lost
        return Grant(answer=answer, nonce=nonce, sure_until=sure_until)

    def _own(self, held: scripts.Claimed, grant: Grant) -> Claim | None:
        """The claim, from now on one of ours. None: its definition cannot be read here, and it is given back."""
        try:
            claim = self._read(held, grant)
        except errors.BoardUnavailable:
            raise
        except Exception as error:
            # Of a newer version, perhaps: without an answer the lease would end, as if this worker had died.
            logger.exception("step %s/%s: the run's definition cannot be read", held.ref, held.step)
            declined.disown(self.link, held, self.worker, f"the run's definition cannot be read here ({error})")
            return None
        self.claims.add(claim)
        return claim

    def _read(self, held: scripts.Claimed, grant: Grant) -> Claim:
        spent = [rows for key, rows in held.records.items() if key.startswith(SPENT)]
        if self.blobs is not None and held.records:
            held = replace(held, records=Opened(self.blobs, held.ref.tenant, held.records))
        plan = self.plans.get(held.meta["digest"])
        claim = Claim(held=held, nonce=grant.nonce, plan=plan, sure_until=grant.sure_until)
        for rows in spent:
            claim.owe(rows)
        definition = self.step(claim)
        if definition.timeout is not None:
            claim.deadline = time.monotonic() + definition.timeout
        claim.idle = definition.idle_timeout
        claim.sign()
        return claim

    def _return(self, grant: Grant) -> None:
        """A claim that came with a doorbell whose task never ran: it was revoked, or the worker stops."""
        if isinstance(grant.answer, scripts.Refused):
            return
        try:
            claim = self._own(grant.answer, grant)
            if claim is not None:
                self.give_back(claim)
        except (errors.StaleFence, *AWAY) as error:
            logger.info("a claim that no task asked for: %s", error)

    def _shelve(self, ref: RunRef, step: str, ring: str) -> None:
        """A step of a paused run must not keep its concurrency key from others."""
        try:
            found = find(self.link, self.plans, self.link.epoch(), ref, step)
        except (*AWAY, *UNREACHABLE) as error:
            logger.warning("doorbell %s/%s/%s: %s", ref, step, ring, error)
            return
        if found is not None and found.step.concurrency is not None:
            entry = {"t": "shelve", "step": step, "was": f"{StepState.READY}|{ring}"}
            wake(self.link, self.drain, self.nonces, ref, entry)

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
        step = self.step(claim)
        return inputs.arguments(step, self.names(claim)) if step.arguments else {}

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

    def recall(self, claim: Claim, digest: str) -> bool:
        """Whether the same call has succeeded before, lately enough: then that outcome is this step's, too.

        SQL that does not answer knows of none. Raises StaleFence.
        """
        cache, held = self.step(claim).cache, claim.held
        if cache is None or self.history is None:
            return False
        try:
            found = self.history.cached(held.ref.tenant, digest, held.at_ms - round(cache.ttl * 1000))
        except errors.JournalUnavailable as error:
            logger.warning("step %s is not looked up in the cache: %s", claim.member, error)
            return False
        if found is not None:
            origin = f"{found.run_id}/{instance.label(found.instance)}"
            self._arrive(claim, self._outcome(claim, StepState.SUCCEEDED, output=found.output, cached_from=origin))
        return found is not None

    def succeed(self, claim: Claim, output: Any, *, tokens: int = 0, cache: str | None = None) -> bool:
        """ARRIVE with an output. `cache`: the digest of the call, if others may use what came of it.

        Raises InvalidPayload or PayloadTooLarge for an output that cannot be stored. One that is too large to travel
        is stored first: that raises JournalUnavailable.
        """
        what = f"the output of step '{instance.label(claim.held.step)}'"
        if self.blobs is None:
            encode(output, what=what)
        else:
            reference = self.blobs.kept(claim.held.ref.tenant, self.blobs.text_of(output, what=what))
            output = output if reference is None else reference
        return self._arrive(claim, self._outcome(claim, StepState.SUCCEEDED, output=output, tokens=tokens, cache=cache))

    def fail(self, claim: Claim, error: errors.ConvergioError) -> bool:
        """The attempt failed: PARK for a retry if the policy allows one, or to ask, else ARRIVE as FAILED."""
        step, held = self.step(claim), claim.held
        left = error.retryable and held.attempt <= step.retry.max
        if left and step.retry.covers(error.code, *bounded.classes(error)):
            return self._retry(claim, error)
        if step.on_failure is OnFailure.ASK:
            return self._ask(claim, error)
        return self._arrive(claim, self._outcome(claim, StepState.FAILED, error=bounded.facts(error)))

    def _ask(self, claim: Claim, error: errors.ConvergioError) -> bool:
        """PARK until somebody has said what to do: an outcome would be final."""
        facts, attempt = bounded.facts(error), claim.held.attempt
        data = json.dumps({"error": facts, "attempt": attempt}, ensure_ascii=False)
        return self._park_for(claim, BlockedOn.SIGNAL, None, attempt, asking.ASKED, data, asking.detail_of(facts))

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
        data = json.dumps({"reason": bounded.text(reason), "seconds": seconds}, ensure_ascii=False)
        return self._park_for(claim, BlockedOn.HOOK, seconds, claim.held.attempt, "step.deferred", data, "later")

    def look_again(self, claim: Claim, *, seconds: float, awaits: str) -> bool:
        """PARK for a time: what the body began goes on elsewhere. The same attempt looks again then."""
        said = bounded.text(awaits)
        data = json.dumps({"reason": f"it waits for {said}", "awaits": said, "seconds": seconds}, ensure_ascii=False)
        return self._park_for(claim, BlockedOn.HOOK, seconds, claim.held.attempt, "step.deferred", data, "later")

    def retry(self, claim: Claim, error: errors.ConvergioError, *, seconds: float) -> bool:
        """PARK for another attempt that the body itself asked for: its own limits count, not the policy's."""
        return self._retry_in(claim, error, seconds)

    def decline(self, claim: Claim, *, missing: str) -> bool:
        """DECLINE: another worker may know what this one does not. The step stays READY and is rung now and then."""
        return self._decline(claim, declined.patience(claim.held), {"missing": bounded.text(missing)})

    def _decline(self, claim: Claim, seconds: float, why: Mapping[str, str]) -> bool:
        deliver = partial(declined.tell, self.link, worker=self.worker, seconds=seconds, why=why)
        return self.claims.settle(claim, deliver)

    def is_held_up(self, claim: Claim) -> bool:
        """Whether the journal is too far behind for another step of which it hears later: then it is READY again, and
        held until the journal has caught up. Raises StaleFence."""
        stream = self.step(claim).durability is Durability.STREAM
        lag = self.pressure.behind() if stream and self.pressure is not None else None
        if lag is not None:
            self._decline(claim, HELD_UP, {"journal": f"{lag}"})
        return lag is not None

    def give_back(self, claim: Claim) -> bool:
        """RING again without an outcome: this worker stops before the body has run."""

        def deliver(held: scripts.Claimed) -> None:
            caller, was = Caller.of(held.ref, held.meta), f"{StepState.RUNNING}|{held.fence}"
            kind, sets = "step.given_back", {f"d:{held.step}": ""}
            self.ringer.again(held.epoch, caller, self.step(claim), was=was, kind=kind, lease=held.fence, sets=sets)

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
        output = "" if kept is None else compact(kept)
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
                state, key = outcome.state, self.drain.limits.key_of(held.epoch, held.ref, step)
                answer = scripts.arrive(
                    self.link,
                    held,
                    **told,
                    state=state,
                    durable=durable,
                    token=token,
                    wanted=names,
                    then=then,
                    key=key,
                )
                self.drain.limits.freed(held.epoch, held.ref.tenant, key)
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
            bell = self.ringer.doorbell(
                Caller.of(held.ref, held.meta), step, ring=f"{held.epoch.number}.1", fresh=False
            )
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
        facts = {"error": bounded.facts(error), "attempt": held.attempt + 1, "seconds": round(seconds, 3)}
        data = json.dumps(facts, ensure_ascii=False)
        return self._park_for(claim, BlockedOn.RETRY, seconds, held.attempt + 1, "step.retry", data, error.code)

    def _park_for(
        self, claim: Claim, on: BlockedOn, seconds: float | None, attempt: int, kind: str, data: str, detail: str
    ) -> bool:
        delay = None if seconds is None else max(0, round(seconds * 1000))

        def deliver(held: scripts.Claimed) -> None:
            key = self.drain.limits.key_of(held.epoch, held.ref, self.step(claim))
            scripts.park(
                self.link,
                held,
                on=on,
                delay_ms=delay,
                attempt=attempt,
                kind=kind,
                data=data,
                detail=detail,
                key=key,
            )
            self.drain.limits.freed(held.epoch, held.ref.tenant, key)

        return self.claims.settle(claim, deliver)

    def _expire(self, claim: Claim) -> None:
        """The attempt ran longer than its timeout, or was silent for too long: the step goes on without it.

        A late result is fenced.
        """
        step, silent = self.step(claim), claim.is_silent(time.monotonic())
        claim.deadline = claim.idle = None
        error = errors.StepTimeout(f"step '{instance.label(step.name)}' ran longer than {step.timeout} s")
        if silent:
            hint = "a body gives one by heartbeat(), or by recording a fact"
            said = f"step '{instance.label(step.name)}' gave no sign of life for {step.idle_timeout:g} s"
            error = errors.StepTimeout(said, hint=hint)
        try:
            self.fail(claim, error)
        except errors.StaleFence as stale:
            logger.info("%s", stale)
        finally:
            claim.lose()
