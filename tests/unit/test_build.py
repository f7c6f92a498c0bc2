"""Workflows in Python: the same object as in YAML, functions by reference, and every mistake at once."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from pydantic import BaseModel

from convergio.graphflow.flow import document
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.flow.known import Known, Parameters
from convergio.graphflow.flow.registry import REGISTRY, Registry, step
from convergio.graphflow.model import errors
from convergio.graphflow.model.workflow import Retry


class RefundRequest(BaseModel):
    invoice_id: str


@dataclasses.dataclass
class Assessment:
    amount: float
    ok: bool = True


YAML = """
workflow: refund
version: 1
title: Refund
priority: high
sla: 2h
input:
  title: RefundRequest
  type: object
  required: [invoice_id]
  properties: {invoice_id: {title: Invoice Id, type: string}}
output: {paid: pay.id}
steps:
  load: {task: billing.load_invoice, with: {invoice_id: input.invoice_id}, retry: 3, timeout: 30s, queue: tools}
  assess:
    agent: amy-cfo
    needs: [load]
    prompt: "Is this refund justified? {{ load }}"
    max_tokens: 90
    timeout: 5m
    output:
      title: Assessment
      type: object
      required: [amount]
      properties: {amount: {title: Amount, type: number}, ok: {title: Ok, type: boolean, default: true}}
  sign:
    approval: {title: Sign, risk: high, description: "{{ assess.amount }}"}
    needs: [assess]
    when: assess.amount > 500.0
  pay:
    task: billing.pay_out
    needs: [assess, {step: sign, when: sign.approved}]
    with: {amount: assess.amount, timeout: 3, dry: false}
    durability: step
"""


def billing() -> tuple[Registry, Any, Any]:
    registry = Registry()

    @step(name="billing.load_invoice", retry=3, timeout="30s", queue="tools", registry=registry)
    def load_invoice(invoice_id: str) -> dict[str, Any]:
        return {"id": invoice_id}

    @step(name="billing.pay_out", registry=registry)
    async def pay_out(amount: float, timeout: int, dry: bool = False) -> str:
        return f"{amount}{timeout}{dry}"

    return registry, load_invoice, pay_out


def test_python_and_yaml_make_the_same_workflow() -> None:
    registry, load_invoice, pay_out = billing()
    refund = WorkflowBuilder(
        "refund",
        version=1,
        title="Refund",
        priority="high",
        sla="2h",
        input=RefundRequest,
        output={"paid": "pay.id"},
        registry=registry,
    )
    load = refund.task("load", load_invoice, invoice_id="input.invoice_id")
    assess = refund.agent(
        "assess",
        "amy-cfo",
        after=load,
        prompt=f"Is this refund justified? {{{{ {load} }}}}",
        output=Assessment,
        max_tokens=90,
        timeout="5m",
    )
    sign = refund.approval(
        "sign", after=assess, when="assess.amount > 500.0", title="Sign", risk="high", description="{{ assess.amount }}"
    )
    refund.task(
        "pay",
        pay_out,
        after=[assess, sign.when("sign.approved")],
        durability="step",
        with_={"timeout": 3},
        amount="assess.amount",
        dry=False,
    )
    built, written = refund.build(), document.parse_yaml(YAML)
    assert built == written
    assert built.document == written.document
    assert built.digest == written.digest


def test_a_step_overrides_what_its_function_wants() -> None:
    registry, load_invoice, _ = billing()
    flow = WorkflowBuilder("w", version=1, registry=registry)
    flow.task("a", load_invoice, retry=0, timeout=5, queue="steps", invoice_id="'x'")
    a = flow.build().steps["a"]
    assert (a.retry, a.timeout, a.queue) == (Retry(), 5.0, "steps")


def test_a_function_may_be_a_name_of_another_process() -> None:
    flow = WorkflowBuilder("w", version=1)
    first = flow.task("first", "other.system_task", anything="1")
    flow.task("second", "other.system_task", after="first")
    flow.task("third", "other.system_task", after=[first, "second"], name="'x'", function="'y'")
    workflow = flow.build()
    assert [edge.step for edge in workflow.steps["third"].needs] == ["first", "second"]
    assert set(workflow.steps["third"].arguments) == {"name", "function"}


def test_every_mistake_is_told_at_once() -> None:
    registry, load_invoice, pay_out = billing()

    def forgotten() -> None: ...

    flow = WorkflowBuilder("w", version=1, registry=registry)
    load = flow.task("load", load_invoice, invoice="'x'")
    flow.task("load", load_invoice, invoice_id="'x'", after=load)
    flow.task("lost", forgotten)
    flow.task("pay", pay_out, after="laod", timeout="soon")
    flow.approval("ask", risk="huge", after=load.when("load.ok &&"))
    with pytest.raises(errors.InvalidWorkflow) as caught:
        flow.build()
    assert [(problem.code, problem.path) for problem in caught.value.problems] == [
        ("DUPLICATE_STEP", "steps.load"),
        ("UNKNOWN_FUNCTION", "steps.lost.task"),
        ("BAD_DURATION", "steps.pay.timeout"),
        ("BAD_VALUE", "steps.ask.approval.risk"),
        ("CYCLE", "steps.load.needs[0]"),
        ("UNKNOWN_STEP", "steps.pay.needs[0]"),
        ("BAD_EXPRESSION", "steps.ask.needs[0].when"),
    ]


def test_arguments_are_checked_against_the_function() -> None:
    registry, load_invoice, _ = billing()
    flow = WorkflowBuilder("w", version=1, registry=registry)
    flow.task("a", load_invoice, invoice="'x'")
    with pytest.raises(errors.InvalidWorkflow, match=r"UNKNOWN_ARGUMENT .* did you mean 'invoice_id'"):
        flow.build()


def test_a_world_can_be_given() -> None:
    flow = WorkflowBuilder("w", version=1)
    flow.task("a", "m.f")
    flow.agent("b", "domik", prompt="x")
    with pytest.raises(errors.InvalidWorkflow) as caught:
        flow.build(Known(functions={}, agents=set()))
    assert [problem.code for problem in caught.value.problems] == ["UNKNOWN_FUNCTION", "UNKNOWN_AGENT"]


# --- registry -----------------------------------------------------------------------------------------------------


def test_a_function_is_registered_as_it_is() -> None:
    registry = Registry()

    @step(registry=registry)
    def plain(a: int, *, b: int = 2) -> int:
        return a + b

    assert plain(1) == 3
    entry = registry.get("test_build.plain")
    assert entry.function is plain
    assert entry.parameters == Parameters(names=frozenset({"a", "b"}))
    assert registry.of(plain) is entry
    assert registry.names() == ["test_build.plain"]


def test_a_function_that_takes_anything_is_known_as_such() -> None:
    registry = Registry()

    @step(registry=registry)
    def anything(**given: int) -> int:
        return len(given)

    assert registry.functions() == {"test_build.anything": Parameters(names=frozenset(), open_ended=True)}


def test_an_unknown_function_is_refused_with_the_nearest_name() -> None:
    registry, _, _ = billing()
    with pytest.raises(errors.UnknownFunction) as caught:
        registry.get("billing.load_invoise")
    assert caught.value.hint == "did you mean 'billing.load_invoice'?"


def test_two_functions_cannot_have_one_name_but_a_reload_may() -> None:
    registry = Registry()

    def one() -> None: ...
    def other() -> None: ...

    step(name="a.b", registry=registry)(one)
    step(name="a.b", registry=registry)(one)
    with pytest.raises(errors.NameTaken, match=r"a\.b.*one.*other"):
        step(name="a.b", registry=registry)(other)


def test_the_bare_decorator_registers_in_the_process_wide_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(REGISTRY, "_by_name", {})

    @step
    def bare() -> None: ...

    entry = REGISTRY.of(bare)
    assert entry is not None
    assert entry.name == "test_build.bare"


def test_what_undoes_a_step_may_be_a_function_its_name_or_a_mapping() -> None:
    made = WorkflowBuilder("trip", version=1, on_failure="compensate")
    made.task("a", "m.f", compensate="m.undo")
    made.agent("b", "amy-cfo", prompt="x", compensate={"task": "m.undo", "with": {"x": "b"}, "retry": 2})
    made.workflow("c", "other", compensate={"with": {"x": "c"}})
    with pytest.raises(errors.InvalidWorkflow, match=r"steps.c.compensate.task is missing"):
        made.build()
    made = WorkflowBuilder("trip", version=1)
    made.task("a", "m.f", compensate="m.undo")
    undo = made.build().steps["a"].compensate
    assert undo is not None
    assert (undo.name, undo.spec, undo.durability) == ("undo:a", {"function": "m.undo"}, "step")


def test_maps_and_loops_in_python_are_those_of_yaml_with_every_policy_of_an_item() -> None:
    made = WorkflowBuilder("play", version=1)
    key = {"key": "{{ row }}", "limit": 2}
    each = made.map("each", over="input.rows", item="row", items={"tolerate": 1}, on_failure="continue").task(
        "m.f", x="row", retry=1, priority="low", concurrency_key=key, cache="1h"
    )
    asked = made.map("asked", over="each", after=each).agent("amy", prompt="{{ item }}", concurrency_key="k")
    loop: dict[str, str | int | None] = {"back_to": "sub", "max": 2}
    made.workflow("sub", "other", after=asked, loop=loop, x="iteration")
    text = """
        workflow: play
        version: 1
        steps:
          each:
            on_failure: continue
            map:
              over: input.rows
              item: row
              join: {tolerate: 1}
              each: {task: m.f, with: {x: row}, retry: 1, priority: low, cache: 1h,
                     concurrency_key: {key: "{{ row }}", limit: 2}}
          asked: {needs: [each], map: {over: each, each: {agent: amy, prompt: "{{ item }}", concurrency_key: k}}}
          sub: {needs: [asked], workflow: other, with: {x: iteration}, loop: {back_to: sub, max: 2}}
    """
    assert made.build() == document.parse_yaml(text)
