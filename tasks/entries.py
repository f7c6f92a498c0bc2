"""The public Celery entries: what any Celery client in any language may send. They ride their own queue, with late
acks.

`convergio.submit(workflow, input, key=None, tenant=..., submitter=...)`: the run's id is the task's id, and its result
is the run's. `convergio.signal(run, name, data)` and `convergio.cancel(run, reason)` end at once.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol, cast

from celery import Celery, Task
from celery.exceptions import Ignore

from convergio.graphflow.engine.submission import Entrance, Submission
from convergio.graphflow.journal.rows import RunRow
from convergio.graphflow.library import Catalog
from convergio.graphflow.model import errors, ids
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState

QUEUE = "convergio"
SUBMITTED = "SUBMITTED"
"""State of a submit task whose run has not ended yet."""


class EntryWorker(Protocol):
    """What the entries need."""

    entrance: Entrance
    catalog: Catalog
    callers: Callers


class Callers(Protocol):
    """Who else waits for a run: submit tasks whose key named a run that was there before."""

    def add(self, ref: RunRef, task_id: str, node: str) -> None: ...


class Entry(Task[Any, Any]):
    """A public entry: acknowledged late, its result kept, tried again while SQL or Redis are away."""

    abstract = True
    acks_late = True
    ignore_result = False
    throws = (errors.ConvergioError,)
    autoretry_for = (errors.JournalUnavailable,)
    retry_backoff = 1
    retry_backoff_max = 5
    max_retries = 12

    @property
    def worker(self) -> EntryWorker:
        return cast(EntryWorker, vars(self.app)["worker"])


def register(app: Celery) -> None:
    """Adds the public entries to the app."""

    @app.task(base=Entry, bind=True, shared=False, name="convergio.submit")
    def submit(
        self: Entry,
        workflow: str,
        input: Any = None,
        key: str | None = None,
        tenant: str = ids.DEFAULT_TENANT,
        submitter: str = "",
    ) -> Any:
        with said_whole():
            row = self.worker.entrance.submit(
                Submission(
                    workflow=self.worker.catalog.get(workflow),
                    input=input,
                    run_id=str(self.request.id),
                    tenant=tenant,
                    submitter=submitter or str(self.request.origin or "celery"),
                    key=key,
                )
            )
        if row.terminal:
            return result_of(row)
        ref = RunRef(tenant=tenant, run=row.run_id)
        self.worker.callers.add(ref, str(self.request.id), str(self.request.hostname))
        self.send_event("task-submitted", run=row.run_id)
        self.update_state(state=SUBMITTED, meta={"run": row.run_id})
        # A fast run may have ended before this caller was known, or its answer was overwritten by the line above.
        row = self.worker.entrance.doors.run(tenant, row.run_id)
        if row.terminal:
            return result_of(row)
        raise Ignore

    @app.task(base=Entry, bind=True, shared=False, name="convergio.signal")
    def signal(
        self: Entry, run: str, name: str, data: Any = None, tenant: str = ids.DEFAULT_TENANT, by: str = ""
    ) -> bool:
        ref = RunRef(tenant=tenant, run=run)
        caller = by or str(self.request.origin or "celery")
        with said_whole():
            return self.worker.entrance.signal(ref, name=name, data=data, by=caller, signal_id=self.request.id)

    @app.task(base=Entry, bind=True, shared=False, name="convergio.cancel")
    def cancel(self: Entry, run: str, reason: str = "", tenant: str = ids.DEFAULT_TENANT, by: str = "") -> str:
        caller = by or str(self.request.origin or "celery")
        with said_whole():
            return self.worker.entrance.cancel(RunRef(tenant=tenant, run=run), by=caller, reason=reason).state.value


@contextmanager
def said_whole() -> Generator[None]:
    """Celery carries only an exception's type and text to the caller: the hint goes into the text."""
    try:
        yield
    except errors.ConvergioError as error:
        if error.hint is None or error.retryable:
            raise
        raise type(error)(f"{error.message}; {error.hint}", **error.where) from error


def result_of(row: RunRow) -> Any:
    """A run's result as its caller gets it: the output, or RunFailed, or RunCancelled."""
    if row.state is RunState.SUCCEEDED:
        return row.output
    raise failure_of(row)


def failure_of(row: RunRow) -> errors.ConvergioError:
    """Why the run has no output."""
    facts = row.error or {}
    text = f"run {row.run_id}: {facts.get('code', '')} {facts.get('message', '')}".strip()
    hint = f"convergio runs show {row.run_id}"
    return (errors.RunCancelled if row.state is RunState.CANCELLED else errors.RunFailed)(text, hint=hint)
