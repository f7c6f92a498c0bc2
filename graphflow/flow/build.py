"""Workflows in Python: the same document as in YAML, written by calls.

refund = WorkflowBuilder("refund", version=1, input=RefundRequest)
load = refund.task("load", load_invoice, invoice_id="input.invoice_id")
assess = refund.agent("assess", "amy-cfo", after=load, prompt="Is this refund justified? {{ load }}")
sign = refund.approval("sign", after=assess, when="assess.amount > 500.0", title="Refund")
pay = refund.task("pay", pay_out, after=[assess, sign.when("sign != null")], amount="assess.amount")
workflow = refund.build()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter

from convergio.graphflow.flow import document
from convergio.graphflow.flow.known import Known, Parameters
from convergio.graphflow.flow.registry import REGISTRY, Registry
from convergio.graphflow.model import errors
from convergio.graphflow.model.errors import Problem
from convergio.graphflow.model.workflow import Workflow

Constant = bool | int | float | str | None
Duration = str | float
Timeout = Duration | Mapping[str, Duration]
Join = str | Mapping[str, int]
Concurrency = str | Mapping[str, Any]
Cache = Duration | Mapping[str, Duration]
Loop = Mapping[str, Constant]
Schema = Mapping[str, Any] | type[Any]
Compensation = Callable[..., Any] | str | Mapping[str, Any]
"""What undoes a step: a function, or a mapping with `task`, and perhaps `with`, `retry`, `timeout` and `queue`."""


@dataclass(frozen=True, slots=True)
class StepRef:
    """A step of a workflow under construction; `str()` gives its name for use in expressions."""

    name: str

    def when(self, condition: str) -> EdgeRef:
        """An edge from this step that is taken only if the CEL condition holds."""
        return EdgeRef(self.name, condition)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class EdgeRef:
    """A need with a condition. Made by `StepRef.when`."""

    name: str
    condition: str


Need = StepRef | EdgeRef | str

_UNREGISTERED: Final = "unregistered.function"


class WorkflowBuilder:
    """Collects steps; `build` checks them all at once. Public as `convergio.graphflow.Workflow`."""

    def __init__(
        self,
        name: str,
        *,
        version: int,
        title: str = "",
        description: str = "",
        input: Schema | None = None,
        output: Mapping[str, Constant] | None = None,
        priority: str = "medium",
        sla: Duration | None = None,
        on_failure: str = "fail",
        registry: Registry = REGISTRY,
    ) -> None:
        """The fields of a document. `input`: JSON Schema, or a type (pydantic model, dataclass, TypedDict) that has
        one."""
        self.name = name
        self._registry = registry
        self._steps: dict[str, dict[str, Any]] = {}
        self._functions: dict[str, Parameters | None] = {}
        self._problems: list[Problem] = []
        self._header: dict[str, Any] = {
            "workflow": name,
            "version": version,
            "title": title,
            "description": description,
            "priority": priority,
            "sla": sla,
            "on_failure": on_failure,
            "input": {} if input is None else _schema(input),
            "output": None if output is None else dict(output),
        }

    def task(
        self,
        name: str,
        function: Callable[..., Any] | str,
        /,
        *,
        after: Need | Sequence[Need] = (),
        when: str | None = None,
        join: Join = "all",
        on_failure: str = "fail",
        compensate: Compensation | None = None,
        loop: Loop | None = None,
        retry: int | Mapping[str, Any] | None = None,
        timeout: Timeout | None = None,
        expected: Duration | None = None,
        durability: str | None = None,
        queue: str | None = None,
        priority: str | None = None,
        concurrency_key: Concurrency | None = None,
        cache: Cache | None = None,
        with_: Mapping[str, Constant] | None = None,
        **arguments: Constant,
    ) -> StepRef:
        """A step that calls `function` (one decorated with @step, or a name). Keywords are its arguments, as CEL: text
        is an expression, other scalars are constants. Arguments that are named like a keyword here (`timeout`) go into
        `with_`."""
        registered, defaults = self._function(name, function)
        given = {"retry": retry, "timeout": timeout, "expected": expected, "durability": durability, "queue": queue}
        fields = {**defaults, **{field: value for field, value in given.items() if value is not None}}
        fields |= {"join": join, "on_failure": on_failure, "loop": loop}
        fields |= {"priority": priority, "concurrency_key": concurrency_key, "cache": cache}
        fields["compensate"] = self._undo(name, compensate)
        return self._add(name, after, when, {"task": registered, "with": {**(with_ or {}), **arguments}, **fields})

    def agent(
        self,
        name: str,
        agent: str,
        /,
        *,
        prompt: str,
        after: Need | Sequence[Need] = (),
        when: str | None = None,
        join: Join = "all",
        on_failure: str = "fail",
        compensate: Compensation | None = None,
        loop: Loop | None = None,
        output: Schema | None = None,
        max_tokens: int | None = None,
        retry: int | Mapping[str, Any] = 0,
        timeout: Timeout | None = None,
        expected: Duration | None = None,
        queue: str | None = None,
        priority: str | None = None,
        concurrency_key: Concurrency | None = None,
    ) -> StepRef:
        """A step in which `agent` answers `prompt` (text with {{ CEL }} pieces); `output`: the type or schema of its
        answer."""
        fields: dict[str, Any] = {"agent": agent, "prompt": prompt, "max_tokens": max_tokens, "retry": retry}
        fields |= {"timeout": timeout, "expected": expected, "output": None if output is None else _schema(output)}
        fields |= {"join": join, "on_failure": on_failure, "loop": loop}
        fields |= {"priority": priority, "concurrency_key": concurrency_key}
        fields["compensate"] = self._undo(name, compensate)
        return self._add(name, after, when, fields if queue is None else {**fields, "queue": queue})

    def conversation(
        self,
        name: str,
        /,
        *agents: str | Mapping[str, Any],
        prompt: str,
        policy: str = "round_robin",
        stop: Mapping[str, Any] | None = None,
        graph: Mapping[str, Any] | None = None,
        selector: Mapping[str, Any] | None = None,
        people: str = "wait",
        if_busy: str = "enqueue",
        continues: str | None = None,
        images: str | None = None,
        after: Need | Sequence[Need] = (),
        when: str | None = None,
        join: Join = "all",
        on_failure: str = "fail",
        retry: int | Mapping[str, Any] = 0,
        timeout: Timeout | None = None,
        queue: str | None = None,
        priority: str | None = None,
    ) -> StepRef:
        """A step in which a team talks about `prompt` (text with {{ CEL }} pieces), turn by turn, until `stop`, such as
        {"turns": 12, "mention": "APPROVED"}. `policy`: who speaks next; `graph`: who may follow whom; `selector`: the
        model that is asked. An agent is a name of the roster, or a mapping with `name` and `role`.
        `people`: what a handoff to `user` does, wait or end; `if_busy`: what becomes of words while a turn runs.
        `retry` and `timeout` are those of a turn. `continues`: CEL that gives {run, turn} (YAML: `after`); `images`:
        CEL that gives what the team is shown."""
        team: dict[str, Any] = {"agents": list(agents), "policy": policy, "graph": graph, "selector": selector}
        team |= {"people": people, "if_busy": if_busy}
        team |= {} if stop is None else {"stop": stop}
        fields: dict[str, Any] = {"conversation": team, "prompt": prompt, "after": continues, "retry": retry}
        fields |= {} if images is None else {"images": images}
        fields |= {"timeout": timeout, "join": join, "on_failure": on_failure, "priority": priority}
        return self._add(name, after, when, fields if queue is None else {**fields, "queue": queue})

    def approval(
        self,
        name: str,
        /,
        *,
        title: str = "",
        description: str = "",
        risk: str = "medium",
        after: Need | Sequence[Need] = (),
        when: str | None = None,
        join: Join = "all",
        on_failure: str = "fail",
        loop: Loop | None = None,
        queue: str | None = None,
        priority: str | None = None,
    ) -> StepRef:
        """A step in which a person decides; `description` is text with {{ CEL }} pieces."""
        fields: dict[str, Any] = {"approval": {"title": title, "description": description, "risk": risk}}
        fields |= {"join": join, "on_failure": on_failure, "priority": priority, "loop": loop}
        return self._add(name, after, when, fields if queue is None else {**fields, "queue": queue})

    def wait(
        self,
        name: str,
        /,
        *,
        length: Duration | None = None,
        until: str | None = None,
        signal: str | None = None,
        timeout: Duration | None = None,
        after: Need | Sequence[Need] = (),
        when: str | None = None,
        join: Join = "all",
        on_failure: str = "fail",
        loop: Loop | None = None,
    ) -> StepRef:
        """A step that waits, without a worker: a `length` of time (YAML: `for`), `until` a moment (CEL), or for a
        `signal`, at most `timeout`; what the signal says is the step's result."""
        given = {"for": length, "until": until, "signal": signal, "timeout": timeout}
        wait = {field: value for field, value in given.items() if value is not None}
        return self._add(name, after, when, {"wait": wait, "join": join, "on_failure": on_failure, "loop": loop})

    def map(
        self,
        name: str,
        /,
        *,
        over: str,
        item: str = "item",
        max_concurrency: int | None = None,
        items: Join = "all",
        after: Need | Sequence[Need] = (),
        when: str | None = None,
        join: Join = "all",
        on_failure: str = "fail",
        loop: Loop | None = None,
    ) -> MapBuilder:
        """A step that does the same for every item of the list that `over` gives, at most `max_concurrency` at once:
        `.task(...)` or `.agent(...)` of what this returns says what. `items`: how many must succeed (YAML: the map's
        `join`)."""
        details = {"over": over, "item": item, "max_concurrency": max_concurrency, "join": items}
        fields = {"join": join, "on_failure": on_failure, "loop": loop}

        def add(each: Mapping[str, Any]) -> StepRef:
            return self._add(name, after, when, {**fields, "map": {**details, "each": each}})

        return MapBuilder(lambda function: self._function(name, function, "map.each.task"), add)

    def workflow(
        self,
        name: str,
        workflow: str,
        /,
        *,
        after: Need | Sequence[Need] = (),
        when: str | None = None,
        join: Join = "all",
        on_failure: str = "fail",
        compensate: Compensation | None = None,
        loop: Loop | None = None,
        retry: int | Mapping[str, Any] = 0,
        timeout: Duration | None = None,
        with_: Mapping[str, Constant] | None = None,
        **arguments: Constant,
    ) -> StepRef:
        """A step that is a run of another workflow, by its name. Keywords are its input, as CEL; those that are named
        like a keyword here go into `with_`. A new attempt is a new run; one that takes longer than `timeout` is
        cancelled."""
        fields: dict[str, Any] = {"workflow": workflow, "with": {**(with_ or {}), **arguments}, "retry": retry}
        fields |= {
            "timeout": timeout,
            "join": join,
            "on_failure": on_failure,
            "compensate": self._undo(name, compensate),
            "loop": loop,
        }
        return self._add(name, after, when, fields)

    def build(self, known: Known | None = None) -> Workflow:
        """The workflow. InvalidWorkflow with every problem at once. `known`: without it, names of functions are
        taken as they are, and arguments of functions that were given themselves are checked."""
        problems = list(self._problems)
        try:
            workflow = document.parse_document(
                {**self._header, "steps": self._steps},
                source=self.name,
                known=known or Known(functions=self._functions),
            )
        except errors.InvalidWorkflow as error:
            problems += error.problems
        else:
            if not problems:
                return workflow
        raise errors.InvalidWorkflow(problems=problems, source=self.name)

    def _function(
        self, step: str, function: Callable[..., Any] | str, where: str = "task"
    ) -> tuple[str, dict[str, Any]]:
        if isinstance(function, str):
            self._functions.setdefault(function, None)
            return function, {}
        entry = self._registry.of(function)
        if entry is None:
            self._functions[_UNREGISTERED] = None
            name = getattr(function, "__qualname__", repr(function))
            said = f"is {name[:80]}, which is not registered"
            self._problem("UNKNOWN_FUNCTION", f"steps.{step}.{where}", said, "decorate it with @step")
            return _UNREGISTERED, {}
        self._functions[entry.name] = entry.parameters
        defaults = {"retry": entry.retry, "timeout": entry.timeout, "queue": entry.queue}
        return entry.name, {field: value for field, value in defaults.items() if value is not None}

    def _undo(self, step: str, compensate: Compensation | None) -> dict[str, Any] | None:
        if compensate is None:
            return None
        given = compensate if isinstance(compensate, Mapping) else {"task": compensate}
        if "task" not in given:
            return dict(given)
        function, defaults = self._function(step, given["task"])
        return {**defaults, **given, "task": function}

    def _add(self, name: str, after: Need | Sequence[Need], when: str | None, fields: Mapping[str, Any]) -> StepRef:
        if name in self._steps:
            self._problem("DUPLICATE_STEP", f"steps.{name}", "is defined twice", "give one of them another name")
        needs = [after] if isinstance(after, StepRef | EdgeRef | str) else after
        self._steps[name] = {"needs": [_need(need) for need in needs], "when": when, **fields}
        return StepRef(name)

    def _problem(self, code: str, path: str, said: str, hint: str) -> None:
        self._problems.append(Problem(code=code, path=path, message=said, hint=hint))


@dataclass(frozen=True, slots=True)
class MapBuilder:
    """A map that still has to be told what it does. Made by `WorkflowBuilder.map`."""

    _function: Callable[[Callable[..., Any] | str], tuple[str, dict[str, Any]]]
    _add: Callable[[Mapping[str, Any]], StepRef]

    def task(
        self,
        function: Callable[..., Any] | str,
        /,
        *,
        retry: int | Mapping[str, Any] | None = None,
        timeout: Timeout | None = None,
        expected: Duration | None = None,
        durability: str | None = None,
        queue: str | None = None,
        priority: str | None = None,
        concurrency_key: Concurrency | None = None,
        cache: Cache | None = None,
        with_: Mapping[str, Constant] | None = None,
        **arguments: Constant,
    ) -> StepRef:
        """Calls `function` for each item, as `WorkflowBuilder.task` does; `item` and `index` are names in the
        arguments."""
        registered, defaults = self._function(function)
        given = {"retry": retry, "timeout": timeout, "expected": expected, "durability": durability, "queue": queue}
        fields = {**defaults, **{field: value for field, value in given.items() if value is not None}}
        fields |= {"priority": priority, "concurrency_key": concurrency_key, "cache": cache}
        return self._add({"task": registered, "with": {**(with_ or {}), **arguments}, **fields})

    def agent(
        self,
        agent: str,
        /,
        *,
        prompt: str,
        output: Schema | None = None,
        max_tokens: int | None = None,
        retry: int | Mapping[str, Any] = 0,
        timeout: Timeout | None = None,
        expected: Duration | None = None,
        queue: str | None = None,
        priority: str | None = None,
        concurrency_key: Concurrency | None = None,
    ) -> StepRef:
        """Asks `agent` for each item, as `WorkflowBuilder.agent` does; `item` and `index` are names in the prompt."""
        fields: dict[str, Any] = {"agent": agent, "prompt": prompt, "max_tokens": max_tokens, "retry": retry}
        fields |= {"timeout": timeout, "expected": expected, "output": None if output is None else _schema(output)}
        fields |= {"priority": priority, "concurrency_key": concurrency_key}
        return self._add(fields if queue is None else {**fields, "queue": queue})


def _need(need: Need) -> str | dict[str, str]:
    if isinstance(need, EdgeRef):
        return {"step": need.name, "when": need.condition}
    return str(need)


def _schema(schema: Schema) -> dict[str, Any]:
    return dict(schema) if isinstance(schema, Mapping) else TypeAdapter(schema).json_schema()
