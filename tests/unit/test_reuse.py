"""Which outcomes a new run may begin with: what is done, unchanged, and stands on nothing that is not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from convergio.graphflow.engine import reuse
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model.states import StepState
from tests.unit.deciding import plan_of

STEPS: Mapping[str, Any] = {
    "load": {"with": {"id": "input.id"}},
    "rates": {},
    "price": {"needs": ["load", "rates"], "with": {"a": "load", "b": "rates"}},
    "note": {"needs": ["rates"], "with": {"text": "'input'"}},
    "pay": {"needs": ["price"]},
}


def plan(**changed: Any) -> Plan:
    return plan_of(**{**STEPS, **changed})


def ended(**states: str) -> dict[str, StepState]:
    """Every step of the plan succeeded, but for these; "" = it never ended."""
    every = {**dict.fromkeys(STEPS, "SUCCEEDED"), **states}
    return {step: StepState(state) for step, state in every.items() if state}


def kept(states: Mapping[str, StepState], old: Plan | None = None, new: Plan | None = None, **given: Any) -> set[str]:
    first = old or plan()
    return set(reuse.of(first, new or first, states, **given).kept)


# --- after a failure --------------------------------------------------------------------------------------------------


def test_what_succeeded_and_stands_on_what_succeeded_is_kept() -> None:
    assert kept(ended(price="FAILED", pay="")) == {"load", "rates", "note"}


def test_what_was_skipped_is_as_good_as_done() -> None:
    assert kept(ended(load="SKIPPED", pay="FAILED")) == {"load", "rates", "price", "note"}


@pytest.mark.parametrize("state", ["FAILED", "CANCELLED", "QUARANTINED", ""])
def test_what_follows_from_a_step_that_must_run_again_runs_again_too(state: str) -> None:
    assert kept(ended(rates=state)) == {"load"}


def test_steps_that_run_again_on_unchanged_ground_keep_what_they_recorded_and_later_ones_do_not() -> None:
    made = reuse.of(plan(), plan(), ended(price="FAILED", pay=""))
    assert made.resumed == ("price",)


def test_a_failure_that_its_run_was_to_survive_stands_and_so_does_what_was_done_without_its_result() -> None:
    tolerant = plan(rates={"on_failure": "continue"})
    assert kept(ended(rates="FAILED", pay="FAILED"), tolerant) == {"load", "rates", "price", "note"}
    assert kept(ended(rates="QUARANTINED", pay="FAILED"), tolerant) == {"load"}, "that was the machines' fault"
    assert kept(ended(rates="FAILED"), tolerant, plan()) == {"load"}, "it is not to be survived any more"
    assert kept(ended(rates="FAILED"), plan(), tolerant) == {"load"}, "it was not survived then"


# --- from a step ------------------------------------------------------------------------------------------------------


def test_a_named_step_and_all_that_follows_from_it_run_again_though_they_succeeded() -> None:
    made = reuse.of(plan(), plan(), ended(), anew="price")
    assert set(made.kept) == {"load", "rates", "note"}
    assert made.resumed == (), "somebody wants it anew: what it recorded is not looked at"


# --- another definition -----------------------------------------------------------------------------------------------


def test_a_changed_step_and_all_that_follows_from_it_run_again() -> None:
    assert kept(ended(), new=plan(rates={"with": {"at": "'noon'"}})) == {"load"}


def test_a_new_step_between_two_old_ones_makes_the_later_one_run_again() -> None:
    new = plan(check={"needs": ["load"]}, price={**STEPS["price"], "needs": ["load", "rates", "check"]})
    assert kept(ended(), new=new) == {"load", "rates", "note"}


def test_a_step_that_is_gone_takes_nothing_with_it_but_what_needed_it() -> None:
    without = {name: step for name, step in STEPS.items() if name not in ("pay", "price")}
    assert kept(ended(), new=plan_of(**without)) == {"load", "rates", "note"}


def test_what_only_says_how_a_step_is_run_changes_nothing() -> None:
    how = {"retry": 3, "timeout": {"run": "5m", "queue": "1h", "idle": "1m"}, "queue": "slow", "durability": "step"}
    new = plan(**{name: {**step, **how, "on_failure": "continue"} for name, step in STEPS.items()})
    assert kept(ended(price="FAILED"), new=new) == {"load", "rates", "note"}


@pytest.mark.parametrize(
    "changed",
    [
        {"with": {"a": "load", "b": "rates + 1"}},
        {"task": "m.other"},
        {"when": "load > 1"},
        {"join": "any"},
        {"needs": ["load", {"step": "rates", "when": "rates > 1"}]},
    ],
)
def test_whatever_a_result_depends_on_makes_its_step_run_again(changed: dict[str, Any]) -> None:
    assert kept(ended(), new=plan(price={**STEPS["price"], **changed})) == {"load", "rates", "note"}


def test_true_and_one_are_not_the_same_definition() -> None:
    asking = {"agent": "amy-cfo", "prompt": "Go", "output": {"const": 1}}
    old, new = plan(rates=asking), plan(rates={**asking, "output": {"const": True}})
    assert kept(ended(), old, new) == {"load"}


def test_a_document_that_an_older_version_wrote_is_compared_by_what_it_means() -> None:
    written = plan().workflow.document
    steps = {name: {key: step[key] for key in ("task", "needs", "with")} for name, step in written["steps"].items()}
    old = Plan.from_json(json.dumps({**written, "steps": steps}))
    assert old.digest != plan().digest
    assert kept(ended(), old, plan()) == set(STEPS)


def test_another_order_of_writing_changes_nothing() -> None:
    assert kept(ended(), new=plan_of(**{name: STEPS[name] for name in reversed(list(STEPS))})) == set(STEPS)


# --- another input ----------------------------------------------------------------------------------------------------


def test_with_another_input_only_what_never_saw_it_is_kept() -> None:
    assert kept(ended(), input_changed=True) == {"rates", "note"}


def test_whoever_names_a_step_says_that_the_earlier_ones_may_keep_the_old_input() -> None:
    assert kept(ended(), input_changed=True, anew="price") == {"load", "rates", "note"}


READERS: list[dict[str, Any]] = [
    {"with": {"a": "{'deep': [input.id]}"}},
    {"when": "input.id > 1"},
    {"needs": [{"step": "first", "when": "input.ok"}]},
    {"agent": "amy-cfo", "prompt": "Look at {{ input.id }}."},
    {"approval": {"description": "Pay {{ input.amount }}?"}},
    {"wait": {"until": "input.at"}},
]

OTHERS: list[dict[str, Any]] = [
    {"with": {"a": "'input'"}},
    {"agent": "amy-cfo", "prompt": "Look at the input of {{ first }}."},
    {"approval": {"title": "Check the input", "description": "its input"}},
    {"agent": "amy-cfo", "prompt": "Go", "output": {"type": "object", "required": ["input"]}},
    {"task": "input.read", "queue": "input"},
]


@pytest.mark.parametrize(("steps", "read"), [(READERS, True), (OTHERS, False)])
def test_a_step_reads_the_input_by_any_of_its_expressions_and_by_nothing_else(
    steps: list[dict[str, Any]], read: bool
) -> None:
    for step in steps:
        made = plan_of(first={}, probe={"needs": ["first"], **step})
        states = {"first": StepState.SUCCEEDED, "probe": StepState.SUCCEEDED}
        assert ("probe" not in kept(states, old=made, input_changed=True)) is read, step


# --- rounds and items beside what else a step may have ----------------------------------------------------------------

CALLS = plan_of(
    book={"compensate": "m.undo"},
    first={"needs": ["book"]},
    call={"workflow": "leaf", "needs": ["first"], "loop": {"back_to": "first", "max": 3}},
    last={"needs": ["call"]},
)


def rounds(**states: str) -> dict[str, StepState]:
    """Two rounds were made."""
    every = dict.fromkeys(("book", "first", "call", "first#1", "call#1", "last"), "SUCCEEDED")
    return {step: StepState(state) for step, state in {**every, **states}.items() if state}


def test_with_other_children_the_first_round_that_has_one_runs_again() -> None:
    assert kept(rounds(), CALLS) == set(rounds())
    assert kept(rounds(), CALLS, children_changed=True) == {"book", "first"}


def test_what_was_undone_is_done_again_and_so_are_the_rounds_that_stand_on_it() -> None:
    undone = {"undo:book": StepState.SUCCEEDED}
    assert kept({**rounds(), **undone}, CALLS) == set()
