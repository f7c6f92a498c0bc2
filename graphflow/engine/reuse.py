"""Which outcomes of a run another one may begin with. Pure: two plans and how the steps ended in, names out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from convergio.graphflow.flow import expressions, values
from convergio.graphflow.flow.loops import Region
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.states import StepState
from convergio.graphflow.model.workflow import UNDO, Durability, Join, OnFailure, Retry, Step, StepKind

DONE: Final = (StepState.SUCCEEDED, StepState.SKIPPED)
"""What needs not be done again."""

_HOW: Final[dict[str, Any]] = {
    "retry": Retry(),
    "timeout": None,
    "queue_timeout": None,
    "idle_timeout": None,
    "on_failure": OnFailure.FAIL,
    "durability": Durability.STREAM,
    "queue": "",
    "priority": None,
    "concurrency": None,
    "cache": None,
    "compensate": None,
    "expected": None,
    "loop": None,
}
"""Fields of a step that say how it is run, and not what comes of it when it succeeds."""

PLAIN: Final = frozenset({"agent", "cache", "concurrency_key", "output", "queue", "task", "workflow"})
"""Fields of a step whose expressions nothing comes of, or that hold none: names, and the schema of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """`kept`: instances of steps whose outcomes stand. `resumed`: instances that did not end well and run again on
    unchanged ground: what they recorded before is still true. Both in the order of the plan; all others run anew."""

    kept: tuple[str, ...]
    resumed: tuple[str, ...]

    @property
    def steps(self) -> int:
        """How many steps are kept, once at least."""
        return len({instance.step_of(one) for one in self.kept if instance.index_of(one) is None})


def of(
    old: Plan,
    new: Plan,
    ends: Mapping[str, StepState],
    *,
    anew: str | None = None,
    input_changed: bool = False,
    children_changed: bool = False,
) -> Reuse:
    """What a run by `new` has from one by `old`, whose instances ended as `ends` says.

    One is kept if it is done, means what it did, and everything it stands on is kept. `anew`: this step and all that
    follow from it are not. `input_changed`: nor is what reads the input, unless `anew` says where to begin.
    `children_changed`: nor is what is a run of another workflow.
    """
    work = _Reuse(old, new, ends, anew, input_changed and anew is None, children_changed)
    for name in new.workflow.steps:  # in the order of the graph: what it needs was looked at before
        region = new.loops.get(name)
        if region is None:
            work.look_at(name, name)
        elif name == region.loop.back_to:
            work.look_at_region(region)
    return Reuse(kept=tuple(work.kept), resumed=tuple(work.resumed))


class _Reuse:
    """One pass over a plan."""

    def __init__(
        self,
        old: Plan,
        new: Plan,
        ends: Mapping[str, StepState],
        anew: str | None,
        stale: bool,
        children_changed: bool,
    ) -> None:
        self.old = old
        self.new = new
        self.ends = ends
        self.anew = anew
        self.stale = stale
        self.children_changed = children_changed
        self.kept: dict[str, None] = {}
        self.resumed: dict[str, None] = {}
        self.last: dict[str, int | None] = {}
        """by the step that ends a loop: its last round; None if it may go on other than it did"""
        self.members: dict[str, list[str]] = {}
        for one in ends:
            if instance.index_of(one) is not None:
                self.members.setdefault(instance.whole(one), []).append(one)

    def look_at_region(self, region: Region) -> None:
        """Round by round: one of which not all is kept is the last. Where the loop is another one, so is the first."""
        was = self.old.loops.get(region.end)
        same = was is not None and was.above == region.above and was.end == region.end
        same = same and was is not None and was.loop.until == region.loop.until
        rounds = 1 + max((instance.round_of(one) for one in self.ends if self._in(region, one)), default=0)
        steps = [name for name in self.new.workflow.steps if name in region.above]
        number = 0
        for number in range(min(rounds, region.loop.max) if same else 1):
            for name in steps:
                self.look_at(name, instance.named(name, number))
            if any(instance.named(name, number) not in self.kept for name in steps):
                break
        self.last[region.end] = number if was is not None and same and was.loop == region.loop else None

    def _in(self, region: Region, one: str) -> bool:
        return instance.step_of(one) in region.above

    def look_at(self, name: str, one: str) -> None:
        step, was = self.new.workflow.steps[name], self.old.workflow.steps.get(name)
        stands = all(ground is not None and ground in self.kept for ground in self.ground(step, one))
        undone = f"{UNDO}{one}" in self.ends  # well or not: what it did is not as it was
        if name == self.anew or undone or not stands or was is None:
            return
        if self.children_changed and step.kind is StepKind.WORKFLOW:
            return
        if self.stale and _reads_input(self.new.workflow.document["steps"][name]):
            return
        if _meaning(was) == _meaning(step):
            done = _done(was, step, self.ends.get(one))
            (self.kept if done else self.resumed)[one] = None
            self.look_at_members(one, whole=done)
        elif step.map is not None and _does(was) == _does(step):
            self.look_at_members(one, whole=False)

    def look_at_members(self, one: str, *, whole: bool) -> None:
        """A map that is kept has all its members; of any other, what has succeeded is not done again."""
        for member in self.members.get(one, ()):
            done = whole or self.ends[member] is StepState.SUCCEEDED
            (self.kept if done else self.resumed)[member] = None

    def ground(self, step: Step, one: str) -> Iterator[str | None]:
        """The instances that this one stands on. None: nobody knows which that will be."""
        region, number = self.new.loops.get(step.name), instance.round_of(one)
        for name in _ground(self.new, step):
            beside = self.new.loops.get(name)
            if beside is None:
                yield name
            elif beside is not region:
                last = self.last.get(beside.end)
                yield None if last is None else instance.named(name, last)
            elif name in beside.above[step.name]:
                yield instance.named(name, number)
            elif number:
                yield instance.named(name, number - 1)
        if region is not None and number and step.name == region.loop.back_to:
            yield instance.named(region.end, number - 1)


def _done(was: Step, step: Step, state: StepState | None) -> bool:
    """Whether nothing of the step is left to do. A failure that its run was to survive has had its consequences: what
    followed was done without its result, and would be done, and paid for, once more."""
    survived = all(one.on_failure is OnFailure.CONTINUE for one in (was, step))
    return state in DONE or (state is StepState.FAILED and survived)


def _meaning(step: Step) -> str:
    """Everything that a step's result may depend on, as text; not where it runs, how soon, and how often it is tried.

    What those are is listed and the rest is compared, so that no field is forgotten that comes later.
    """
    plain = dataclasses.replace(step, **_HOW)
    if plain.map is not None:
        each = dataclasses.replace(plain.map.each, **_HOW)
        plain = dataclasses.replace(plain, map=dataclasses.replace(plain.map, each=each, max_concurrency=None))
    return json.dumps(plain, default=_plain, sort_keys=True)


def _does(step: Step) -> str | None:
    """The same for the items of a map: how many of them must succeed is nothing to them."""
    if step.map is None:
        return None
    return _meaning(dataclasses.replace(step, map=dataclasses.replace(step.map, join=Join())))


def _plain(value: Any) -> Any:
    """A value of the model as JSON can carry it. As text, since to Python 1 and true are equal."""
    return dict(value) if values.is_map(value) else {name: getattr(value, name) for name in value.__dataclass_fields__}


def _ground(plan: Plan, step: Step) -> Collection[str]:
    """The steps whose results the step may depend on."""
    needs = {edge.step for edge in step.needs}
    read = {*plan.references[step.name], *plan.when_references[step.name], *plan.members.get(step.name, ())}
    return needs | (read - {step.name} if step.name not in plan.loops else read)


def _reads_input(document: Mapping[str, Any]) -> bool:
    """Whether any text of a step names the run's input, be it a condition, an argument or a prompt.

    Asked of the document and not of the parts that hold expressions today: a kind of step that came later, overlooked
    here, would be reused though it must not be. Text that only looks like an expression costs a step that is repeated.
    """
    return any(
        expressions.INPUT in _names(text) for name in document if name not in PLAIN for text in _texts(document[name])
    )


def _names(text: str) -> frozenset[str]:
    if expressions.INPUT not in text:
        return frozenset()
    read = expressions.template_references if "{{" in text else expressions.references
    try:
        return read(text)
    except errors.ExpressionFailed:  # the definition is valid, so this is no expression
        return frozenset()


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value; names of fields are none."""
    if isinstance(value, str):
        yield value
    for part in _parts(value):
        yield from _texts(part)


def _parts(value: Any) -> Iterable[Any]:
    """What a list or an object holds."""
    if values.is_map(value):
        return value.values()
    return value if values.is_list(value) else ()
