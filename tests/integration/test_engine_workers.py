"""Real processes: a service and two workers, which are killed, stopped and cut off while bodies run in them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from convergio.config.settings import Settings
from convergio.graphflow.board import fields
from convergio.graphflow.engine.submission import Entrance, Submission
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.journal.history import History
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from convergio.workers import boot
from tests.integration.clients import foreign
from tests.integration.engine_bodies import FOLDER, GATE
from tests.integration.engine_rig import QUIET, migrated, settings_for, single
from tests.waiting import wait_until

pytestmark = [QUIET, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SLOTS = 4
"""Bodies at once in one worker process."""

RUN = (
    "from convergio.config import settings; from convergio.workers import boot, log\n"
    "loaded = settings.load(); log.to_stderr(loaded); boot.{}(loaded{}).run()"
)


@dataclass(kw_only=True)
class Crew:
    """The processes, and a door of our own to the same servers."""

    settings: Settings
    folder: Path
    entrance: Entrance
    history: History
    processes: dict[str, subprocess.Popen[bytes]]

    def has_board(self) -> bool:
        try:
            self.entrance.link.refresh()
        except (errors.BoardRebuilding, errors.BoardUnavailable):
            return False
        return True

    def submit(self, workflow: Workflow) -> RunRef:
        row = self.entrance.submit(Submission(workflow=workflow, input=None))
        return RunRef(tenant=row.tenant, run=row.run_id)

    def notes(self, name: str) -> list[tuple[str, int, float]]:
        """What the body of this name noted: what, which process, when."""
        file = self.folder / name
        lines = file.read_text().splitlines() if file.exists() else []
        return [(what, int(pid), float(at)) for what, pid, at in map(str.split, lines)]

    def began(self, name: str) -> list[int]:
        """The processes in which it began."""
        return [pid for what, pid, _ in self.notes(name) if what == "began"]

    def ended(self, ref: RunRef) -> bool:
        return self.history.run(ref.tenant, ref.run).terminal

    def word(self, ref: RunRef, step: str) -> fields.Word:
        """The step's state on the board; WAITING where there is none."""
        link = self.entrance.link
        try:
            text: Any = link.client.hget(link.keys(link.refresh()).run(ref), fields.state(step))
        except (errors.BoardRebuilding, errors.BoardUnavailable):
            return fields.Word(StepState.WAITING)
        return fields.Word.parse(text)

    def open_gate(self) -> None:
        (self.folder / GATE).touch()


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
        made = Crew(settings=settings, folder=tmp_path, entrance=entrance, history=history, processes=processes)
        wait_until(made.has_board, timeout=90)
        yield made


@contextmanager
def running(name: str, settings: Settings, folder: Path) -> Generator[subprocess.Popen[bytes]]:
    """A process of ours; at the end it is killed, if it still runs."""
    role, more = ("service", "") if name == "service" else ("worker", f", name={name!r}")
    given = {
        "REDIS_URL": settings.redis_url,
        "JOURNAL_URL": settings.journal_url,
        "HOME": str(folder),
        "MODEL_NAME": "scripted",
        "INCLUDE": "tests.integration.engine_bodies",
        "CONCURRENCY": str(SLOTS),
    }
    env = {**os.environ, **{f"CONVERGIO_{key}": value for key, value in given.items()}, FOLDER: str(folder)}
    command = [sys.executable, "-c", RUN.format(role, more)]
    with (folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=ROOT, env={**env, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def lasting(seconds: float, name: str, **more: Any) -> Workflow:
    return single("probe.lasts", with_={"seconds": seconds, "name": f"'{name}'"}, **more)


# --- P5 ---------------------------------------------------------------------------------------------------------------


def test_a_killed_workers_step_runs_again_within_fifteen_seconds_and_a_healthy_long_one_runs_once(crew: Crew) -> None:
    """Bodies are longer than a lease, and one of the two processes is killed. Beats tell the others apart."""
    doomed = crew.submit(single("probe.hold", with_={"name": "'doomed'"}))
    (victim,) = wait_until(lambda: crew.began("doomed"), timeout=30)
    names = [f"long{number}" for number in range(SLOTS)]  # they cannot all be in one process with it
    long = [crew.submit(lasting(7.5, name)) for name in names]
    wait_until(lambda: all(crew.began(name) for name in names), timeout=30)
    healthy = [name for name in names if crew.began(name) != [victim]]
    assert healthy
    next(process for process in crew.processes.values() if process.pid == victim).kill()
    killed = time.monotonic()
    wait_until(lambda: len(crew.began("doomed")) == 2, timeout=20)
    assert time.monotonic() - killed < 15
    crew.open_gate()
    wait_until(lambda: all(map(crew.ended, [doomed, *long])), timeout=40)
    assert {len(crew.began(name)) for name in healthy} == {1}
    assert {len(crew.began(name)) for name in {*names, "doomed"} - {*healthy}} == {2}
    assert {crew.history.run("default", ref.run).state for ref in (doomed, *long)} == {RunState.SUCCEEDED}


# --- P4 ---------------------------------------------------------------------------------------------------------------


def test_a_wiped_redis_costs_running_bodies_nothing(crew: Crew) -> None:
    made = WorkflowBuilder("wiped", version=1)
    first = made.task("first", "probe.lasts", with_={"seconds": 8, "name": "'first'"})
    made.task("last", "probe.lasts", after=first, with_={"seconds": 0, "name": "'last'"})
    ref = crew.submit(made.build())
    wait_until(lambda: crew.began("first"), timeout=30)
    wait_until(lambda: crew.history.run("default", ref.run).state is RunState.RUNNING, timeout=10)
    crew.entrance.link.client.flushall()
    wait_until(lambda: crew.ended(ref), timeout=30)
    assert crew.history.run("default", ref.run).output == "last"
    assert (len(crew.began("first")), len(crew.began("last"))) == (1, 1)


# --- ending -----------------------------------------------------------------------------------------------------------


def test_a_cancel_reaches_a_coroutine_within_two_seconds_and_refuses_a_late_result(crew: Crew) -> None:
    made = WorkflowBuilder("cancelled", version=1)
    made.task("sleeps", "probe.sleeps", with_={"name": "'sleeps'"})
    made.task("holds", "probe.hold", with_={"name": "'holds'"})
    ref = crew.submit(made.build())
    wait_until(lambda: crew.began("sleeps") and crew.began("holds"), timeout=30)
    crew.entrance.cancel(ref, by="boss")
    asked = time.monotonic()
    wait_until(lambda: [what for what, *_ in crew.notes("sleeps")] == ["began", "cancelled"], timeout=5)
    assert time.monotonic() - asked < 2
    wait_until(lambda: crew.ended(ref), timeout=10)
    crew.open_gate()
    wait_until(lambda: [what for what, *_ in crew.notes("holds")] == ["began", "ended"], timeout=5)
    row = crew.history.run("default", ref.run)
    assert row.state is RunState.CANCELLED
    assert {outcome.state for outcome in crew.history.facts(ref.run).outcomes} == {StepState.CANCELLED}


def test_a_stopped_worker_stays_until_what_it_owes_is_in_sql(crew: Crew) -> None:
    """The service process is frozen: SQL does not have the outcome, so the worker that keeps it may not go."""
    crew.processes["w2"].kill()
    crew.processes["w2"].wait()
    ref = crew.submit(lasting(0, "durable", durability="step"))
    wait_until(lambda: crew.began("durable"), timeout=30)
    wait_until(lambda: crew.ended(ref), timeout=10)
    crew.processes["service"].send_signal(signal.SIGSTOP)
    owed = crew.submit(lasting(0, "owed", durability="step"))
    wait_until(lambda: crew.word(owed, "only").blocked_on is BlockedOn.JOURNAL, timeout=10)
    crew.processes["w1"].send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        crew.processes["w1"].wait(timeout=3)
    crew.processes["service"].send_signal(signal.SIGCONT)
    assert crew.processes["w1"].wait(timeout=10) == 0
    wait_until(lambda: crew.ended(owed), timeout=10)


def test_the_log_has_the_traceback_of_what_a_body_raised(crew: Crew) -> None:
    """The step's error says so."""
    ref = crew.submit(single("probe.raises", with_={"kind": "'no text'"}))
    wait_until(lambda: crew.ended(ref), timeout=30)
    assert "the worker's log has the traceback" in str(crew.history.facts(ref.run).outcomes[0].error)
    logs = "".join((crew.folder / f"{name}.log").read_text() for name in ("w1", "w2"))
    assert re.search(f"step default/{ref.run}/only/.*, attempt 1: STEP_FAILED", logs)
    assert "in raises" in logs


# --- doors ------------------------------------------------------------------------------------------------------------


def test_any_celery_client_gets_a_runs_result(crew: Crew) -> None:
    """It imports nothing of ours."""
    with foreign(crew.settings.redis_url) as app:
        known, unknown = (
            app.send_task("convergio.submit", kwargs={"workflow": name}, queue="convergio")
            for name in ("quick", "quack")
        )
        assert known.get(timeout=30) == "soon"
        with pytest.raises(Exception, match="did you mean 'quick'"):
            unknown.get(timeout=30)
        assert crew.history.run("default", known.id).state is RunState.SUCCEEDED
