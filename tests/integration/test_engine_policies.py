"""Steps that only wait, failures that a run survives, joins and patience: on a real board, across a wipe."""

from __future__ import annotations

from typing import Any

import pytest

from convergio.graphflow.flow import registry
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from tests.integration.engine_rig import QUIET, Stage, single

pytestmark = QUIET


def pausing(**wait: Any) -> Workflow:
    """pause (a wait) -> go."""
    made = WorkflowBuilder("pausing", version=1)
    pause = made.wait("pause", **wait)
    made.task("go", "probe.echo", after=pause, value="pause")
    return made.build()


def signal(stage: Stage, ref: RunRef, name: str, data: Any) -> None:
    stage.worker.process.entrance.signal(ref, name=name, data=data, by="shop")


# --- wait -------------------------------------------------------------------------------------------------------------


def test_a_wait_is_over_when_its_time_has_come_and_costs_nothing_before(stage: Stage) -> None:
    ref = stage.submit(pausing(length="60s"))
    assert stage.word(ref, "pause").blocked_on is BlockedOn.TIMER
    stage.pass_time(40)
    assert stage.bells() == []
    assert stage.client.zcard(stage.keys.leases) == 0
    stage.pass_time(21)
    assert stage.bells() == [("go", "1.1")]
    assert stage.client.zcard(stage.keys.timers) == 0
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_a_wait_goes_on_where_it_was_after_the_board_was_wiped(stage: Stage) -> None:
    ref = stage.submit(pausing(length="60s"))
    stage.journal()
    (due,) = [event["due_ms"] for event in stage.events(ref, "step.waiting")]
    stage.wipe()
    stage.rebuild()
    stage.worker.meet_new_board()
    timers = stage.client.zrange(stage.keys.timers, 0, -1, withscores=True)
    assert timers == [(f"{ref}/pause/TIMER", due)], "the time that was told counts, not a new one"
    stage.journal()
    assert len(stage.events(ref, "step.waiting")) == 1, "a rebuild tells nothing twice"
    stage.pass_time(61)
    assert stage.bells() == [("go", "2.1")]


def test_a_wait_that_nobody_was_told_of_begins_again_after_a_wipe(stage: Stage) -> None:
    ref = stage.submit(pausing(length="60s"))
    stage.wipe()
    stage.rebuild()
    stage.worker.meet_new_board()
    stage.pass_time(1)
    assert stage.word(ref, "pause").blocked_on is BlockedOn.TIMER
    stage.pass_time(61)
    assert [step for step, _ in stage.bells()] == ["go"]


def test_a_signal_with_any_data_ends_a_wait(stage: Stage) -> None:
    ref = stage.submit(pausing(signal="payment", timeout="1h"))
    signal(stage, ref, "payment", {"amount": 3})
    stage.answer_all()
    stage.journal()
    assert stage.outcomes(ref)["pause"].output == {"amount": 3, "by": "shop"}
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_a_signal_that_was_applied_ends_no_other_wait_after_a_wipe(stage: Stage) -> None:
    made = WorkflowBuilder("twice", version=1)
    one = made.wait("one", signal="payment")
    made.wait("two", signal="payment", after=one)
    ref = stage.submit(made.build())
    signal(stage, ref, "payment", {"amount": 3})
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.worker.meet_new_board()
    stage.pass_time(3)
    assert stage.states(ref) == {"one": "SUCCEEDED", "two": "BLOCKED"}
    signal(stage, ref, "payment", {"amount": 4})
    stage.journal()
    assert stage.outcomes(ref)["two"].output == {"amount": 4, "by": "shop"}


def test_a_signal_that_waits_for_its_wait_survives_a_wipe(stage: Stage) -> None:
    made = WorkflowBuilder("early", version=1)
    first = made.task("first", "probe.echo")
    made.wait("paid", signal="payment", after=first)
    ref = stage.submit(made.build())
    signal(stage, ref, "payment", {"amount": 3})
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.worker.meet_new_board()
    stage.pass_time(8)
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).state is RunState.SUCCEEDED
    assert stage.outcomes(ref)["paid"].output == {"amount": 3, "by": "shop"}


def test_who_gets_no_signal_in_time_fails_and_says_which(stage: Stage) -> None:
    ref = stage.submit(pausing(signal="payment", timeout="10s"))
    stage.pass_time(11)
    stage.journal()
    row = stage.row(ref)
    assert row.state is RunState.FAILED
    assert row.error is not None
    assert "'payment'" in row.error["message"]


def test_a_signal_that_no_step_waits_for_is_refused_with_the_names_there_are(stage: Stage) -> None:
    ref = stage.submit(pausing(signal="payment"))
    with pytest.raises(errors.UnknownStep, match=r"'pay' waits for no signal.*payment"):
        signal(stage, ref, "pay", {})


# --- failures, joins, patience ----------------------------------------------------------------------------------------


def test_a_run_goes_on_after_a_failure_that_it_may_survive_also_across_a_wipe(stage: Stage) -> None:
    made = WorkflowBuilder("survivor", version=1, output={"b": "b"})
    a = made.task("a", "probe.echo", on_failure="continue")
    made.task("b", "probe.echo", after=a, value="a == null")
    ref = stage.submit(made.build())
    stage.worker.steps.fail(stage.claim(ref, "a"), errors.Permanent("no"))
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.worker.meet_new_board()
    stage.pass_time(8)
    stage.answer_all()
    stage.journal()
    row = stage.row(ref)
    assert row.state is RunState.SUCCEEDED
    assert row.output == {"b": {"value": True}}
    assert stage.outcomes(ref)["a"].state is StepState.FAILED


def test_the_first_of_two_starts_what_waits_for_any(stage: Stage) -> None:
    made = WorkflowBuilder("race", version=1)
    left, right = made.task("left", "probe.echo"), made.task("right", "probe.echo")
    made.task("winner", "probe.echo", after=[left, right], join="any", value="[left, right]")
    ref = stage.submit(made.build())
    slow = stage.claim(ref, "left")
    stage.worker.steps.succeed(stage.claim(ref, "right"), "r")
    won = stage.claim(ref, "winner")
    assert stage.worker.steps.arguments(won) == {"value": [None, "r"]}
    stage.worker.steps.succeed(won, "w")
    stage.journal()
    assert stage.row(ref).state is RunState.RUNNING, "the other one is still at work"
    stage.worker.steps.succeed(slow, "l")
    stage.journal()
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_a_step_that_no_worker_takes_in_time_fails_with_the_queue_that_nobody_serves(stage: Stage) -> None:
    made = WorkflowBuilder("impatient", version=1)
    made.task("only", "probe.echo", timeout={"queue": 10}, queue="tools")
    ref = stage.submit(made.build())
    stage.pass_time(11)
    stage.journal()
    error = stage.outcomes(ref)["only"].error
    assert error is not None
    assert error["code"] == "STEP_TIMEOUT"
    assert "queue 'tools'" in error["message"]


def test_patience_with_the_queue_ends_when_a_worker_took_the_step(stage: Stage) -> None:
    made = WorkflowBuilder("patient", version=1)
    made.task("only", "probe.echo", timeout={"queue": 10})
    ref = stage.submit(made.build())
    claim = stage.claim(ref, "only")
    stage.pass_time(11, also=stage.worker.pulse)
    stage.worker.steps.succeed(claim, 1)
    stage.journal()
    assert stage.row(ref).state is RunState.SUCCEEDED
    assert stage.client.zcard(stage.keys.timers) == 0


# --- retries by class of error ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on", "raised", "again"),
    [
        ([], ValueError("x"), True),
        (["ValueError"], ValueError("x"), True),
        (["ValueError"], UnicodeError("x"), True),
        (["KeyError"], ValueError("x"), False),
        (["STEP_FAILED"], ValueError("x"), True),
        (["TRANSIENT"], ValueError("x"), False),
        (["TRANSIENT"], errors.Transient(), True),
        (["PERMANENT"], errors.Permanent(), False),
    ],
    ids=str,
)
def test_another_attempt_is_made_for_the_errors_that_the_policy_names(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, on: list[str], raised: Exception, again: bool
) -> None:
    def failing() -> None:
        raise raised

    known = dict(registry.REGISTRY._by_name)
    monkeypatch.setattr(registry.REGISTRY, "_by_name", known)
    registry.REGISTRY.add(registry.Registered(name="probe.failing", function=failing))
    ref = stage.submit(single("probe.failing", retry={"max": 3, "on": on}))
    stage.answer_all()
    assert stage.word(ref, "only").blocked_on == (BlockedOn.RETRY if again else None)
