"""The checks of a workflow's graph and names: each mistake is found, told once, and nothing right is refused."""

from __future__ import annotations

import time
from typing import Any

import pytest

from convergio.graphflow.flow import document, graph, validate
from convergio.graphflow.flow.known import Known, Parameters
from convergio.graphflow.model import errors
from convergio.graphflow.model.workflow import Edge, Step, StepKind, Workflow


def task(**fields: Any) -> dict[str, Any]:
    return {"task": "m.f", **fields}


def found(steps: dict[str, Any], *, known: Known | None = None, **header: Any) -> list[str]:
    """The problems of a workflow of these steps, one line each."""
    try:
        document.parse_document({"workflow": "w", "version": 1, "steps": steps, **header}, known=known)
    except errors.InvalidWorkflow as error:
        return [problem.line() for problem in error.problems]
    return []


# --- needs --------------------------------------------------------------------------------------------------------


def test_a_diamond_is_fine() -> None:
    steps = {"a": task(), "b": task(needs=["a"]), "c": task(needs=["a"]), "d": task(needs=["b", "c"], when="a.ok")}
    assert found(steps) == []


def test_a_cycle_is_named_from_step_to_step() -> None:
    steps = {"a": task(needs=["c"]), "b": task(needs=["a"]), "c": task(needs=["b"]), "d": task(needs=["a"])}
    assert found(steps) == [
        "CYCLE  steps.a waits for itself: a needs c needs b needs a; remove one of these needs",
    ]


def test_two_cycles_are_both_named() -> None:
    steps = {"a": task(needs=["b"]), "b": task(needs=["a"]), "c": task(needs=["d", "a"]), "d": task(needs=["c"])}
    lines = found(steps)
    assert len(lines) == 2
    assert "a needs b needs a" in lines[0]
    assert "c needs d needs c" in lines[1]


def test_a_long_cycle_is_told_in_one_line() -> None:
    steps = {f"s{i}": task(needs=[f"s{(i + 1) % 3000}"]) for i in range(3000)}
    (line,) = found(steps)
    assert len(line) < 400
    assert "s0 needs s1 needs" in line
    assert "..." in line


def test_a_knot_of_cycles_is_told_in_few_lines() -> None:
    names = [f"s{i}" for i in range(60)]
    steps = {name: task(needs=[other for other in names if other != name]) for name in names}
    assert 1 <= len(found(steps)) <= 20


# --- references ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "lines"),
    [
        (task(needs=["b"], **{"with": {"x": "a.v + b.v + input.v"}}), []),
        (task(**{"with": {"x": "input.v"}}, when="input.ok"), []),
        (task(needs=["b"], **{"with": {"x": "c.v"}}), ["NOT_NEEDED  steps.it.with.x uses 'c'; add 'c' to its needs"]),
        (task(when="a.ok"), ["NOT_NEEDED  steps.it.when uses 'a'; add 'a' to its needs"]),
        (task(when="it.ok"), ["NOT_NEEDED  steps.it.when uses 'it'; a step cannot use its own result"]),
        (
            task(when="inputs.ok"),
            ["UNKNOWN_NAME  steps.it.when uses 'inputs'; an expression knows 'input' and the steps"],
        ),
        (task(when="bb.ok"), ["UNKNOWN_NAME  steps.it.when uses 'bb'; did you mean 'b'?"]),
        (
            {"agent": "x", "prompt": "{{ input.a }} {{ b.list.map(c, c) }} {{ c }}", "needs": ["b"]},
            ["NOT_NEEDED  steps.it.prompt uses 'c'; add 'c' to its needs"],
        ),
        (
            {"approval": {"description": "{{ c.text }}"}, "needs": ["a"]},
            ["NOT_NEEDED  steps.it.approval.description uses 'c'; add 'c' to its needs"],
        ),
        (task(needs=[{"step": "b", "when": "b.ok && a.ok && input.ok"}]), []),
        (
            task(needs=["c", {"step": "b", "when": "c.ok"}]),
            [
                "NOT_NEEDED  steps.it.needs[1].when uses 'c'; here only 'b' and what it needs are known; "
                "a condition may be the step's own `when`"
            ],
        ),
    ],
)
def test_expressions_see_the_input_and_what_the_step_waits_for(step: dict[str, Any], lines: list[str]) -> None:
    steps = {"a": task(), "b": task(needs=["a"]), "c": task(), "it": step}
    assert found(steps) == lines


def test_the_output_sees_every_step() -> None:
    steps = {"a": task(), "b": task()}
    assert found(steps, output={"x": "a.v", "y": "b.v", "z": "input.v"}) == []
    assert found(steps, output={"x": "c.v"}) == [
        "UNKNOWN_NAME  output.x uses 'c'; an expression knows 'input' and the steps"
    ]


def test_nothing_is_concluded_from_a_step_that_could_not_be_read() -> None:
    """`b` cannot be read, so nobody knows what it waits for: `c` may well see `a`."""
    steps = {"a": task(), "b": {"tsk": "m.f"}, "c": task(needs=["b"], when="a.ok && b.ok")}
    assert [line.split("  ")[0] for line in found(steps, output={"x": "b.v"})] == ["UNKNOWN_KIND"]


def test_what_is_wrong_in_one_field_does_not_hide_the_others() -> None:
    steps = {"a": task(timeout="soon", needs=["nope"], when="1 +", **{"with": {"x": "a b"}}), "b": task(needs=["a"])}
    assert [line.split("  ")[0] for line in found(steps)] == [
        "BAD_DURATION",
        "UNKNOWN_STEP",
        "BAD_EXPRESSION",
        "BAD_EXPRESSION",
    ]


# --- conditions ---------------------------------------------------------------------------------------------------


def test_a_step_that_no_run_can_start_is_told() -> None:
    steps = {
        "off": task(when="false"),
        "behind": task(needs=["off"]),
        "cut": task(needs=[{"step": "on", "when": "1 > 2"}]),
        "half": task(needs=["off", "on"]),
        "on": task(when="true"),
    }
    assert found(steps) == [
        "UNREACHABLE  steps.off can never start: its condition is always false; remove the step or the condition",
        "UNREACHABLE  steps.behind can never start: no way to it is ever taken; remove the step or the condition",
        "UNREACHABLE  steps.cut can never start: no way to it is ever taken; remove the step or the condition",
    ]


def test_a_constant_that_cannot_be_evaluated_is_told_before_any_run() -> None:
    steps = {"a": task(**{"with": {"x": "1 / 0", "y": "[1][3]", "z": "{'a': 1}.b"}})}
    assert [line.split(" failed: ")[-1] for line in found(steps)] == [
        "it divides by zero",
        "an index is outside its list; guard it with size(...)",
        "a value has no such field; guard it with has(a.b)",
    ]


# --- the world outside --------------------------------------------------------------------------------------------


KNOWN = Known(
    functions={
        "billing.load": Parameters(names=frozenset({"invoice_id", "currency"})),
        "billing.any": Parameters(names=frozenset({"a"}), open_ended=True),
        "billing.unknown": None,
    },
    agents={"domik", "amy-cfo"},
    policies={"desk.first_come"},
)


def talk(**team: Any) -> dict[str, Any]:
    return {"conversation": {"agents": ["domik", "amy-cfo"], **team}, "prompt": "x"}


@pytest.mark.parametrize(
    ("step", "lines"),
    [
        ({"task": "billing.load", "with": {"invoice_id": "'x'"}}, []),
        ({"task": "billing.any", "with": {"whatever": 1}}, []),
        ({"task": "billing.unknown", "with": {"whatever": 1}}, []),
        ({"agent": "amy-cfo", "prompt": "x"}, []),
        (
            {"task": "billing.laod"},
            ["UNKNOWN_FUNCTION  steps.it.task names 'billing.laod'; did you mean 'billing.load'?"],
        ),
        (
            {"task": "x.y"},
            ["UNKNOWN_FUNCTION  steps.it.task names 'x.y'; register it with @step, or import the module that does"],
        ),
        (
            {"task": "billing.load", "with": {"invoice": "'x'"}},
            ["UNKNOWN_ARGUMENT  steps.it.with.invoice is not an argument of billing.load; did you mean 'invoice_id'?"],
        ),
        (
            {"task": "billing.load", "with": {"zzz": 1}},
            ["UNKNOWN_ARGUMENT  steps.it.with.zzz is not an argument of billing.load; it takes currency, invoice_id"],
        ),
        ({"agent": "amy", "prompt": "x"}, ["UNKNOWN_AGENT  steps.it.agent names 'amy'; did you mean 'amy-cfo'?"]),
        (
            {"agent": "zoe", "prompt": "x"},
            ["UNKNOWN_AGENT  steps.it.agent names 'zoe'; no agent of this name is in the roster"],
        ),
        (talk(policy="desk.first_come"), []),
        (
            talk(policy="desk.first_com"),
            ["UNKNOWN_FUNCTION  steps.it.conversation.policy names 'desk.first_com'; did you mean 'desk.first_come'?"],
        ),
    ],
)
def test_functions_and_agents_are_checked_where_they_are_known(step: dict[str, Any], lines: list[str]) -> None:
    assert found({"it": step}, known=KNOWN) == lines
    assert found({"it": step}) == []
    assert found({"it": step}, known=Known()) == []


# --- workflows made by hand ---------------------------------------------------------------------------------------


def test_a_workflow_value_can_be_checked_as_it_is() -> None:
    step = Step(name="a", kind=StepKind.TASK, needs=(Edge(step="b"),), spec={"function": "m.f"})
    workflow = Workflow(name="w", version=1, steps={"a": step}, document={})
    with pytest.raises(errors.InvalidWorkflow, match=r"UNKNOWN_STEP  w: steps\.a\.needs\[0\]"):
        validate.check(workflow)
    validate.check(document.parse_document({"workflow": "w", "version": 1, "steps": {"a": task()}}))


# --- size ---------------------------------------------------------------------------------------------------------


def wide(count: int) -> dict[str, Any]:
    """One root, `count` steps in layers of 100 that each need two of the layer above, every step using the root."""
    steps: dict[str, Any] = {"root": task()}
    for i in range(count):
        needs = ["root"] if i < 100 else [f"s{i - 100}", f"s{i - 99 - i % 100 // 99 * 100}"]
        steps[f"s{i}"] = task(needs=sorted(set(needs)), **{"with": {"x": f"root.v + {i % 7}"}})
    return steps


@pytest.mark.slow
def test_ten_thousand_steps_are_checked_in_seconds() -> None:
    workflow = document.parse_document({"workflow": "w", "version": 1, "steps": wide(10_000)})
    started = time.process_time()
    assert validate.problems(workflow) == []
    assert time.process_time() - started < 3


def test_a_graph_a_thousand_deep_needs_no_recursion() -> None:
    steps = {f"s{i}": task(needs=[f"s{i - 1}"] if i else []) for i in range(5_000)}
    assert found(steps) == []
    steps["s0"] = task(needs=["s4999"])
    (line,) = found(steps)
    assert line.startswith("CYCLE")


# --- graphs -------------------------------------------------------------------------------------------------------


def test_levels_are_longest_ways_and_leave_cycles_out() -> None:
    needs = {"d": ["a", "c"], "c": ["a"], "a": [], "x": ["y"], "y": ["x", "a"], "z": ["y"]}
    assert graph.levels(needs) == {"a": 0, "c": 1, "d": 2}
    assert graph.order(needs) == ["a", "c", "d"]
    assert [sorted(cycle) for cycle in graph.cycles(needs)] == [["x", "y"]]


def test_every_knot_gives_a_cycle_and_every_cycle_is_one() -> None:
    needs = {"a": ["b", "c"], "b": ["a"], "c": ["b"], "d": ["d"], "e": ["a", "d"]}
    cycles = list(graph.cycles(needs))
    for cycle in cycles:
        assert all(after in needs[name] for name, after in zip(cycle, [*cycle[1:], cycle[0]], strict=True))
    assert {name for cycle in cycles for name in cycle} >= {"a", "b", "d"}
