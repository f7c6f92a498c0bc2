"""Steps that wait: for their time, a signal, a person, a worker. The part of `decide` that is about them."""

from __future__ import annotations

import json
from typing import Final

from convergio.graphflow.board import fields
from convergio.graphflow.decision import Answer, Entry, Event, Ring
from convergio.graphflow.flow import expressions
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.outcome import Outcome
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import OnFailure, Step, StepKind
from convergio.graphflow.nested import LEFT, Nested, attempt_of

TIMED: Final = (BlockedOn.RETRY, BlockedOn.HOOK)
"""What a step waits for with a timer; it runs again then."""

OPEN: Final = (StepState.WAITING, StepState.READY, StepState.RUNNING)
"""States in which a step may still come to wait for a signal, as it may while it is blocked on what is TIMED."""

QUEUE: Final = "QUEUE"
"""The timer of a READY step that no worker takes; it is blocked on nothing."""

VERDICTS: Final = (QUEUE, BlockedOn.TIMER, BlockedOn.SIGNAL, BlockedOn.CHILD)
"""Timers that are entries of the inbox when they are due; the others ring their step."""


def is_verdict(step: Step, on: str) -> bool:
    """Whether what a timer of the step means is decided, when it is due; else it rings the step."""
    return on in VERDICTS or step.kind is StepKind.WORKFLOW


BY_SIGNAL: Final = "signal:"
"""Begins what stands for the worker in the outcome of a wait: the rest is the id of the signal that ended it."""


class Waiting(Nested):
    """What time and signals mean."""

    def fire(self, step: str, fresh: bool) -> None:
        """The step becomes READY, and is rung unless its run is paused. With a concurrency key it gets in line."""
        concurrency = self.plan.step(step).concurrency
        if concurrency is not None and self.word(step).state is not StepState.READY:
            self.queue_up(step, concurrency)
            return
        count = int(self.get(fields.rings(step)) or 0) + 1
        ring = f"{self.epoch}.{count}"
        self.put(fields.rings(step), str(count))
        self.put(fields.state(step), fields.ready(ring))
        reads = self.reads(step) if count == 1 and concurrency is None else ()
        if reads:
            self.made.writes[fields.references(step)] = ("", " ".join(reads))
        if self.get(fields.STATE) != RunState.PAUSED:
            self.made.rings.append(Ring(step=step, ring=ring, fresh=fresh))
        self.made.events.append(Event(kind="step.ready", step=step, journal=False))
        patience = self.plan.step(step).queue_timeout
        if patience is not None and count == 1:
            self.made.timers.append((step, QUEUE, self.now_ms + round(patience * 1000)))

    def withdraw(self, step: str) -> None:
        """A step that is live has no outcome any more, and nobody waits for one."""
        word = self.word(step)
        if word.state is StepState.RUNNING:
            self.made.leases.append((step, word.rest))
        if word.blocked_on is not None:
            self.made.timers.append((step, word.blocked_on, None))
        self.let_go(step)
        if word.blocked_on is BlockedOn.CHILD:
            self.tell(LEFT, step, {"attempt": attempt_of(word)})
        self.put(fields.state(step), StepState.CANCELLED.value)
        self.tell("step.cancelled", step, Outcome(state=StepState.CANCELLED).as_json())

    def wait(self, step: Step) -> None:
        """A `wait` step needs no worker: it is blocked until its time, or until a signal that may have come before."""
        name = step.spec.get("signal")
        early = self.get(fields.early(name)) if name else ""
        if name and early:
            first, _, rest = early.partition("\n")
            self.put(fields.early(name), rest)
            self.signalled(step.name, json.loads(first))
            return
        try:
            due = self.due(step)
        except errors.ExpressionFailed as error:
            self.fail(step.name, error)
            return
        on = BlockedOn.SIGNAL if name else BlockedOn.TIMER
        self.put(fields.state(step.name), fields.Word(StepState.BLOCKED, f"{on}|{self.now_ms}|{name or ''}|").text)
        if due is not None:
            self.made.timers.append((step.name, on, due))
        self.tell("step.waiting", step.name, {"on": on.value, "signal": name, "due_ms": due})

    def due(self, step: Step) -> int | None:
        """When the wait ends by itself (ms): its time, or the patience for its signal. Raises ExpressionFailed."""
        length, until = step.spec.get("for"), step.spec.get("until")
        if until is not None:
            return expressions.moment(until, self.names(self.plan.references[instance.step_of(step.name)], step.name))
        length = step.timeout if length is None else length
        return None if length is None else self.now_ms + round(length * 1000)

    def timer(self, entry: Entry) -> None:
        """A timer is due: a wait is over, or nobody came in time."""
        step, on = entry["step"], entry["on"]
        self.room()
        if on == QUEUE and self.is_patient(step, entry["was"]):
            return
        definition, since = self.plan.step(step), self.word(step).since_ms
        due = not self.ended() and self.get(fields.state(step)) == entry["was"]
        if due or definition.kind is not StepKind.WORKFLOW:  # the next child may have a timer of the same name
            self.made.timers.append((step, on, None))
        if due:
            if definition.kind is StepKind.WORKFLOW:
                self.child_time(definition, self.word(step))
            elif on == BlockedOn.TIMER:
                self.conclude(step, Outcome(state=StepState.SUCCEEDED, started_ms=since))
            elif on == BlockedOn.SIGNAL:
                said = f"no signal '{definition.spec['signal']}' came within {definition.timeout:g} s"
                self.fail(step, errors.StepTimeout(said))
            else:
                said = f"no worker of queue '{definition.queue}' took the step within {definition.queue_timeout:g} s"
                hint = f"start one: convergio worker --queues {definition.queue}"
                self.give_up(definition, Outcome.failed(errors.StepTimeout(said, hint=hint)))

    def child_time(self, step: Step, word: fields.Word) -> None:
        """The time of a step that is a run: its child takes too long, or the next attempt may begin."""
        if word.blocked_on is BlockedOn.CHILD:
            self.child_late(step, word)
        else:
            self.want_child(step, attempt_of(word))

    def is_patient(self, step: str, was: str) -> bool:
        """Whether the queue's timer of the step says nothing now. What it will say, if anything, is arranged here."""
        patience = self.plan.step(step).queue_timeout or 0.0
        if self.get(fields.attempt(step)) or self.get(fields.deliveries(step)):
            self.made.timers.append((step, QUEUE, None))  # a worker had it in time, and lost it
            return True
        if self.ended() or self.word(step).state is not StepState.READY:
            return False
        if self.get(fields.STATE) == RunState.PAUSED:  # nobody may take it
            self.made.timers.append((step, QUEUE, self.now_ms + round(patience * 1000)))
            return True
        return self.get(fields.state(step)) != was  # it was rung again meanwhile: the sweeper asks again

    def signal(self, entry: Entry) -> None:
        """A signal ends what waits for it; one that comes early is kept, one that comes late changes nothing."""
        name = entry["name"]
        self.room()
        waiters = [self.seen(step) or step for step in self.plan.waiters.get(name, ())]
        words = {step: self.word(step) for step in waiters}
        blocked = [step for step, word in words.items() if word.blocked_on is BlockedOn.SIGNAL]
        coming = [
            step
            for step, word in words.items()
            if not self.is_asking(step) and (word.state in OPEN or word.blocked_on in TIMED)
        ]
        how = "late"
        if self.ended() or self.get(fields.used(entry["id"])):
            blocked = []
        elif blocked:
            how = "applied"
            for step in blocked:
                self.answer(step, words[step], entry)
        elif coming:
            how = "kept"
            for step in coming:  # a PARK in between must make this commit fail
                self.put(fields.state(step), self.get(fields.state(step)))
            known = [line for line in self.get(fields.early(name)).split("\n") if line]
            if all(json.loads(line)["id"] != entry["id"] for line in known):
                self.put(fields.early(name), "\n".join([*known, json.dumps(entry, ensure_ascii=False)]))
        elif any(map(self.is_asking, waiters)):
            self.put(fields.used(entry["id"]), "x")  # told once more, it must not answer a later question
        for step in blocked or [name]:
            self.tell("signal.applied", step, {"id": entry["id"], "name": name, "how": how})

    def signalled(self, step: str, entry: Entry, since_ms: int | None = None) -> None:
        """A `wait` step gets its signal: what it said is the step's output."""
        started = self.now_ms if since_ms is None else since_ms
        self.put(fields.used(entry["id"]), "x")
        outcome = Outcome(
            state=StepState.SUCCEEDED, output=entry["data"], started_ms=started, worker=f"{BY_SIGNAL}{entry['id']}"
        )
        self.conclude(step, outcome)
        if since_ms is None:
            self.tell("signal.applied", step, {"id": entry["id"], "name": entry["name"], "how": "applied"})

    def answered(self, step: Step, word: fields.Word, entry: Entry) -> None:
        """Somebody has said what to do about a step that has failed."""
        if entry["data"].get("decision") != Answer.RETRY:
            self.settle_for(step, word, entry)
            return
        attempt = self.once_more(step, entry)
        if step.kind is StepKind.WORKFLOW:
            self.want_child(step, attempt)
        else:
            self.fire(step.name, fresh=False)

    def answer(self, step: str, word: fields.Word, entry: Entry) -> None:
        """What the signal does to a step that waits for it.

        An approval's outcome is parked: nothing follows from it before it is in SQL, its durability is `step`.
        """
        data, definition = entry["data"], self.plan.step(step)
        if definition.on_failure is OnFailure.ASK:
            self.put(fields.used(entry["id"]), "x")
            self.answered(definition, word, entry)
            return
        if definition.kind is StepKind.WAIT:
            self.made.timers.append((step, BlockedOn.SIGNAL, None))
            self.signalled(step, entry, word.since_ms)
            return
        self.put(fields.used(entry["id"]), "x")
        outcome = Outcome(state=StepState.SUCCEEDED, output=data, started_ms=word.since_ms)
        if data.get("decision") != "approve":
            error = errors.ApprovalRejected(f"rejected by {data.get('by', 'unknown')}: {data.get('reason', '')}")
            outcome = Outcome.failed(error, started_ms=word.since_ms)
        self.keep(step, outcome)
        fence = word.rest.rsplit("|", 1)[-1]
        since = f"{BlockedOn.JOURNAL}|{word.since_ms}|{outcome.state}|{fence}"
        self.put(fields.state(step), fields.Word(StepState.BLOCKED, since).text)
        self.tell(f"step.{outcome.state.value.lower()}", step, outcome.as_json(), park=True)
