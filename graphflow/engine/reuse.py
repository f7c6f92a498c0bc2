"""Which outcomes of a run another one may begin with. Pure: two plans and how the steps ended in, names out."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from convergio.graphflow.flow import expressions, values
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors
from convergio.graphflow.model.states import StepState
from convergio.graphflow.model.workflow import UNDO, Durability, OnFailure, Retry, Step, StepKind

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
}
"""Fields of a step that say how it is run, and not what comes of it when it succeeds."""

PLAIN: Final = frozenset({"agent", "cache", "concurrency_key", "output", "queue", "task", "workflow"})
"""Fields of a step whose expressions nothing comes of, or that hold none: names, and the schema of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reuse:
    """`kept`: steps whose outcomes stand. `resumed`: steps that did not end well and run again on unchanged ground:
    what they recorded before is still true. Both in the order of the plan; all other steps run anew."""

    kept: tuple[str, ...]
    resumed: tuple[str, ...]


def of(
    old: Plan,
    new: Plan,
    ends: Mapping[str, StepState],
    *,
    anew: str | None = None,
    input_changed: bool = False,
    children_changed: bool = False,
) -> Reuse:
    """What a run by `new` has from one by `old`, whose steps ended as `ends` says.

    A step is kept if it is done, means what it did, and everything it stands on is kept. `anew`: this step and all
    that follow from it are not. `input_changed`: nor is what reads the input, unless `anew` says where to begin.
    `children_changed`: nor is what is a run of another workflow.
    """
    kept: dict[str, None] = {}
    resumed: dict[str, None] = {}
    stale = input_changed and anew is None
    for name, step in new.workflow.steps.items():  # in the order of the graph: what it needs was looked at before
        was = old.workflow.steps.get(name)
        stands = all(ground in kept for ground in _ground(new, step))
        undone = f"{UNDO}{name}" in ends  # well or not: what it did is not as it was
        if name == anew or undone or not stands or was is None or _meaning(was) != _meaning(step):
            continue
        if children_changed and step.kind is StepKind.WORKFLOW:
            continue
        if stale and _reads_input(new.workflow.document["steps"][name]):
            continue
        (kept if _done(was, step, ends.get(name)) else resumed)[name] = None
    return Reuse(kept=tuple(kept), resumed=tuple(resumed))


def _done(was: Step, step: Step, state: StepState | None) -> bool:
    """Whether nothing of the step is left to do. A failure that its run was to survive has had its consequences: what
    followed was done without its result, and would be done, and paid for, once more."""
    survived = all(one.on_failure is OnFailure.CONTINUE for one in (was, step))
    return state in DONE or (state is StepState.FAILED and survived)


def _meaning(step: Step) -> str:
    """Everything that a step's result may depend on, as text; not where it runs, how soon, and how often it is tried.

    What those are is listed and the rest is compared, so that no field is forgotten that comes later.
    """
    return json.dumps(dataclasses.replace(step, **_HOW), default=_plain, sort_keys=True)


def _plain(value: Any) -> Any:
    """A value of the model as JSON can carry it. As text, since to Python 1 and true are equal."""
    return dict(value) if values.is_map(value) else {name: getattr(value, name) for name in value.__dataclass_fields__}


def _ground(plan: Plan, step: Step) -> Collection[str]:
    """The steps whose results the step may depend on."""
    needs = {edge.step for edge in step.needs}
    return needs.union(plan.references[step.name], plan.when_references[step.name])


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
