"""Tasks of another Celery app: sent under their own name by one process, awaited without a slot, executed once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
from celery import Celery
from celery.exceptions import WorkerTerminate

from convergio.graphflow.engine.steps import Steps
from convergio.graphflow.flow import document
from convergio.graphflow.flow.known import Known
from convergio.graphflow.flow.registry import REGISTRY
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks import foreign
from convergio.workers import boot
from tests.integration.engine_bodies import FOLDER
from tests.integration.engine_rig import QUIET, Stage, migrated, settings_for, single
from tests.integration.test_engine_workers import ROOT, Crew, running
from tests.waiting import wait_until

pytestmark = QUIET

QUEUE = "shop"


def errand(name: str, *, kwargs: str = "{}", **more: Any) -> Workflow:
    """A run whose only step sends a task to the other app."""
    arguments = {"name": f"'{name}'", "queue": f"'{QUEUE}'", "kwargs": kwargs, **more.pop("with_", {})}
    return single(foreign.NAME, with_=arguments, **more)


# --- in one process: who is killed when -------------------------------------------------------------------------------


def messages(stage: Stage) -> int:
    """How many tasks wait for the other app."""
    return int(stage.client.llen(QUEUE))


def answered(stage: Stage, *, dies: bool = False) -> None:
    """One doorbell, while the journaler does its work beside it; `dies`: its process ends in the middle of it."""
    bell = stage.take()
    assert bell is not None
    caught: list[BaseException] = []

    def answer() -> None:
        try:
            stage.worker.answer(bell)
        except WorkerTerminate as ended:
            caught.append(ended)

    body = threading.Thread(target=answer)
    body.start()
    deadline = time.monotonic() + 20
    while body.is_alive() and time.monotonic() < deadline:
        stage.journal()
        body.join(0.01)
    assert not body.is_alive()
    assert len(caught) == dies


def resulting(stage: Stage, task_id: str, **meta: Any) -> None:
    """The other app's worker has ended the task."""
    app = stage.worker.process.core.app
    if "error" in meta:
        app.backend.mark_as_failure(task_id, meta["error"])
    else:
        app.backend.store_result(task_id, meta["output"], "SUCCESS")


def died(stage: Stage) -> None:
    """Its lease ends, and its step is rung again; the claims of the dead are beaten no more."""
    stage.worker.claims._claims.clear()
    stage.pass_time(7)


def test_a_foreign_task_is_sent_once_and_awaited_without_a_slot(stage: Stage) -> None:
    ref = stage.submit(errand("shop.charge", kwargs="{'name': input.who}"), {"who": "ann"})
    answered(stage)
    assert messages(stage) == 1
    assert (stage.word(ref, "only").blocked_on, len(stage.worker.claims)) == (BlockedOn.HOOK, 0)
    for _ in range(3):
        stage.pass_time(1)
        answered(stage)
        assert messages(stage) == 1
    resulting(stage, f"{ref.run}.only.1", output={"charged": "ann"})
    stage.pass_time(1)
    answered(stage)
    stage.journal()
    assert (stage.row(ref).state, stage.row(ref).output) == (RunState.SUCCEEDED, {"charged": "ann"})
    assert stage.outcomes(ref)["only"].attempt == 1


@pytest.mark.parametrize(
    ("waited", "deadline", "seconds"),
    [(0, 3600, 0.5), (3, 3600, 0.5), (60, 3600, 6), (3000, 9999, 60), (3598, 3600, 2), (3600, 3600, 0.5)],
)
def test_the_longer_a_task_takes_the_rarer_it_is_looked_at(waited: float, deadline: float, seconds: float) -> None:
    assert foreign.pause(waited, deadline) == seconds


def test_sql_knows_that_a_task_will_be_sent_before_it_is(stage: Stage) -> None:
    ref = stage.submit(errand("shop.charge"))
    known: list[list[str]] = []

    def publish(*_: Any) -> None:
        known.append([row.key for row in stage.history.facts(ref.run).records])

    with mock.patch.object(foreign, "_publish", publish):
        answered(stage)
    assert known == [["sent.1"]]


@pytest.mark.parametrize("after", ["sending", "recording"])
def test_a_worker_killed_around_the_sending_does_not_make_it_happen_twice(stage: Stage, after: str) -> None:
    ref = stage.submit(errand("shop.charge"))
    verb = (Steps, "look_again") if after == "sending" else (foreign, "_publish")
    with mock.patch.object(*verb, side_effect=WorkerTerminate):
        answered(stage, dies=True)
    assert messages(stage) == (after == "sending")
    died(stage)
    answered(stage)
    assert messages(stage) == (after == "sending"), "nobody can know, so it is not sent again"
    assert stage.word(ref, "only").blocked_on is BlockedOn.HOOK
    resulting(stage, f"{ref.run}.only.1", output="from whoever had it")
    stage.pass_time(1)
    answered(stage)
    stage.journal()
    assert stage.row(ref).output == "from whoever had it"


def test_a_wiped_redis_does_not_make_a_task_be_sent_twice(stage: Stage) -> None:
    """The fact was in SQL before the task was sent; the message itself went with Redis."""
    ref = stage.submit(errand("shop.charge"))
    answered(stage)
    assert messages(stage) == 1
    stage.wipe()
    stage.rebuild()
    stage.pass_time(7)
    answered(stage)
    assert (messages(stage), stage.word(ref, "only").state) == (0, StepState.BLOCKED)


def test_a_result_that_does_not_come_fails_the_step_at_its_deadline(stage: Stage) -> None:
    ref = stage.submit(errand("shop.charge", with_={"deadline": "'0.2s'"}))
    answered(stage)
    time.sleep(0.3)  # what is measured is the server's own clock
    stage.pass_time(1)
    answered(stage)
    stage.journal()
    error = stage.outcomes(ref)["only"].error
    assert error is not None
    assert error["code"] == "STEP_TIMEOUT"
    assert f"{ref.run}.only.1" in error["message"]
    assert "queue 'shop'" in error["hint"]


def test_a_failed_foreign_task_is_sent_again_only_by_the_steps_policy(stage: Stage) -> None:
    ref = stage.submit(errand("shop.declines", retry={"max": 1, "backoff": 0.1}))
    answered(stage)
    resulting(stage, f"{ref.run}.only.1", error=ValueError("card declined"))
    stage.pass_time(1)
    answered(stage)
    assert stage.word(ref, "only").blocked_on is BlockedOn.RETRY
    stage.journal()
    error = stage.events(ref, "step.retry")[-1]["error"]
    assert (error["code"], error["retryable"]) == ("STEP_FAILED", True)
    assert "ValueError: card declined" in error["message"]
    stage.pass_time(1)
    answered(stage)
    assert messages(stage) == 2
    resulting(stage, f"{ref.run}.only.2", output="paid")
    stage.pass_time(1)
    answered(stage)
    stage.journal()
    assert stage.row(ref).output == "paid"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "1"}, "'name' is not a text"),
        ({"args": "'x'"}, "'args' is not a list"),
        ({"kwargs": "[1]"}, "'kwargs' is not a mapping"),
        ({"deadline": "'soon'"}, "'deadline' 'soon' is not a duration"),
        ({"app": "'nobody'"}, "no included module has an app 'nobody'"),
    ],
)
def test_a_wrong_errand_fails_its_step_and_sends_nothing(stage: Stage, given: dict[str, str], said: str) -> None:
    ref = stage.submit(errand("shop.charge", with_=given))
    answered(stage)
    stage.journal()
    error = stage.outcomes(ref)["only"].error
    assert error is not None
    assert (error["code"], messages(stage)) == ("PERMANENT", 0)
    assert said in error["message"]
    assert error["hint"]


def test_what_an_errand_takes_is_checked_before_a_run_is_accepted(stage: Stage) -> None:
    steps = {"it": {"task": foreign.NAME, "with": {"name": "'x'", "queu": "'shop'"}}}
    with pytest.raises(errors.InvalidWorkflow, match=r"steps\.it\.with\.queu is not an argument"):
        document.parse_document(
            {"workflow": "w", "version": 1, "steps": steps}, known=Known(functions=REGISTRY.functions())
        )


def test_a_task_may_go_to_an_app_of_an_included_module_as_that_app_routes_it(stage: Stage) -> None:
    url = stage.settings.redis_url
    till = Celery("till", broker=url, backend=url, set_as_current=False)
    till.conf.task_routes = {"till.*": {"queue": "cash"}}
    made = single(foreign.NAME, with_={"name": "'till.open'", "app": "'till'", "args": "[1]"})
    with mock.patch.dict(foreign.CELERY_TASK.apps, till=till):
        ref = stage.submit(made)
        answered(stage)
        assert stage.client.llen("cash") == 1
        till.backend.store_result(f"{ref.run}.only.1", [1], "SUCCESS")
        stage.pass_time(1)
        answered(stage)
        stage.journal()
    assert stage.row(ref).output == [1]
    cast("Any", till.backend).client.connection_pool.disconnect()
    till.close()


def test_an_app_that_keeps_no_results_is_refused_before_anything_is_sent(stage: Stage) -> None:
    mute = Celery("mute", broker=stage.settings.redis_url, set_as_current=False)
    with mock.patch.dict(foreign.CELERY_TASK.apps, mute=mute):
        ref = stage.submit(errand("shop.charge", with_={"app": "'mute'"}))
        answered(stage)
        stage.journal()
    error = stage.outcomes(ref)["only"].error
    assert error is not None
    assert (messages(stage), "has no result backend" in error["message"]) == (0, True)


def test_a_broker_that_is_away_is_tried_again_by_the_policy_before_anything_is_recorded(stage: Stage) -> None:
    url = stage.settings.redis_url
    away = Celery("away", broker="redis://127.0.0.1:1/0", backend=url, set_as_current=False)
    with mock.patch.dict(foreign.CELERY_TASK.apps, away=away):
        ref = stage.submit(errand("shop.charge", with_={"app": "'away'"}, retry=2))
        answered(stage)
    stage.journal()
    assert stage.events(ref, "step.retry")[-1]["error"]["code"] == "TRANSIENT"
    assert not stage.history.facts(ref.run).records
    away.close()


# --- real processes: a second app with a worker of its own ------------------------------------------------------------


@contextmanager
def shop_worker(url: str, folder: Path) -> Generator[subprocess.Popen[bytes]]:
    """`celery worker` of a project that knows nothing of us."""
    env = {**os.environ, "SHOP_URL": url, FOLDER: str(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "celery", "-A", "tests.integration.shop", "worker", "-Q", QUEUE]
    command += ["--pool", "solo", "-l", "WARNING", "-n", "shop@test"]
    with (folder / "shop.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def crew(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Crew]:
    settings = settings_for(valkey, sqlite_url, tmp_path)
    migrated(settings.journal_url)
    with ExitStack() as stack:
        entrance, history = boot.entrance(settings), boot.history(settings)
        stack.callback(entrance.doors._database.close)
        stack.callback(history._database.close)
        stack.callback(entrance.link.close)
        processes = {name: stack.enter_context(running(name, settings, tmp_path)) for name in ("service", "w1", "w2")}
        processes["shop"] = stack.enter_context(shop_worker(valkey, tmp_path))
        made = Crew(settings=settings, folder=tmp_path, entrance=entrance, history=history, processes=processes)
        wait_until(made.has_board, timeout=30)
        yield made


def ended_well(crew: Crew, ref: RunRef) -> Any:
    wait_until(lambda: crew.ended(ref), timeout=40)
    row = crew.history.run(ref.tenant, ref.run)
    assert row.state is RunState.SUCCEEDED, row.error
    return row.output


@pytest.mark.slow
def test_a_foreign_task_is_executed_once_although_the_worker_that_sent_it_is_killed(crew: Crew) -> None:
    """Killed with -9 between sending and result; the other worker finds the result."""
    ref = crew.submit(errand("shop.charge", kwargs="{'name': 'ann', 'seconds': 8.0}"))
    wait_until(lambda: crew.began("ann"), timeout=30)
    (sent,) = [row.value for row in crew.history.facts(ref.run).records if row.key == "sent.1"]
    crew.processes[sent["worker"]].kill()
    assert ended_well(crew, ref) == {"charged": "ann"}
    assert len(crew.began("ann")) == 1


@pytest.mark.slow
def test_any_worker_of_the_other_app_does_and_its_errors_come_back(crew: Crew) -> None:
    good = [crew.submit(errand("shop.charge", kwargs=f"{{'name': 'c{number}'}}")) for number in range(5)]
    bad = crew.submit(errand("shop.declines"))
    assert [ended_well(crew, ref)["charged"] for ref in good] == [f"c{number}" for number in range(5)]
    assert {len(crew.began(f"c{number}")) for number in range(5)} == {1}
    wait_until(lambda: crew.ended(bad), timeout=20)
    error = crew.history.run(bad.tenant, bad.run).error
    assert error is not None
    assert "ValueError: card declined" in error["message"]
