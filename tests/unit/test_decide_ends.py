"""How steps and runs end: failures, cancels, signals, quarantine, and the result. On views made by hand."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from convergio.graphflow import decide
from convergio.graphflow.decision import Decision, Entry
from convergio.graphflow.model import reference
from convergio.graphflow.model.outcome import PAYLOAD_LIMIT
from convergio.graphflow.model.states import BlockedOn
from tests.unit.deciding import APPROVE, REJECT, START, Run, arrived, plan_of, signal

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
    assert second.timers == [("c", BlockedOn.RETRY, None)]
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


LATE: list[Entry] = [
    *[START, arrived("a"), arrived("b"), {"t": "cancel", "by": "ann"}, {"t": "end", "state": "FAILED", "error": {}}],
    *[signal("paid", {"amount": 3}), {"t": "rung", "after": ""}],
    *[{"t": "timer", "step": step, "on": on, "was": ""} for step, on in (("w", "SIGNAL"), ("a", "QUEUE"))],
    {"t": "quarantine", "step": "b", "was": "", "reason": "too often"},
]
"""With `was` as the step has it: these entries were not overtaken by anything but the run's end."""


def ended(how: str) -> Run:
    """A run whose steps a and w have ended, or were withdrawn with it; b was not reached, or ran."""
    waits = {"wait": {"signal": "paid", "timeout": "1h"}}
    run = Run(plan_of(a={"timeout": {"queue": "30s"}}, b={"needs": ["a"]}, w=waits)).started()
    match how:
        case "CANCELLED":
            run.settle({"t": "cancel", "by": "ann", "reason": ""})
        case "FAILED":
            run.fail("a", "boom")
            run.settle(arrived("a"))
        case _:
            run.settle(signal("paid", {"amount": 1}, id="0"))
            run.arrive("a")
            run.arrive("b")
    assert run.state == how
    return run


@pytest.mark.parametrize("how", ["CANCELLED", "FAILED", "SUCCEEDED"])
@pytest.mark.parametrize("late", LATE, ids=lambda entry: f"{entry['t']}-{entry.get('step', '')}")
def test_after_its_end_nothing_changes_a_run(late: Entry, how: str) -> None:
    run = ended(how)
    before, rings = dict(run.values), len(run.rings)
    made = run.settle({**late, "was": run.values.get(f"s:{late['step']}", "")} if "was" in late else late)
    assert run.values == before
    assert len(run.rings) == rings
    assert [event.kind for event in made.events if event.kind != "signal.applied"] == []


@pytest.mark.parametrize("how", ["CANCELLED", "FAILED", "SUCCEEDED"])
def test_a_wish_that_comes_after_the_end_is_noted_and_changes_nothing_else(how: str) -> None:
    run = ended(how)
    before = dict(run.values)
    made = run.settle({"t": "pause", "cv": 1, "by": "ann"}, {"t": "resume", "cv": 2, "by": "ann"})
    assert run.values == {**before, "@cv": "2"}
    assert (made.rings, made.events) == ([], [])


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


def test_of_two_early_signals_both_are_kept_in_their_order() -> None:
    run = approval()
    run.values["s:sign"] = "RUNNING|1.1.n"
    run.settle(signal("sign", APPROVE), signal("sign", REJECT, id="2"))
    assert [json.loads(line)["id"] for line in run.values["g:sign"].split("\n")] == ["1", "2"]


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


@pytest.mark.parametrize(("output", "told"), [({"n": 7}, {"n": 7}), (None, None)])
def test_the_end_of_a_run_is_told_with_its_result_and_error(output: Any, told: Any) -> None:
    run = Run(plan_of({"x": "a"} if output else None, a={}, b={})).started()
    run.arrive("a", output)
    run.arrive("b")
    last = run.events[-1]
    assert (last.kind, last.journal, last.park) == ("run.succeeded", True, True)
    assert json.loads(last.data) == {"state": "SUCCEEDED", "output": {"x": told} if output else None, "error": None}


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


def test_a_result_that_is_too_large_to_travel_is_kept_apart() -> None:
    plan = plan_of({"x": "a", "y": "a"}, a={})
    run = Run(plan).started()
    value = {"text": "x" * (PAYLOAD_LIMIT - 100)}
    run.succeed("a", value)
    made = run.apply(arrived("a"))
    assert run.state == "SUCCEEDED"
    (blob,) = made.blobs
    assert json.loads(blob) == {"x": value, "y": value}
    assert json.loads(run.values["@output"]) == reference.to(hashlib.sha256(blob.encode()).hexdigest(), len(blob))


def test_a_result_that_nothing_keeps_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide, "LARGEST", 1_000)
    run = Run(plan_of({"x": "a", "y": "a"}, a={})).started()
    run.arrive("a", {"text": "x" * 900})
    assert run.state == "FAILED"
    assert json.loads(run.values["@error"])["code"] == "PAYLOAD_TOO_LARGE"


def test_a_run_ends_only_when_every_step_is_terminal() -> None:
    run = Run(plan_of(a={}, b={})).started()
    run.arrive("a")
    assert run.state == "RUNNING"
    run.arrive("b")
    assert run.state == "SUCCEEDED"
