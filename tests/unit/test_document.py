"""Documents: what is read, what every mistake is told as, and the one canonical form."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from convergio.graphflow.flow import document, reader, schema
from convergio.graphflow.model import errors
from convergio.graphflow.model.workflow import Durability, Edge, Retry, StepKind

EXAMPLE = """
workflow: market_entry
version: 2
title: Market entry
description: Should we go?
priority: high
sla: 360m
input:
  type: object
  required: [country]
  properties: {country: {type: string}}
output: {plan: write.text, steps: 3}
steps:
  decide: {approval: {title: Go?, risk: critical, description: "{{ assess.summary }}"}, needs: [assess]}
  assess:
    agent: domik-strategy
    needs: [research, {step: load, when: "load.total > 0.0"}]
    prompt: "Assess {{ input.country }}: {{ research }}"
    max_tokens: 90
    output: {type: object}
    timeout: 5m
  research: {task: market.research, with: {country: input.country, limit: 3, deep: true, none: null, kind: "'b2b'"}}
  load: {task: billing.load, retry: {max: 5, backoff: 250ms, cap: 1.5}, timeout: 30, queue: tools, durability: step}
  write: {task: market.write, needs: [decide], when: "decide.approved", retry: 3}
"""

PUBLISHED = Path(__file__).parents[2] / "docs" / "workflow.schema.json"


def problems(text: str) -> list[str]:
    with pytest.raises(errors.InvalidWorkflow) as caught:
        document.parse_yaml(text, "flow.yaml")
    return [problem.line() for problem in caught.value.problems]


def step_problems(step: str, *, more: str = "") -> list[str]:
    return problems(f"workflow: w\nversion: 1\nsteps:\n  first: {{task: m.f}}\n  it: {step}\n{more}")


MISTAKES = Path(__file__).with_name("mistakes.txt")
"""A step as somebody wrote it, and indented below it the line that tells what is wrong."""


def mistakes() -> list[tuple[str, str]]:
    lines = [line.strip() for line in MISTAKES.read_text().splitlines()]
    return list(zip(lines[::2], lines[1::2], strict=True))


# --- reading ------------------------------------------------------------------------------------------------------


def test_the_example_becomes_a_workflow() -> None:
    workflow = document.parse_yaml(EXAMPLE)
    assert (workflow.name, workflow.version, workflow.priority, workflow.sla) == ("market_entry", 2, "high", 21600.0)
    assert workflow.output == {"plan": "write.text", "steps": "3"}
    assess = workflow.steps["assess"]
    assert assess.kind is StepKind.AGENT
    assert assess.needs == (Edge(step="research"), Edge(step="load", when="load.total > 0.0"))
    assert assess.spec == {
        "agent": "domik-strategy",
        "prompt": "Assess {{ input.country }}: {{ research }}",
        "max_tokens": 90,
        "output": {"type": "object"},
    }
    assert (assess.timeout, assess.durability, assess.queue) == (300.0, Durability.STEP, "turns")
    load = workflow.steps["load"]
    assert (load.spec, load.timeout, load.queue) == ({"function": "billing.load"}, 30.0, "tools")
    assert load.retry == Retry(max=5, backoff=0.25, cap=1.5)
    assert load.durability is Durability.STEP
    assert workflow.steps["write"].retry == Retry(max=3)
    decide = workflow.steps["decide"]
    assert decide.spec == {"title": "Go?", "risk": "critical", "description": "{{ assess.summary }}"}
    assert (decide.kind, decide.queue, decide.timeout) == (StepKind.APPROVAL, "control", None)


def test_constants_under_with_become_expressions() -> None:
    research = document.parse_yaml(EXAMPLE).steps["research"]
    assert dict(research.arguments) == {
        "country": "input.country",
        "limit": "3",
        "deep": "true",
        "none": "null",
        "kind": "'b2b'",
    }


def test_steps_are_ordered_by_the_graph_and_then_by_name() -> None:
    assert list(document.parse_yaml(EXAMPLE).steps) == ["load", "research", "assess", "decide", "write"]


def test_the_canonical_document_reads_as_the_same_workflow() -> None:
    workflow = document.parse_yaml(EXAMPLE)
    again = document.parse_document(json.loads(json.dumps(workflow.document)))
    assert again == workflow
    assert again.digest == workflow.digest
    assert list(again.steps) == list(workflow.steps)


def test_the_canonical_document_does_not_depend_on_how_it_was_stored() -> None:
    workflow = document.parse_yaml(EXAMPLE)
    shuffled = json.loads(json.dumps(workflow.document, sort_keys=True))
    again = document.parse_document(shuffled)
    assert list(again.steps) == list(workflow.steps)
    assert again.digest == workflow.digest


def test_the_canonical_document_has_every_default() -> None:
    workflow = document.parse_yaml("workflow: w\nversion: 1\nsteps: {a: {task: m.f}}")
    assert workflow.document == {
        "workflow": "w",
        "version": 1,
        "title": "",
        "description": "",
        "priority": "medium",
        "sla": None,
        "on_failure": "fail",
        "input": {},
        "output": None,
        "steps": {
            "a": {
                "task": "m.f",
                "compensate": None,
                "with": {},
                "needs": [],
                "when": None,
                "retry": {"max": 0, "backoff": 1.0, "factor": 2.0, "cap": 60.0, "jitter": 0.1, "on": []},
                "timeout": {"run": None, "queue": None, "idle": None},
                "expected": None,
                "join": {"policy": "all", "count": 0},
                "on_failure": "fail",
                "loop": None,
                "durability": "stream",
                "queue": "steps",
                "priority": None,
                "concurrency_key": None,
                "cache": None,
            }
        },
    }


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("{task: m.f, timeout: 90s}", "{task: m.f, timeout: 90}"),
        ("{task: m.f, timeout: 0.5}", "{task: m.f, timeout: 500ms}"),
        ("{task: m.f, retry: 3}", "{task: m.f, retry: {max: 3, factor: 2}}"),
        ("{task: m.f, needs: [first]}", "{task: m.f, needs: [{step: first}]}"),
        ("{task: m.f, with: {x: 1, y: true}}", "{with: {y: 'true', x: '1'}, task: m.f}"),
        ("{task: m.f, when: null}", "{task: m.f}"),
        ("{task: m.f, timeout: 90s}", "{task: m.f, timeout: {run: 90s}}"),
        ("{task: m.f, join: any}", "{task: m.f, join: {policy: any}}"),
        (
            "{task: m.f, needs: [first], join: {quorum: 1}}",
            "{task: m.f, needs: [first], join: {policy: quorum, count: 1}}",
        ),
        ("{wait: {for: 5m}}", "{wait: {for: 300}}"),
        ("{task: m.f, compensate: {task: m.u}}", "{compensate: m.u, task: m.f}"),
        ("{workflow: other, retry: 1, timeout: 1m}", "{timeout: 60, retry: {max: 1}, with: {}, workflow: other}"),
        (
            "{map: {over: input.x, each: {task: m.f, retry: 1}}}",
            "{map: {over: input.x, join: all, item: item, each: {task: m.f, retry: {max: 1}, with: {}}}}",
        ),
        ("{task: m.f, loop: {back_to: it, max: 2}}", "{task: m.f, loop: {max: 2, back_to: it, on_max: fail}}"),
    ],
)
def test_two_ways_to_write_the_same_have_one_digest(one: str, other: str) -> None:
    text = "workflow: w\nversion: 1\nsteps:\n  first: {task: m.f}\n  it: "
    assert document.parse_yaml(text + one).digest == document.parse_yaml(text + other).digest


def test_any_change_that_matters_changes_the_digest() -> None:
    digests = {document.parse_yaml(EXAMPLE).digest}
    changes = [("version: 2", "version: 3"), ("limit: 3", "limit: 4"), ("360m", "361m"), ("[decide]", "[decide, load]")]
    changes += [("max: 5", "max: 6"), ("> 0.0", "> 1.0"), ("max_tokens: 90", "max_tokens: 91"), ("critical", "low")]
    for old, new in changes:
        assert old in EXAMPLE
        digests.add(document.parse_yaml(EXAMPLE.replace(old, new)).digest)
    assert len(digests) == len(changes) + 1


def test_a_file_is_read_as_yaml_or_json(tmp_path: Path) -> None:
    yaml, plain = tmp_path / "flow.yaml", tmp_path / "flow.json"
    yaml.write_text(EXAMPLE)
    plain.write_text(json.dumps(document.parse_yaml(EXAMPLE).document))
    assert document.load(yaml) == document.load(str(plain))
    for file, content in ((yaml, b"\xff\xfe\x00w"), (plain, b'{"workflow": "w",}'), (plain, b'{"a": 1, "a": 2}')):
        file.write_bytes(content)
        with pytest.raises(errors.InvalidWorkflow, match=file.name):
            document.load(file)
    with pytest.raises(FileNotFoundError):
        document.load(tmp_path / "none.yaml")


# --- the form of problems -----------------------------------------------------------------------------------------


def test_a_problem_reads_as_people_expect() -> None:
    text = "workflow: refund\nversion: 1\nsteps:\n  sign: {approval: {}}\n  pay: {task: m.pay, needs: [sign, sing]}"
    with pytest.raises(errors.InvalidWorkflow) as caught:
        document.parse_yaml(text, "refund.yaml")
    assert str(caught.value) == "UNKNOWN_STEP  refund.yaml: steps.pay.needs[1] names 'sing'; did you mean 'sign'?"
    assert caught.value.code == "INVALID_WORKFLOW"
    assert caught.value.problems == (
        errors.Problem(
            code="UNKNOWN_STEP", path="steps.pay.needs[1]", message="names 'sing'", hint="did you mean 'sign'?"
        ),
    )
    assert caught.value.as_dict()["message"] == str(caught.value)


def test_every_problem_is_told_at_once() -> None:
    text = """
workflow: Refund
version: one
priority: hgh
titel: x
input: {type: objec}
output: {total: pay.total + nobody.total, bad: "1 +"}
steps:
  load: {task: billing.load, timout: 3s, needs: [lod]}
  pay: {tsk: m.pay}
  ask: {agent: domik, prompt: "{{ lod }}", needs: [load]}
  ask: {agent: domik, prompt: again}
"""
    assert [line.split("  ")[0] for line in problems(text)] == [
        "DUPLICATE_KEY",
        "BAD_NAME",
        "BAD_VALUE",
        "BAD_VALUE",
        "UNKNOWN_FIELD",
        "UNKNOWN_FIELD",
        "UNKNOWN_KIND",
        "BAD_SCHEMA",
        "UNKNOWN_STEP",
        "UNKNOWN_NAME",
        "UNKNOWN_NAME",
        "BAD_EXPRESSION",
    ]


@pytest.mark.slow
def test_ten_thousand_problems_are_counted_and_fifty_are_listed() -> None:
    steps = {f"s{i}": {"task": "m.f", "needs": ["nope"]} for i in range(10_000)}
    started = time.process_time()
    with pytest.raises(errors.InvalidWorkflow) as caught:
        document.parse_document({"workflow": "w", "version": 1, "steps": steps})
    assert len(caught.value.problems) == 10_000
    assert str(caught.value).count("\n") == 50
    assert str(caught.value).endswith("... and 9950 more problems")
    assert time.process_time() - started < 6


@pytest.mark.parametrize(("step", "line"), mistakes())
def test_a_mistake_in_a_step_is_told_with_path_and_hint(step: str, line: str) -> None:
    assert line in step_problems(step)


@pytest.mark.parametrize(
    "name", ["input", "loop", "true", "int", "type", "Pay", "1pay", "pay-out", "päy", "a" * 64, "''", "a b"]
)
def test_a_name_that_expressions_could_not_use_is_refused(name: str) -> None:
    lines = problems(f"workflow: w\nversion: 1\nsteps: {{{name}: {{task: m.f}}}}")
    assert any(line.startswith(("BAD_NAME  steps.", "BAD_KEY")) for line in lines)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "BAD_DOCUMENT"),
        ("just text", "BAD_DOCUMENT"),
        ("[a, b]", "BAD_DOCUMENT"),
        ("workflow: w\nversion: 1", "NO_STEPS"),
        ("workflow: w\nversion: 1\nsteps: {}", "NO_STEPS"),
        ("workflow: w\nversion: 1\nsteps: [a]", "BAD_VALUE"),
        ("version: 1\nsteps: {a: {task: m.f}}", "MISSING_FIELD"),
        ("workflow: w\nsteps: {a: {task: m.f}}", "MISSING_FIELD"),
        ("workflow: w\nversion: true\nsteps: {a: {task: m.f}}", "BAD_VALUE"),
        ("workflow: w\nversion: 0\nsteps: {a: {task: m.f}}", "BAD_VALUE"),
        ("workflow: w\nversion: 1\ninput: other.json\nsteps: {a: {task: m.f}}", "BAD_VALUE"),
        ("workflow: w\nversion: 1\ninput: {$ref: other.json}\nsteps: {a: {task: m.f}}", "BAD_SCHEMA"),
        ("workflow: w\nversion: 1\ninput: {$ref: 'file:///etc/passwd'}\nsteps: {a: {task: m.f}}", "BAD_SCHEMA"),
        ("workflow: w\nversion: 1\ninput: {pattern: '('}\nsteps: {a: {task: m.f}}", "BAD_SCHEMA"),
    ],
)
def test_a_document_of_the_wrong_form_is_refused(text: str, code: str) -> None:
    assert [line.split("  ")[0] for line in problems(text)] == [code]


def test_a_schema_is_never_fetched_from_elsewhere(tmp_path: Path) -> None:
    there = tmp_path / "there.json"
    there.write_text('{"type": "object"}')
    lines = problems(f"workflow: w\nversion: 1\ninput: {{$ref: '{there.as_uri()}'}}\nsteps: {{a: {{task: m.f}}}}")
    assert len(lines) == 1
    assert lines[0].startswith("BAD_SCHEMA  input Resource 'file:")


@pytest.mark.parametrize(
    "value",
    ["a\x00b", "\ud800", float("nan"), float("inf"), object(), b"bytes", {1: 2}, {"a\x00": 1}, {"x": {None: 1}}],
)
def test_what_no_store_can_keep_is_refused_with_its_path(value: Any) -> None:
    found = {"workflow": "w", "version": 1, "steps": {"a": {"task": "m.f"}}, "input": {"default": value}}
    with pytest.raises(errors.InvalidWorkflow) as caught:
        document.parse_document(found)
    assert caught.value.problems[0].code == "BAD_VALUE"
    assert caught.value.problems[0].path.startswith("input.default")


def test_a_mapping_that_contains_itself_is_refused() -> None:
    circle: dict[str, Any] = {"workflow": "w", "version": 1}
    circle["steps"] = circle
    with pytest.raises(errors.InvalidWorkflow, match="TOO_DEEP"):
        document.parse_document(circle)


# --- size ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_thousand_steps_in_a_row_are_read_in_seconds() -> None:
    steps = {
        f"s{i}": {"task": "m.f", "with": {"x": f"s{i - 1}.v" if i else "input.x"}, "needs": [f"s{i - 1}"] if i else []}
        for i in range(10_000)
    }
    started = time.process_time()
    workflow = document.parse_document({"workflow": "w", "version": 1, "steps": steps})
    assert time.process_time() - started < 3
    assert list(workflow.steps)[-1] == "s9999"


# --- the published schema -----------------------------------------------------------------------------------------


def test_the_published_schema_is_the_current_one() -> None:
    assert json.loads(PUBLISHED.read_text()) == document.json_schema()


def test_the_published_schema_is_valid_and_accepts_documents() -> None:
    made = document.json_schema()
    assert schema.problems_of(made) == []
    assert schema.violations(made, reader.read_yaml(EXAMPLE, "t")[0]) == []
    assert schema.violations(made, json.loads(json.dumps(document.parse_yaml(EXAMPLE).document))) == []


@pytest.mark.parametrize(
    "step",
    ["{tsk: m.f}", "{task: m.f, timout: 1s}", "{task: m.f, timeout: soon}", "{agent: a}", "{approval: {risk: no}}"],
)
def test_the_published_schema_refuses_what_the_parser_refuses(step: str) -> None:
    found = reader.read_yaml(f"workflow: w\nversion: 1\nsteps: {{a: {step}}}", "t")[0]
    assert schema.violations(document.json_schema(), found)
