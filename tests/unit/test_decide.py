"""What follows from a start and from arrivals: joins, conditions, dead paths. On views made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.unit.deciding import START, Run, arrived, plan_of

# --- start ------------------------------------------------------------------------------------------------------------


def test_a_start_rings_every_root_as_fresh_and_nothing_else() -> None:
    run = Run(plan_of(a={}, b={}, c={"needs": ["a"]}))
    made = run.apply(START)
    assert [(ring.step, ring.ring, ring.fresh) for ring in made.rings] == [("a", "1.1", True), ("b", "1.1", True)]
    assert run.states() == {"a": "READY", "b": "READY"}


@pytest.mark.parametrize("budget", [1, 3, 10])
def test_a_start_with_many_roots_is_split_and_goes_on_where_it_stopped(budget: int) -> None:
    roots: Mapping[str, Mapping[str, Any]] = {f"s{number}": {} for number in range(20)}
    run = Run(plan_of(**roots), budget=budget)
    first = run.apply(START)
    assert (first.consumed, run.values["c:@"]) == (0, str(len(first.rings)))
    assert 0 < len(first.rings) < 20
    run.settle(START)
    assert sorted(ring.step for ring in run.rings) == sorted(run.plan.roots)
    assert {ring.ring for ring in run.rings} == {"1.1"}


def test_a_second_start_changes_nothing() -> None:
    run = Run(plan_of(a={}))
    run.apply(START)
    again = run.apply(START)
    assert (again.writes, again.rings, again.consumed) == ({}, [], 1)


def test_a_root_whose_condition_is_false_is_skipped_at_the_start_and_the_skip_travels() -> None:
    run = Run(plan_of(a={"when": "input.n > 5"}, b={"needs": ["a"]}), given={"n": 1})
    run.settle(START)
    assert run.states() == {"a": "SKIPPED", "b": "SKIPPED"}
    assert run.state == "SUCCEEDED"


def test_a_run_that_was_cancelled_before_its_start_rings_nothing() -> None:
    run = Run(plan_of(a={}))
    run.settle({"t": "cancel", "by": "ann", "reason": ""}, START)
    assert (run.state, run.states(), run.rings) == ("CANCELLED", {}, [])


# --- arrivals and joins -----------------------------------------------------------------------------------------------


def test_an_arrival_rings_its_successors_as_continuations() -> None:
    run = Run(plan_of(a={}, b={"needs": ["a"]}, c={"needs": ["a"]})).started()
    made = run.arrive("a")
    assert [(ring.step, ring.fresh) for ring in made.rings] == [("b", False), ("c", False)]
    assert run.values["@open"] == "2"


def test_a_join_fires_when_all_its_edges_are_resolved_and_only_once() -> None:
    run = Run(plan_of(a={}, b={}, c={"needs": ["a", "b"]})).started()
    assert run.arrive("a").rings == []
    assert run.state_of("c") == "WAITING"
    assert [ring.step for ring in run.arrive("b").rings] == ["c"]
    assert run.settle(arrived("a"), arrived("b")).rings == []


def test_a_duplicate_arrival_does_not_move_a_join() -> None:
    run = Run(plan_of(a={}, b={}, c={"needs": ["a", "b"]})).started()
    run.arrive("a")
    made = run.apply(arrived("a"), arrived("a"))
    assert (made.writes, made.consumed) == ({}, 2)
    assert run.state_of("c") == "WAITING"


def test_two_arrivals_in_one_batch_fire_their_join_in_it() -> None:
    run = Run(plan_of(a={}, b={}, c={"needs": ["a", "b"]})).started()
    run.succeed("a")
    run.succeed("b")
    made = run.apply(arrived("a"), arrived("b"))
    assert [ring.step for ring in made.rings] == ["c"]


def test_the_outputs_a_step_reads_are_named_for_its_claim() -> None:
    run = Run(plan_of(a={}, b={"needs": ["a"], "with": {"x": "a.ok"}})).started()
    run.arrive("a")
    assert run.values["r:b"] == "a"


def test_each_ring_of_a_step_has_a_number_of_its_own() -> None:
    run = Run(plan_of(a={}, b={"needs": ["a"]})).started()
    run.values["n:b"] = "4"
    made = run.arrive("a")
    assert [ring.ring for ring in made.rings] == ["1.5"]
    assert (run.values["s:b"], run.values["n:b"]) == ("READY|1.5", "5")


def test_readers_are_told_that_a_step_is_ready_and_sql_is_not() -> None:
    run = Run(plan_of(a={}, b={"needs": ["a"]})).started()
    (told,) = [event for event in run.arrive("a").events if event.step == "b"]
    assert (told.kind, told.journal, told.park) == ("step.ready", False, False)


# --- conditions and dead paths ----------------------------------------------------------------------------------------


def test_an_edge_whose_condition_is_false_is_not_taken() -> None:
    run = Run(plan_of(a={}, b={"needs": [{"step": "a", "when": "a.ok"}]}, c={"needs": ["a"]})).started()
    run.arrive("a", {"ok": False})
    assert run.states() == {"a": "SUCCEEDED", "b": "SKIPPED", "c": "READY"}


def test_a_join_with_one_taken_edge_fires_and_reads_null_for_the_skipped_branch() -> None:
    plan = plan_of(
        a={},
        yes={"needs": [{"step": "a", "when": "a.ok"}]},
        no={"needs": [{"step": "a", "when": "!a.ok"}]},
        end={"needs": ["yes", "no"], "when": "no == null && yes.ok"},
    )
    run = Run(plan).started()
    run.arrive("a", {"ok": True})
    run.arrive("yes", {"ok": True})
    assert run.states() == {"a": "SUCCEEDED", "no": "SKIPPED", "yes": "SUCCEEDED", "end": "READY"}


@pytest.mark.parametrize("last", ["taken", "skipped"])
def test_a_join_remembers_that_an_edge_was_taken_whatever_the_last_one_is(last: str) -> None:
    edges = [{"step": "a", "when": "a.ok"}, {"step": "b", "when": "b.ok"}]
    run = Run(plan_of(a={}, b={}, join={"needs": edges})).started()
    run.arrive("a", {"ok": last == "skipped"})
    run.arrive("b", {"ok": last == "taken"})
    assert run.state_of("join") == "READY"
    assert (run.values["j:join"], run.values["k:join"]) == ("2", "1")


def test_a_skip_travels_through_nested_branches_and_stops_at_a_join_with_a_live_edge() -> None:
    plan = plan_of(
        a={},
        live={},
        dead={"needs": [{"step": "a", "when": "false || a.ok"}]},
        deeper={"needs": ["dead"]},
        deepest={"needs": ["deeper", "dead"]},
        join={"needs": ["deepest", "live"]},
    )
    run = Run(plan).started()
    run.arrive("a", {"ok": False})
    assert run.states() == {
        "a": "SUCCEEDED",
        "live": "READY",
        "dead": "SKIPPED",
        "deeper": "SKIPPED",
        "deepest": "SKIPPED",
    }
    run.arrive("live")
    assert run.state_of("join") == "READY"


def test_if_every_path_is_dead_the_run_succeeds_with_nothing_left() -> None:
    run = Run(plan_of(a={}, b={"needs": [{"step": "a", "when": "a.ok"}]}, c={"needs": ["b"]})).started()
    run.arrive("a", {"ok": False})
    assert (run.state, run.values["@open"]) == ("SUCCEEDED", "0")


def test_a_steps_own_condition_is_asked_only_when_it_would_fire() -> None:
    plan = plan_of(a={}, b={"needs": [{"step": "a", "when": "a.ok"}], "when": "a.nothing > 1"})
    run = Run(plan).started()
    run.arrive("a", {"ok": False})
    assert run.state_of("b") == "SKIPPED"


@pytest.mark.parametrize(
    "step",
    [
        {"needs": ["a"], "when": "a.nothing > 1"},
        {"needs": [{"step": "a", "when": "a.nothing > 1"}]},
        {"needs": [{"step": "a", "when": "a.count"}]},
    ],
)
def test_a_condition_that_fails_fails_its_step_and_the_run(step: Mapping[str, Any]) -> None:
    run = Run(plan_of(a={}, b=step, other={})).started()
    run.arrive("a", {"count": 1})
    assert run.state == "FAILED"
    assert run.states() == {"a": "SUCCEEDED", "b": "FAILED", "other": "CANCELLED"}
    error = json.loads(run.values["@error"])
    assert (error["code"], error["step"], error["state"]) == ("EXPRESSION_FAILED", "b", "FAILED")
    assert json.loads(run.values["o:b"])["code"] == "EXPRESSION_FAILED"


def test_a_join_that_failed_by_one_edge_is_not_fired_by_another() -> None:
    plan = plan_of(a={}, b={}, c={"needs": [{"step": "a", "when": "a.nothing > 1"}, "b"]})
    run = Run(plan).started()
    run.succeed("a")
    run.succeed("b")
    run.settle(arrived("a"), arrived("b"))
    assert run.states()["c"] == "FAILED"
    assert [ring.step for ring in run.rings if ring.step == "c"] == []


def test_a_skipped_step_is_told_as_an_outcome_once() -> None:
    run = Run(plan_of(a={}, b={"needs": [{"step": "a", "when": "a.ok"}]})).started()
    run.arrive("a", {"ok": False})
    told = [event for event in run.events if event.kind == "step.skipped"]
    assert [(event.step, event.journal) for event in told] == [("b", True)]
    assert json.loads(told[0].data)["state"] == "SKIPPED"
