"""Callers: what Celery's AsyncResult says of a run, and of an approval, to who knows nothing of ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

import pytest
import redis
from celery import Task
from celery.app import trace
from celery.exceptions import OperationalError, Reject

from convergio.graphflow import Client
from convergio.graphflow.engine.submission import Entrance
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.library import Catalog
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef, new_run_id
from convergio.graphflow.model.states import RunState
from convergio.graphflow.model.workflow import Workflow
from convergio.workers.callers import Callers
from tests.integration.engine_rig import QUIET, Stage, chain, sign_off, single, stage_on

pytestmark = QUIET

LARGE: Final = "x" * 300_000


@pytest.fixture
def stage(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Stage]:
    with stage_on(valkey, sqlite_url, tmp_path) as made:
        made.worker.process.catalog = Catalog(built=[chain(), single(), sign_off(), failing(), large()])
        yield made


def failing() -> Workflow:
    made = WorkflowBuilder("failing", version=1)
    made.task("only", "probe.raises", kind="'no text'")
    return made.build()


def large() -> Workflow:
    """Its result is what it is given: made for values that do not travel."""
    made = WorkflowBuilder("large", version=1, output={"first": "only", "n": "1"})
    made.task("only", "probe.echo", value="input")
    return made.build()


def enter(stage: Stage, entry: str, *args: Any, task_id: str = "", **kwargs: Any) -> str:
    """A message of a foreign Celery client is answered; its task id."""
    app = stage.worker.process.core.app
    name, task = task_id or new_run_id(), app.tasks[f"convergio.{entry}"]
    request = {"id": name, "delivery_info": {"routing_key": "convergio"}, "hostname": "w1@convergio", "origin": "me"}
    trace.build_tracer(task.name, task, app=app)(name, list(args), kwargs, {**request, "task": task.name})
    return name


def answer_of(stage: Stage, task_id: str) -> tuple[str, Any]:
    """State and result as any Celery client reads them."""
    meta = stage.worker.process.core.app.backend.get_task_meta(task_id)
    return meta["status"], meta["result"]


def ref_to(task_id: str) -> RunRef:
    return RunRef(tenant="default", run=task_id)


# --- a run's result ---------------------------------------------------------------------------------------------------


def test_the_result_of_submit_is_the_runs(stage: Stage) -> None:
    task_id = enter(stage, "submit", "single", {"n": 1})
    assert answer_of(stage, task_id) == ("SUBMITTED", {"run": task_id})
    assert stage.row(ref_to(task_id)).submitter == "me"
    stage.answer_all()
    assert answer_of(stage, task_id)[0] == "SUBMITTED", "not before SQL has it"
    stage.journal()
    assert answer_of(stage, task_id) == ("SUCCESS", {"value": None})


def test_who_submits_by_celery_may_choose_a_priority(stage: Stage) -> None:
    task_id = enter(stage, "submit", "single", {"n": 1}, priority="critical")
    assert stage.row(ref_to(task_id)).priority == "critical"
    assert answer_of(stage, enter(stage, "submit", "single", {"n": 1}, priority="urgent"))[0] == "FAILURE"


def test_a_failed_run_is_a_failed_task_that_names_the_reason(stage: Stage) -> None:
    task_id = enter(stage, "submit", "failing")
    stage.answer_all()
    stage.journal()
    state, error = answer_of(stage, task_id)
    assert state == "FAILURE"
    assert type(error).__name__ == "RunFailed"
    assert "STEP_FAILED" in str(error)
    assert task_id in str(error)


def test_a_cancelled_run_is_a_failed_task_that_says_so(stage: Stage) -> None:
    task_id = enter(stage, "submit", "chain")
    assert enter_and_read(stage, "cancel", task_id, "no money left")[0] == "SUCCESS"
    stage.journal()
    state, error = answer_of(stage, task_id)
    assert (state, type(error).__name__) == ("FAILURE", "RunCancelled")
    assert "no money left" in str(error)


def enter_and_read(stage: Stage, *args: Any, **kwargs: Any) -> tuple[str, Any]:
    return answer_of(stage, enter(stage, *args, **kwargs))


def test_everyone_who_submitted_with_the_same_key_gets_the_result(stage: Stage) -> None:
    first = enter(stage, "submit", "single", key="order-7")
    second = enter(stage, "submit", "single", key="order-7")
    assert answer_of(stage, second) == ("SUBMITTED", {"run": first})
    stage.answer_all()
    stage.journal()
    assert answer_of(stage, first) == answer_of(stage, second) == ("SUCCESS", {"value": None})
    assert enter_and_read(stage, "submit", "single", key="order-7") == ("SUCCESS", {"value": None})
    assert len(stage.history.runs("default")) == 1


def test_a_submission_that_is_delivered_twice_is_one_run(stage: Stage) -> None:
    task_id = enter(stage, "submit", "single")
    enter(stage, "submit", "single", task_id=task_id)
    stage.answer_all()
    stage.journal()
    assert answer_of(stage, task_id) == ("SUCCESS", {"value": None})
    enter(stage, "submit", "single", task_id=task_id)
    assert answer_of(stage, task_id) == ("SUCCESS", {"value": None})
    assert [row.run_id for row in stage.history.runs("default")] == [task_id]
    assert len(stage.events(ref_to(task_id), "run.started")) == 1


@pytest.mark.parametrize(("workflow", "state"), [("single", "SUCCESS"), ("failing", "FAILURE")])
def test_a_run_that_ends_while_its_caller_is_still_being_written_down_is_answered(
    stage: Stage, workflow: str, state: str
) -> None:
    """The answer comes first, and the caller's own `SUBMITTED` would be the last word."""
    add = Callers.add

    def overtaken(self: Callers, ref: RunRef, task_id: str, node: str) -> None:
        stage.answer_all()
        stage.journal()
        assert stage.row(ref).terminal
        add(self, ref, task_id, node)

    with mock.patch.object(Callers, "add", overtaken):
        task_id = enter(stage, "submit", workflow)
        second = enter(stage, "submit", workflow, key="k")
        third = enter(stage, "submit", workflow, key="k")
    assert [answer_of(stage, name)[0] for name in (task_id, second, third)] == [state] * 3


def test_an_answer_that_was_wiped_is_given_again_to_who_submits_again(stage: Stage) -> None:
    task_id = enter(stage, "submit", "single")
    stage.answer_all()
    stage.journal()
    stage.wipe()
    stage.rebuild()
    enter(stage, "submit", "single", task_id=task_id)
    assert answer_of(stage, task_id) == ("SUCCESS", {"value": None})


# --- results that do not travel ---------------------------------------------------------------------------------------


def test_a_result_that_is_too_large_to_travel_reaches_whoever_waits_whole(stage: Stage) -> None:
    first = enter(stage, "submit", "large", LARGE, key="k")
    second = enter(stage, "submit", "large", LARGE, key="k")
    stage.answer_all()
    stage.journal()
    whole = {"first": {"value": LARGE}, "n": 1}
    assert [answer_of(stage, name) for name in (first, second)] == [("SUCCESS", whole)] * 2
    assert enter_and_read(stage, "submit", "large", LARGE, key="k") == ("SUCCESS", whole), "also when it comes late"


def test_a_client_gets_a_result_whole_that_is_too_large_to_travel(stage: Stage) -> None:
    run_id = enter(stage, "submit", "large", LARGE)
    stage.answer_all()
    stage.journal()
    whole = {"first": {"value": LARGE}, "n": 1}
    with Client(stage.settings.redis_url) as client:
        run = client.run(run_id)
        assert run.result(5) == whole
        last = list(run.events())[-1]
        assert (last.final, last.data["state"], last.data["error"]) == (True, "SUCCEEDED", None)
        assert last.data["output"] == last.data["result"] == whole


# --- runs that nobody knows -------------------------------------------------------------------------------------------


def test_a_run_that_nobody_knows_is_waited_for_no_longer_than_a_worker_is(stage: Stage) -> None:
    with Client(stage.settings.redis_url, patience=0.3) as client:
        with pytest.raises(errors.UnknownRun, match="nope"):
            client.run("nope").result()
        with pytest.raises(errors.UnknownRun, match="nope"):
            list(client.run("nope").events())


def test_a_run_that_is_accepted_and_not_started_is_waited_for(stage: Stage) -> None:
    run_id = enter(stage, "submit", "single")
    stage.client.delete(stage.keys.run(ref_to(run_id)))
    with Client(stage.settings.redis_url, patience=0.1) as client, pytest.raises(errors.ResultTimeout):
        client.run(run_id).result(0.5)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_is_refused_is_a_failed_task_with_a_hint(stage: Stage) -> None:
    enter(stage, "submit", "single", key="order-7")
    cases = {
        "UnknownWorkflow": enter(stage, "submit", "singel"),
        "KeyConflict": enter(stage, "submit", "chain", key="order-7"),
        "InvalidInput": enter(stage, "submit", "single", task_id="not a run id"),
        "PayloadTooLarge": enter(stage, "submit", "single", "x" * 17_000_000),
        "UnknownRun": enter(stage, "cancel", "nobody"),
        "UnknownStep": enter(stage, "signal", enter(stage, "submit", "chain"), "first", {"decision": "approve"}),
    }
    for kind, task_id in cases.items():
        state, error = answer_of(stage, task_id)
        assert (state, type(error).__name__) == ("FAILURE", kind)
    assert "single" in str(answer_of(stage, cases["UnknownWorkflow"])[1]), "the hint travels in the text"


def test_without_sql_a_submission_is_tried_again(stage: Stage) -> None:
    with stage.sql_away():
        state, error = enter_and_read(stage, "submit", "single")
    assert state == "RETRY"
    assert errors.JournalUnavailable.code in str(error)
    assert stage.history.runs("default") == []


@pytest.fixture
def sent() -> Iterator[mock.Mock]:
    """Whatever is sent again meanwhile stays here: its call."""
    with mock.patch.object(Task, "apply_async") as made:
        yield made


def test_what_is_tried_again_does_not_show_its_input(stage: Stage, sent: mock.Mock) -> None:
    with mock.patch.object(Entrance, "submit", side_effect=errors.JournalUnavailable):
        task_id = enter(stage, "submit", workflow="single", input={"n": "a secret"})
        enter(stage, "submit", "single", {"n": "a secret"})
    by_name, by_position = (call.kwargs for call in sent.call_args_list)
    assert (by_name["task_id"], by_name["retries"]) == (task_id, 1)
    assert (by_name["argsrepr"], by_name["kwargsrepr"]) == ("()", "{'workflow': 'single'}")
    assert (by_position["argsrepr"], by_position["kwargsrepr"]) == ("(...)", "{}")


@pytest.mark.parametrize("refusal", [errors.BoardUnavailable, errors.BoardRebuilding])
def test_without_a_board_a_submission_is_tried_again(
    stage: Stage, sent: mock.Mock, refusal: type[errors.ConvergioError]
) -> None:
    with mock.patch.object(Entrance, "submit", side_effect=refusal):
        assert enter_and_read(stage, "submit", "single")[0] == "RETRY"
    assert sent.call_count == 1


def test_a_run_that_was_accepted_is_not_answered_as_failed_because_redis_blinks(stage: Stage, sent: mock.Mock) -> None:
    away = mock.Mock(side_effect=redis.ConnectionError("away"))
    with mock.patch.object(stage.worker.process.callers.link.client, "pipeline", away):
        first = enter(stage, "submit", "single", key="k")
        second = enter(stage, "submit", "single", key="k")
    assert answer_of(stage, first)[0] == "SUBMITTED", "its own answer is kept under its run's id"
    assert answer_of(stage, second)[0] == "RETRY", "nobody would answer it"
    assert sent.call_args.kwargs["task_id"] == second
    enter(stage, "submit", "single", key="k", task_id=second)
    stage.answer_all()
    stage.journal()
    assert answer_of(stage, first) == answer_of(stage, second) == ("SUCCESS", {"value": None})


def test_an_entry_that_cannot_even_be_sent_again_is_delivered_again(stage: Stage) -> None:
    entry = stage.worker.process.core.app.tasks["convergio.submit"]
    entry.push_request(id="r1", called_directly=False, retries=0)
    with (
        mock.patch.object(Entrance, "submit", side_effect=errors.BoardUnavailable),
        mock.patch.object(Task, "apply_async", side_effect=OperationalError),
        pytest.raises(Reject) as caught,
    ):
        entry.run("single")
    entry.pop_request()
    assert vars(caught.value)["requeue"]


# --- an approval's decision -------------------------------------------------------------------------------------------


def asked(stage: Stage) -> tuple[RunRef, str]:
    """A run whose approval waits, and the id of the approval's task."""
    ref = ref_to(enter(stage, "submit", "sign_off"))
    stage.answer_all()
    stage.journal()
    return ref, stage.events(ref, "step.blocked")[0]["task_id"]


@pytest.mark.parametrize("decision", ["approve", "reject"])
def test_the_result_of_an_approval_task_is_the_decision(stage: Stage, decision: str) -> None:
    ref, task_id = asked(stage)
    assert task_id == f"{ref.run}.sign.1.1"
    assert answer_of(stage, task_id)[0] == "PENDING"
    assert enter_and_read(stage, "signal", ref.run, "sign", {"decision": decision}, by="ann") == ("SUCCESS", True)
    stage.journal()
    state, result = answer_of(stage, task_id)
    assert state == "SUCCESS"
    if decision == "approve":
        assert result == {"decision": "approve", "by": "ann"}
    else:
        assert result["code"] == "APPROVAL_REJECTED"
    assert stage.row(ref).state is (RunState.RUNNING if decision == "approve" else RunState.FAILED)


def test_a_signal_that_is_delivered_twice_is_one(stage: Stage) -> None:
    ref, _ = asked(stage)
    task_id = enter(stage, "signal", ref.run, "sign", {"decision": "approve"})
    enter(stage, "signal", ref.run, "sign", {"decision": "approve"}, task_id=task_id)
    stage.journal()
    assert len(stage.history.facts(ref.run).signals) == 1


def test_an_approval_of_a_cancelled_run_is_answered_too(stage: Stage) -> None:
    ref, task_id = asked(stage)
    enter(stage, "cancel", ref.run)
    stage.journal()
    assert answer_of(stage, task_id)[0] == "REVOKED"
