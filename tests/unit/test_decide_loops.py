"""Loops, decided: which round follows, what it sees, and when it is over."""

from __future__ import annotations

import json
from typing import Any

import pytest

from convergio.graphflow import decide
from convergio.graphflow.decision import View
from convergio.graphflow.engine import reuse
from convergio.graphflow.flow import document
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.states import StepState
from tests.unit.deciding import START, Run, arrived, plan_of


def plan(*, most: int = 5, **loop: Any) -> Plan:
    """load -> draft -> (check) -> review, back to draft -> send."""
    ends: dict[str, Any] = {"back_to": "draft", "max": most, "until": "review.ok", **loop}
    return plan_of(
        load={},
        draft={"needs": ["load"], "with": {"last": "review", "nr": "iteration"}},
        check={"needs": ["draft"], "when": "iteration == 1"},
        review={"needs": ["draft", "check"], "loop": ends},
        send={"needs": ["review"], "with": {"text": "draft"}},
    )


def begun(made: Plan) -> Run:
    run = Run(made)
    run.settle(START)
    run.arrive("load")
    return run


def gone(run: Run, number: int, *, ok: bool) -> None:
    run.arrive(instance.named("draft", number), {"nr": number})
    if number == 1:
        run.arrive("check#1")
    run.arrive(instance.named("review", number), {"ok": ok})


def test_a_round_that_is_not_good_is_followed_by_another_one() -> None:
    run = begun(plan())
    gone(run, 0, ok=False)
    assert (run.state_of("draft#1"), run.state_of("send")) == ("READY", "WAITING")
    assert run.values["r:draft#1"] == "review", "it sees the review of the round before"
    gone(run, 1, ok=True)
    assert run.state_of("send") == "READY"
    assert run.values["r:send"] == "draft#1"
    run.arrive("send")
    assert run.state == "SUCCEEDED"


def test_all_that_another_turn_needs_is_read_with_the_arrival() -> None:
    """Else each turn of a conversation costs a round trip for each field, and is decided once more."""
    agents = [{"name": name, "role": "R"} for name in ("ann", "bob")]
    talk = {"conversation": {"agents": agents, "stop": {"turns": 4}}, "prompt": "p"}
    made = Plan.of(document.parse_document({"workflow": "w", "version": 1, "steps": {"talk": talk}}))
    run = Run(made).started()
    run.arrive("talk", {"stop": None})
    run.succeed("talk#1", {"stop": None})
    view = View({name: run.values.get(name, "") for name in decide.wanted(made, "talk#1")})
    decision = decide.decide(made, view, [arrived("talk#1")], epoch=1, now_ms=1)
    assert [ring.step for ring in decision.rings] == ["talk#2"]


def test_joins_and_dead_paths_of_a_round_are_its_own() -> None:
    run = begun(plan())
    run.arrive("draft")
    assert (run.state_of("check"), run.state_of("review")) == ("SKIPPED", "READY")
    run.arrive("review", {"ok": False})
    run.arrive("draft#1")
    assert (run.state_of("check#1"), run.state_of("review#1")) == ("READY", "WAITING")


def test_a_round_begins_once_however_often_its_end_arrives() -> None:
    run = begun(plan())
    gone(run, 0, ok=False)
    before = dict(run.values)
    run.settle(arrived("review"), arrived("draft"))
    assert run.values == before


def test_a_round_whose_end_a_rebuild_knows_is_not_begun_again() -> None:
    run = begun(plan())
    run.arrive("draft")
    run.succeed("draft#1", {"nr": 1})
    run.arrive("review", {"ok": False})
    assert (run.state_of("draft#1"), run.rings_of("draft#1")) == ("SUCCEEDED", [])
    run.settle(arrived("draft#1"))
    assert run.state_of("check#1") == "READY"


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_a_loop_comes_to_the_same_however_its_decisions_are_cut(budget: int) -> None:
    run = Run(plan(), budget=budget)
    run.settle(START)
    run.arrive("load")
    for number, ok in enumerate((False, False, True)):
        gone(run, number, ok=ok)
    run.arrive("send")
    assert (run.state, run.values["@open"]) == ("SUCCEEDED", "0")


def test_a_skipped_end_ends_its_loop() -> None:
    made = plan_of(
        draft={}, review={"needs": ["draft"], "when": "draft == null", "loop": {"back_to": "draft", "max": 3}}, send={}
    )
    run = Run(made)
    run.settle(START)
    run.arrive("draft")
    run.arrive("send")
    assert run.state == "SUCCEEDED"


def test_a_loop_without_a_condition_makes_its_rounds_and_goes_on() -> None:
    run = Run(plan_of(ask={"loop": {"back_to": "ask", "max": 3}}))
    run.settle(START)
    for name in ("ask", "ask#1", "ask#2"):
        assert run.state == "RUNNING"
        run.arrive(name)
    assert run.state == "SUCCEEDED"


@pytest.mark.parametrize(("on_max", "state"), [("fail", "FAILED"), ("continue", "RUNNING")])
def test_what_follows_after_all_rounds_is_said_by_the_loop(on_max: str, state: str) -> None:
    run = begun(plan(most=1, on_max=on_max))
    gone(run, 0, ok=False)
    assert run.state == state
    if state == "FAILED":
        error = json.loads(run.values["@error"])
        assert (error["code"], error["step"]) == ("LOOP_EXHAUSTED", "review")
        assert "allow it more rounds" in error["hint"]


# --- definitions ------------------------------------------------------------------------------------------------------


def refused(**steps: Any) -> list[str]:
    with pytest.raises(errors.InvalidWorkflow) as caught:
        plan_of(**steps)
    return [f"{problem.path} {problem.message}" for problem in caught.value.problems]


LOOP = {"back_to": "a", "max": 2}


def test_a_way_into_the_middle_of_a_loop_is_refused() -> None:
    said = refused(x={}, a={}, b={"needs": ["a", "x"]}, c={"needs": ["b"], "loop": LOOP})
    assert said == ["steps.b.needs[1] names 'x', which is not in the loop from 'a' to 'c', as 'b' is"]


def test_a_way_out_of_the_middle_of_a_loop_is_refused() -> None:
    said = refused(a={}, b={"needs": ["a"]}, c={"needs": ["b"], "loop": LOOP}, y={"needs": ["b"]})
    assert said == ["steps.y.needs[0] names 'b', which is in the middle of the loop from 'a' to 'c'"]


def test_loops_that_share_a_step_are_refused() -> None:
    inner = {"back_to": "b", "max": 2}
    said = refused(a={}, b={"needs": ["a"], "loop": inner}, c={"needs": ["b"], "loop": LOOP})
    assert said == ["steps.c.loop shares 'b' with the loop of 'b'"]


def test_a_loop_is_no_cycle_and_a_cycle_is_no_loop() -> None:
    said = refused(a={"needs": ["c"]}, b={"needs": ["a"]}, c={"needs": ["b"], "loop": LOOP})
    assert any("waits for itself" in line for line in said)


def test_a_step_sees_later_steps_of_its_own_loop_only() -> None:
    said = refused(
        a={"with": {"x": "b"}}, b={"needs": ["a"], "loop": LOOP}, c={"needs": ["b"], "with": {"x": "d"}}, d={}
    )
    assert said == ["steps.c.with.x uses 'd'"]


def test_a_loop_survives_its_canonical_document() -> None:
    made = plan()
    again = Plan.of(document.parse_pinned(json.loads(json.dumps(made.workflow.document))))
    assert again.workflow == made.workflow
    assert {name: region.above for name, region in again.loops.items()} == {
        "draft": {"draft": frozenset(), "check": {"draft"}, "review": {"draft", "check"}},
        "check": {"draft": frozenset(), "check": {"draft"}, "review": {"draft", "check"}},
        "review": {"draft": frozenset(), "check": {"draft"}, "review": {"draft", "check"}},
    }


# --- what a new run has of an old one ---------------------------------------------------------------------------------


def ended(**states: str) -> dict[str, StepState]:
    """Two rounds, of which the last ended as said; "" = it did not."""
    first = dict.fromkeys(("load", "draft", "review"), "SUCCEEDED") | {"check": "SKIPPED"}
    second = {f"{name}#1": "SUCCEEDED" for name in ("draft", "check", "review")}
    named = {name.replace("_1", "#1"): state for name, state in states.items()}
    every = {**first, **second, "send": "SUCCEEDED", **named}
    return {name: StepState(state) for name, state in every.items() if state}


def kept(old: Plan, ends: dict[str, StepState], new: Plan | None = None, **given: Any) -> set[str]:
    return set(reuse.of(old, new or old, ends, **given).kept)


def test_all_rounds_up_to_the_one_that_failed_are_kept() -> None:
    ends = ended(check_1="FAILED", review_1="", send="")
    assert kept(plan(), ends) == {"load", "draft", "check", "review", "draft#1"}
    assert reuse.of(plan(), plan(), ends).resumed == ("check#1",)


def test_what_stands_behind_a_loop_stands_on_its_last_round() -> None:
    assert kept(plan(), ended()) == {*ended()}
    assert "send" not in kept(plan(), ended(), plan(most=9)), "it may go on other than it did"


def test_a_loop_with_another_condition_keeps_its_first_round() -> None:
    assert kept(plan(), ended(), plan(until="review.ok && iteration > 3")) == {"load", "draft", "check", "review"}


def test_fewer_rounds_keep_fewer() -> None:
    assert kept(plan(), ended(), plan(most=1)) == {"load", "draft", "check", "review"}


def test_who_begins_in_a_loop_begins_with_its_first_round() -> None:
    assert kept(plan(), ended(), anew="check") == {"load", "draft"}
