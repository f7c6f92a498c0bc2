"""Whether a workflow can run: its graph, its expressions, its schemas, and what it names outside itself. Finds every
problem, in document order."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from convergio.graphflow.flow import expressions, graph, loops, scalars, schema, talk, values
from convergio.graphflow.flow.known import Known, Parameters
from convergio.graphflow.flow.spelling import Spelling, did_you_mean
from convergio.graphflow.model import errors
from convergio.graphflow.model.errors import Problem
from convergio.graphflow.model.workflow import JoinKind, Loop, Map, OnFailure, Step, StepKind, Workflow

_MOST_CYCLES: Final = 20


def check(workflow: Workflow, known: Known | None = None, source: str = "") -> None:
    """Raises InvalidWorkflow with every problem of `workflow`."""
    found = problems(workflow, known)
    if found:
        raise errors.InvalidWorkflow(problems=found, source=source or workflow.name)


def problems(workflow: Workflow, known: Known | None = None, unread: Collection[str] = ()) -> list[Problem]:
    """Every problem of `workflow`. `unread`: names of steps that could not be read whole: they exist, and nothing is
    concluded from what is not there."""
    return list(_Validation(workflow, known or Known(), frozenset(unread)).run())


@dataclass(slots=True)
class _Validation:
    """One pass over one workflow."""

    workflow: Workflow
    known: Known
    unread: frozenset[str]
    needs: dict[str, list[str]] = field(init=False)
    ancestry: graph.Ancestry = field(init=False)
    unread_mask: int = field(init=False)
    steps: Spelling = field(init=False)
    functions: Spelling = field(init=False)
    agents: Spelling = field(init=False)
    workflows: Spelling = field(init=False)
    regions: dict[str, loops.Region] = field(init=False)
    never: set[str] = field(default_factory=set[str])

    def __post_init__(self) -> None:
        declared = self.workflow.steps.keys() | self.unread
        steps = self.workflow.steps.items()
        self.needs = {name: [edge.step for edge in step.needs if edge.step in declared] for name, step in steps}
        self.needs |= {name: [] for name in self.unread - self.workflow.steps.keys()}
        self.ancestry = graph.Ancestry(self.needs)
        self.unread_mask = self.ancestry.mask(self.unread)
        self.regions = loops.regions(self.workflow.steps)
        self.steps = Spelling(declared)
        self.functions = Spelling(self.known.functions or {})
        self.agents = Spelling(self.known.agents or ())
        self.workflows = Spelling(self.known.workflows or ())

    def run(self) -> Iterator[Problem]:
        if not self.workflow.steps and not self.unread:
            yield Problem(code="NO_STEPS", path="steps", message="is empty", hint="a workflow has at least one step")
        for where, said in schema.problems_of(self.workflow.input_schema):
            yield _bad_schema("input", where, said)
        for name, step in self.workflow.steps.items():
            yield from self._step(f"steps.{name}", step)
        if self.workflow.on_failure is OnFailure.COMPENSATE:
            yield from self._undoes("on_failure")
        yield from self._cycles()
        if not self.unread:
            yield from loops.problems(self.workflow.steps)
        yield from self._unreachable()
        for name, text in (self.workflow.output or {}).items():
            yield from self._expression(f"output.{name}", text, None, condition=False)

    def _step(self, path: str, step: Step) -> Iterator[Problem]:
        yield from self._needs(path, step)
        if step.name not in self.unread:
            yield from self._outside(path, step)
        if step.join.count > len(step.needs) and step.join.kind is JoinKind.QUORUM:
            said = f"asks for {step.join.count} of {len(step.needs)} needs"
            yield Problem(code="BAD_JOIN", path=f"{path}.join", message=said, hint="it could never start")
        if step.when is not None:
            yield from self._expression(f"{path}.when", step.when, step.name, condition=True)
        if step.compensate is not None:
            yield from self._compensate(path, step, step.compensate)
        if step.on_failure is OnFailure.COMPENSATE:
            yield from self._undoes(f"{path}.on_failure")
        if step.loop is not None:
            yield from self._loop(f"{path}.loop", step.loop, step.name)
        if step.map is not None:
            yield from self._map(f"{path}.map", step.map, step.name)
        yield from self._body(path, step)
        if step.kind is StepKind.WAIT and step.spec.get("until") is not None:
            yield from self._expression(f"{path}.wait.until", step.spec["until"], step.name, condition=False)
        elif step.kind is StepKind.APPROVAL:
            yield from self._template(f"{path}.approval.description", step.spec.get("description", ""), step.name)

    def _compensate(self, path: str, step: Step, undo: Step) -> Iterator[Problem]:
        """It knows what the step knew, and the step's own result. A success of another run is that run's to undo."""
        for name, text in undo.arguments.items():
            yield from self._expression(f"{path}.compensate.with.{name}", text, step.name, condition=False, edge=True)
        yield from self._function(f"{path}.compensate", undo)
        if step.cache is not None:
            said, hint = "is of a step that can be undone", "another run's work must not be undone: remove one"
            yield Problem(code="BAD_CACHE", path=f"{path}.cache", message=said, hint=hint)

    def _undoes(self, path: str) -> Iterator[Problem]:
        if not self.unread and all(step.compensate is None for step in self.workflow.steps.values()):
            hint = "give steps a `compensate: {task: module.function}`"
            yield Problem(code="NOTHING_TO_UNDO", path=path, message="no step says what undoes it", hint=hint)

    def _body(self, path: str, step: Step, also: Collection[str] = ()) -> Iterator[Problem]:
        """What a worker is told. `also`: names that its expressions know beside those of all."""
        for name, text in step.arguments.items():
            yield from self._expression(f"{path}.with.{name}", text, step.name, condition=False, also=also)
        if step.concurrency is not None:
            yield from self._template(f"{path}.concurrency_key", step.concurrency.key, step.name, also)
        if step.kind is StepKind.CONVERSATION:
            yield from self._template(f"{path}.prompt", step.spec["prompt"], step.name)
            for field in ("after", "images"):
                if step.spec.get(field) is not None:
                    yield from self._expression(f"{path}.{field}", step.spec[field], step.name, condition=False)
            yield from self._references(f"{path}.hears", frozenset(step.spec["hears"]), step.name)
        if step.kind is StepKind.AGENT:
            yield from self._template(f"{path}.prompt", step.spec.get("prompt", ""), step.name, also)
            for where, said in schema.problems_of(step.spec.get("output") or {}):
                yield _bad_schema(f"{path}.output", where, said)

    def _loop(self, path: str, loop: Loop, step: str) -> Iterator[Problem]:
        if loop.back_to not in self.workflow.steps and loop.back_to not in self.unread:
            hint = self.steps.hint(loop.back_to) or _NO_STEP
            at, said = f"{path}.back_to", f"names '{loop.back_to[:64]}'"
            yield Problem(code="UNKNOWN_STEP", path=at, message=said, hint=hint)
        if loop.until is not None:
            yield from self._expression(f"{path}.until", loop.until, step, condition=True, edge=True)

    def _map(self, path: str, made: Map, step: str) -> Iterator[Problem]:
        yield from self._expression(f"{path}.over", made.over, step, condition=False, a_list=True)
        if made.item in self.workflow.steps or made.item in scalars.MEANT:
            said = f"'{made.item}' has a meaning of its own in expressions"
            yield Problem(code="BAD_NAME", path=f"{path}.item", message=said, hint="choose another name for the item")
        if step not in self.unread:
            yield from self._outside(f"{path}.each", made.each)
        yield from self._body(f"{path}.each", made.each, (made.item, expressions.INDEX))

    def _needs(self, path: str, step: Step) -> Iterator[Problem]:
        seen: set[str] = set()
        for place, edge in enumerate(step.needs):
            at = f"{path}.needs[{place}]"
            if edge.step in seen:
                yield Problem(code="DUPLICATE_NEED", path=at, message=f"names '{edge.step}' again", hint="remove it")
            elif edge.step == step.name:
                yield Problem(
                    code="CYCLE", path=at, message="names the step itself", hint="a step cannot wait for itself"
                )
            elif edge.step not in self.workflow.steps and edge.step not in self.unread:
                hint = self.steps.hint(edge.step)
                yield Problem(code="UNKNOWN_STEP", path=at, message=f"names '{edge.step[:64]}'", hint=hint or _NO_STEP)
            elif edge.when is not None:
                yield from self._expression(f"{at}.when", edge.when, edge.step, condition=True, edge=True)
            seen.add(edge.step)

    def _outside(self, path: str, step: Step) -> Iterator[Problem]:
        """What the step names outside the workflow."""
        if step.kind is StepKind.TASK:
            yield from self._function(path, step)
        if step.kind is StepKind.AGENT:
            yield from self._agent(f"{path}.agent", step.spec["agent"])
        if step.kind is StepKind.CONVERSATION:
            yield from self._conversation(f"{path}.conversation", step.spec)
        if step.kind is StepKind.WORKFLOW and self.known.workflows is not None:
            name = step.spec["workflow"]
            if name not in self.known.workflows and name != self.workflow.name:
                hint = self.workflows.hint(name) or "put its file into a directory of CONVERGIO_WORKFLOWS"
                yield Problem(code="UNKNOWN_WORKFLOW", path=f"{path}.workflow", message=f"names '{name}'", hint=hint)

    def _conversation(self, path: str, spec: Mapping[str, Any]) -> Iterator[Problem]:
        for place, member in enumerate(spec["agents"]):
            if member["role"] is None:
                yield from self._agent(f"{path}.agents[{place}]", member["name"])
        yield from talk.problems(path, spec, self.known.policies)

    def _agent(self, path: str, name: str) -> Iterator[Problem]:
        if self.known.agents is not None and name not in self.known.agents:
            hint = self.agents.hint(name) or "no agent of this name is in the roster"
            yield Problem(code="UNKNOWN_AGENT", path=path, message=f"names '{name}'", hint=hint)

    def _function(self, path: str, step: Step) -> Iterator[Problem]:
        if self.known.functions is None:
            return
        name = step.spec["function"]
        if name not in self.known.functions:
            hint = self.functions.hint(name) or "register it with @step, or import the module that does"
            yield Problem(code="UNKNOWN_FUNCTION", path=f"{path}.task", message=f"names '{name}'", hint=hint)
        else:
            yield from _arguments(path, step, self.known.functions[name])

    def _template(self, path: str, text: str, step: str, also: Collection[str] = ()) -> Iterator[Problem]:
        try:
            references = expressions.template_references(text)
        except errors.ExpressionFailed as error:
            yield _bad_expression(path, error)
            return
        yield from self._references(path, references - set(also), step)

    def _expression(
        self,
        path: str,
        text: str,
        step: str | None,
        *,
        condition: bool,
        edge: bool = False,
        also: Collection[str] = (),
        a_list: bool = False,
    ) -> Iterator[Problem]:
        """`step`: whose results and whose needs' results it may use (for an edge: the step it starts from); None:
        any. `also`: names that it knows beside those."""
        try:
            compiled = expressions.compile_expression(text)
            if not compiled.references:
                self._constant(path, compiled, condition=condition, a_list=a_list)
        except errors.ExpressionFailed as error:
            yield _bad_expression(path, error)
            return
        yield from self._references(path, compiled.references - set(also), step, edge=edge)

    def _constant(self, path: str, compiled: expressions.Expression, *, condition: bool, a_list: bool) -> None:
        if not condition:
            value = compiled.evaluate({})
            if a_list and not values.is_list(value):
                raise errors.ExpressionFailed(
                    f"`{compiled.text[:80]}` gives no list", hint="such as [1, 2] or load.rows"
                )
        elif not compiled.condition({}):
            self.never.add(path)

    def _references(
        self, path: str, references: frozenset[str], step: str | None, *, edge: bool = False
    ) -> Iterator[Problem]:
        known = {expressions.INPUT, *([expressions.ITERATION] if step in self.regions else [])}
        for name in sorted(references - known - self.unread):
            if name not in self.workflow.steps:
                hint = self.steps.hint(name) or f"an expression knows '{expressions.INPUT}' and the steps"
                yield Problem(code="UNKNOWN_NAME", path=path, message=f"uses '{name[:64]}'", hint=hint)
            elif step is not None and self._out_of_sight(name, step, edge=edge):
                yield Problem(
                    code="NOT_NEEDED", path=path, message=f"uses '{name}'", hint=_sight(name, step, edge=edge)
                )

    def _out_of_sight(self, name: str, step: str, *, edge: bool) -> bool:
        region = self.regions.get(step)
        if region is not None and name in region.above:
            return False  # of what has not run yet in this round, it sees the last one
        if name == step:
            return not edge
        above = self.ancestry.above(step)
        if above is None or step in self.unread or above & self.unread_mask:
            return False  # nobody can tell what it waits for
        return not above & self.ancestry.mask([name])

    def _cycles(self) -> Iterator[Problem]:
        for cycle in itertools.islice(graph.cycles(self.needs), _MOST_CYCLES):
            if len(cycle) > 1:  # one step that needs itself is told at its needs
                names = [*cycle, cycle[0]] if len(cycle) < 20 else [*cycle[:18], "...", cycle[-1], cycle[0]]
                said = "waits for itself: " + " needs ".join(names)
                yield Problem(code="CYCLE", path=f"steps.{cycle[0]}", message=said, hint="remove one of these needs")

    def _unreachable(self) -> Iterator[Problem]:
        """Steps that no run can ever start, because conditions that depend on nothing are false."""
        dead: set[str] = set()
        for name in graph.order(self.needs) if self.never else ():
            if name in self.unread:
                continue
            step, path = self.workflow.steps[name], f"steps.{name}"
            ways = [
                edge.step not in dead and f"{path}.needs[{place}].when" not in self.never
                for place, edge in enumerate(step.needs)
            ]
            own = f"{path}.when" in self.never
            if own or (ways and not any(ways)):
                dead.add(name)
                said = "can never start: " + ("its condition is always false" if own else "no way to it is ever taken")
                yield Problem(code="UNREACHABLE", path=path, message=said, hint="remove the step or the condition")


_NO_STEP: Final = "the workflow has no such step"


def _sight(name: str, step: str, *, edge: bool) -> str:
    if name == step:
        return "a step cannot use its own result"
    if edge:
        return f"here only '{step}' and what it needs are known; a condition may be the step's own `when`"
    return f"add '{name}' to its needs"


def _arguments(path: str, step: Step, parameters: Parameters | None) -> Iterator[Problem]:
    if parameters is None or parameters.open_ended:
        return
    for name in step.arguments:
        if name not in parameters.names:
            said = f"is not an argument of {step.spec['function']}"
            hint = did_you_mean(name, parameters.names) or f"it takes {', '.join(sorted(parameters.names)) or 'none'}"
            yield Problem(code="UNKNOWN_ARGUMENT", path=f"{path}.with.{name}", message=said, hint=hint)


def _bad_expression(path: str, error: errors.ExpressionFailed) -> Problem:
    return Problem(code="BAD_EXPRESSION", path=path, message=error.message, hint=error.hint or "")


def _bad_schema(path: str, where: str, said: str) -> Problem:
    hint = "write JSON Schema, draft 2020-12; references stay inside it (#/$defs/...)"
    return Problem(code="BAD_SCHEMA", path=f"{path}.{where}" if where else path, message=said, hint=hint)
