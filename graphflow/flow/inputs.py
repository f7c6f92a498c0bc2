"""What goes into a step and comes out of a run: arguments, prompts, the check of an input, the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convergio.graphflow.flow import expressions, schema
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.errors import Problem
from convergio.graphflow.model.workflow import Step, StepKind, Workflow, digest_of


def arguments(step: Step, names: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a task step. `names`: `input` and the results it references (null for skipped steps).

    ExpressionFailed names the argument.
    """
    return {name: _evaluated(text, names, f"with.{name}") for name, text in step.arguments.items()}


def call_digest(step: Step, values: Mapping[str, Any]) -> str | None:
    """What the step calls with which arguments, as a digest; None if no other outcome may count for it."""
    if step.cache is None:
        return None
    return digest_of({"function": step.spec["function"], "version": step.cache.version, "with": values})


def seen(plan: Plan, at: str, outputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the expressions of the instance `at` may name, but for the input: `outputs` are those of instances, and, of
    no instance, its item."""
    name, index = instance.step_of(at), instance.index_of(at)
    made = plan.steps[name].map
    if made is None or index is None:
        found = dict.fromkeys(plan.references[name])
    else:
        found = {**dict.fromkeys(plan.members[name]), made.item: None, expressions.INDEX: index}
    for one, value in outputs.items():
        found[made.item if made is not None and one == instance.item(at) else instance.step_of(one)] = value
    return {**found, expressions.ITERATION: instance.round_of(at)}


def prompt(step: Step, names: Mapping[str, Any]) -> str:
    """The rendered text of a step: an agent's prompt, an approval's description. ExpressionFailed."""
    field = "description" if step.kind is StepKind.APPROVAL else "prompt"
    try:
        return expressions.render(step.spec[field], names)
    except errors.ExpressionFailed as error:
        raise errors.ExpressionFailed(f"{field}: {error.message}", hint=error.hint) from None


def check_input(workflow: Workflow, value: Any) -> None:
    """InvalidInput with every place at which `value` does not fit the workflow's input schema. Values are never
    quoted."""
    found = schema.violations(workflow.input_schema, value)
    if found:
        problems = [Problem(code="INVALID_INPUT", path=_path(where), message=said) for where, said in found]
        raise errors.InvalidInput(problems=problems, source=workflow.name)


def run_output(plan: Plan, names: Mapping[str, Any]) -> Any:
    """The result of a finished run. `names`: `input` and the result of every step (null for skipped ones).

    Without an `output` mapping it is the last step's result if only one step is last, else null: nothing that grows
    with the number of steps, so that no run fails at its end for a result nobody asked for. ExpressionFailed.
    """
    output = plan.workflow.output
    if output is not None:
        return {name: _evaluated(text, names, f"output.{name}") for name, text in output.items()}
    return names[plan.leaves[0]] if len(plan.leaves) == 1 else None


def output_references(plan: Plan) -> tuple[str, ...]:
    """The steps whose results `run_output` reads."""
    output = plan.workflow.output
    if output is not None:
        read = frozenset[str]().union(*(expressions.references(text) for text in output.values()))
        return tuple(sorted(read - {expressions.INPUT}))
    return plan.leaves if len(plan.leaves) == 1 else ()


def _evaluated(text: str, names: Mapping[str, Any], where: str) -> Any:
    try:
        return expressions.compile_expression(text).evaluate(names)
    except errors.ExpressionFailed as error:
        raise errors.ExpressionFailed(f"{where}: {error.message}", hint=error.hint) from None


def _path(where: str) -> str:
    if not where:
        return "input"
    return f"input{where}" if where.startswith("[") else f"input.{where}"
