"""Celery tasks of a user's own module as steps: they run inside the step, and nothing of theirs is sent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery.signals import before_task_publish

from convergio.config.settings import Settings
from convergio.graphflow.board.connection import Link
from convergio.graphflow.engine import reason
from convergio.graphflow.engine.inquiry import Inquiry
from convergio.graphflow.engine.submission import Submission
from convergio.graphflow.flow import document
from convergio.graphflow.flow.known import Known
from convergio.graphflow.flow.registry import REGISTRY, Registered, Registry
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from convergio.tasks import adopted
from convergio.workers import boot
from tests.integration import shop
from tests.integration.engine_rig import QUIET, Stage, migrated, settings_for, single, stage_on
from tests.integration.test_engine_workers import ROOT
from tests.waiting import wait_until

pytestmark = QUIET


@pytest.fixture
def stage(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Stage]:
    """Whatever these tests do, no task is sent anywhere."""
    sent: list[str] = []

    def note(sender: str, **_: Any) -> None:
        sent.append(sender)

    before_task_publish.connect(note, weak=False)
    with stage_on(valkey, sqlite_url, tmp_path, include="tests.integration.shop") as made:
        yield made
    before_task_publish.disconnect(note)
    assert [name for name in sent if not name.startswith("convergio.")] == []


def named(task: Any) -> str:
    return str(task.name)


def ran(stage: Stage, task: Any, **fields: Any) -> Any:
    """The output of a run whose only step is the task; it takes one doorbell."""
    ref = stage.submit(single(named(task), **fields))
    stage.answer_all()
    stage.journal()
    row = stage.row(ref)
    assert row.state is RunState.SUCCEEDED, row.error
    return row.output


def failed(stage: Stage, task: Any, **fields: Any) -> dict[str, Any]:
    """The error of a run whose only step is the task; it takes one doorbell."""
    ref = stage.submit(single(named(task), **fields))
    stage.answer_all()
    stage.journal()
    outcome = stage.outcomes(ref)["only"]
    assert (outcome.state, len(stage.worker.claims)) == (StepState.FAILED, 0)
    assert outcome.error is not None
    return dict(outcome.error)


# --- by name ----------------------------------------------------------------------------------------------------------


def test_a_task_of_an_included_module_is_a_step_by_its_celery_name(stage: Stage) -> None:
    assert ran(stage, shop.load_invoice, with_={"invoice_id": "'F-17'"}) == {"id": "F-17"}
    assert ran(stage, shop.named_otherwise) == "renamed"


def test_a_shared_task_belongs_to_the_app_of_its_project(stage: Stage) -> None:
    assert ran(stage, shop.shared, with_={"a": 1}) == {"sum": 3, "app": "shop"}
    assert ran(stage, shop.calls_shared) == "shop"


def test_a_bound_task_finds_its_request(stage: Stage) -> None:
    ref = stage.submit(single(named(shop.look_around), word="'hello'"))
    stage.answer_all()
    stage.journal()
    where = {"tenant": "default", "run": ref.run, "step": "only"}
    told = {"id": f"{ref.run}.only", "retries": 0, "called_directly": False, "headers": where, "word": "hello"}
    assert stage.row(ref).output == {**told, "app": "shop", "root": ref.run}
    assert shop.Noted.heard[-2:] == [
        ("before_start", f"{ref.run}.only"),
        ("after_return SUCCESS", f"{ref.run}.only"),
    ]


def test_what_a_task_takes_is_checked_before_a_run_is_accepted(stage: Stage) -> None:
    steps = {"it": {"task": named(shop.shared), "with": {"a": 1, "c": 2}}}
    given = {"workflow": "w", "version": 1, "steps": steps}
    with pytest.raises(errors.InvalidWorkflow, match=r"steps\.it\.with\.c is not an argument"):
        document.parse_document(given, known=Known(functions=REGISTRY.functions()))


def test_the_python_builder_takes_a_task_itself() -> None:
    entry = Registry().of(shop.load_invoice)
    assert entry is not None
    assert entry.parameters is not None
    assert (entry.name, set(entry.parameters.names)) == (named(shop.load_invoice), {"invoice_id"})


def test_a_name_that_a_function_has_already_is_refused() -> None:
    taken = Registry()
    taken.add(Registered(name=named(shop.load_invoice), function=failed))
    with pytest.raises(errors.NameTaken):
        adopted.adopt([shop], taken)


def test_a_module_may_be_included_twice(stage: Stage) -> None:
    boot.include(stage.settings)
    assert ran(stage, shop.load_invoice, with_={"invoice_id": "'F-17'"}) == {"id": "F-17"}


# --- again ------------------------------------------------------------------------------------------------------------


def parked(stage: Stage, ref: RunRef) -> dict[str, Any]:
    """The event of the retry that the step waits for now."""
    stage.journal()
    assert stage.word(ref, "only").blocked_on == "RETRY"
    return stage.events(ref, "step.retry")[-1]


def test_a_retry_that_a_task_asks_for_is_a_retry_of_the_step_with_its_countdown(stage: Stage) -> None:
    """Its own `max_retries` counts: the step has no retry policy."""
    ref = stage.submit(single(named(shop.asks_again), with_={"countdown": 40, "until": 1}))
    stage.answer_all()
    told = parked(stage, ref)
    assert (told["seconds"], told["attempt"], told["error"]["code"]) == (40, 2, "STEP_FAILED")
    assert "the till is closed" in told["error"]["message"]
    assert ("on_retry", f"{ref.run}.only") in shop.Noted.heard
    stage.pass_time(30)
    assert stage.answer_all() == 0
    stage.pass_time(11)
    stage.answer_all()
    stage.journal()
    assert (stage.row(ref).state, stage.row(ref).output) == (RunState.SUCCEEDED, 1)


def test_a_task_whose_retries_are_used_up_fails_its_step_with_what_went_wrong(stage: Stage) -> None:
    ref = stage.submit(single(named(shop.asks_again), with_={"countdown": 1}))
    for _ in range(3):
        stage.answer_all()
        stage.pass_time(2)
    stage.journal()
    assert len(stage.events(ref, "step.retry")) == 2
    error = stage.outcomes(ref)["only"].error
    assert error is not None
    assert (error["code"], error["message"]) == ("STEP_FAILED", "ConnectionError: the till is closed")


def test_autoretry_is_a_retry_of_the_step(stage: Stage) -> None:
    ref = stage.submit(single(named(shop.again_by_itself)))
    stage.answer_all()
    assert parked(stage, ref)["seconds"] == 7
    stage.pass_time(8)
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == 1


def test_a_task_with_step_above_it_keeps_both_names_and_its_own_retries(stage: Stage) -> None:
    assert REGISTRY.get("shop.decorated").retry == 2
    for name in ("shop.decorated", named(shop.decorated)):
        ref = stage.submit(single(name))
        stage.answer_all()
        assert parked(stage, ref)["seconds"] == 5
        stage.pass_time(6)
        stage.answer_all()
        stage.journal()
        assert stage.row(ref).output == 1


def test_arguments_that_a_task_changes_for_its_next_attempt_are_those_it_gets(stage: Stage) -> None:
    ref = stage.submit(single(named(shop.changes_its_arguments)))
    for _ in range(4):
        stage.answer_all()
        stage.pass_time(1)
    stage.journal()
    assert stage.row(ref).output == 2


def test_a_retry_raised_by_hand_is_a_failure_that_the_policy_may_repeat(stage: Stage) -> None:
    """Celery would never send it again, and nothing would limit it."""
    assert failed(stage, shop.retries_by_hand)["code"] == "TRANSIENT"
    ref = stage.submit(single(named(shop.retries_by_hand), retry={"max": 1, "backoff": 0.1}))
    stage.answer_all()
    assert parked(stage, ref)["seconds"] == 3


# --- badly ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "code", "said"),
    [
        (shop.ignores, "PERMANENT", "raised Ignore: nothing to do"),
        (shop.rejects, "PERMANENT", "raised Reject: not mine"),
        (shop.is_replaced, "PERMANENT", "wants to be replaced"),
        (shop.breaks, "STEP_FAILED", "ValueError: bad invoice"),
        (shop.gives_an_object, "INVALID_PAYLOAD", "the output of step 'only'"),
        (shop.load_invoice, "STEP_FAILED", "TypeError"),
    ],
    ids=["ignore", "reject", "replace", "raise", "object", "argument missing"],
)
def test_a_task_that_ends_badly_fails_its_step_with_a_hint(stage: Stage, task: Any, code: str, said: str) -> None:
    error = failed(stage, task)
    assert error["code"] == code
    assert said in error["message"]
    assert error["hint"]


def test_a_task_that_wants_its_message_back_is_repeated_by_the_policy(stage: Stage) -> None:
    assert failed(stage, shop.rejects, requeue="true")["code"] == "TRANSIENT"
    ref = stage.submit(single(named(shop.rejects), requeue="true", retry=1))
    stage.answer_all()
    assert parked(stage, ref)["attempt"] == 2


def test_outside_a_step_a_task_is_as_it_was() -> None:
    """In the same process, after it was adopted."""
    assert shop.load_invoice("F-17") == {"id": "F-17"}
    with pytest.raises(ConnectionError):
        shop.asks_again(countdown=1)
    assert shop.asks_again.apply(kwargs={"countdown": 0, "until": 1}).get() == 1


# --- a worker that does not know the function -------------------------------------------------------------------------


def test_a_step_whose_function_no_worker_knows_stays_ready_and_is_rung_now_and_then(stage: Stage) -> None:
    ref = stage.submit(single("shop.nowhere"))
    assert stage.answer_all() == 1
    assert (stage.word(ref, "only").state, len(stage.worker.claims)) == (StepState.READY, 0)
    assert stage.client.zcard(stage.keys.leases) == 0
    assert stage.client.zcard(stage.keys.timers) == 0
    stage.pass_time(1)
    assert stage.answer_all() == 0, "it is not handed round and round"
    stage.pass_time(2)
    assert stage.answer_all() == 1
    stage.journal()
    assert stage.row(ref).state is RunState.RUNNING


def test_a_worker_that_knows_the_function_takes_the_step_that_another_declined(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = stage.submit(single("probe.newer"))
    stage.answer_all()
    monkeypatch.setattr(REGISTRY, "_by_name", {**REGISTRY._by_name})
    REGISTRY.add(Registered(name="probe.newer", function=newer))
    stage.pass_time(3)
    stage.answer_all(stage.another_worker())
    stage.journal()
    assert stage.row(ref).output == "new"


def newer() -> str:
    return "new"


def test_a_step_that_no_worker_knows_fails_when_its_patience_with_the_queue_is_over(stage: Stage) -> None:
    steps = {"only": {"task": "shop.nowhere", "timeout": {"queue": "5s"}}}
    ref = stage.submit(document.parse_document({"workflow": "w", "version": 1, "steps": steps}))
    for _ in range(4):
        stage.answer_all()
        stage.pass_time(2)
    stage.journal()
    stage.worker.pulse()
    row = stage.row(ref)
    assert (row.state, row.error and row.error["step"]) == (RunState.FAILED, "only")


def test_a_step_that_was_declined_survives_a_new_board_and_can_be_cancelled(stage: Stage) -> None:
    ref = stage.submit(single("shop.nowhere"))
    stage.answer_all()
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.journal()
    assert stage.word(ref, "only").state is StepState.READY
    stage.pass_time(7)
    assert stage.answer_all() == 1
    stage.worker.process.entrance.cancel(ref, by="boss")
    stage.journal()
    assert stage.row(ref).state is RunState.CANCELLED


# --- real processes ---------------------------------------------------------------------------------------------------


@contextmanager
def process(role: str, settings: Settings, *arguments: str) -> Generator[subprocess.Popen[bytes]]:
    """A process of ours by the `convergio` command; at the end it is killed."""
    given = {"REDIS_URL": settings.redis_url, "JOURNAL_URL": settings.journal_url, "MODEL_NAME": "scripted"}
    given["HOME"] = str(settings.home)
    env = {**os.environ, **{f"CONVERGIO_{key}": value for key, value in given.items()}, "PYTHONPATH": str(ROOT)}
    with (settings.home / f"{role}.log").open("ab") as log:
        command = [sys.executable, "-m", "convergio.workers.cli", role, *arguments]
        made = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        yield made
    finally:
        made.kill()
        made.wait()


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_step_waits_for_a_worker_that_includes_its_module(
    valkey: str, sqlite_url: str, tmp_path: Path, pool: str
) -> None:
    """First there is only one that does not; when one that does takes its place, nobody has to do anything else."""
    settings = settings_for(valkey, sqlite_url, tmp_path)
    migrated(settings.journal_url)
    with ExitStack() as stack:
        entrance, history = boot.entrance(settings), boot.history(settings)
        stack.callback(entrance.doors._database.close)
        stack.callback(history._database.close)
        stack.callback(entrance.link.close)
        stack.enter_context(process("service", settings))
        older = stack.enter_context(process("worker", settings, "--no-service"))
        inquiry = Inquiry(entrance.link, history)
        wait_until(lambda: has_board(entrance.link), timeout=30)
        made = single(named(shop.asks_again), with_={"countdown": 0, "until": 1})
        row = entrance.submit(Submission(workflow=made, input=None))
        ref = RunRef(tenant=row.tenant, run=row.run_id)

        def why() -> str:
            view = inquiry.view(ref)
            return reason.of_step(view, view.steps["only"])

        wait_until(lambda: "NO_WORKER" in why(), timeout=30)
        assert f"no function is registered as '{named(shop.asks_again)}'" in why()
        older.kill()
        with_it = ["--no-service", "--pool", pool, "-c", "2", "--include", "tests.integration.shop"]
        stack.enter_context(process("worker", settings, *with_it))
        wait_until(lambda: history.run(ref.tenant, ref.run).terminal, timeout=60)
        assert history.run(ref.tenant, ref.run).output == 1


def has_board(link: Link) -> bool:
    try:
        link.refresh()
    except (errors.BoardRebuilding, errors.BoardUnavailable):
        return False
    return True
