"""A decision in the making: what was read, overlaid by what is decided already. `decide` has the rules."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from convergio.graphflow.board import fields
from convergio.graphflow.decision import ASK, LEAVE, Answer, Decision, Entry, Event, Unloaded, View
from convergio.graphflow.flow import expressions, loops
from convergio.graphflow.flow.loops import Region
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors, instance, reference
from convergio.graphflow.model.outcome import Outcome
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
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
    """What the board keeps of an outcome: the output or the error. An error that the run survives reads as null."""
    if outcome.error is None:
        return outcome.output
    skipped = step.on_failure is OnFailure.ASK and outcome.error.get("answer") == Answer.SKIP
    return None if skipped or step.on_failure is OnFailure.CONTINUE else outcome.error


def of_target(plan: Plan, step: str) -> list[str]:
    """The fields that change when an incoming edge of `step` is resolved."""
    names = [fields.state(step), fields.rings(step)]
    if plan.step(step).concurrency is not None:
        names.append(fields.key(step))
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
        """The instance of `step` that `at` sees; None if there was none."""
        return loops.seen(self.plan.loops, step, at, self.last_round, after=after)

    def last_round(self, region: Region) -> int:
        """The round that the loop is in, or was when it ended."""
        return int(self.get(fields.round_of(region.end)) or 0)

    def beside(self, step: str, at: str) -> str:
        """The instance of `step` that an edge from `at` leads to: in a loop, of the same round."""
        region = self.plan.loops.get(step)
        inside = region is not None and self.plan.loops.get(instance.step_of(at)) is region
        return instance.named(step, instance.round_of(at)) if inside else step

    def reads(self, step: str) -> list[str]:
        """Whose outputs a claim of the step brings along; last, its item, if it is of a map."""
        name, item = instance.step_of(step), instance.index_of(step) is not None
        steps = self.plan.members[name] if item else self.plan.references[name]
        seen = [one for one in (self.seen(other, step) for other in steps) if one is not None]
        return [*seen, instance.item(step)] if item else seen

    def item_names(self, step: str) -> dict[str, Any]:
        """What the expressions of a map's member know beside those of all steps: its item, and its place."""
        made, index = self.plan.workflow.steps[instance.step_of(step)].map, instance.index_of(step)
        if made is None or index is None:
            return {}
        return {made.item: json.loads(self.get(fields.item(step)) or "null"), expressions.INDEX: index}

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
        self.let_go(step)
        self.put(fields.state(step), outcome.state.value)
        self.keep(step, outcome)
        self.tell(f"step.{outcome.state.value.lower()}", step, outcome.as_json())
        self.queue.append({"t": "arrived", "step": step})

    def let_go(self, step: str) -> None:
        """A step that ends, or is put aside, needs its concurrency key no more."""
        if self.plan.step(step).concurrency is None:
            return
        word = self.word(step)
        if word.state in (StepState.READY, StepState.RUNNING) or word.blocked_on is BlockedOn.LIMIT:
            self.made.timers += [(step, ASK, None), (step, LEAVE, self.now_ms)]

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

    def finish(self, state: RunState, *, output: str, error: str) -> None:
        """The run has ended; its readers hear of it when SQL knows."""
        self.room()
        self.put(fields.STATE, state)
        self.made.writes["@output"] = ("", output)
        self.made.writes["@error"] = ("", error)
        data = f'{{"state":"{state}","output":{output or "null"},"error":{error or "null"}}}'
        self.made.events.append(Event(kind=f"run.{state.lower()}", data=data, park=True))
