"""The document people write (YAML, JSON or a mapping) and the workflow it becomes.

A value under `with` or `output` is a CEL expression: `input.amount`, `load.total`, `'text'` (text needs quotes of its
own). Numbers, true, false and null stand for themselves.

The canonical document of a workflow is the same document with every default written out and its steps ordered by the
graph, so that equal workflows have equal digests, whether they came from YAML, from Python or from the journal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from convergio.graphflow.flow import form, graph, reader, refusal, scalars, schema, storable, validate, values
from convergio.graphflow.flow.form import (
    AgentBody,
    AnyStep,
    ApprovalForm,
    ChildForm,
    CompensateForm,
    ConcurrencyForm,
    ConversationForm,
    DoingForm,
    EachTask,
    HeaderForm,
    JoinForm,
    LoopForm,
    MapDetails,
    MapForm,
    RetryForm,
    TaskBody,
    WaitForm,
    WorkflowForm,
)
from convergio.graphflow.flow.known import Known
from convergio.graphflow.flow.part import Form
from convergio.graphflow.flow.spelling import did_you_mean
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.errors import Problem
from convergio.graphflow.model.workflow import (
    DEFAULT_DURABILITY,
    DEFAULT_QUEUE,
    UNDO,
    Cache,
    Concurrency,
    Durability,
    Edge,
    Join,
    JoinKind,
    Loop,
    Map,
    OnFailure,
    OnMax,
    Retry,
    Step,
    StepKind,
    Workflow,
)

AnyForm = TypeVar("AnyForm", bound=Form)

_STAND_INS: Final[Mapping[str, Mapping[str, Any]]] = {
    "task": {"task": "unread"},
    "agent": {"agent": "unread", "prompt": "unread"},
    "approval": {"approval": {}},
    "wait": {"wait": {"for": 1}},
    "workflow": {"workflow": "unread"},
    "map": {"map": {"over": "[]", "each": {"task": "unread"}}},
    "conversation": {"conversation": {"agents": ["unread"]}, "prompt": "unread"},
}
_LATER: Final = frozenset({"branch"})


def load(path: str | Path, *, known: Known | None = None) -> Workflow:
    """The workflow in a file (`.json`: JSON; else YAML). InvalidWorkflow as `parse_yaml`; OSError if it cannot be
    read."""
    file = Path(path)
    return _parse(*reader.read_file(file), source=file.name, known=known)


def parse_content(content: bytes, path: Path, *, known: Known | None = None) -> Workflow:
    """The workflow that this content of a file is. InvalidWorkflow as `parse_yaml`."""
    return _parse(*reader.read_content(content, path), source=path.name, known=known)


def parse_yaml(text: str, source: str = "workflow.yaml", *, known: Known | None = None) -> Workflow:
    """The workflow that YAML (or JSON) text describes.

    InvalidWorkflow with every problem at once; `source` is the name it gives to the text. `known`: functions and agents
    that exist, to check those it names.
    """
    return _parse(*reader.read_yaml(text, source), source=source, known=known)


def parse_document(document: Mapping[str, Any], source: str = "workflow", *, known: Known | None = None) -> Workflow:
    """The workflow that a mapping describes: a document as people write it, or a canonical one. Raises as
    `parse_yaml`."""
    return _parse(document, [], source=source, known=known)


def parse_pinned(document: Mapping[str, Any]) -> Workflow:
    """The workflow of a canonical document that was accepted before, as the journal and the board keep it.

    It is not checked again: it was, and a later version's stricter rules must not stop a run that is on its way.
    InvalidWorkflow if it is no document of this version at all.
    """
    found: list[Problem] = []
    header, steps, _ = _read(document, found)
    if found:
        raise errors.InvalidWorkflow(problems=found, source="the stored definition")
    workflow = _workflow(header, steps)
    written = document["steps"]
    return _ordered(workflow, {**document, "steps": {name: written[name] for name in _order(workflow)}})


def json_schema() -> dict[str, Any]:
    """The JSON Schema of documents, for editors and other systems; published as docs/workflow.schema.json."""
    made = WorkflowForm.model_json_schema(by_alias=True)
    return {"$schema": schema.DIALECT, **made, "title": "Convergio workflow"}


def _parse(document: Any, found: list[Problem], *, source: str, known: Known | None) -> Workflow:
    if not values.is_map(document):
        hint = "start with `workflow: name`"
        found = [*found, Problem(code="BAD_DOCUMENT", path="", message="is not a mapping", hint=hint)]
        raise errors.InvalidWorkflow(problems=found, source=source)
    found = [*found, *storable.problems_of(document)]
    if any(problem.code in storable.HOPELESS for problem in found):
        raise errors.InvalidWorkflow(problems=found, source=source)
    header, steps, unread = _read(document, found)
    workflow = _workflow(header, steps)
    found += validate.problems(workflow, known, unread)
    if found:
        raise errors.InvalidWorkflow(problems=found, source=source)
    canonical = {name: steps[name].model_dump(by_alias=True) for name in _order(workflow)}
    return _ordered(workflow, {**header.model_dump(by_alias=True), "steps": canonical})


def _read(document: Mapping[str, Any], found: list[Problem]) -> tuple[HeaderForm, dict[str, AnyStep], list[str]]:
    """The forms of all that can be read; last, the names of steps that are not read whole. Problems are added to
    `found`."""
    header = _header({name: value for name, value in document.items() if name != "steps"}, found)
    written = document.get("steps", {})
    if not values.is_map(written):
        hint = "write `steps:` and under it each step by its name"
        found.append(Problem(code="BAD_VALUE", path="steps", message="is not a mapping", hint=hint))
        return header, {}, ["?"]
    steps: dict[str, AnyStep] = {}
    unread: list[str] = []
    for name, value in written.items():
        problems: list[Problem] = []
        step = _step(str(name), value, problems)
        if problems:
            unread.append(str(name))
            found += problems
        if step is not None:
            steps[str(name)] = step
    return header, steps, unread


def _header(written: Mapping[str, Any], found: list[Problem]) -> HeaderForm:
    header, problems = _formed(HeaderForm, written, "", "a workflow", {"workflow": "unread", "version": 1})
    found += problems
    return header


def _formed(
    wanted: type[AnyForm], written: Mapping[str, Any], path: str, what: str, stand_in: Mapping[str, Any]
) -> tuple[AnyForm, list[Problem]]:
    """The form of what was written. Wrong fields are left out and told, so that the others' problems are found as
    well."""
    try:
        return wanted.model_validate(dict(written)), []
    except ValidationError as error:
        problems = list(refusal.problems_of(error, path, wanted, what))
        wrong = {str(detail["loc"][0]) for detail in error.errors(include_url=False)}
    right = {name: value for name, value in written.items() if name not in wrong}
    return wanted.model_validate({**stand_in, **right}), problems


def _step(name: str, value: Any, found: list[Problem]) -> AnyStep | None:
    path = f"steps.{name[:80]}"
    try:
        scalars.check_step_name(name)
    except PydanticCustomError as error:
        context = error.context or {}
        found.append(Problem(code=context["code"], path=path, message=context["said"], hint=context["hint"]))
    kind = _kind(value, path, found)
    if kind is None:
        return None
    what = f"{'an' if kind[0] == 'a' else 'a'} {kind} step"
    step, problems = _formed(form.KINDS[kind], value, path, what, _STAND_INS[kind])
    found += problems
    return step


def _kind(value: Any, path: str, found: list[Problem]) -> str | None:
    """Which of the kinds a step is."""
    if not values.is_map(value):
        hint = "write a mapping such as {task: module.function}"
        found.append(Problem(code="BAD_VALUE", path=path, message=f"is {refusal.shown(value)}", hint=hint))
        return None
    kinds = [kind for kind in form.KINDS if kind in value]
    if len(kinds) == 1:
        return kinds[0]
    if kinds:
        said = f"is both {' and '.join(kinds)}"
        found.append(Problem(code="BAD_KIND", path=path, message=said, hint="a step is of one kind"))
        return None
    found.append(_unknown_kind(value, path))
    return None


def _unknown_kind(value: Mapping[str, Any], path: str) -> Problem:
    kinds = f"a step has one of {', '.join(form.KINDS)}"
    for field in value:
        if field in _LATER:
            return Problem(code="UNKNOWN_KIND", path=path, message=f"is of the unknown kind '{field}'", hint=kinds)
        if hint := did_you_mean(str(field), form.KINDS):
            return Problem(code="UNKNOWN_KIND", path=path, message=f"is of the unknown kind '{field}'", hint=hint)
    return Problem(code="UNKNOWN_KIND", path=path, message="does not say what it does", hint=kinds)


def _workflow(header: HeaderForm, steps: Mapping[str, AnyStep]) -> Workflow:
    """The workflow in the order in which it is written; its canonical document comes when it is known to be valid."""
    return Workflow(
        name=header.workflow,
        version=header.version,
        steps={name: _model_step(name, step) for name, step in steps.items()},
        document={},
        title=header.title,
        description=header.description,
        input_schema=header.input,
        output=header.output,
        sla=header.sla,
        priority=header.priority,
        on_failure=OnFailure(header.on_failure),
    )


def _order(workflow: Workflow) -> list[str]:
    """Its steps' names by the graph: cursors of runs count in this order."""
    return list(graph.order({name: [edge.step for edge in step.needs] for name, step in workflow.steps.items()}))


def _ordered(workflow: Workflow, document: Mapping[str, Any]) -> Workflow:
    """The workflow with its canonical document, whose steps are in order."""
    steps = MappingProxyType({name: workflow.steps[name] for name in document["steps"]})
    return dataclasses.replace(workflow, steps=steps, document=document)


def _model_step(name: str, step: AnyStep) -> Step:
    return Step(
        name=name,
        kind=_KIND_OF[type(step)],
        needs=tuple(Edge(step=edge.step, when=edge.when) for edge in step.needs),
        when=step.when,
        join=_join(step.join),
        on_failure=OnFailure(step.on_failure),
        loop=_turns(name, step) if isinstance(step, ConversationForm) else _loop(step.loop),
        compensate=_undo(name, step.compensate) if isinstance(step, DoingForm) else None,
        **_rest(name, step),
    )


def _undo(name: str, form: CompensateForm | None) -> Step | None:
    """The step that undoes another one. Nothing follows from it before it is in SQL: it must not happen twice."""
    if form is None:
        return None
    return Step(
        name=f"{UNDO}{name}",
        kind=StepKind.TASK,
        arguments=MappingProxyType(form.with_),
        spec={"function": form.task},
        retry=_retry(form.retry),
        timeout=form.timeout,
        durability=Durability.STEP,
        queue=form.queue,
    )


def _rest(name: str, step: AnyStep) -> dict[str, Any]:
    """What not every kind of step has."""
    match step:
        case WaitForm():
            kind = StepKind.WAIT
            spec = {"for": step.wait.for_, "until": step.wait.until, "signal": step.wait.signal}
            policies = {"durability": DEFAULT_DURABILITY[kind], "queue": DEFAULT_QUEUE[kind]}
            return {"spec": spec, "timeout": step.wait.timeout, **policies}
        case ApprovalForm():
            return {
                "spec": step.approval.model_dump(),
                "durability": Durability(step.durability),
                "queue": step.queue,
                "priority": step.priority,
            }
        case ChildForm():
            kind = StepKind.WORKFLOW
            does = {"spec": {"workflow": step.workflow}, "arguments": MappingProxyType(step.with_)}
            waits = {"durability": DEFAULT_DURABILITY[kind], "queue": DEFAULT_QUEUE[kind]}
            return {**does, "retry": _retry(step.retry), "timeout": step.timeout, **waits}
        case ConversationForm():
            own: dict[str, Any] = {"prompt": step.prompt, "after": step.after, "hears": list(step.hears)}
            spec = {**step.conversation.model_dump(), **own}
            if step.images is not None:
                spec["images"] = step.images
            return {"spec": spec, **_attempts(step), "durability": Durability(step.durability)}
        case MapForm():
            kind = StepKind.MAP
            policies = {"durability": DEFAULT_DURABILITY[kind], "queue": DEFAULT_QUEUE[kind]}
            return {"map": _map(name, step.map), **policies}
        case _:
            return _body(step)


def _map(name: str, details: MapDetails) -> Map:
    each = details.each
    kind = StepKind.TASK if isinstance(each, EachTask) else StepKind.AGENT
    return Map(
        over=details.over,
        each=Step(name=name, kind=kind, **_body(each)),
        item=details.item,
        max_concurrency=details.max_concurrency,
        join=_join(details.join),
    )


def _body(step: TaskBody | AgentBody) -> dict[str, Any]:
    """What a worker does, and how it is run."""
    if isinstance(step, TaskBody):
        does: dict[str, Any] = {"spec": {"function": step.task}, "arguments": MappingProxyType(step.with_)}
    else:
        names = ("agent", "prompt", "max_tokens", "output")
        does = {"spec": {name: getattr(step, name) for name in names}}
    return {
        **does,
        **_attempts(step),
        "expected": step.expected,
        "durability": Durability(step.durability),
        "concurrency": _concurrency(step.concurrency_key),
        "cache": _cache(step),
    }


def _attempts(step: TaskBody | AgentBody | ConversationForm) -> dict[str, Any]:
    """Where it is run, how soon, how long and how often."""
    return {
        "retry": _retry(step.retry),
        "timeout": step.timeout.run,
        "queue_timeout": step.timeout.queue,
        "idle_timeout": step.timeout.idle,
        "queue": step.queue,
        "priority": step.priority,
    }


_KIND_OF: Final = {made: StepKind(kind) for kind, made in form.KINDS.items()}


def _cache(step: TaskBody | AgentBody) -> Cache | None:
    form = step.cache if isinstance(step, TaskBody) else None
    return None if form is None else Cache(ttl=form.ttl, version=form.version)


def _concurrency(form: ConcurrencyForm | None) -> Concurrency | None:
    return None if form is None else Concurrency(key=form.key, limit=form.limit)


def _retry(retry: RetryForm) -> Retry:
    return Retry(**{**retry.model_dump(), "on": tuple(retry.on)})


def _join(join: JoinForm) -> Join:
    return Join(kind=JoinKind(join.policy), count=join.count)


def _turns(name: str, step: ConversationForm) -> Loop:
    """A conversation's turns are rounds of its step: a turn that ends it says so. What people say is a turn, too."""
    return Loop(back_to=name, max=instance.ROUNDS, until=f"{name}.stop != null", on_max=OnMax.CONTINUE)


def _loop(loop: LoopForm | None) -> Loop | None:
    if loop is None:
        return None
    return Loop(back_to=loop.back_to, max=loop.max, until=loop.until, on_max=OnMax(loop.on_max))
