"""A decision in the making: what was read, overlaid by what is decided already. `decide` has the rules."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from convergio.graphflow.board import fields
from convergio.graphflow.decision import Decision, Entry, Event, Unloaded, View
from convergio.graphflow.flow import expressions
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors, instance, reference
from convergio.graphflow.model.outcome import Outcome
from convergio.graphflow.model.states import RunState, StepState
from convergio.graphflow.model.workflow import OnFailure, Step

AHEAD: Final = 200
"""Steps whose fields are asked for at once where a decision goes through many."""


class Ended(Protocol):
    """What a step came to: an outcome, or the journal's row of one."""

    @property
    def output(self) -> Any: ...
    @property
    def error(self) -> Mapping[str, Any] | None: ...


def kept(step: Step, outcome: Ended) -> Any:
    """What the board keeps of an outcome: the output or the error. An error that nobody minds reads as null."""
    if outcome.error is None:
        return outcome.output
    return outcome.error if step.on_failure is OnFailure.FAIL else None


def of_target(plan: Plan, step: str) -> list[str]:
    """The fields that change when an incoming edge of `step` is resolved."""
    names = [fields.state(step), fields.rings(step)]
    return names if plan.indegree[instance.step_of(step)] < 2 else [*names, fields.resolved(step), fields.taken(step)]


DONE: Final = "x"
"""What a cursor says when nothing is left to follow."""

ALIVE: Final = (StepState.READY, StepState.RUNNING, StepState.BLOCKED)
"""States of steps that have begun and not ended."""

LIVE: Final = (RunState.RUNNING, RunState.PAUSED)
"""States in which outcomes still have consequences. While a run is paused, what becomes ready is not rung."""


class Full(Exception):
    """The budget is used up; what is left stays for the next decision."""


class Draft:
    """A decision in the making: what was read, overlaid by what is decided already."""

    def __init__(self, plan: Plan, view: View, epoch: int, now_ms: int, budget: int) -> None:
        self.plan = plan
        self.view = view
        self.epoch = epoch
        self.now_ms = now_ms
        self.budget = budget
        self.made = Decision()
        self.queue: deque[Entry] = deque()
        self.flush = False

    # --- reading and writing --------------------------------------------------------------------------------------

    def get(self, name: str) -> str:
        write = self.made.writes.get(name)
        return write[1] if write else self.view.get(name)

    def put(self, name: str, value: str) -> None:
        was = self.made.writes[name][0] if name in self.made.writes else self.view.get(name)
        self.made.writes[name] = (was, value)

    def room(self) -> None:
        if len(self.made.writes) + len(self.made.events) >= self.budget:
            raise Full

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
        return self.get(fields.STATE) not in LIVE or self.get(fields.STOP) != ""

    def names(self, steps: Iterable[str], at: str = "", *, after: bool = False, given: bool = True) -> dict[str, Any]:
        """What an expression may name: the outputs of `steps`, the round, and, if `given`, the input.

        What is not there is null. `at`: the instance whose expression it is; `after`: it has ended, and sees itself.
        """
        seen = {step: self.seen(step, at, after=after) for step in steps}
        wanted = [fields.output(one) for one in seen.values() if one] + ([fields.INPUT] if given else [])
        missing = [name for name in wanted if not self.view.knows(name)]
        if missing:
            raise Unloaded(missing)
        values = {step: self.output(one) if one else None for step, one in seen.items()}
        if given:
            values |= {expressions.INPUT: json.loads(self.get(fields.INPUT) or "null")}
        return {**values, expressions.ITERATION: instance.round_of(at)}

    def seen(self, step: str, at: str = "", *, after: bool = False) -> str | None:
        """The instance of `step` that `at` sees: of the same round, or, if it comes later in its loop, of the one
        before (None: there was none); from without a loop, that of the last round."""
        region = self.plan.loops.get(step)
        if region is None:
            return step
        here = instance.step_of(at)
        if self.plan.loops.get(here) is not region:
            return instance.named(step, int(self.get(fields.round_of(region.end)) or 0))
        done = step in region.above[here] or (after and step == here)
        number = instance.round_of(at) - (not done)
        return None if number < 0 else instance.named(step, number)

    def beside(self, step: str, at: str) -> str:
        """The instance of `step` that an edge from `at` leads to: in a loop, of the same round."""
        region = self.plan.loops.get(step)
        inside = region is not None and self.plan.loops.get(instance.step_of(at)) is region
        return instance.named(step, instance.round_of(at)) if inside else step

    def output(self, step: str) -> Any:
        succeeded = self.word(step).state is StepState.SUCCEEDED
        return json.loads(self.get(fields.output(step)) or "null") if succeeded else None

    def opened(self, value: Any) -> Any:
        """The value itself, or the large one that it stands for."""
        digest = reference.digest_of(value)
        if digest is None:
            return value
        if digest not in self.view.blobs:
            raise Unloaded(blobs=[digest])
        return self.view.blobs[digest]

    def holds(self, when: str | None, references: Iterable[str], at: str, *, after: bool = False) -> bool:
        """Whether a condition is true; none always is. Raises ExpressionFailed."""
        return when is None or expressions.condition(when, self.names(references, at, after=after))

    # --- ends ---------------------------------------------------------------------------------------------------------

    def conclude(self, step: str, outcome: Outcome) -> None:
        """A terminal state that no worker brought. It is followed like any other arrival."""
        self.put(fields.state(step), outcome.state.value)
        self.keep(step, outcome)
        self.tell(f"step.{outcome.state.value.lower()}", step, outcome.as_json())
        self.queue.append({"t": "arrived", "step": step})

    def keep(self, step: str, outcome: Outcome) -> None:
        """The output or the error, where successors and readers find it."""
        result = kept(self.plan.step(step), outcome)
        if result is not None:
            text = json.dumps(result, ensure_ascii=False, separators=(",", ":"))
            self.made.writes[fields.output(step)] = ("", text)

    def skip(self, step: str) -> None:
        self.conclude(step, Outcome(state=StepState.SKIPPED))

    def fail(self, step: str, error: errors.ConvergioError) -> None:
        self.conclude(step, Outcome.failed(error))

    def withdraw(self, step: str) -> None:
        word = self.word(step)
        if word.state is StepState.RUNNING:
            self.made.leases.append((step, word.rest))
        if word.blocked_on is not None:
            self.made.timers.append((step, word.blocked_on, None))
        self.put(fields.state(step), StepState.CANCELLED.value)
        self.tell("step.cancelled", step, Outcome(state=StepState.CANCELLED).as_json())
