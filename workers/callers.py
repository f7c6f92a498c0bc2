"""Who waits for a run: the submit task of its id, and tasks whose key named it.

They are answered when the run has ended.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from celery import Celery
from celery.exceptions import OperationalError

from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.engine.submission import ref_of
from convergio.graphflow.journal.history import History
from convergio.graphflow.journal.rows import OutcomeRow, RunRow
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from convergio.tasks.entries import failure_of
from convergio.workers.answers import Answer, Answers

logger = logging.getLogger(__name__)

TTL: Final = 24 * 3600
"""Seconds for which a caller is remembered, like Celery's own results."""


class Callers:
    """Stores results under the ids that callers wait for, and tells Flower that those tasks have ended."""

    def __init__(self, app: Celery, link: Link, history: History) -> None:
        self.app = app
        self.answers = Answers(app)
        self.link = link
        self.history = history

    def add(self, ref: RunRef, task_id: str, node: str) -> None:
        """`task_id`, which worker `node` took, is answered when the run ends. Raises BoardUnavailable."""
        key = self._key(ref)
        try:
            with self.link.client.pipeline() as pipe:
                pipe.hset(key, task_id, node)
                pipe.expire(key, TTL)
                pipe.execute()
        except UNREACHABLE as error:
            if task_id != ref.run:
                raise unavailable(error) from error
            # It is answered anyway: only Flower is not told that it has ended.
            logger.warning("caller %s is not remembered: %s", task_id, error)

    def finished(self, refs: Sequence[RunRef]) -> None:
        """The runs ended and are in SQL: their callers get the results. A failure here is only logged."""
        with self._tolerant(refs):
            callers = self._callers(refs)
            asked = {row.run_id for row in self.history.events([ref.run for ref in refs], "step.blocked")}
            rows = self.history.runs_of([ref.run for ref in refs])
            waiting = {row.run_id: callers[ref_of(row)] for row in rows}
            answers: list[Answer] = []
            for row in rows:
                with self._tolerant([ref_of(row)]):
                    result = self._result(row)
                    answers += [Answer(one, result) for one in {row.run_id, *waiting[row.run_id]}]
            self.answers.store(answers)
            for row in rows:
                with self._tolerant([ref_of(row)]):
                    for task_id, node in waiting[row.run_id].items():
                        self._tell(task_id, node, row.error)
                    if row.run_id in asked:
                        self._approvals(ref_of(row))

    def _result(self, row: RunRow) -> Any:
        if row.state is RunState.SUCCEEDED:
            return self.history.whole(row.tenant, row.output)
        return failure_of(row)

    def _callers(self, refs: Sequence[RunRef]) -> dict[RunRef, dict[str, str]]:
        """The nodes that took the tasks which wait for each run, by the tasks' ids."""
        with self.link.client.pipeline(transaction=False) as pipe:
            for ref in refs:
                pipe.hgetall(self._key(ref))
            return dict(zip(refs, pipe.execute(), strict=True))

    def decided(self, ref: RunRef, step: str) -> None:
        """An approval was decided, and that is in SQL: its task has ended. A failure here is only logged."""
        with self._tolerant([ref]):
            self._approvals(ref, only=step)

    @contextmanager
    def _tolerant(self, refs: Sequence[RunRef]) -> Generator[None]:
        runs = ", ".join(map(str, refs))
        try:
            yield
        except (*UNREACHABLE, OperationalError, errors.JournalUnavailable) as error:
            logger.warning("callers of %s are not answered: %s", runs, error)
        except Exception:  # the journaler releases what waits after this: no caller may stop it
            logger.exception("callers of %s are not answered", runs)

    def _approvals(self, ref: RunRef, *, only: str | None = None) -> None:
        """Approval tasks: their AsyncResult is the decision, under the id of the doorbell that was answered first."""
        first: dict[str, Mapping[str, Any]] = {}
        for row in self.history.events([ref.run], "step.blocked"):
            if row.step and only in (None, row.instance) and "task_id" in row.data:
                first.setdefault(row.instance, row.data)
        for outcome in self.history.outcomes(ref.run, list({instance.step_of(one) for one in first})):
            if outcome.instance in first:
                self._approval(first[outcome.instance], outcome)

    def _approval(self, blocked: Mapping[str, Any], row: OutcomeRow) -> None:
        task_id, node = str(blocked["task_id"]), str(blocked.get("node", ""))
        if row.state is StepState.CANCELLED:
            self.app.backend.mark_as_revoked(task_id, "the run was ended", store_result=True)
            # A state of its own: Celery's REVOKED counts as earlier than BLOCKED, and would not be shown.
            self._send(node, "task-cancelled", uuid=task_id)
        else:
            self.app.backend.mark_as_done(task_id, row.output if row.error is None else dict(row.error))
            self._tell(task_id, node, row.error)

    def _tell(self, task_id: str, node: str, error: Mapping[str, Any] | None) -> None:
        if error is None:
            self._send(node, "task-succeeded", uuid=task_id, result=None, runtime=None)
        else:
            said = f"{error.get('code', '')} {error.get('message', '')}"
            self._send(node, "task-failed", uuid=task_id, exception=said, traceback=None)

    def _send(self, node: str, event: str, **facts: Any) -> None:
        """The event that ends a task in Flower, in the name of the worker that took it."""
        if node and self.app.conf.worker_send_task_events:
            with self.app.events.default_dispatcher(hostname=node) as events:
                events.send(event, **facts)

    def _key(self, ref: RunRef) -> str:
        return f"{self.link.prefix}:callers:{ref.tenant}:{ref.run}"
