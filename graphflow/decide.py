"""The whole semantics of a run, in one pure function: (plan, view of the run, entries of its inbox) -> decision.

No I/O, no clock. The view holds what was read from the board; a field that was not read raises `Unloaded`, the shell
reads it and asks again. A decision is bounded: what does not fit stays in the inbox, and cursors in the view say how
far it got, so that the next holder of the run's lock goes on exactly there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from convergio.graphflow.board import fields
from convergio.graphflow.decision import START, Answer, Decision, Entry, Unloaded, View
from convergio.graphflow.draft import AHEAD, ALIVE, DONE, LIVE, Full, of_target
from convergio.graphflow.flow import inputs
from convergio.graphflow.flow.plan import OutEdge, Plan
from convergio.graphflow.items import LARGEST, Items
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.outcome import Outcome
from convergio.graphflow.model.outcome import encode as encode_payload
from convergio.graphflow.model.states import TERMINAL_STEP, BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import UNDO, OnFailure, OnMax, StepKind

BUDGET: Final = 400
"""Writes after which a decision ends; a COMMIT has at most 500 items."""

FOLLOWED: Final = (StepState.SUCCEEDED, StepState.SKIPPED)
"""States after which a step's outgoing edges are resolved; the other terminal ones end the run, or follow its end."""

BROKEN: Final = (StepState.FAILED, StepState.QUARANTINED)
"""States that end the run, unless the step's `on_failure` says that it goes on."""

AT_ONCE: Final = 50
"""Steps that are rung in one go when a run is resumed."""


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
    known = plan.steps.get(instance.step_of(step))  # what stands for the undoing of a run is no step
    if known is not None and known.kind is StepKind.CONVERSATION:
        names += [fields.early(known.name), *_of_next_round(plan, step)]
    whole = instance.whole(step)
    if step != whole:
        return [*names, fields.state(whole), fields.progress(whole)]
    round_of = instance.round_of(step)
    for edge in plan.successors.get(instance.step_of(step), ())[:AHEAD]:
        target = instance.named(edge.target, round_of if edge.target in plan.loops else 0)
        names += of_target(plan, target)
    return names


def _of_next_round(plan: Plan, step: str) -> list[str]:
    """The fields that say whether the loop that this turn ends makes another round, and those that begin it."""
    region, number = plan.loops.get(instance.step_of(step)), instance.round_of(step)
    if region is None or region.end != instance.step_of(step):
        return []
    names = [fields.round_of(region.end), *of_target(plan, instance.named(region.loop.back_to, number + 1))]
    if region.loop.until is None:
        return names
    read = [instance.named(one, number) if one in plan.loops else one for one in plan.when_references[region.end]]
    return [*names, fields.INPUT, *map(fields.output, read)]


class _Semantics(Items):
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
            case "deal" | "fold":
                self.go_on_with(entry)
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
        self.look_ahead(step)
        done = self.get(fields.cursor(step))
        if done == DONE or self.ended():
            return
        if instance.index_of(step) is not None:
            self.item_arrived(step)
            return
        word = self.word(step)
        if word.state not in FOLLOWED and not self.shrugged(step, word):
            self.stopped(step, word)
            return
        if not done and word.state is StepState.SUCCEEDED and self.goes_back(step):
            return
        edges = self.plan.successors[instance.step_of(step)]
        targets = [self.beside(edge.target, step) for edge in edges]
        for index in range(int(done or 0), len(edges)):
            self.foresee(targets, index)
            self.room()
            self.resolve(edges[index], targets[index], step)
            self.put(fields.cursor(step), str(index + 1))
        self.room()
        left = int(self.get(fields.OPEN)) - 1
        if left == 0:
            self.succeed()
        self.put(fields.OPEN, str(left))
        self.put(fields.cursor(step), DONE)

    def look_ahead(self, step: str) -> None:
        """A skip travels: what it is going to meet is asked for at once, and the more, the longer its way has been."""
        if self.view.knows(fields.cursor(step)) or self.word(step).state is not StepState.SKIPPED:
            return
        way, names = [step], list[str]()
        for one in way:
            names += wanted(self.plan, one)
            if len(way) < min(AHEAD, 4 + 2 * len(self.made.events)):
                after = (self.beside(edge.target, one) for edge in self.plan.successors[instance.step_of(one)])
                way += [target for target in after if target not in way]
        raise Unloaded(name for name in dict.fromkeys(names) if not self.view.knows(name))

    def shrugged(self, step: str, word: fields.Word) -> bool:
        """Whether the step ended badly and the run goes on all the same, with null as its result."""
        if word.state not in BROKEN:
            return False
        return self.plan.step(step).on_failure is OnFailure.CONTINUE or self.answer_to(step) == Answer.SKIP

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

    def goes_back(self, step: str) -> bool:
        """Whether the step ends a loop that makes another round, or ends the run: then nothing else follows from it."""
        region = self.plan.loops.get(instance.step_of(step))
        if region is None or region.end != instance.step_of(step):
            return False
        loop, number = region.loop, instance.round_of(step) + 1
        first = instance.named(loop.back_to, number)
        talks = self.plan.step(step).kind is StepKind.CONVERSATION
        try:
            over = loop.until is not None and self.holds(
                loop.until, self.plan.when_references[region.end], step, after=True
            )
            over = over and not (talks and self.is_spoken_to(first))
        except errors.ExpressionFailed as error:
            self.exhaust(step, error)
            return True
        if over or (number == loop.max and (loop.until is None or loop.on_max is OnMax.CONTINUE)):
            return False
        if number == loop.max:
            said = f"the loop of '{region.end}' has made {number} rounds, and `{(loop.until or '')[:80]}` does not hold"
            self.exhaust(step, errors.LoopExhausted(said, hint="allow it more rounds (max), or let it go on (on_max)"))
            return True
        self.foresee([first], 0)
        self.room()
        self.put(fields.OPEN, str(int(self.get(fields.OPEN)) + region.size - 1))
        self.put(fields.round_of(region.end), str(number))
        self.put(fields.cursor(step), DONE)
        self.tell("loop.repeated", step, {"round": number})
        if self.word(first).state is StepState.WAITING:  # a rebuild may know how it ended
            if talks:
                self.listen(first)
            self.fire_or_skip(first)
        return True

    def exhaust(self, step: str, error: errors.ConvergioError) -> None:
        """A loop ends the run, though its step has succeeded."""
        self.room()
        self.put(fields.cursor(step), DONE)
        self.end(RunState.FAILED, {**error.as_dict(), "step": step}, undo=self.undoes(step))

    def resolve(self, edge: OutEdge, target: str, source: str) -> None:
        """One more edge of its target is known: taken or skipped. The target's join policy says what follows."""
        if self.word(target).state is not StepState.WAITING:
            return
        try:
            skipped = self.word(source).state is StepState.SKIPPED
            taken = not skipped and self.holds(edge.when, edge.references, source, after=True)
        except errors.ExpressionFailed as error:
            self.fail(target, error)
            return
        fires: bool | None = taken
        edges = self.plan.indegree[edge.target]
        if edges > 1:
            resolved = int(self.get(fields.resolved(target)) or 0) + 1
            count = int(self.get(fields.taken(target)) or 0) + taken
            self.put(fields.resolved(target), str(resolved))
            self.put(fields.taken(target), str(count))
            fires = self.plan.step(target).join.fires(edges=edges, resolved=resolved, taken=count)
        if fires:
            self.fire_or_skip(target)
        elif fires is False:
            self.skip(target)

    def fire_or_skip(self, name: str, *, fresh: bool = False) -> None:
        step = self.plan.step(name)
        try:
            fires = self.holds(step.when, self.plan.when_references[instance.step_of(name)], name)
        except errors.ExpressionFailed as error:
            self.fail(name, error)
            return
        if not fires:
            self.skip(name)
        elif step.kind is StepKind.WAIT:
            self.wait(step)
        elif step.kind is StepKind.WORKFLOW:
            self.want_child(step)
        elif step.kind is StepKind.MAP:
            self.spread(step)
        else:
            self.fire(name, fresh)

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
        self.give_up(self.plan.step(step), Outcome(state=StepState.QUARANTINED, error=error))

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
        return [step for step, word in words.items() if word.state in ALIVE and word.parked is None]

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
        if value is None:
            return ""
        text = encode_payload(value, what="the run's output", limit=LARGEST)
        large = self.blob(text)
        return text if large is None else encode_payload(large, what="the run's output")
