"""The whole semantics of a run, in one pure function: (plan, view of the run, entries of its inbox) -> decision.

No I/O, no clock. The view holds what was read from the board; a field that was not read raises `Unloaded`, the shell
reads it and asks again. A decision is bounded: what does not fit stays in the inbox, and cursors in the view say how
far it got, so that the next holder of the run's lock goes on exactly there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from convergio.graphflow.asking import Answer
from convergio.graphflow.board import fields
from convergio.graphflow.decision import START, Decision, Entry, Unloaded, View
from convergio.graphflow.draft import AHEAD, LIVE, Full, of_target
from convergio.graphflow.flow import expressions, inputs
from convergio.graphflow.flow.plan import OutEdge, Plan
from convergio.graphflow.model import errors
from convergio.graphflow.model.outcome import Outcome
from convergio.graphflow.model.outcome import encode as encode_payload
from convergio.graphflow.model.states import TERMINAL_STEP, BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import UNDO, OnFailure, StepKind
from convergio.graphflow.nested import LEFT, attempt_of
from convergio.graphflow.undoing import Undoing

BUDGET: Final = 400
"""Writes after which a decision ends; a COMMIT has at most 500 items."""

FOLLOWED: Final = (StepState.SUCCEEDED, StepState.SKIPPED)
"""States after which a step's outgoing edges are resolved; the other terminal ones end the run, or follow its end."""

BROKEN: Final = (StepState.FAILED, StepState.QUARANTINED)
"""States that end the run, unless the step's `on_failure` says that it goes on."""

AT_ONCE: Final = 50
"""Steps that are rung in one go when a run is resumed."""

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
    for edge in plan.successors.get(step, ())[:AHEAD]:
        names += of_target(plan, edge.target)
    return names


class _Semantics(Undoing):
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
            case "child":
                self.child(entry)
            case "pause" | "resume" | "shelve" | "rung":
                self.hold(entry)
            case "cancel":
                self.cancel(entry)
            case "quarantine":
                self.quarantine(entry)
            case "end":
                self.wind_up(RunState(entry["state"]), entry["error"], undo=bool(entry.get("undo")))
            case other:
                self.tell("entry.unknown", data={"t": str(other)})

    def start(self) -> None:
        done = self.get(fields.cursor(START))
        if done == DONE or self.ended():
            return
        for index in range(int(done or 0), len(self.plan.roots)):
            self.foresee(self.plan.roots, index)
            self.room()
            if self.word(self.plan.roots[index]).state is StepState.WAITING:  # a rebuild may know how it ended
                self.fire_or_skip(self.plan.roots[index], fresh=True)
            self.put(fields.cursor(START), str(index + 1))
        self.put(fields.cursor(START), DONE)

    def arrived(self, step: str) -> None:
        """A step is terminal: follow its outgoing edges, once.

        The cursor makes it once, even over several decisions.
        """
        if self.get(fields.STATE) == RunState.COMPENSATING:
            self.undo_on()
            return
        done = self.get(fields.cursor(step))
        if done == DONE or self.ended():
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
        if word.state not in BROKEN:
            return False
        return self.plan.workflow.steps[step].on_failure is OnFailure.CONTINUE or self.answer_to(step) == Answer.SKIP

    def stopped(self, step: str, word: fields.Word) -> None:
        """The step ended badly, and the run with it. One that was withdrawn is no reason: it only follows from one."""
        if word.state not in TERMINAL_STEP:
            return
        self.put(fields.cursor(step), DONE)
        if word.state is not StepState.CANCELLED:
            self.end(RunState.FAILED, self.reason(step, word), undo=self.undoes(step))

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
        elif self.plan.workflow.steps[step].kind is StepKind.WORKFLOW:
            self.want_child(self.plan.workflow.steps[step])
        else:
            self.fire(step, fresh)

    def holds(self, when: str | None, references: Iterable[str]) -> bool:
        """Whether a condition is true; none always is. Raises ExpressionFailed."""
        return when is None or expressions.condition(when, self.names(references))

    # --- transitions of a step ------------------------------------------------------------------------------------

    def quarantine(self, entry: Entry) -> None:
        step = entry["step"]
        undoing = step.startswith(UNDO) and self.get(fields.STATE) == RunState.COMPENSATING
        if (self.ended() and not undoing) or self.get(fields.state(step)) != entry["was"]:
            return
        self.room()
        word = self.word(step)
        if word.state is StepState.RUNNING:
            self.made.leases.append((step, word.rest))
        error = errors.Quarantined(entry["reason"], hint="look at the worker's log, then start the run again").as_dict()
        self.give_up(self.plan.steps[step], Outcome(state=StepState.QUARANTINED, error=error))

    # --- pausing --------------------------------------------------------------------------------------------------

    def hold(self, entry: Entry) -> None:
        """What is about a run that is paused, or goes on."""
        match entry["t"]:
            case "pause":
                self.pause(entry)
            case "resume":
                self.resume(entry)
            case "shelve":
                self.shelve(entry)
            case _:
                self.ring_on(entry)

    def pause(self, entry: Entry) -> None:
        """From now on nothing is rung, and nobody can claim. What runs goes on, and its outcomes are recorded."""
        if self.is_newer(entry) and self.get(fields.STATE) == RunState.RUNNING and not self.ended():
            self.put(fields.STATE, RunState.PAUSED)
            self.tell("run.paused", data={"by": entry.get("by", ""), "reason": entry.get("reason", "")})

    def resume(self, entry: Entry) -> None:
        """The run goes on: first its state, since a doorbell that is answered before would be lost; then the bells."""
        if self.is_newer(entry) and self.get(fields.STATE) == RunState.PAUSED and not self.ended():
            self.put(fields.STATE, RunState.RUNNING)
            self.tell("run.resumed", data={"by": entry.get("by", "")})
            self.queue.append({"t": "rung", "after": ""})
            self.flush = True  # what is ready is looked at after the commit: whoever is refused until then must be rung

    def is_newer(self, entry: Entry) -> bool:
        """Whether the wish is younger than the last one that was granted. It is, then, the last one."""
        self.room()
        if int(entry["cv"]) <= int(self.get(fields.CONTROL) or 0):
            return False
        self.put(fields.CONTROL, str(entry["cv"]))
        return True

    def ring_on(self, entry: Entry) -> None:
        """Rings what is READY, some steps at a time: their doorbells were never pushed, or found the run paused."""
        if self.get(fields.STATE) != RunState.RUNNING or self.ended():
            return
        self.room()
        ready = [step for step in self.live() if step > entry["after"] and self.is_ready(self.word(step))]
        for step in ready[:AT_ONCE]:
            self.fire(step, fresh=False)
        if len(ready) > AT_ONCE:
            self.queue.append({"t": "rung", "after": ready[AT_ONCE - 1]})
            self.flush = True

    def is_ready(self, word: fields.Word) -> bool:
        """Whether nothing but a worker, or its turn, is missing."""
        return word.state is StepState.READY or word.blocked_on is BlockedOn.LIMIT

    # --- the run's end --------------------------------------------------------------------------------------------

    def cancel(self, entry: Entry) -> None:
        undoing = self.get(fields.STATE) == RunState.COMPENSATING and not self.get(fields.STOP)
        if self.ended() and not (undoing and json.loads(self.get(fields.UNDO))["state"] == RunState.FAILED):
            return
        by, reason = entry.get("by", ""), entry.get("reason", "")
        error = errors.RunCancelled(f"cancelled by {by}: {reason}")
        self.end(RunState.CANCELLED, error.as_dict(), undo=not undoing and self.undoes())

    def end(self, state: RunState, error: Mapping[str, Any], *, undo: bool = False) -> None:
        """End the run early. First, alone, the mark that stops all claims; then what is live is withdrawn in peace."""
        self.flush = True
        self.put(fields.STOP, state)
        self.queue.append({"t": "end", "state": state.value, "error": error, "undo": undo})

    def wind_up(self, state: RunState, error: Mapping[str, Any], *, undo: bool) -> None:
        undoing = self.get(fields.STATE) == RunState.COMPENSATING
        if self.get(fields.STATE) not in LIVE and not (undoing and self.get(fields.STOP)):
            return
        for step in self.live():
            self.room()
            self.withdraw(step)
        if undo:
            self.room()
            self.begin_undo(state, error)
            return
        if undoing:
            self.finish(state, output="", error=self.undone(error))
            return
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
        self.let_go(step)
        if word.blocked_on is BlockedOn.CHILD:
            self.tell(LEFT, step, {"attempt": attempt_of(word)})
        self.put(fields.state(step), StepState.CANCELLED.value)
        self.tell("step.cancelled", step, Outcome(state=StepState.CANCELLED).as_json())

    def succeed(self) -> None:
        try:
            output = self.run_output()
        except errors.ConvergioError as error:
            self.end(RunState.FAILED, error.as_dict(), undo=self.undoes())
            return
        self.finish(RunState.SUCCEEDED, output=output, error="")

    def run_output(self) -> str:
        names = self.names(inputs.output_references(self.plan), given=self.plan.workflow.output is not None)
        value = inputs.run_output(self.plan, names)
        return "" if value is None else encode_payload(value, what="the run's output")
