"""The whole semantics of a run, in one pure function: (plan, view of the run, entries of its inbox) -> decision.

No I/O, no clock. The view holds what was read from the board; a field that was not read raises `Unloaded`, the shell
reads it and asks again. A decision is bounded: what does not fit stays in the inbox, and cursors in the view say how
far it got, so that the next holder of the run's lock goes on exactly there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from convergio.graphflow.board import fields
from convergio.graphflow.decision import START, Decision, Entry, Event, Ring, Unloaded, View
from convergio.graphflow.draft import AHEAD, Draft, Full, of_target
from convergio.graphflow.flow import expressions, inputs
from convergio.graphflow.flow.plan import OutEdge, Plan
from convergio.graphflow.model import errors
from convergio.graphflow.model.outcome import Outcome
from convergio.graphflow.model.outcome import encode as encode_payload
from convergio.graphflow.model.states import TERMINAL_STEP, BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import OnFailure, Step, StepKind

BUDGET: Final = 400
"""Writes after which a decision ends; a COMMIT has at most 500 items."""

FOLLOWED: Final = (StepState.SUCCEEDED, StepState.SKIPPED)
"""States after which a step's outgoing edges are resolved; the other terminal ones end the run, or follow its end."""

BROKEN: Final = (StepState.FAILED, StepState.QUARANTINED)
"""States that end the run, unless the step's `on_failure` says that it goes on."""

TIMED: Final = (BlockedOn.RETRY, BlockedOn.HOOK)
"""What a step waits for with a timer; it runs again then."""

OPEN: Final = (StepState.WAITING, StepState.READY, StepState.RUNNING)
"""States in which a step may still come to wait for a signal, as it may while it is blocked on what is TIMED."""

QUEUE: Final = "QUEUE"
"""The timer of a READY step that no worker takes; it is blocked on nothing."""

VERDICTS: Final = (QUEUE, BlockedOn.TIMER, BlockedOn.SIGNAL)
"""Timers that are entries of the inbox when they are due; the others ring their step."""

DONE: Final = "x"


def decide(
    plan: Plan, view: View, entries: Sequence[Entry], *, epoch: int, now_ms: int, budget: int = BUDGET
) -> Decision:
    """What follows from `entries`, in their order. Raises Unloaded when the view lacks a field.

    `now_ms`: when the run's lock was taken (Redis TIME); nothing but the time of timers depends on it.
    """
    return _Semantics(plan, view, epoch, now_ms, budget).run(entries)


def wanted(plan: Plan, step: str) -> list[str]:
    """The fields that deciding the arrival of `step` nearly always needs: read with it, they save a round trip."""
    names = [fields.state(step), fields.cursor(step), fields.OPEN, fields.STATE, fields.STOP]
    for edge in plan.successors[step][:AHEAD]:
        names += of_target(plan, edge.target)
    return names


class _Semantics(Draft):
    """What each entry means."""

    def run(self, entries: Sequence[Entry]) -> Decision:
        try:
            for entry in entries:
                self.handle(entry)
                self.made.consumed += 1
                if self.flush:
                    break
            while self.queue and not self.flush:
                self.handle(self.queue[0])
                self.queue.popleft()
        except Full:
            pass
        self.made.posts = list(self.queue)
        return self.made

    # --- entries --------------------------------------------------------------------------------------------------

    def handle(self, entry: Entry) -> None:
        match entry["t"]:
            case "start":
                self.start()
            case "arrived":
                self.arrived(entry["step"])
            case "signal":
                self.signal(entry)
            case "timer":
                self.timer(entry)
            case "cancel":
                self.cancel(entry)
            case "quarantine":
                self.quarantine(entry)
            case "end":
                self.wind_up(RunState(entry["state"]), entry["error"])
            case other:
                self.tell("entry.unknown", data={"t": str(other)})

    def start(self) -> None:
        done = self.get(fields.cursor(START))
        if done == DONE or self.ended():
            return
        for index in range(int(done or 0), len(self.plan.roots)):
            self.foresee(self.plan.roots, index)
            self.room()
            self.fire_or_skip(self.plan.roots[index], fresh=True)
            self.put(fields.cursor(START), str(index + 1))
        self.put(fields.cursor(START), DONE)

    def arrived(self, step: str) -> None:
        """A step is terminal: follow its outgoing edges, once.

        The cursor makes it once, even over several decisions.
        """
        done = self.get(fields.cursor(step))
        if done == DONE:
            return
        if self.ended():
            return
        word = self.word(step)
        if word.state not in FOLLOWED and not self.shrugged(step, word):
            self.stopped(step, word)
            return
        edges = self.plan.successors[step]
        targets = [edge.target for edge in edges]
        for index in range(int(done or 0), len(edges)):
            self.foresee(targets, index)
            self.room()
            self.resolve(edges[index], word)
            self.put(fields.cursor(step), str(index + 1))
        self.room()
        left = int(self.get(fields.OPEN)) - 1
        if left == 0:
            self.succeed()
        self.put(fields.OPEN, str(left))
        self.put(fields.cursor(step), DONE)

    def shrugged(self, step: str, word: fields.Word) -> bool:
        """Whether the step ended badly and the run goes on all the same, with null as its result."""
        return word.state in BROKEN and self.plan.workflow.steps[step].on_failure is OnFailure.CONTINUE

    def stopped(self, step: str, word: fields.Word) -> None:
        """The step ended badly, and the run with it. One that was withdrawn is no reason: it only follows from one."""
        if word.state not in TERMINAL_STEP:
            return
        self.put(fields.cursor(step), DONE)
        if word.state is not StepState.CANCELLED:
            self.end(RunState.FAILED, self.reason(step, word))

    def reason(self, step: str, word: fields.Word) -> dict[str, Any]:
        error = json.loads(self.get(fields.output(step)) or "{}")
        return {**error, "step": step, "state": word.state.value}

    def resolve(self, edge: OutEdge, word: fields.Word) -> None:
        """One more edge of its target is known: taken or skipped. The target's join policy says what follows."""
        target = edge.target
        if self.word(target).state is not StepState.WAITING:
            return
        try:
            taken = word.state is not StepState.SKIPPED and self.holds(edge.when, edge.references)
        except errors.ExpressionFailed as error:
            self.fail(target, error)
            return
        fires: bool | None = taken
        if self.plan.indegree[target] > 1:
            resolved = int(self.get(fields.resolved(target)) or 0) + 1
            count = int(self.get(fields.taken(target)) or 0) + taken
            self.put(fields.resolved(target), str(resolved))
            self.put(fields.taken(target), str(count))
            join = self.plan.workflow.steps[target].join
            fires = join.fires(edges=self.plan.indegree[target], resolved=resolved, taken=count)
        if fires:
            self.fire_or_skip(target)
        elif fires is False:
            self.skip(target)

    def fire_or_skip(self, step: str, *, fresh: bool = False) -> None:
        when = self.plan.workflow.steps[step].when
        try:
            fires = self.holds(when, self.plan.when_references[step])
        except errors.ExpressionFailed as error:
            self.fail(step, error)
            return
        if not fires:
            self.skip(step)
        elif self.plan.workflow.steps[step].kind is StepKind.WAIT:
            self.wait(self.plan.workflow.steps[step])
        else:
            self.fire(step, fresh)

    def holds(self, when: str | None, references: Iterable[str]) -> bool:
        """Whether a condition is true; none always is. Raises ExpressionFailed."""
        return when is None or expressions.condition(when, self.names(references))

    # --- transitions of a step ------------------------------------------------------------------------------------

    def fire(self, step: str, fresh: bool) -> None:
        count = int(self.get(fields.rings(step)) or 0) + 1
        ring = f"{self.epoch}.{count}"
        self.put(fields.rings(step), str(count))
        self.put(fields.state(step), fields.ready(ring))
        if self.plan.references[step]:
            self.made.writes[fields.references(step)] = ("", " ".join(self.plan.references[step]))
        self.made.rings.append(Ring(step=step, ring=ring, fresh=fresh))
        self.made.events.append(Event(kind="step.ready", step=step, journal=False))
        patience = self.plan.workflow.steps[step].queue_timeout
        if patience is not None:
            self.made.timers.append((step, QUEUE, self.now_ms + round(patience * 1000)))

    def skip(self, step: str) -> None:
        self.conclude(step, Outcome(state=StepState.SKIPPED))

    def fail(self, step: str, error: errors.ConvergioError) -> None:
        self.conclude(step, Outcome.failed(error))

    def quarantine(self, entry: Entry) -> None:
        step = entry["step"]
        if self.ended() or self.get(fields.state(step)) != entry["was"]:
            return
        self.room()
        word = self.word(step)
        if word.state is StepState.RUNNING:
            self.made.leases.append((step, word.rest))
        error = errors.Quarantined(entry["reason"], hint="look at the worker's log, then start the run again").as_dict()
        self.conclude(step, Outcome(state=StepState.QUARANTINED, error=error))

    # --- steps that wait ------------------------------------------------------------------------------------------

    def wait(self, step: Step) -> None:
        """A `wait` step needs no worker: it is blocked until its time, or until a signal that may have come before."""
        name = step.spec.get("signal")
        early = self.get(fields.early(name)) if name else ""
        if name and early:
            self.put(fields.early(name), "")
            self.signalled(step.name, json.loads(early))
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
            return expressions.moment(until, self.names(self.plan.references[step.name]))
        length = step.timeout if length is None else length
        return None if length is None else self.now_ms + round(length * 1000)

    def timer(self, entry: Entry) -> None:
        """A timer is due: a wait is over, or nobody came in time."""
        step, on = entry["step"], entry["on"]
        self.room()
        if not self.ended() and self.get(fields.state(step)) == entry["was"]:
            definition, since = self.plan.workflow.steps[step], self.word(step).since_ms
            if on == BlockedOn.TIMER:
                self.conclude(step, Outcome(state=StepState.SUCCEEDED, started_ms=since))
            elif on == BlockedOn.SIGNAL:
                said = f"no signal '{definition.spec['signal']}' came within {definition.timeout:g} s"
                self.fail(step, errors.StepTimeout(said))
            else:
                said = f"no worker of queue '{definition.queue}' took the step within {definition.queue_timeout:g} s"
                hint = f"start one: convergio worker --queues {definition.queue}"
                self.fail(step, errors.StepTimeout(said, hint=hint))
        self.made.timers.append((step, on, None))

    def signal(self, entry: Entry) -> None:
        """A signal ends what waits for it; one that comes early is kept, one that comes late changes nothing."""
        name = entry["name"]
        self.room()
        waiters = self.plan.waiters.get(name, ())
        words = {step: self.word(step) for step in waiters}
        blocked = [step for step, word in words.items() if word.blocked_on is BlockedOn.SIGNAL]
        coming = [step for step, word in words.items() if word.state in OPEN or word.blocked_on in TIMED]
        how = "late"
        if self.ended():
            pass
        elif blocked:
            how = "applied"
            for step in blocked:
                self.answer(step, words[step], entry)
        elif coming:
            how = "kept"
            for step in coming:  # a PARK in between must make this commit fail
                self.put(fields.state(step), self.get(fields.state(step)))
            if not self.get(fields.early(name)):
                self.put(fields.early(name), json.dumps(entry, ensure_ascii=False))
        for step in blocked or [name]:
            self.tell("signal.applied", step, {"id": entry["id"], "name": name, "how": how})

    def signalled(self, step: str, entry: Entry, since_ms: int | None = None) -> None:
        """A `wait` step gets its signal: what it said is the step's output."""
        started = self.now_ms if since_ms is None else since_ms
        self.conclude(step, Outcome(state=StepState.SUCCEEDED, output=entry["data"], started_ms=started))
        if since_ms is None:
            self.tell("signal.applied", step, {"id": entry["id"], "name": entry["name"], "how": "applied"})

    def answer(self, step: str, word: fields.Word, entry: Entry) -> None:
        """What the signal does to a step that waits for it.

        An approval's outcome is parked: nothing follows from it before it is in SQL, its durability is `step`.
        """
        data = entry["data"]
        if self.plan.workflow.steps[step].kind is StepKind.WAIT:
            self.made.timers.append((step, BlockedOn.SIGNAL, None))
            self.signalled(step, entry, word.since_ms)
            return
        outcome = Outcome(state=StepState.SUCCEEDED, output=data, started_ms=word.since_ms)
        if data.get("decision") != "approve":
            error = errors.ApprovalRejected(f"rejected by {data.get('by', 'unknown')}: {data.get('reason', '')}")
            outcome = Outcome.failed(error, started_ms=word.since_ms)
        self.keep(step, outcome)
        fence = word.rest.rsplit("|", 1)[-1]
        since = f"{BlockedOn.JOURNAL}|{word.since_ms}|{outcome.state}|{fence}"
        self.put(fields.state(step), fields.Word(StepState.BLOCKED, since).text)
        self.tell(f"step.{outcome.state.value.lower()}", step, outcome.as_json(), park=True)

    # --- the run's end --------------------------------------------------------------------------------------------

    def cancel(self, entry: Entry) -> None:
        if not self.ended():
            by, reason = entry.get("by", ""), entry.get("reason", "")
            self.end(RunState.CANCELLED, errors.RunCancelled(f"cancelled by {by}: {reason}").as_dict())

    def end(self, state: RunState, error: Mapping[str, Any]) -> None:
        """End the run early. First, alone, the mark that stops all claims; then what is live is withdrawn in peace."""
        self.flush = True
        self.put(fields.STOP, state)
        self.queue.append({"t": "end", "state": state.value, "error": error})

    def wind_up(self, state: RunState, error: Mapping[str, Any]) -> None:
        if self.get(fields.STATE) != RunState.RUNNING:
            return
        for step in self.live():
            self.room()
            self.withdraw(step)
        self.finish(state, output="", error=json.dumps(error, ensure_ascii=False, separators=(",", ":")))

    def live(self) -> list[str]:
        if not self.view.complete:
            raise Unloaded(everything=True)
        names = {name for name in (*self.view.values, *self.made.writes) if name.startswith("s:")}
        words = {name[2:]: self.word(name[2:]) for name in sorted(names)}
        alive = (StepState.READY, StepState.RUNNING, StepState.BLOCKED)
        return [step for step, word in words.items() if word.state in alive and word.parked is None]

    def withdraw(self, step: str) -> None:
        word = self.word(step)
        if word.state is StepState.RUNNING:
            self.made.leases.append((step, word.rest))
        if word.blocked_on is not None:
            self.made.timers.append((step, word.blocked_on, None))
        self.put(fields.state(step), StepState.CANCELLED.value)
        self.tell("step.cancelled", step, Outcome(state=StepState.CANCELLED).as_json())

    def succeed(self) -> None:
        try:
            output = self.run_output()
        except errors.ConvergioError as error:
            self.end(RunState.FAILED, error.as_dict())
            return
        self.finish(RunState.SUCCEEDED, output=output, error="")

    def run_output(self) -> str:
        names = self.names(inputs.output_references(self.plan), given=self.plan.workflow.output is not None)
        value = inputs.run_output(self.plan, names)
        return "" if value is None else encode_payload(value, what="the run's output")

    def finish(self, state: RunState, *, output: str, error: str) -> None:
        self.room()
        self.put(fields.STATE, state)
        self.made.writes["@output"] = ("", output)
        self.made.writes["@error"] = ("", error)
        data = f'{{"state":"{state}","output":{output or "null"},"error":{error or "null"}}}'
        self.made.events.append(Event(kind=f"run.{state.lower()}", data=data, park=True))
