"""A decision in the making: what was read, overlaid by what is decided already. `decide` has the rules."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from convergio.graphflow.board import fields
from convergio.graphflow.decision import ASK, LEAVE, Decision, Entry, Event, Unloaded, View
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors
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
    """What the board keeps of an outcome: the output or the error. An error that nobody minds reads as null."""
    if outcome.error is None:
        return outcome.output
    return None if step.on_failure is OnFailure.CONTINUE else outcome.error


def of_target(plan: Plan, step: str) -> list[str]:
    """The fields that change when an incoming edge of `step` is resolved."""
    names = [fields.state(step), fields.rings(step)]
    if plan.workflow.steps[step].concurrency is not None:
        names.append(fields.key(step))
    return names if plan.indegree[step] < 2 else [*names, fields.resolved(step), fields.taken(step)]


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

    def conclude(self, step: str, outcome: Outcome) -> None:
        """A terminal state that no worker brought. It is followed like any other arrival."""
        self.let_go(step)
        self.put(fields.state(step), outcome.state.value)
        self.keep(step, outcome)
        self.tell(f"step.{outcome.state.value.lower()}", step, outcome.as_json())
        self.queue.append({"t": "arrived", "step": step})

    def let_go(self, step: str) -> None:
        """A step that ends, or is put aside, needs its concurrency key no more."""
        if self.plan.steps[step].concurrency is None:
            return
        word = self.word(step)
        if word.state in (StepState.READY, StepState.RUNNING) or word.blocked_on is BlockedOn.LIMIT:
            self.made.timers += [(step, ASK, None), (step, LEAVE, self.now_ms)]

    def keep(self, step: str, outcome: Outcome) -> None:
        """The output or the error, where successors and readers find it."""
        result = kept(self.plan.steps[step], outcome)
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
