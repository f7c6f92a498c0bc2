"""Real service and worker processes, each with settings of its own, and a door to the same servers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from convergio.config.settings import Settings
from convergio.graphflow.board import fields, scripts
from convergio.graphflow.engine.submission import Entrance, Submission
from convergio.graphflow.journal.history import History
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import StepState
from convergio.graphflow.model.workflow import Workflow
from convergio.workers import boot
from tests.integration.engine_bodies import FOLDER, GATE
from tests.integration.engine_rig import migrated, settings_for, single
from tests.waiting import wait_until

ROOT: Final = Path(__file__).parents[2]
RUN: Final = (
    "from convergio.config import settings; from convergio.workers import boot, log\n"
    "loaded = settings.load(); log.to_stderr(loaded); raise SystemExit(boot.{}(loaded{}).run())"
)


@dataclass(kw_only=True)
class Crew:
    """Processes that a test starts by name, and what the journal and the board know of runs."""

    settings: Settings
    folder: Path
    entrance: Entrance
    history: History
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict[str, subprocess.Popen[bytes]])
    began_at: float = 0.0
    """time.monotonic() at which there was a board"""

    # --- processes --------------------------------------------------------------------------------------------------

    def start(self, name: str, **given: object) -> subprocess.Popen[bytes]:
        """A process: `service`, or a worker of this name; `given` are settings."""
        role, more = ("service", "") if name == "service" else ("worker", f", name={name!r}")
        wanted = {
            "REDIS_URL": self.settings.redis_url,
            "JOURNAL_URL": self.settings.journal_url,
            "HOME": self.folder,
            "KEY_PREFIX": self.settings.key_prefix,
            "MODEL_NAME": "scripted",
            "INCLUDE": "tests.integration.worker_bodies",
            "LOG_LEVEL": "INFO",
            **{key.upper(): value for key, value in given.items()},
        }
        env = {**os.environ, **{f"CONVERGIO_{key}": str(value) for key, value in wanted.items()}}
        env |= {FOLDER: str(self.folder), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", RUN.format(role, more)]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)
        self.processes[name] = process
        return process

    def started(self, name: str, **given: object) -> subprocess.Popen[bytes]:
        """The same, once it serves its queues."""
        before = self.log(name).count("ready.")
        process = self.start(name, **given)
        wait_until(lambda: self.log(name).count("ready.") > before, timeout=30)
        return process

    def log(self, name: str) -> str:
        """What the process has logged."""
        file = self.folder / f"{name}.log"
        return file.read_text() if file.exists() else ""

    def children(self, name: str) -> list[int]:
        """The processes that a worker forked."""
        return [child.pid for child in psutil.Process(self.processes[name].pid).children()]

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    # --- runs -------------------------------------------------------------------------------------------------------

    def submit(self, workflow: Workflow) -> RunRef:
        row = self.entrance.submit(Submission(workflow=workflow, input=None))
        return RunRef(tenant=row.tenant, run=row.run_id)

    def named(self, function: str, name: str, **more: Any) -> RunRef:
        """A run of one step, `only`, whose body notes under this name what it does."""
        given = {"name": f"'{name}'", **more}
        return self.submit(single(function, with_=given))

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

    def events(self, ref: RunRef, kind: str) -> int:
        """How many journaled events of this kind the run has."""
        return len(list(self.history.events([ref.run], kind)))

    def word(self, ref: RunRef, step: str = "only") -> fields.Word:
        """The step's state on the board; WAITING where there is none."""
        link = self.entrance.link
        try:
            text: Any = link.client.hget(link.keys(link.refresh()).run(ref), fields.state(step))
        except (errors.BoardRebuilding, errors.BoardUnavailable):
            return fields.Word(StepState.WAITING)
        return fields.Word.parse(text)

    def open_gate(self) -> None:
        (self.folder / GATE).touch()

    def wait_until_leases_may_end(self) -> None:
        """The sweeper ends no lease before it has seen the board for a whole one."""
        wait_until(lambda: time.monotonic() - self.began_at > 1.2 * scripts.LEASE_MS / 1000, timeout=20)

    def has_board(self) -> bool:
        try:
            self.entrance.link.refresh()
        except (errors.BoardRebuilding, errors.BoardUnavailable):
            return False
        return True


@contextmanager
def crew_on(redis_url: str, journal_url: str, folder: Path, **more: Any) -> Generator[Crew]:
    """A service process and its board; workers come when they are started. `more`: settings of all."""
    settings = settings_for(redis_url, journal_url, folder, **more)
    migrated(settings.journal_url)
    with ExitStack() as stack:
        entrance, history = boot.entrance(settings), boot.history(settings)
        stack.callback(entrance.doors._database.close)
        stack.callback(history._database.close)
        stack.callback(entrance.link.close)
        crew = Crew(settings=settings, folder=folder, entrance=entrance, history=history)
        stack.callback(crew.close)
        crew.start("service")
        wait_until(crew.has_board, timeout=30)
        crew.began_at = time.monotonic()
        yield crew
