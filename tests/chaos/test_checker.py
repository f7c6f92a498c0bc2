"""The checker finds every kind of violation, and nothing where nothing is wrong."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable

import pytest

from convergio.benchmarks import checker, graphs
from convergio.benchmarks.evidence import Outcome
from convergio.benchmarks.violations import Fault
from tests.chaos.histories import BEGAN_MS, RUN, Told, execution, fan, graph, random_graph, tell


def faults(told: Told) -> set[Fault]:
    found = checker.check(told.accepted, told.history, told.executions)
    return {violation.fault for violation in found}


def change(told: Told, step: str, **fields: object) -> None:
    """The outcome of a step, spoiled."""
    told.outcomes[RUN, step] = dataclasses.replace(told.outcome(step), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(60))
def test_a_history_without_faults_has_no_violations(seed: int) -> None:
    told = tell(random_graph(seed))
    assert checker.check(told.accepted, told.history, told.executions, notes=told.notes) == []


def test_the_checker_loads_nothing_of_the_engine() -> None:
    code = (
        "import sys, convergio.benchmarks.checker\n"
        "print([name for name in sys.modules if name.startswith(('convergio.graphflow', 'convergio.tasks',"
        " 'convergio.workers', 'sqlalchemy', 'celery'))])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# --- lost ---------------------------------------------------------------------------------------------------------


def drop_run(told: Told) -> None:
    told.runs.clear()


def never_end(told: Told) -> None:
    told.runs[0] = dataclasses.replace(told.runs[0], state="RUNNING")


def drop_outcome(told: Told) -> None:
    del told.outcomes[RUN, "b"]


def cancel_step(told: Told) -> None:
    change(told, "b", state="CANCELLED", output={})


def bury_event(told: Told) -> None:
    told.dead = 1


@pytest.mark.parametrize("spoil", [drop_run, never_end, drop_outcome, cancel_step, bury_event])
def test_what_is_not_there_is_lost(spoil: Callable[[Told], None]) -> None:
    told = tell(fan())
    spoil(told)
    assert Fault.LOST in faults(told)


def test_a_signal_that_nobody_settled_is_lost() -> None:
    told = tell(graph(graphs.Node(name="sign", approval=True)))
    told.signals = [dataclasses.replace(signal, settled=False) for signal in told.signals]
    assert faults(told) == {Fault.LOST}


def test_a_failed_run_without_a_failed_step_is_a_loss() -> None:
    told = tell(graph(graphs.Node(name="bad", flaws=1)))
    del told.outcomes[RUN, "bad"]
    assert faults(told) == {Fault.LOST}


# --- committed twice ----------------------------------------------------------------------------------------------


def use_another_output(told: Told) -> None:
    """The step ran twice, and the join saw what the execution gave that does not count."""
    first = told.of("a")
    other = execution("a", at=102, saw=first.saw, pid=200)
    told.executions.append(other)
    output = dict(told.outcome("join").output)
    saw = {**output["saw"], "a": other.nonce}
    told.of("join").saw = saw
    change(told, "join", output={**output, "saw": saw})


def run_again_after_the_outcome(told: Told) -> None:
    told.executions.append(execution("a", at=500, saw=told.of("a").saw, pid=200))


def invent_an_outcome(told: Told) -> None:
    told.executions = [one for one in told.executions if one.step != "join"]


def take_an_unfinished_one(told: Told) -> None:
    told.of("join").succeeded = False


def end_twice(told: Told) -> None:
    told.events.append(told.events[-1])


@pytest.mark.parametrize(
    "spoil",
    [use_another_output, run_again_after_the_outcome, invent_an_outcome, take_an_unfinished_one, end_twice],
)
def test_what_counts_twice_is_doubled(spoil: Callable[[Told], None]) -> None:
    told = tell(fan())
    spoil(told)
    assert Fault.DOUBLED in faults(told)


def test_two_outcomes_of_one_step_are_doubled() -> None:
    told = tell(fan())
    row: Outcome = told.outcome("a")
    history = dataclasses.replace(told.history, outcomes=[*told.history.outcomes, row])
    found = checker.check(told.accepted, history, told.executions)
    assert [violation.fault for violation in found] == [Fault.DOUBLED]


def test_a_decision_that_was_applied_twice_is_doubled() -> None:
    told = tell(graph(graphs.Node(name="sign", approval=True)))
    told.events += [event for event in told.events if event.type == "signal.applied"]
    assert faults(told) == {Fault.DOUBLED}


# --- order --------------------------------------------------------------------------------------------------------


def stand_before_its_parent(told: Told) -> None:
    change(told, "join", order=(1, 0))
    change(told, "first", order=(1, 9))


def start_before_its_parent_finished(told: Told) -> None:
    change(told, "join", started_ms=BEGAN_MS + 1)


def begin_before_its_parent_ended(told: Told) -> None:
    told.of("join").began = told.of("b").began


def begin_before_the_journal(told: Told) -> None:
    told.of("join").early = ("a",)


@pytest.mark.parametrize(
    "spoil",
    [
        stand_before_its_parent,
        start_before_its_parent_finished,
        begin_before_its_parent_ended,
        begin_before_the_journal,
    ],
)
def test_what_comes_too_early_is_out_of_order(spoil: Callable[[Told], None]) -> None:
    told = tell(fan())
    spoil(told)
    assert faults(told) == {Fault.ORDER}


def test_a_step_behind_a_failed_one_has_no_outcome() -> None:
    told = tell(graph(graphs.Node(name="bad", flaws=1), graphs.Node(name="after", links=(graphs.Link(step="bad"),))))
    told.outcomes[RUN, "after"] = dataclasses.replace(told.outcome("bad"), step="after", state="SKIPPED", order=(1, 5))
    assert faults(told) == {Fault.ORDER}


# --- fan-in, outcomes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["a", "b", "c"])
def test_a_join_that_missed_a_parent_is_incomplete(missing: str) -> None:
    told = tell(fan())
    output = dict(told.outcome("join").output)
    saw = {name: nonce for name, nonce in output["saw"].items() if name != missing}
    change(told, "join", output={**output, "saw": saw})
    assert Fault.FAN_IN in faults(told)


def skip_instead(told: Told) -> None:
    change(told, "join", state="SKIPPED", output={})


def give_something_else(told: Told) -> None:
    change(told, "join", output={**told.outcome("join").output, "digest": "0" * 32})


def need_one_attempt_too_many(told: Told) -> None:
    change(told, "join", attempt=2)


def end_otherwise(told: Told) -> None:
    told.runs[0] = dataclasses.replace(told.runs[0], state="FAILED")


@pytest.mark.parametrize("spoil", [skip_instead, give_something_else, need_one_attempt_too_many, end_otherwise])
def test_another_outcome_than_the_reference_has_is_wrong(spoil: Callable[[Told], None]) -> None:
    told = tell(fan())
    spoil(told)
    assert faults(told) == {Fault.WRONG}


def test_a_step_that_should_be_skipped_must_not_run() -> None:
    never = graphs.Gate(of="input", modulus=2, below=0)
    told = tell(graph(graphs.Node(name="maybe", gate=never)))
    assert faults(told) == set()
    told.executions.append(execution("maybe", at=5))
    assert faults(told) == {Fault.WRONG}


def test_an_outcome_of_a_step_that_the_workflow_does_not_have_is_wrong() -> None:
    told = tell(fan())
    told.outcomes[RUN, "other"] = dataclasses.replace(told.outcome("a"), step="other")
    assert Fault.WRONG in faults(told)


def test_a_run_that_was_cancelled_may_end_so_and_only_then() -> None:
    told = tell(fan())
    told.runs[0] = dataclasses.replace(told.runs[0], state="CANCELLED")
    del told.outcomes[RUN, "join"]
    told.executions = [one for one in told.executions if one.step != "join"]
    change(told, "c", state="CANCELLED", output={})
    told.events = [dataclasses.replace(event, type="run.cancelled") for event in told.events]
    asked = checker.check(told.accepted, told.history, told.executions, cancelled=frozenset({RUN}))
    assert asked == []
    assert Fault.WRONG in faults(told)


def test_a_run_that_was_cancelled_too_late_must_be_whole() -> None:
    told = tell(fan())
    del told.outcomes[RUN, "join"]
    found = checker.check(told.accepted, told.history, told.executions, cancelled=frozenset({RUN}))
    assert Fault.LOST in {violation.fault for violation in found}


def test_a_violation_says_where_and_what() -> None:
    told = tell(fan())
    drop_outcome(told)
    said = [str(one) for one in checker.check(told.accepted, told.history, told.executions)]
    assert f"lost {RUN}/b: has no outcome (none)" in said
