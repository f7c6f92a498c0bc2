"""Arguments, prompts, the check of an input, and the result of a run."""

from __future__ import annotations

from typing import Any

import pytest

from convergio.graphflow.flow import document, inputs
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors
from convergio.graphflow.model.workflow import Workflow
from tests.unit.deciding import plan_of

SCHEMA = {
    "type": "object",
    "required": ["country", "budget"],
    "additionalProperties": False,
    "properties": {
        "country": {"type": "string", "minLength": 2},
        "budget": {"type": "number", "maximum": 1000},
        "mail": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
    },
}


def workflow(steps: dict[str, Any] | None = None, **header: Any) -> Workflow:
    made = {"workflow": "entry", "version": 1, "steps": steps or {"a": {"task": "m.f"}}, **header}
    return document.parse_document(made)


def violations(value: Any, **header: Any) -> list[str]:
    try:
        inputs.check_input(workflow(**header), value)
    except errors.InvalidInput as error:
        return str(error).splitlines()
    return []


# --- steps --------------------------------------------------------------------------------------------------------


def test_arguments_are_evaluated_by_name() -> None:
    given = {"total": "load.total", "who": "input.who", "n": 3, "kind": "'b2b'", "skipped": "sign", "all": "load"}
    steps = {
        "load": {"task": "m.f"},
        "sign": {"task": "m.f"},
        "it": {"task": "m.f", "needs": ["load", "sign"], "with": given},
    }
    names = {"input": {"who": "Zoë"}, "load": {"total": 2.5}, "sign": None}
    assert inputs.arguments(workflow(steps).steps["it"], names) == {
        "total": 2.5,
        "who": "Zoë",
        "n": 3,
        "kind": "b2b",
        "skipped": None,
        "all": {"total": 2.5},
    }


def test_an_item_knows_its_place_and_a_round_its_number() -> None:
    each = {"task": "m.g", "with": {"x": "row"}}
    plan = plan_of(
        load={},
        m={"needs": ["load"], "map": {"over": "load", "item": "row", "each": each}, "loop": {"back_to": "m", "max": 3}},
    )
    names = inputs.seen(plan, "m#4002", {"m#4002@": "it"})
    assert names == {"row": "it", "index": 3, "iteration": 2}
    assert inputs.seen(plan, "m#2", {"load": [1]}) == {"load": [1], "iteration": 2}


def test_what_has_not_run_in_an_earlier_round_is_null() -> None:
    plan = plan_of(a={"with": {"x": "b"}}, b={"needs": ["a"], "loop": {"back_to": "a", "max": 2}})
    assert inputs.seen(plan, "a", {}) == {"b": None, "iteration": 0}
    assert inputs.seen(plan, "a#1", {"b": 5}) == {"b": 5, "iteration": 1}
    assert inputs.seen(plan, "a#2", {"b#1": 6}) == {"b": 6, "iteration": 2}


def test_a_failing_argument_is_named_and_its_value_is_not() -> None:
    step = workflow({"it": {"task": "m.f", "with": {"fine": 1, "number": "int(input.text)"}}}).steps["it"]
    with pytest.raises(errors.ExpressionFailed) as caught:
        inputs.arguments(step, {"input": {"text": "s3cr3t"}})
    assert caught.value.message == "with.number: `int(input.text)` failed: a function does not accept these values"


def test_a_prompt_and_an_approval_are_rendered() -> None:
    steps = {
        "ask": {"agent": "domik", "prompt": "About {{ input.topic }}: {{ input.facts }}"},
        "gate": {"approval": {"description": "Pay {{ input.facts.total }}?"}},
    }
    names = {"input": {"topic": "tea", "facts": {"total": 3}}}
    made = workflow(steps)
    assert inputs.prompt(made.steps["ask"], names) == 'About tea: {"total":3}'
    assert inputs.prompt(made.steps["gate"], names) == "Pay 3?"
    with pytest.raises(errors.ExpressionFailed, match=r"^EXPRESSION_FAILED  prompt: `input.facts`|no such field"):
        inputs.prompt(made.steps["ask"], {"input": {"topic": "tea"}})


# --- input --------------------------------------------------------------------------------------------------------


def test_an_input_that_fits_is_accepted() -> None:
    assert violations({"country": "JP", "budget": 10, "mail": "a@b.example", "tags": ["a"]}, input=SCHEMA) == []


def test_every_violation_is_told_with_its_path() -> None:
    value = {"country": "J", "budget": 5000.5, "mail": "nobody", "tags": ["a", "c", 5], "extra": 1}
    assert violations(value, input=SCHEMA) == [
        "INVALID_INPUT  entry: input Additional properties are not allowed ('extra' was unexpected)",
        "INVALID_INPUT  entry: input.budget the value is greater than the maximum of 1000",
        "INVALID_INPUT  entry: input.country the value is shorter than 2 characters",
        'INVALID_INPUT  entry: input.mail the value is not a "email"',
        'INVALID_INPUT  entry: input.tags[1] the value is not one of "a" or "b"',
        'INVALID_INPUT  entry: input.tags[2] the value is not one of "a" or "b"',
    ]
    assert violations({}, input=SCHEMA) == [
        'INVALID_INPUT  entry: input "budget" is a required property',
        'INVALID_INPUT  entry: input "country" is a required property',
    ]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer"}, "s3cr3t"),
        ({"properties": {"a": {"pattern": "^x$"}}}, {"a": "s3cr3t"}),
        ({"enum": [1, 2]}, "s3cr3t"),
        ({"const": 1}, "s3cr3t"),
        ({"uniqueItems": True}, ["s3cr3t", "s3cr3t"]),
        ({"not": {}}, "s3cr3t"),
        ({"oneOf": [{"type": "integer"}, {"type": "boolean"}]}, "s3cr3t"),
        ({"format": "uuid"}, "s3cr3t"),
        ({"contains": {"type": "integer"}}, ["s3cr3t"]),
        ({"maxProperties": 0}, {"a": "s3cr3t"}),
        ({"dependentRequired": {"a": ["b"]}}, {"a": "s3cr3t"}),
    ],
)
def test_a_violation_never_tells_the_value(schema: dict[str, Any], value: Any) -> None:
    (line,) = violations(value, input=schema)
    assert "s3cr3t" not in line


def test_a_thousand_violations_are_told_in_bounded_text() -> None:
    lines = violations(["x" * 1000] * 5000, input={"items": {"type": "integer"}})
    assert len("\n".join(lines)) < 10_000
    assert lines[-1] == "... and 50 more problems"


def test_a_pattern_cannot_be_made_to_spin() -> None:
    assert violations("a" * 30_000 + "!", input={"pattern": "^(a+)+$"})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (2**70, "more than 64 bits"),
        ({"a": object()}, "of type object is not JSON"),
        ({1: 2}, "a key that is not text"),
    ],
)
@pytest.mark.parametrize("schema", [{}, {"type": ["object", "integer"]}])
def test_what_expressions_could_not_read_is_no_input(value: Any, said: str, schema: dict[str, Any]) -> None:
    (line,) = violations(value, input=schema)
    assert said in line


def test_an_input_nested_without_end_is_refused() -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    (line,) = violations(deep)
    assert "nested deeper than 64 levels" in line


def test_without_a_schema_any_json_is_accepted() -> None:
    for value in (None, 1, "x", [1], {"a": {"b": [None]}}):
        assert violations(value) == []


# --- result -------------------------------------------------------------------------------------------------------


DIAMOND = {"a": {"task": "m.f"}, "b": {"task": "m.f", "needs": ["a"]}, "c": {"task": "m.f", "needs": ["a"]}}


def test_the_output_mapping_makes_the_result() -> None:
    plan = Plan.of(workflow(DIAMOND, output={"sum": "a.n + b.n", "who": "input.who", "c": "c", "fixed": 3}))
    names = {"input": {"who": "x"}, "a": {"n": 1}, "b": {"n": 2}, "c": None}
    assert inputs.run_output(plan, names) == {"sum": 3, "who": "x", "c": None, "fixed": 3}
    assert inputs.output_references(plan) == ("a", "b", "c")
    with pytest.raises(errors.ExpressionFailed, match=r"output\.sum: `a\.n \+ b\.n` failed"):
        inputs.run_output(plan, {**names, "b": None})


def test_without_a_mapping_the_last_step_is_the_result_if_it_is_alone() -> None:
    last = Plan.of(workflow({**DIAMOND, "d": {"task": "m.f", "needs": ["b", "c"]}}))
    assert inputs.run_output(last, {"d": {"ok": True}}) == {"ok": True}
    assert inputs.output_references(last) == ("d",)
    several = Plan.of(workflow(DIAMOND))
    assert inputs.run_output(several, {"b": 1, "c": 2}) is None
    assert inputs.output_references(several) == ()
