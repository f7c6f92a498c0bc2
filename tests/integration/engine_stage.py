"""The engine without Celery: a board, a journal, and every role played by hand, in the order that a test wants."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from convergio.config import settings
from convergio.graphflow.board import fields
from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.engine.inquiry import Inquiry
from convergio.graphflow.engine.steps import Steps
from convergio.graphflow.engine.submission import Submission
from convergio.graphflow.flow import document
from convergio.graphflow.journal import database
from convergio.graphflow.journal.database import Database
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.workers import boot
from tests.waiting import wait_until


class EngineStage:
    """One process that is submitter, worker and service process."""

    def __init__(self, redis_url: str, journal_url: str, home: Path) -> None:
        """Makes tables and board."""
        self.settings = settings.load(redis_url=redis_url, journal_url=journal_url, home=home)
        boot.migrate(journal_url)
        self.service = boot.service(self.settings)
        # Nobody waits for answers here; storing them would take Celery's result backend.
        self.service.journaler.finished = _nobody_waits
        self.service.journaler.decided = _nobody_asked
        assert self.service.rebuilder.rebuild() is not None
        self.history = boot.history(self.settings)
        self.core = boot.core(self.settings, self.history)
        self.entrance = boot.entrance(self.settings, self.core)
        core = self.core
        self.steps = Steps(core.link, core.plans, core.ringer, core.drain, core.nonces, worker="w1")
        self.inquiry = Inquiry(core.link, self.history, core.ringer.bell.list_of)

    def close(self) -> None:
        """Ends the connections."""
        self.service.link.close()
        self.core.link.close()
        self.core.app.close()

    def submit(self, steps: Mapping[str, Any], **given: Any) -> RunRef:
        """A run of these steps."""
        workflow = document.parse_document({"workflow": "staged", "version": 1, "steps": dict(steps)})
        row = self.entrance.submit(Submission(workflow=workflow, input={}, submitter="ann", **given))
        return RunRef(tenant=row.tenant, run=row.run_id)

    def word(self, ref: RunRef, step: str) -> fields.Word:
        """The step's state on the board."""
        link = self.core.link
        return fields.Word.parse(link.client.hget(link.keys(link.epoch()).run(ref), fields.state(step)))  # type: ignore[arg-type]

    def claim(self, ref: RunRef, step: str) -> Claim:
        """The claim that the step's doorbell leads to."""
        claim = self.steps.claim(ref, step=step, ring=self.word(ref, step).rest, queue_list="steps")
        assert claim is not None
        return claim

    def succeed(self, ref: RunRef, step: str, output: Any = None) -> None:
        """The step ran well."""
        self.steps.succeed(self.claim(ref, step), output)

    def rebuild(self) -> None:
        """A new board from the journal."""
        wait_until(lambda: _done(self.service.rebuilder.rebuild))
        for link in (self.service.link, self.core.link):
            wait_until(lambda link=link: _done(link.refresh))  # type: ignore[misc]

    def journal(self) -> None:
        """Everything that was told is in SQL, and what waited for that goes on."""
        while self.service.journaler.step(wait_ms=1):
            pass


def _nobody_waits(refs: Sequence[RunRef]) -> None: ...


def _nobody_asked(ref: RunRef, step: str) -> None: ...


def _done(action: Callable[[], object]) -> bool:
    """Whether it went through; connections to a server that was restarted fail once."""
    try:
        return action() is not None
    except errors.BoardUnavailable:
        return False


@contextmanager
def engine_on(redis_url: str, journal_url: str, home: Path) -> Generator[EngineStage]:
    """A stage on an empty Redis and an empty journal."""
    opened: list[Database] = []
    connect = database.connect

    def remembered(*given: Any, **options: Any) -> Database:
        opened.append(connect(*given, **options))
        return opened[-1]

    with patch.object(database, "connect", remembered):
        stage = EngineStage(redis_url, journal_url, home)
        try:
            yield stage
        finally:
            stage.close()
            for one in opened:
                one.close()
