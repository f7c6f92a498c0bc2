"""What follows from what: every case of `decide`, on views made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from convergio.graphflow import decide
from convergio.graphflow.decide import Decision, Entry, Unloaded, View
from convergio.graphflow.flow import document
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors
from convergio.graphflow.model.outcome import PAYLOAD_LIMIT
from convergio.graphflow.model.states import BlockedOn, RunState
from tests.unit.deciding import APPROVE, REJECT, Run, arrived, plan_of, signal

START: Entry = {"t": "start"}


# --- start ------------------------------------------------------------------------------------------------------------


def test_a_start_rings_every_root_as_fresh_and_nothing_else() -> None:
    run = Run(plan_of(a={}, b={}, c={"needs": ["a"]}))
    made = run.apply(START)
    assert [(ring.step, ring.ring, ring.fresh) for ring in made.rings] == [("a", "1.1", True), ("b", "1.1", True)]
    assert run.states() == {"a": "READY", "b": "READY"}


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
    assert [ring.ring for ring in run.arrive("a").rings] == ["1.5"]


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


# --- the end of a run -------------------------------------------------------------------------------------------------


def test_a_failure_stops_all_claims_first_and_withdraws_what_is_live_afterwards() -> None:
    run = Run(plan_of(a={}, b={}, c={}, d={"needs": ["b"]})).started()
    run.values["s:b"], run.values["s:c"] = "RUNNING|1.1.n", "BLOCKED|RETRY|5|E|1.1.m"
    run.fail("a", "boom")
    first = run.apply(arrived("a"))
    assert {name: to for name, (_, to) in first.writes.items()} == {"@stop": "FAILED", "c:a": "x"}
    assert [entry["t"] for entry in first.posts] == ["end"]

    second = run.apply(*first.posts)
    assert run.states() == {"a": "FAILED", "b": "CANCELLED", "c": "CANCELLED"}
    assert second.leases == [("b", "1.1.n")]
    assert second.timers == [("c", BlockedOn.RETRY)]
    assert run.state == "FAILED"
    assert json.loads(run.values["@error"]) == {"code": "E", "message": "boom", "step": "a", "state": "FAILED"}
    assert [event.kind for event in second.events] == ["step.cancelled", "step.cancelled", "run.failed"]
    assert second.events[-1].park, "readers hear of the end when SQL has it"


def test_of_two_failures_the_first_is_the_reason() -> None:
    run = Run(plan_of(a={}, b={})).started()
    run.fail("a", "first")
    run.fail("b", "second")
    run.settle(arrived("a"), arrived("b"))
    assert json.loads(run.values["@error"])["message"] == "first"
    assert [event.kind for event in run.events].count("run.failed") == 1


def test_an_outcome_that_waits_for_sql_is_not_withdrawn() -> None:
    run = Run(plan_of(a={}, b={})).started()
    run.values["s:b"] = "BLOCKED|JOURNAL|5|SUCCEEDED|1.1.n"
    run.fail("a", "boom")
    run.settle(arrived("a"))
    assert run.values["s:b"] == "BLOCKED|JOURNAL|5|SUCCEEDED|1.1.n"
    assert run.settle(arrived("b")).writes == {}, "released later, it has no consequence"


def test_a_cancel_ends_the_run_by_name_and_reason() -> None:
    run = Run(plan_of(a={}, b={"needs": ["a"]})).started()
    run.settle({"t": "cancel", "by": "ann", "reason": "enough"})
    assert (run.state, run.states()) == ("CANCELLED", {"a": "CANCELLED"})
    error = json.loads(run.values["@error"])
    assert (error["code"], error["message"]) == ("RUN_CANCELLED", "cancelled by ann: enough")


@pytest.mark.parametrize(
    "late", [{"t": "cancel", "by": "ann"}, START, arrived("a"), {"t": "end", "state": "FAILED", "error": {}}]
)
def test_after_its_end_nothing_changes_a_run(late: Entry) -> None:
    run = Run(plan_of(a={}, b={"needs": ["a"]})).started()
    run.settle({"t": "cancel", "by": "ann", "reason": ""})
    before = dict(run.values)
    run.settle(late)
    assert run.values == before


def test_a_withdrawn_step_is_no_failure_of_its_run() -> None:
    """A rebuild replays journaled outcomes; the end of a cancelled run may not be among them."""
    run = Run(plan_of(a={}, b={})).started()
    run.values["s:a"] = "CANCELLED|journal"
    run.settle(arrived("a"))
    assert "@stop" not in run.values
    run.settle({"t": "cancel", "by": "ann", "reason": "enough"})
    assert run.state == "CANCELLED"


def test_an_arrival_of_a_step_that_is_not_terminal_is_ignored() -> None:
    run = Run(plan_of(a={}, b={"needs": ["a"]})).started()
    before = dict(run.values)
    run.settle(arrived("a"))
    assert run.values == before
    assert [ring.step for ring in run.arrive("a").rings] == ["b"]


# --- signals ----------------------------------------------------------------------------------------------------------


def approval(**more: Any) -> Run:
    """A run that waits for its approval."""
    run = Run(plan_of(sign={"approval": {"title": "Sign"}, **more}, after={"needs": ["sign"]})).started()
    run.values["s:sign"] = "BLOCKED|SIGNAL|77|sign|1.1.n"
    return run


def test_a_signal_ends_the_approval_that_waits_for_it_and_its_outcome_waits_for_sql() -> None:
    run = approval()
    made = run.settle(signal("sign", APPROVE))
    assert run.values["s:sign"] == "BLOCKED|JOURNAL|77|SUCCEEDED|1.1.n"
    assert json.loads(run.values["o:sign"]) == APPROVE
    outcome = next(event for event in made.events if event.kind == "step.succeeded")
    assert outcome.park
    assert run.rings_of("after") == []
    run.release("sign")
    assert run.rings_of("after") == ["1.1"]


def test_a_rejection_fails_the_approval_and_the_run() -> None:
    run = approval()
    run.settle(signal("sign", REJECT))
    run.release("sign")
    assert run.state == "FAILED"
    error = json.loads(run.values["@error"])
    assert (error["code"], error["step"]) == ("APPROVAL_REJECTED", "sign")
    assert "bob" in error["message"]


@pytest.mark.parametrize(
    "word", ["", "READY|1.1", "RUNNING|1.1.n", "BLOCKED|HOOK|5|later|1.1.n", "BLOCKED|RETRY|5|E|1.1.n"]
)
def test_a_signal_that_comes_before_its_step_waits_is_kept_for_it(word: str) -> None:
    run = approval()
    run.values["s:sign"] = word
    made = run.settle(signal("sign", APPROVE))
    assert json.loads(run.values["g:sign"])["data"] == APPROVE
    assert how(made) == "kept"
    # A PARK between reading and committing must make this commit fail, or both would miss each other.
    assert made.writes["s:sign"] == (word, word)


def test_of_two_early_signals_the_first_is_kept() -> None:
    run = approval()
    run.values["s:sign"] = "RUNNING|1.1.n"
    run.settle(signal("sign", APPROVE), signal("sign", REJECT, id="2"))
    assert json.loads(run.values["g:sign"])["id"] == "1"


@pytest.mark.parametrize(
    "word", ["SUCCEEDED|1.1.n", "FAILED|1.1.n", "SKIPPED", "CANCELLED", "BLOCKED|JOURNAL|77|SUCCEEDED|1.1.n"]
)
def test_a_signal_that_comes_late_changes_nothing_and_is_told(word: str) -> None:
    run = approval()
    run.values["s:sign"] = word
    before = dict(run.values)
    assert how(run.settle(signal("sign", REJECT, id="2"))) == "late"
    assert run.values == before


def test_a_signal_that_comes_twice_is_applied_once() -> None:
    run = approval()
    made = run.apply(signal("sign", APPROVE), signal("sign", APPROVE))
    assert [event.kind for event in made.events].count("step.succeeded") == 1


def test_a_signal_for_a_run_that_ended_is_late() -> None:
    run = approval()
    run.settle({"t": "cancel", "by": "ann", "reason": ""})
    assert how(run.settle(signal("sign", APPROVE))) == "late"


def how(made: Decision) -> str:
    """What became of a signal, as it is told."""
    (told,) = [event for event in made.events if event.kind == "signal.applied"]
    assert told.journal
    return str(json.loads(told.data)["how"])


# --- quarantine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "leases"), [("RUNNING|1.1.n", [("a", "1.1.n")]), ("READY|1.1", [])])
def test_a_quarantine_ends_the_step_and_the_run(word: str, leases: list[tuple[str, str]]) -> None:
    run = Run(plan_of(a={}, b={})).started()
    run.values["s:a"] = word
    made = run.settle({"t": "quarantine", "step": "a", "was": word, "reason": "5 workers died"})
    assert made.leases == leases
    assert run.states() == {"a": "QUARANTINED", "b": "CANCELLED"}
    assert run.state == "FAILED"
    assert json.loads(run.values["@error"])["code"] == "QUARANTINED"


@pytest.mark.parametrize("word", ["RUNNING|1.2.m", "SUCCEEDED|1.1.n", "READY|1.2"])
def test_a_quarantine_of_a_claim_that_is_over_changes_nothing(word: str) -> None:
    run = Run(plan_of(a={}, b={})).started()
    run.values["s:a"] = word
    made = run.settle({"t": "quarantine", "step": "a", "was": "RUNNING|1.1.n", "reason": "x"})
    assert (made.writes, made.events) == ({}, [])


# --- the result -------------------------------------------------------------------------------------------------------


def test_the_only_last_steps_result_is_the_runs() -> None:
    run = Run(plan_of(a={}, b={"needs": ["a"]})).started()
    run.arrive("a")
    run.arrive("b", {"n": 7})
    assert (run.state, json.loads(run.values["@output"])) == ("SUCCEEDED", {"n": 7})


def test_with_several_last_steps_the_result_is_null() -> None:
    run = Run(plan_of(a={}, b={})).started()
    run.arrive("a")
    run.arrive("b")
    assert run.state == "SUCCEEDED"
    assert "@output" not in run.values


def test_an_output_mapping_names_the_result() -> None:
    plan = plan_of({"sum": "a.n + input.n", "missing": "b"}, a={}, b={"when": "input.n > 5"})
    run = Run(plan, given={"n": 1}).started()
    run.arrive("a", {"n": 2})
    assert json.loads(run.values["@output"]) == {"sum": 3, "missing": None}


def test_a_result_that_cannot_be_computed_fails_the_run() -> None:
    run = Run(plan_of({"x": "a.nothing"}, a={})).started()
    run.arrive("a")
    assert run.state == "FAILED"
    assert json.loads(run.values["@error"])["code"] == "EXPRESSION_FAILED"


def test_a_result_that_is_too_large_fails_the_run() -> None:
    plan = plan_of({"x": "a", "y": "a"}, a={})
    run = Run(plan).started()
    run.arrive("a", {"text": "x" * (PAYLOAD_LIMIT - 100)})
    assert run.state == "FAILED"
    assert json.loads(run.values["@error"])["code"] == "PAYLOAD_TOO_LARGE"


def test_a_run_ends_only_when_every_step_is_terminal() -> None:
    run = Run(plan_of(a={}, b={})).started()
    run.arrive("a")
    assert run.state == "RUNNING"
    run.arrive("b")
    assert run.state == "SUCCEEDED"


# --- views and budgets ------------------------------------------------------------------------------------------------


def test_a_field_that_was_not_read_is_asked_for_and_never_assumed() -> None:
    plan = plan_of(a={}, b={"needs": ["a"]})
    with pytest.raises(Unloaded) as caught:
        decide.decide(plan, View({}), [arrived("a")], epoch=1)
    assert caught.value.names
    with pytest.raises(Unloaded):
        decide.decide(plan, View({"c:a": ""}), [arrived("a")], epoch=1)


def test_what_is_read_ahead_of_an_arrival_is_all_that_a_plain_one_needs() -> None:
    plan = plan_of(a={}, b={}, c={"needs": ["a", "b"]}, d={"needs": ["a"]})
    values = dict.fromkeys(decide.wanted(plan, "a"), "")
    values |= {"s:a": "SUCCEEDED|1.1.n", "@state": "RUNNING", "@open": "4"}
    made = decide.decide(plan, View(values), [arrived("a")], epoch=1)
    assert [ring.step for ring in made.rings] == ["d"]


def test_ending_a_run_asks_for_every_steps_state() -> None:
    view = View({"@state": "RUNNING", "@stop": "FAILED"})
    with pytest.raises(Unloaded) as caught:
        decide.decide(plan_of(a={}), view, [{"t": "end", "state": "FAILED", "error": {}}], epoch=1)
    assert caught.value.everything


def test_a_decision_never_writes_what_it_was_not_told() -> None:
    """Every write says what the field held: that is what makes a commit refuse when it was overtaken."""
    run = Run(plan_of(a={}, b={}, c={"needs": ["a", "b"]})).started()
    run.succeed("a")
    before = dict(run.values)
    made = run.apply(arrived("a"))
    assert {name: was for name, (was, _) in made.writes.items()} == {name: before.get(name, "") for name in made.writes}


Steps = Mapping[str, Mapping[str, Any]]

WIDE: Steps = {f"s{number}": {"needs": ["a"]} for number in range(40)}
NESTED: Steps = {
    "skip": {"needs": [{"step": "a", "when": "!a.ok"}]},
    **{f"deep{number}": {"needs": [f"deep{number - 1}" if number else "skip"]} for number in range(20)},
}


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 7, 11, 50, decide.BUDGET])
@pytest.mark.parametrize("ending", ["all succeed", "one fails", "cancelled"])
def test_every_budget_comes_to_the_same_end(budget: int, ending: str) -> None:
    finals = [played(size, ending) for size in (decide.BUDGET, budget)]
    assert finals[0] == finals[1]


def played(budget: int, ending: str) -> Any:
    """A run with a wide fan-out and a long dead path, decided in pieces of `budget`."""
    join: Steps = {"join": {"needs": [*WIDE, "deep19"]}}
    run = Run(plan_of(a={}, **WIDE, **NESTED, **join), budget=budget)
    run.settle(START)
    run.arrive("a", {"ok": True})
    assert len(run.rings) == 41
    if ending == "cancelled":
        run.settle({"t": "cancel", "by": "ann", "reason": ""})
    for step in WIDE:
        if ending == "one fails" and step == "s20":
            run.fail(step, "boom")
            run.settle(arrived(step))
        elif run.state == "RUNNING":
            run.arrive(step)
    if ending == "all succeed":
        run.arrive("join", {"done": True})
    told = sorted((event.kind, event.step) for event in run.events)
    return run.values, told, sorted((ring.step, ring.ring) for ring in run.rings)


@pytest.mark.parametrize("budget", [1, 2, 5, 20])
def test_a_decision_stays_within_its_budget(budget: int) -> None:
    run = Run(plan_of(a={}, **WIDE, **NESTED)).started()
    run.succeed("a", {"ok": True})
    made = run.decision([arrived("a")], budget)
    assert made.consumed == 0
    assert len(made.writes) + len(made.events) <= budget + 6, "the last unit may go over it, by one step"


def test_a_split_decision_goes_on_exactly_where_it_stopped() -> None:
    run = Run(plan_of(a={}, **WIDE), budget=10).started()
    run.succeed("a")
    made = run.apply(arrived("a"))
    assert made.consumed == 0
    cursor = int(run.values["c:a"])
    assert 0 < cursor < 40
    assert [ring.step for ring in made.rings] == [edge.target for edge in run.plan.successors["a"][:cursor]]


def test_an_entry_of_a_kind_nobody_knows_is_told_and_consumed() -> None:
    run = Run(plan_of(a={})).started()
    made = run.apply({"t": "novelty"})
    assert (made.consumed, [event.kind for event in made.events]) == (1, ["entry.unknown"])


def test_what_may_be_in_an_error_of_a_run_is_its_public_form() -> None:
    run = Run(plan_of(a={})).started()
    run.values |= {"s:a": "FAILED|1.1.n", "o:a": json.dumps(errors.Permanent("no", hint="do this").as_dict())}
    run.settle(arrived("a"))
    assert json.loads(run.values["@error"]) == {
        "code": "PERMANENT",
        "message": "no",
        "hint": "do this",
        "retryable": False,
        "step": "a",
        "state": "FAILED",
    }


def test_the_plan_of_a_parsed_document_is_what_these_tests_play() -> None:
    assert isinstance(plan_of(a={}), Plan)
    assert document.parse_document(plan_of(a={}).workflow.document).steps.keys() == {"a"}
    assert RunState("RUNNING") is RunState.RUNNING
