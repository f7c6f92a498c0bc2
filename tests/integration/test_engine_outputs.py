"""Bodies that return or raise what no store can keep: the step fails with a code and a hint, and the engine goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from celery.exceptions import WorkerTerminate

from convergio.graphflow.engine.steps import Steps
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from tests.integration.engine_rig import QUIET, Stage, single, stage_on

pytestmark = QUIET


@pytest.fixture
def stage(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Stage]:
    """Nothing may be larger than what travels."""
    with stage_on(valkey, sqlite_url, tmp_path, blob_limit=0) as made:
        yield made


def error_of(stage: Stage, workflow: Workflow, given: Any = None, step: str = "only") -> dict[str, Any]:
    """The journaled error of the run's step after its doorbells were answered; another run goes well beside it."""
    bad, good = stage.submit(workflow, given), stage.submit(single())
    stage.answer_all()
    stage.worker.pulse()
    stage.service.sweeper.sweep()
    stage.journal()
    assert_settled(stage)
    assert stage.row(good).state is RunState.SUCCEEDED
    assert stage.row(bad).state is RunState.FAILED
    outcome = stage.outcomes(bad)[step]
    assert outcome.state is StepState.FAILED
    assert outcome.error is not None
    return dict(outcome.error)


def assert_settled(stage: Stage) -> None:
    """No claim is left behind that would be beaten for ever."""
    assert len(stage.worker.claims) == 0
    assert stage.client.zcard(stage.keys.leases) == 0


def returning(kind: str) -> Workflow:
    return single("probe.returns", kind=f"'{kind}'")


def raising(kind: str) -> Workflow:
    return single("probe.raises", kind=f"'{kind}'")


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        "nul",
        "nul in a key",
        "nan",
        "infinity",
        "set",
        "bytes",
        "object",
        "lone surrogate",
        "too deep",
        "endless number",
    ],
)
def test_an_output_that_is_no_json_fails_the_step(stage: Stage, kind: str) -> None:
    error = error_of(stage, returning(kind))
    assert error["code"] == "INVALID_PAYLOAD"
    assert "the output of step 'only'" in error["message"]
    assert error["hint"]


@pytest.mark.parametrize("kind", ["large", "large in bytes"])
def test_an_output_above_the_limit_fails_the_step(stage: Stage, kind: str) -> None:
    error = error_of(stage, returning(kind))
    assert error["code"] == "PAYLOAD_TOO_LARGE"
    assert "32768" in error["message"]


def test_a_bad_output_is_not_tried_again(stage: Stage) -> None:
    """It would be as bad the next time."""
    assert error_of(stage, single("probe.returns", kind="'nan'", retry=3))["code"] == "INVALID_PAYLOAD"


@pytest.mark.parametrize("depth", [50, 150, 400, 900])
def test_a_nested_output_is_carried_to_the_end_or_fails_its_step_at_once(stage: Stage, depth: int) -> None:
    """Whatever one process can encode, every other must be able to decode: none may choke on it later."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    made = WorkflowBuilder("deep", version=1)
    first = made.task("first", "probe.echo")
    made.task("last", "probe.echo", after=first, when="first != null", value="first")
    ref, good = stage.submit(made.build()), stage.submit(single())
    claim = stage.claim(ref, "first")
    try:
        stage.worker.steps.succeed(claim, value)
    except errors.ConvergioError as error:
        stage.worker.steps.fail(claim, error)
    stage.answer_all()
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.journal()
    assert stage.row(good).state is RunState.SUCCEEDED
    assert stage.row(ref).terminal
    assert_settled(stage)


def test_a_number_that_cel_cannot_hold_fails_the_step_that_needs_it(stage: Stage) -> None:
    made = WorkflowBuilder("numbers", version=1)
    first = made.task("first", "probe.returns", kind="'more than 64 bits'")
    made.task("last", "probe.echo", after=first, when="first > 1")
    error = error_of(stage, made.build(), step="last")
    assert error["code"] == "EXPRESSION_FAILED"


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lone surrogate", "nul", "huge", "no text"])
def test_an_error_that_cannot_be_stored_as_it_is_fails_the_step(stage: Stage, kind: str) -> None:
    error = error_of(stage, raising(kind))
    assert error["code"] == "STEP_FAILED"
    assert error["message"].startswith("ValueError")
    assert len(error["message"]) <= 2_000
    assert error["hint"]


def test_an_error_made_of_an_exception_fails_the_step_with_its_text(stage: Stage) -> None:
    error = error_of(stage, raising("permanent of an exception"))
    assert (error["code"], error["message"]) == ("PERMANENT", "'a'")
    assert error_of(stage, raising("permanent of a mute"))["code"] == "PERMANENT"


def test_an_exception_without_words_fails_the_step(stage: Stage) -> None:
    error = error_of(stage, single("probe.mute"))
    assert error["code"] == "STEP_FAILED"
    assert "Mute" in error["message"]


@pytest.mark.parametrize(
    "function", ["exits", "exits_on_the_loop", "exits_in_a_task", "interrupts", "ignores", "rejects", "cancels_itself"]
)
def test_a_body_that_leaves_by_another_door_fails_its_step(stage: Stage, function: str) -> None:
    """`sys.exit`, Celery's Ignore, a coroutine's own cancellation: nobody else would ever settle the claim."""
    error = error_of(stage, single(f"probe.{function}"))
    assert error["code"] == "STEP_FAILED"


def test_a_process_that_celery_stops_leaves_its_step_to_others(stage: Stage) -> None:
    """That is no failure of the step: without beats its lease ends."""
    ref = stage.submit(single())
    with mock.patch.object(Steps, "succeed", side_effect=WorkerTerminate), pytest.raises(WorkerTerminate):
        stage.answer_all()
    assert stage.word(ref, "only").state is StepState.RUNNING
    stage.pass_time(7)
    stage.answer_all(stage.another_worker())
    stage.journal()
    assert stage.row(ref).state is RunState.SUCCEEDED


@pytest.mark.parametrize("function", ["exits_on_the_loop", "exits_in_a_task"])
def test_a_coroutine_that_exits_takes_nobody_elses_loop_with_it(stage: Stage, function: str) -> None:
    error_of(stage, single(f"probe.{function}"))
    ref = stage.submit(single("probe.soon"))
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == "soon"


def test_a_retried_error_that_cannot_be_stored_as_it_is_waits_for_its_retry(stage: Stage) -> None:
    ref = stage.submit(single("probe.raises", kind="'lone surrogate'", retry={"max": 1, "backoff": 1}))
    claim = stage.claim(ref, "only")
    stage.worker.steps.fail(claim, errors.Transient("half \ud800 a pair\x00"))
    stage.journal()
    assert stage.word(ref, "only").blocked_on == "RETRY"
    assert_settled(stage)


# --- before the body --------------------------------------------------------------------------------------------------


def test_a_failing_expression_fails_its_step_with_the_place(stage: Stage) -> None:
    error = error_of(stage, single(value="input.missing"), {"n": 1})
    assert error["code"] == "EXPRESSION_FAILED"
    assert error["message"].startswith("with.value:")


def test_a_failing_condition_fails_the_step_that_it_guards(stage: Stage) -> None:
    made = WorkflowBuilder("guarded", version=1)
    first = made.task("first", "probe.echo")
    made.task("last", "probe.echo", after=first.when("first.value > 1"))
    error = error_of(stage, made.build(), step="last")
    assert error["code"] == "EXPRESSION_FAILED"


def test_a_result_that_cannot_be_made_fails_the_run(stage: Stage) -> None:
    made = WorkflowBuilder("result", version=1, output={"sum": "only.value + 1"})
    made.task("only", "probe.echo", value="'text'")
    ref = stage.submit(made.build())
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).state is RunState.FAILED
    assert code(stage, ref) == "EXPRESSION_FAILED"


def test_a_result_too_large_to_travel_is_kept_as_a_blob(stage: Stage) -> None:
    made = WorkflowBuilder("result", version=1, output=dict.fromkeys(("a", "b", "c"), "only.value"))
    made.task("only", "probe.echo", value="input")
    given = "x" * 20_000
    ref = stage.submit(made.build(), given)
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == dict.fromkeys(("a", "b", "c"), given)


def code(stage: Stage, ref: RunRef) -> str:
    error = stage.row(ref).error
    assert error is not None
    return str(error["code"])


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("a\x00b", errors.InvalidPayload),
        (float("nan"), errors.InvalidPayload),
        ({1, 2}, errors.InvalidPayload),
        ("\ud800", errors.InvalidPayload),
        ("x" * 33_000, errors.PayloadTooLarge),
    ],
    ids=["nul", "nan", "set", "lone surrogate", "large"],
)
def test_an_input_that_cannot_be_stored_is_refused_before_anything_is_accepted(
    stage: Stage, given: Any, error: type[errors.ConvergioError]
) -> None:
    with pytest.raises(error):
        stage.submit(single(), given)
    assert stage.history.runs("default") == []
