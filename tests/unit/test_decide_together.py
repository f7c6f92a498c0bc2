"""Items and rounds with what other steps may have: keys, questions, children, undoing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from convergio.graphflow.decision import ASK, LEAVE
from convergio.graphflow.flow import document, inputs
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import instance
from convergio.graphflow.nested import LEFT, WANTED
from tests.unit.deciding import NOW, START, Run, arrived, plan_of, signal


def mapped(each: dict[str, Any], **more: Any) -> Plan:
    return plan_of(do={"map": {"over": "input.rows", **more, "each": {"task": "m.f", **each}}})


def started(plan: Plan, given: Any) -> Run:
    run = Run(plan, given=given)
    run.settle(START)
    return run


def test_each_item_waits_for_the_turn_of_its_own_key() -> None:
    key = {"key": "{{ item }}-{{ index }}-{{ input.who }}", "limit": 2}
    run = Run(mapped({"concurrency_key": key}), given={"rows": ["a", "b"], "who": "x"})
    made = run.settle(START)
    names = [instance.member("do", index) for index in range(2)]
    assert [run.values[f"y:{name}"] for name in names] == ["a-0-x", "b-1-x"]
    assert [timer for timer in made.timers if timer[1] == ASK] == [(name, ASK, NOW) for name in names]
    assert [run.values[f"s:{name}"].split("|")[1] for name in names] == ["LIMIT", "LIMIT"]
    assert run.rings == []
    assert run.values[f"r:{names[0]}"] == f"{names[0]}@", "its claim brings its item along"


def test_an_item_that_is_withdrawn_leaves_its_key() -> None:
    plan = mapped({"concurrency_key": "k"}, join="any")
    run = started(plan, {"rows": [1, 2]})
    made = run.arrive("do#1000")
    assert run.state_of("do#2000") == "CANCELLED"
    assert ("do#2000", LEAVE, NOW) in made.timers


def test_a_key_that_cannot_be_worked_out_fails_its_item() -> None:
    run = started(mapped({"concurrency_key": "k-{{ item.x }}"}, join={"tolerate": 1}), {"rows": [{"x": 1}, 5]})
    assert (run.state_of("do#1000"), run.state_of("do#2000")) == ("BLOCKED", "FAILED")
    run.arrive("do#1000")
    assert run.state_of("do") == "SUCCEEDED"


def test_a_round_has_a_key_of_its_own() -> None:
    loop = {"back_to": "it", "max": 2}
    run = started(plan_of(it={"concurrency_key": "k{{ iteration }}", "loop": loop}), {})
    run.arrive("it")
    assert (run.values["y:it"], run.values["y:it#1"]) == ("k0", "k1")


def test_an_item_has_the_policies_that_its_body_names() -> None:
    plan = mapped({"priority": "high", "cache": "1h", "timeout": {"idle": 3}, "with": {"x": "item"}})
    item = plan.step("do#1000")
    assert (item.priority, item.idle_timeout) == ("high", 3.0)
    assert plan.step("do").priority is None
    digests = {inputs.call_digest(item, {"x": value}) for value in (1, 2)}
    assert None not in digests
    assert len(digests) == 2


@pytest.mark.parametrize(("answer", "state"), [("retry", "READY"), ("skip", "FAILED")])
def test_a_step_asks_in_each_round_and_the_answer_is_for_that_round(answer: str, state: str) -> None:
    ask = {"on_failure": "ask", "loop": {"back_to": "it", "max": 2}}
    run = started(plan_of(it=ask, after={"needs": ["it"]}), {})
    run.arrive("it")
    run.values["s:it#1"] = f'BLOCKED|SIGNAL|{NOW}|{{"code":"E"}}|1.1.n'
    run.settle(signal("it", {"decision": answer, "by": "me"}))
    assert (run.state_of("it"), run.state_of("it#1")) == ("SUCCEEDED", state)
    assert run.state_of("after") == ("READY" if answer == "skip" else "WAITING")


def test_a_round_has_a_child_of_its_own() -> None:
    loop = {"back_to": "sub", "max": 2}
    run = started(plan_of(sub={"workflow": "other", "loop": loop}, after={"needs": ["sub"]}), {})
    ended = {"t": "child", "attempt": 1, "state": "SUCCEEDED", "output": 7}
    run.settle({**ended, "step": "sub"})
    assert [event.step for event in run.events if event.kind == WANTED] == ["sub", "sub#1"]
    assert run.state_of("sub#1") == "BLOCKED"
    run.settle({**ended, "step": "sub"})
    assert run.state_of("sub#1") == "BLOCKED", "the first round's child is no news"
    run.settle({**ended, "step": "sub#1"})
    assert (run.state_of("after"), run.values["o:sub#1"]) == ("READY", "7")


def test_a_run_that_is_cancelled_in_a_later_round_leaves_the_child_of_that_round() -> None:
    run = started(plan_of(sub={"workflow": "other", "loop": {"back_to": "sub", "max": 2}}), {})
    run.settle({"t": "child", "attempt": 1, "state": "SUCCEEDED", "output": 7, "step": "sub"})
    run.settle({"t": "cancel", "by": "me"})
    assert [event.step for event in run.events if event.kind == LEFT] == ["sub#1"]


def test_a_loop_that_is_exhausted_has_the_run_undone() -> None:
    run = started(
        plan_of(
            book={"compensate": {"task": "m.u", "with": {"id": "book.id"}}},
            it={
                "needs": ["book"],
                "on_failure": "compensate",
                "loop": {"back_to": "it", "max": 1, "until": "false || it.ok"},
            },
        ),
        {},
    )
    run.arrive("book", {"id": 1})
    run.arrive("it", {"ok": False})
    assert run.state == "COMPENSATING"
    run.values["s:undo:"] = "SUCCEEDED|1.1.n"
    run.settle(arrived("undo:"))
    assert (run.state_of("undo:book"), run.values["r:undo:book"]) == ("READY", "book")
    run.arrive("undo:book")
    assert run.state == "FAILED"
    assert json.loads(run.values["@error"])["code"] == "LOOP_EXHAUSTED"


def test_an_undo_reads_the_last_round_of_a_loop_before_it() -> None:
    run = started(
        plan_of(
            it={"loop": {"back_to": "it", "max": 2}},
            pay={"needs": ["it"], "compensate": {"task": "m.u", "with": {"id": "it.id"}}},
            bad={"needs": ["pay"], "on_failure": "compensate"},
        ),
        {},
    )
    for step in ("it", "it#1", "pay"):
        run.arrive(step)
    run.fail("bad", "no")
    run.settle(arrived("bad"))
    run.values["s:undo:"] = "SUCCEEDED|1.1.n"
    run.settle(arrived("undo:"))
    assert run.values["r:undo:pay"] == "it#1"


def test_the_canonical_document_of_a_map_has_the_policies_of_its_items() -> None:
    plan = mapped({"concurrency_key": "k", "cache": 5, "priority": "low"})
    each = plan.workflow.document["steps"]["do"]["map"]["each"]
    assert (each["concurrency_key"], each["priority"]) == ({"key": "k", "limit": 1}, "low")
    assert Plan.of(document.parse_pinned(plan.workflow.document)).digest == plan.digest
