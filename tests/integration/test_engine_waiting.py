"""P6: waiting costs nothing. Approvals, retries, deferred steps and parked outcomes hold no slot and no message."""

from __future__ import annotations

from unittest import mock

import pytest

from convergio.graphflow.board import fields
from convergio.graphflow.engine import submission
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from tests.integration.engine_rig import QUIET, Stage, chain, sign_off, single

pytestmark = QUIET

UNACKED = ("unacked", "unacked_index", "convergio.unacked", "convergio.unacked_index")


def assert_costs_nothing(stage: Stage) -> None:
    """No message anywhere, no lease, no claim of a process."""
    assert stage.bells() == []
    assert stage.client.exists(*UNACKED) == 0
    assert stage.client.zcard(stage.keys.leases) == 0
    assert len(stage.worker.claims) == 0


# --- approvals --------------------------------------------------------------------------------------------------------


def gate() -> WorkflowBuilder:
    made = WorkflowBuilder("gate", version=1)
    sign = made.approval("sign", description="May {{ input.who }}?")
    made.task("send", "probe.echo", after=sign, value="sign.by")
    return made


def test_two_hundred_approvals_wait_for_nothing_but_their_signals(stage: Stage) -> None:
    workflow = gate().build()
    refs = [stage.submit(workflow, {"who": f"n{number}"}) for number in range(200)]
    assert stage.answer_all() == 200
    stage.journal()
    assert_costs_nothing(stage)
    assert {stage.word(ref, "sign").blocked_on for ref in refs} == {BlockedOn.SIGNAL}
    stage.pass_time(60)
    assert_costs_nothing(stage)
    stage.signal(refs[7], "sign")
    stage.journal()
    assert stage.bells() == [("send", "1.1")]
    stage.answer_all()
    stage.journal()
    assert stage.row(refs[7]).output == {"value": "boss"}
    assert stage.row(refs[8]).state is RunState.RUNNING


def test_what_is_asked_is_journaled_with_the_input_filled_in(stage: Stage) -> None:
    ref = stage.submit(gate().build(), {"who": "Ann"})
    stage.answer_all()
    stage.journal()
    assert stage.events(ref, "step.blocked")[0]["description"] == "May Ann?"


def test_a_signal_that_comes_before_its_step_is_kept_for_it(stage: Stage) -> None:
    ref = stage.submit(sign_off())
    stage.signal(ref, "sign")
    stage.answer_all()
    stage.journal()
    assert stage.outcomes(ref)["sign"].output["decision"] == "approve"
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_no_more_signals_are_kept_for_a_step_than_fit(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "EARLY_LIMIT", 100)
    ref = stage.submit(sign_off())
    stage.signal(ref, "sign")
    with pytest.raises(errors.TooManySignals, match=r"signals 'sign' wait already") as refused:
        stage.signal(ref, "sign")
    assert refused.value.hint == "send it again when the step waits for it"
    stage.journal()
    assert len(stage.history.facts(ref.run).signals) == 1, "what is refused is nowhere"


def test_a_signal_that_comes_while_its_step_is_being_parked_is_not_lost(stage: Stage) -> None:
    """Between the claim and the park: the signal finds nobody waiting, the park finds the signal."""
    ref = stage.submit(sign_off())
    stage.worker.steps.succeed(stage.claim(ref, "draft"), {})
    claim = stage.claim(ref, "sign")
    stage.signal(ref, "sign")
    stage.worker.steps.block(claim, signal="sign", data={})
    stage.journal()
    assert stage.outcomes(ref)["sign"].output["decision"] == "approve"


def test_the_first_of_two_decisions_counts(stage: Stage) -> None:
    ref = stage.submit(sign_off())
    stage.worker.steps.succeed(stage.claim(ref, "draft"), {})
    stage.worker.steps.block(stage.claim(ref, "sign"), signal="sign", data={})
    stage.signal(ref, "sign", "approve")
    stage.signal(ref, "sign", "reject")
    stage.play(ref)
    assert stage.outcomes(ref)["sign"].output["decision"] == "approve"
    assert [event["how"] for event in stage.events(ref, "signal.applied")] == ["applied", "late"]


def test_a_rejection_fails_the_run(stage: Stage) -> None:
    ref = stage.submit(sign_off())
    stage.answer_all()
    stage.signal(ref, "sign", "reject")
    stage.journal()
    error = stage.row(ref).error
    assert error is not None
    assert (error["code"], error["step"]) == ("APPROVAL_REJECTED", "sign")


def test_a_signal_whose_wake_up_got_lost_is_applied_by_the_sweeper(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = stage.submit(sign_off())
    stage.answer_all()
    stage.journal()
    monkeypatch.setattr(stage.worker.process.entrance, "wake", mock.Mock())
    stage.signal(ref, "sign")
    stage.service.sweeper.apply_rows()
    assert stage.word(ref, "sign").blocked_on is BlockedOn.SIGNAL, "its own wake-up may still come"
    stage.age_rows(2)
    stage.service.sweeper.apply_rows()
    stage.journal()
    assert stage.outcomes(ref)["sign"].state is StepState.SUCCEEDED
    stage.service.sweeper.apply_rows()
    assert stage.service.sweeper.repairs["signals"] == 1


@pytest.mark.parametrize("data", [None, {}, {"decision": "yes"}, "approve", ["approve"]])
def test_a_signal_that_decides_nothing_is_refused(stage: Stage, data: object) -> None:
    ref = stage.submit(sign_off())
    with pytest.raises(errors.InvalidInput):
        stage.worker.process.entrance.signal(ref, name="sign", data=data, by="boss")
    assert stage.history.facts(ref.run).signals == ()


def test_signals_for_what_is_not_there_are_refused(stage: Stage) -> None:
    ref, door = stage.submit(sign_off()), stage.worker.process.entrance
    with pytest.raises(errors.UnknownStep, match="sign") as caught:
        door.signal(ref, name="send", data={"decision": "approve"}, by="boss")
    assert caught.value.hint == "signals of this workflow: sign"
    with pytest.raises(errors.UnknownRun):
        door.signal(RunRef(tenant="default", run="nobody"), name="sign", data={"decision": "approve"}, by="boss")
    with pytest.raises(errors.UnknownRun):
        door.signal(RunRef(tenant="other", run=ref.run), name="sign", data={"decision": "approve"}, by="boss")


# --- retries ----------------------------------------------------------------------------------------------------------


def test_a_retry_waits_without_a_slot_and_comes_in_its_time(stage: Stage) -> None:
    ref = stage.submit(chain(retry={"max": 2, "backoff": 10, "factor": 2, "jitter": 0}))
    stage.take()
    for attempt, seconds in ((1, 10), (2, 20)):
        claim = stage.claim(ref, "first")
        assert claim.held.attempt == attempt
        while stage.take():
            pass
        stage.worker.steps.fail(claim, errors.Transient())
        assert_costs_nothing(stage)
        stage.pass_time(seconds - 1)
        assert stage.bells() == []
        stage.pass_time(2)
        assert [step for step, _ in stage.bells()] == ["first"]
    stage.worker.steps.fail(stage.claim(ref, "first"), errors.Transient("for good"))
    stage.journal()
    outcome = stage.outcomes(ref)["first"]
    assert (outcome.state, outcome.attempt) == (StepState.FAILED, 3)
    assert [event["attempt"] for event in stage.events(ref, "step.retry")] == [2, 3]


def test_a_provider_that_asks_for_more_patience_gets_it(stage: Stage) -> None:
    ref = stage.submit(chain(retry={"max": 1, "backoff": 1, "jitter": 0}))
    stage.worker.steps.fail(stage.claim(ref, "first"), errors.Transient(retry_after=30))
    stage.take()
    stage.pass_time(29)
    assert stage.bells() == []
    stage.pass_time(2)
    assert len(stage.bells()) == 1


@pytest.mark.parametrize("error", [errors.Permanent("no"), errors.StepDenied("no"), errors.InvalidPayload("no")])
def test_what_will_not_pass_is_not_tried_again(stage: Stage, error: errors.ConvergioError) -> None:
    ref = stage.submit(chain(retry=5))
    stage.worker.steps.fail(stage.claim(ref, "first"), error)
    stage.journal()
    assert stage.outcomes(ref)["first"].attempt == 1
    assert stage.row(ref).state is RunState.FAILED


def test_an_exception_of_a_users_function_is_tried_again_by_the_steps_policy(stage: Stage) -> None:
    ref = stage.submit(single("probe.raises", kind="'no text'", retry={"max": 1, "backoff": 1}))
    stage.answer_all()
    assert stage.word(ref, "only").blocked_on is BlockedOn.RETRY
    stage.pass_time(2)
    stage.answer_all()
    stage.journal()
    assert stage.outcomes(ref)["only"].attempt == 2


def test_a_retry_of_an_ended_run_is_not_rung(stage: Stage) -> None:
    ref = stage.submit(chain(retry={"max": 2, "backoff": 1}))
    stage.worker.steps.fail(stage.claim(ref, "first"), errors.Transient())
    stage.worker.process.entrance.cancel(ref, by="boss")
    while stage.take():
        pass
    stage.pass_time(5)
    assert stage.bells() == []
    assert stage.client.zcard(stage.keys.timers) == 0
    assert stage.values(ref)[fields.STATE] == "CANCELLED"


# --- giving back ------------------------------------------------------------------------------------------------------


def test_a_worker_that_stops_gives_back_what_it_takes(stage: Stage) -> None:
    stopping, other = stage.worker, stage.another_worker()
    ref = stage.submit(single())
    stopping.process.draining = True
    bell = stage.take()
    assert bell is not None
    stopping.answer(bell)
    assert len(stopping.claims) == 0
    assert stage.client.zcard(stage.keys.leases) == 0
    bell = stage.take()
    assert bell is not None
    assert bell.args[2] == "1.2"
    other.answer(bell)
    stage.journal()
    assert stage.outcomes(ref)["only"].worker == other.process.name
