"""The plan: edges, roots and leaves, and who reads what."""

from __future__ import annotations

import json

import pytest

from convergio.graphflow.flow import document
from convergio.graphflow.flow.plan import OutEdge, Plan
from convergio.graphflow.model import errors
from convergio.graphflow.model.workflow import canonical

TEXT = """
workflow: w
version: 1
steps:
  fetch: {task: m.f, with: {q: input.q}}
  load: {task: m.f}
  judge:
    agent: domik
    prompt: "{{ fetch.text }} {{ input.q }}"
    needs: [fetch, {step: load, when: "load.ok && input.x"}]
  gate: {approval: {description: "{{ judge }}"}, needs: [judge], when: "load.total > 1.0"}
  write: {task: m.f, needs: [gate, load], with: {a: judge.text, b: fetch.text, c: "1"}}
"""


def plan() -> Plan:
    return Plan.of(document.parse_yaml(TEXT))


def test_edges_lead_from_each_step_to_those_that_need_it() -> None:
    assert dict(plan().successors) == {
        "fetch": (OutEdge(target="judge"),),
        "load": (
            OutEdge(target="judge", when="load.ok && input.x", references=("load",)),
            OutEdge(target="write"),
        ),
        "judge": (OutEdge(target="gate"),),
        "gate": (OutEdge(target="write"),),
        "write": (),
    }
    assert dict(plan().indegree) == {"fetch": 0, "load": 0, "judge": 2, "gate": 1, "write": 2}
    assert plan().roots == ("fetch", "load")
    assert plan().leaves == ("write",)
    assert plan().size == 5


def test_a_step_reads_what_its_arguments_prompt_or_description_name() -> None:
    assert dict(plan().references) == {
        "fetch": (),
        "load": (),
        "judge": ("fetch",),
        "gate": ("judge",),
        "write": ("fetch", "judge"),
    }


def test_a_decision_reads_what_the_conditions_before_the_step_name() -> None:
    assert dict(plan().when_references) == {
        "fetch": (),
        "load": (),
        "judge": ("load",),
        "gate": ("load",),
        "write": (),
    }


def test_a_stored_definition_gives_the_same_plan_once() -> None:
    workflow = document.parse_yaml(TEXT)
    stored = canonical(workflow.document)
    first = Plan.from_json(stored)
    assert first == Plan.of(workflow)
    assert first.digest == workflow.digest
    assert Plan.from_json(stored) is first
    assert list(first.successors) == list(Plan.from_json(json.dumps(workflow.document)).successors)


def test_a_plan_cannot_be_changed() -> None:
    made = plan()
    for mapping in (made.successors, made.indegree, made.references, made.when_references, made.workflow.steps):
        with pytest.raises(TypeError):
            mapping["fetch"] = ()  # type: ignore[index] # pyright: ignore[reportIndexIssue]


def test_a_stored_definition_that_is_not_valid_is_refused() -> None:
    with pytest.raises(errors.InvalidWorkflow, match="the stored definition"):
        Plan.from_json('{"workflow": "w", "version": 1, "steps": {"a": {"map": 1}}}')


def test_edges_of_a_wide_graph_keep_the_order_of_the_document() -> None:
    steps = {f"s{i:04d}": {"task": "m.f", "needs": ["root"]} for i in range(2_000)}
    made = Plan.of(
        document.parse_document({"workflow": "w", "version": 1, "steps": {**steps, "root": {"task": "m.f"}}})
    )
    assert [edge.target for edge in made.successors["root"]] == sorted(steps)
    assert made.leaves == tuple(sorted(steps))
