"""The whole semantics of a run, in one pure function: (plan, view of the run, entries of its inbox) -> decision.

No I/O, no clock. The view holds what was read from the board; a field that was not read raises `Unloaded`, the shell
reads it and asks again. A decision is bounded: what does not fit stays in the inbox, and cursors in the view say how
far it got, so that the next holder of the run's lock goes on exactly there.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from convergio.graphflow.board import fields
from convergio.graphflow.flow import expressions, inputs
from convergio.graphflow.flow.plan import OutEdge, Plan
from convergio.graphflow.model import errors
from convergio.graphflow.model.outcome import Outcome
from convergio.graphflow.model.outcome import encode as encode_payload
from convergio.graphflow.model.states import TERMINAL_STEP, BlockedOn, RunState, StepState

BUDGET: Final = 400
"""Writes after which a decision ends; a COMMIT has at most 500 items."""

AHEAD: Final = 200
"""Steps whose fields are asked for at once where a decision goes through many."""

FOLLOWED: Final = (StepState.SUCCEEDED, StepState.SKIPPED)
"""States after which a step's outgoing edges are resolved; the other terminal ones end the run, or follow its end."""

TIMED: Final = (BlockedOn.RETRY, BlockedOn.HOOK)
"""What a step waits for with a timer; it runs again then."""

START: Final = "@"
DONE: Final = "x"

Entry = Mapping[str, Any]


class Unloaded(Exception):
    """The decision needs fields that were not read yet; with `everything` it needs every step's state."""

    def __init__(self, names: Iterable[str] = (), *, everything: bool = False) -> None:
        self.names = tuple(names)
        self.everything = everything
        super().__init__(*self.names)


@dataclass(slots=True)
class View:
    """Fields of a run's hash, as read under its lock.

    "" is an absent field; `complete`: every step's state was read.
    """

    values: dict[str, str]
    complete: bool = False
    blank: bool = False
    """the run was made a moment ago: a field that was not read is absent"""

    def get(self, name: str) -> str:
        """The field's value; raises Unloaded if nobody read it."""
        try:
            return self.values[name]
        except KeyError:
            if self.knows(name):
                return ""
            raise Unloaded([name]) from None

    def knows(self, name: str) -> bool:
        """Whether `get` has an answer."""
        return name in self.values or self.blank or (self.complete and name.startswith("s:"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event to tell. `journal`: SQL gets it too. `park`: what it says is released only when SQL has it."""

    kind: str
    step: str = ""
    data: str = "{}"
    journal: bool = True
    park: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """A doorbell to push. `fresh`: the run begins with it (continuations go first)."""

    step: str
    ring: str
    fresh: bool


@dataclass(slots=True)
class Decision:
    """What to write in one COMMIT, all or nothing."""

    writes: dict[str, tuple[str, str]] = field(default_factory=dict)
    """field -> (value it must have, value it gets)"""
    rings: list[Ring] = field(default_factory=list)
    leases: list[tuple[str, str]] = field(default_factory=list)
    """(step, fence) to drop"""
    timers: list[tuple[str, BlockedOn]] = field(default_factory=list)
    """timers to drop"""
    events: list[Event] = field(default_factory=list)
    posts: list[Entry] = field(default_factory=list)
    """entries for the inbox: what did not fit"""
    consumed: int = 0
    """entries of the inbox that are wholly dealt with"""


def decide(plan: Plan, view: View, entries: Sequence[Entry], *, epoch: int, budget: int = BUDGET) -> Decision:
    """What follows from `entries`, in their order. Raises Unloaded when the view lacks a field."""
    return _Draft(plan, view, epoch, budget).run(entries)


def wanted(plan: Plan, step: str) -> list[str]:
    """The fields that deciding the arrival of `step` nearly always needs: read with it, they save a round trip."""
    names = [fields.state(step), fields.cursor(step), fields.OPEN, fields.STATE, fields.STOP]
    for edge in plan.successors[step][:AHEAD]:
        names += of_target(plan, edge.target)
    return names


def of_target(plan: Plan, step: str) -> list[str]:
    """The fields that change when an incoming edge of `step` is resolved."""
    names = [fields.state(step), fields.rings(step)]
    return names if plan.indegree[step] < 2 else [*names, fields.resolved(step), fields.taken(step)]


class _Full(Exception):
    """The budget is used up; what is left stays for the next decision."""


class _Draft:
    def __init__(self, plan: Plan, view: View, epoch: int, budget: int) -> None:
        self.plan = plan
        self.view = view
        self.epoch = epoch
        self.budget = budget
        self.made = Decision()
        self.queue: deque[Entry] = deque()
        self.flush = False

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
        except _Full:
            pass
        self.made.posts = list(self.queue)
        return self.made

    # --- reading and writing --------------------------------------------------------------------------------------

    def get(self, name: str) -> str:
        write = self.made.writes.get(name)
        return write[1] if write else self.view.get(name)

    def put(self, name: str, value: str) -> None:
        was = self.made.writes[name][0] if name in self.made.writes else self.view.get(name)
        self.made.writes[name] = (was, value)

    def room(self) -> None:
        if len(self.made.writes) + len(self.made.events) >= self.budget:
            raise _Full

    def foresee(self, targets: Sequence[str], index: int) -> None:
        """Asks for the fields of many steps at once, where the one at `index` was not read."""
        if not self.view.knows(fields.state(targets[index])):
            ahead = [name for target in targets[index : index + AHEAD] for name in of_target(self.plan, target)]
            raise Unloaded(name for name in ahead if not self.view.knows(name))

    def word(self, step: str) -> fields.Word:
        return fields.Word.parse(self.get(fields.state(step)))

    def tell(self, kind: str, step: str = "", data: Any = None, *, park: bool = False) -> None:
        text = data if isinstance(data, str) else json.dumps(data or {}, ensure_ascii=False, separators=(",", ":"))
        self.made.events.append(Event(kind=kind, step=step, data=text, park=park))

    def ended(self) -> bool:
        return self.get(fields.STATE) != RunState.RUNNING or self.get(fields.STOP) != ""

    def names(self, steps: Iterable[str], *, given: bool = True) -> dict[str, Any]:
        """The outputs of `steps` and, if `given`, the input: what an expression may name. What is not there is null."""
        wanted = [*map(fields.output, steps), *([fields.INPUT] if given else [])]
        missing = [name for name in wanted if not self.view.knows(name)]
        if missing:
            raise Unloaded(missing)
        values = {step: self.output(step) for step in steps}
        return {**values, "input": json.loads(self.get(fields.INPUT) or "null")} if given else values

    def output(self, step: str) -> Any:
        succeeded = self.word(step).state is StepState.SUCCEEDED
        return json.loads(self.get(fields.output(step)) or "null") if succeeded else None

    # --- entries --------------------------------------------------------------------------------------------------

    def handle(self, entry: Entry) -> None:
        match entry["t"]:
            case "start":
                self.start()
            case "arrived":
                self.arrived(entry["step"])
            case "signal":
                self.signal(entry)
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
        if word.state not in FOLLOWED:
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
        """One incoming edge of its target is now known: taken or skipped. A join fires when all are known."""
        target = edge.target
        if self.word(target).state is not StepState.WAITING:
            return
        try:
            taken = word.state is StepState.SUCCEEDED and self.holds(edge.when, edge.references)
        except errors.ExpressionFailed as error:
            self.fail(target, error)
            return
        if self.plan.indegree[target] > 1:
            resolved = int(self.get(fields.resolved(target)) or 0) + 1
            count = int(self.get(fields.taken(target)) or 0) + taken
            self.put(fields.resolved(target), str(resolved))
            self.put(fields.taken(target), str(count))
            if resolved < self.plan.indegree[target]:
                return
            taken = count > 0
        if taken:
            self.fire_or_skip(target)
        else:
            self.skip(target)

    def fire_or_skip(self, step: str, *, fresh: bool = False) -> None:
        when = self.plan.workflow.steps[step].when
        try:
            fires = self.holds(when, self.plan.when_references[step])
        except errors.ExpressionFailed as error:
            self.fail(step, error)
            return
        if fires:
            self.fire(step, fresh)
        else:
            self.skip(step)

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

    def conclude(self, step: str, outcome: Outcome) -> None:
        """A terminal state that no worker brought. It is followed like any other arrival."""
        self.put(fields.state(step), outcome.state.value)
        self.tell(f"step.{outcome.state.value.lower()}", step, outcome.as_json())
        self.queue.append({"t": "arrived", "step": step})

    def skip(self, step: str) -> None:
        self.conclude(step, Outcome(state=StepState.SKIPPED))

    def fail(self, step: str, error: errors.ConvergioError) -> None:
        self.made.writes[fields.output(step)] = ("", json.dumps(error.as_dict(), ensure_ascii=False))
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
        self.put(fields.output(step), json.dumps(error, ensure_ascii=False))
        self.conclude(step, Outcome(state=StepState.QUARANTINED, error=error))

    def signal(self, entry: Entry) -> None:
        """A signal ends the approval of its name; one that comes early is kept, one that comes late changes nothing."""
        name = entry["name"]
        self.room()
        word = self.word(name)
        if self.ended():
            applied = "late"
        elif word.blocked_on is BlockedOn.SIGNAL:
            self.answer(name, word, entry)
            applied = "applied"
        elif word.state in (StepState.WAITING, StepState.READY, StepState.RUNNING) or word.blocked_on in TIMED:
            self.put(fields.state(name), self.get(fields.state(name)))  # a PARK in between must make this commit fail
            if not self.get(fields.early(name)):
                self.put(fields.early(name), json.dumps(entry, ensure_ascii=False))
            applied = "kept"
        else:
            applied = "late"
        self.tell("signal.applied", name, {"id": entry["id"], "name": name, "how": applied})

    def answer(self, step: str, word: fields.Word, entry: Entry) -> None:
        """The approval's outcome. Nothing follows from it before it is in SQL: an approval's durability is `step`."""
        data = entry["data"]
        outcome = Outcome(state=StepState.SUCCEEDED, output=data, started_ms=word.since_ms)
        if data.get("decision") != "approve":
            error = errors.ApprovalRejected(f"rejected by {data.get('by', 'unknown')}: {data.get('reason', '')}")
            outcome = Outcome.failed(error, started_ms=word.since_ms)
        kept = outcome.output if outcome.error is None else outcome.error
        self.put(fields.output(step), json.dumps(kept, ensure_ascii=False, separators=(",", ":")))
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
        if word.blocked_on in TIMED:
            self.made.timers.append((step, BlockedOn(word.blocked_on)))
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
