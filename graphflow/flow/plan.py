"""A workflow as the engine reads it: edges both ways, and what each step and each condition needs to be evaluated.

Made once per definition and process, then shared: nothing in it changes.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Self

from convergio.graphflow.flow import document, expressions, loops
from convergio.graphflow.flow.loops import Region
from convergio.graphflow.model import instance as instances
from convergio.graphflow.model.workflow import Map, OnFailure, Step, StepKind, Workflow


@dataclass(frozen=True, slots=True, kw_only=True)
class OutEdge:
    """An edge seen from the step it starts at. `references`: the steps whose results `when` reads."""

    target: str
    when: str | None = None
    references: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The graph of one workflow. Every mapping has every step as a key; order is that of the canonical document, but
    roots and the successors of a step are in the order in which they are rung: the critical path first.

    `successors`: edges that start at a step. `indegree`: edges that end at it. `roots`: steps that need nothing.
    `leaves`: steps nobody needs. `references`: the steps whose results the step's `with`, prompt or description reads
    when it is claimed. `when_references`: the steps whose results its `when` and the conditions of the edges that end
    at it read. `waiters`: the steps that wait for a signal, by its name. `members`: the steps whose results the items
    of a map read; only maps are keys. `loops`: the region of each step that a loop repeats.

    Beside them there are the steps that undo others: `steps` has both kinds, and `references` too. `undone`: the steps
    that can be undone, the last one first. `ranks`: expected seconds from the start of each step to the end of the run;
    empty where no step says how long it takes.
    """

    workflow: Workflow
    digest: str
    successors: Mapping[str, tuple[OutEdge, ...]]
    indegree: Mapping[str, int]
    roots: tuple[str, ...]
    leaves: tuple[str, ...]
    references: Mapping[str, tuple[str, ...]]
    when_references: Mapping[str, tuple[str, ...]]
    waiters: Mapping[str, tuple[str, ...]]
    steps: Mapping[str, Step]
    undone: tuple[str, ...]
    members: Mapping[str, tuple[str, ...]]
    loops: Mapping[str, Region]
    ranks: Mapping[str, float]

    def step(self, instance: str) -> Step:
        """What an instance is to do, or the step that undoes one; its name is that of the instance."""
        name = instances.step_of(instance)
        step = self.steps[name]
        if name == instance:
            return step
        if step.map is not None and instances.index_of(instance) is not None:
            step = step.map.each
        return dataclasses.replace(step, name=instance)

    @property
    def size(self) -> int:
        """How many steps there are."""
        return len(self.workflow.steps)

    @classmethod
    def of(cls, workflow: Workflow) -> Self:
        """The plan of a valid workflow. Costs time in proportion to its size: keep it, or use `from_json`."""
        steps = workflow.steps
        successors = _successors(steps)
        ranks = _ranks(steps, successors)
        indegree = {name: len(step.needs) for name, step in steps.items()}
        undo = {step.compensate.name: step.compensate for step in steps.values() if step.compensate is not None}
        everyone = {**steps, **undo}
        return cls(
            workflow=workflow,
            digest=workflow.digest,
            successors=MappingProxyType({name: _urgent(edges, ranks) for name, edges in successors.items()}),
            indegree=MappingProxyType(indegree),
            roots=tuple(sorted((name for name in steps if not indegree[name]), key=lambda name: -ranks[name])),
            leaves=tuple(name for name, edges in successors.items() if not edges),
            references=MappingProxyType({name: _results(_body(step)) for name, step in everyone.items()}),
            steps=MappingProxyType(everyone),
            undone=tuple(name for name in reversed(list(steps)) if steps[name].compensate is not None),
            waiters=MappingProxyType(_waiters(steps)),
            members=MappingProxyType({name: _items(step.map) for name, step in steps.items() if step.map is not None}),
            loops=MappingProxyType(loops.regions(steps)),
            ranks=MappingProxyType(ranks if any(ranks.values()) else {}),
            when_references=MappingProxyType({name: _results(_conditions(step)) for name, step in steps.items()}),
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan of a canonical document as the journal and the board keep it; cached by text. InvalidWorkflow."""
        return _from_json(text)


@functools.lru_cache(maxsize=128)
def _from_json(text: str) -> Plan:
    return Plan.of(document.parse_pinned(json.loads(text)))


def _successors(steps: Mapping[str, Step]) -> dict[str, tuple[OutEdge, ...]]:
    found: dict[str, list[OutEdge]] = {name: [] for name in steps}
    for name, step in steps.items():
        for edge in step.needs:
            reads = _results(expressions.references(edge.when)) if edge.when is not None else ()
            found[edge.step].append(OutEdge(target=name, when=edge.when, references=reads))
    return {name: tuple(edges) for name, edges in found.items()}


def _ranks(steps: Mapping[str, Step], successors: Mapping[str, tuple[OutEdge, ...]]) -> dict[str, float]:
    """The longest way from the start of each step to the end of the run, in expected seconds (upward rank of HEFT)."""
    ranks: dict[str, float] = {}
    for name in reversed(list(steps)):  # they are in topological order
        after = max((ranks[edge.target] for edge in successors[name]), default=0.0)
        ranks[name] = (steps[name].expected or 0.0) + after
    return ranks


def _urgent(edges: tuple[OutEdge, ...], ranks: Mapping[str, float]) -> tuple[OutEdge, ...]:
    return tuple(sorted(edges, key=lambda edge: -ranks[edge.target]))


def _waiters(steps: Mapping[str, Step]) -> dict[str, tuple[str, ...]]:
    """An approval, a conversation, and a step that asks what to do when it fails, waits for the signal of its own
    name."""
    found: dict[str, tuple[str, ...]] = {}
    for name, step in steps.items():
        asks = step.kind in (StepKind.APPROVAL, StepKind.CONVERSATION) or step.on_failure is OnFailure.ASK
        signal = name if asks else step.spec.get("signal")
        if signal is not None:
            found[signal] = (*found.get(signal, ()), name)
    return found


def _body(step: Step) -> frozenset[str]:
    if step.kind is StepKind.AGENT:
        return expressions.template_references(step.spec["prompt"])
    if step.kind is StepKind.CONVERSATION:  # a turn reads what the one before has come to
        said = (step.spec["after"], step.spec.get("images"))
        earlier = frozenset[str]().union(*(expressions.references(one) for one in said if one is not None))
        return expressions.template_references(step.spec["prompt"]) | earlier | {step.name}
    if step.kind is StepKind.APPROVAL:
        return expressions.template_references(step.spec["description"])
    if step.kind is StepKind.WAIT:
        until = step.spec["until"]
        return frozenset() if until is None else expressions.references(until)
    if step.map is not None:
        return expressions.references(step.map.over)
    return frozenset[str]().union(*(expressions.references(text) for text in step.arguments.values()))


def _items(made: Map) -> tuple[str, ...]:
    return _results(_body(made.each) - {made.item, expressions.INDEX})


def _conditions(step: Step) -> frozenset[str]:
    conditions = [step.when, *(edge.when for edge in step.needs), None if step.loop is None else step.loop.until]
    return frozenset[str]().union(*(expressions.references(text) for text in conditions if text is not None))


def _results(names: Iterable[str]) -> tuple[str, ...]:
    """The steps among `names`, in a fixed order: a run's input always comes along and is not a step."""
    return tuple(sorted(set(names) - {expressions.INPUT, expressions.ITERATION}))
