"""Who waits for a run: the submit task of its id, and tasks whose key named it.

They are answered when the run has ended.
"""

from __future__ import annotations

import logging
from typing import Final, cast

from celery import Celery

from convergio.graphflow.board.connection import UNREACHABLE, Link
from convergio.graphflow.journal.history import History
from convergio.graphflow.journal.rows import OutcomeRow, RunRow
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState
from convergio.tasks.entries import failure_of

logger = logging.getLogger(__name__)

TTL: Final = 24 * 3600
"""Seconds for which a caller is remembered, like Celery's own results."""


class Callers:
    """Stores results under the ids that callers wait for."""

    def __init__(self, app: Celery, link: Link, history: History) -> None:
        self.app = app
        self.link = link
        self.history = history

    def add(self, ref: RunRef, task_id: str) -> None:
        """`task_id` is answered too when the run ends."""
        key = self._key(ref)
        with self.link.client.pipeline() as pipe:
            pipe.sadd(key, task_id)
            pipe.expire(key, TTL)
            pipe.execute()

    def finished(self, ref: RunRef, state: str) -> None:
        """The run ended as `state` and is in SQL: its callers get its result. A failure here is only logged."""
        try:
            waiting = cast("set[str]", self.link.client.smembers(self._key(ref)))
            row = self.history.run(ref.tenant, ref.run)
            for task_id in {ref.run, *waiting}:
                self._answer(task_id, row)
            self._approvals(ref)
        except UNREACHABLE as error:
            logger.warning("callers of run %s are not answered: %s", ref, error)

    def _answer(self, task_id: str, row: RunRow) -> None:
        if row.state is RunState.SUCCEEDED:
            self.app.backend.mark_as_done(task_id, row.output)
        else:
            self.app.backend.mark_as_failure(task_id, failure_of(row))

    def _approvals(self, ref: RunRef) -> None:
        """Approval tasks: their AsyncResult is the decision, under the id of the doorbell that was answered first."""
        rows = self.history.timeline(ref.tenant, ref.run)
        first: dict[str, str] = {}
        for row in rows:
            if not isinstance(row, OutcomeRow) and row.type == "step.blocked" and row.step and "task_id" in row.data:
                first.setdefault(row.step, str(row.data["task_id"]))
        for row in rows:
            if isinstance(row, OutcomeRow) and row.step in first:
                self.app.backend.mark_as_done(first[row.step], row.output if row.error is None else dict(row.error))

    def _key(self, ref: RunRef) -> str:
        return f"{self.link.prefix}:callers:{ref.tenant}:{ref.run}"
