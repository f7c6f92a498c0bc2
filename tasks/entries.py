"""The public Celery entries: what any Celery client in any language may send. They ride their own queue, with late
acks.

`convergio.submit(workflow, input, key=None, tenant=..., submitter=..., priority=None)`: the run's id is the task's id,
and its result is the run's. `convergio.retry(run, key=None)` and `convergio.fork(run, step=None, input=...,
definition=None)` do the same for a new run that reuses what another one did. `convergio.say(run, text, step=None,
if_busy=None)` speaks to a conversation, and gives the run in which that is heard. `convergio.signal(run, name, data)`
and `convergio.cancel(run, reason)` end at once. `convergio.thread(run)` gives what was said in a run's conversations,
for readers whose stream was trimmed or is gone.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast

from celery import Celery, Task
from celery.exceptions import Ignore, Reject

from convergio.graphflow.engine import say as engine
from convergio.graphflow.engine.fork import UNCHANGED, Fork
from convergio.graphflow.engine.say import Saying
from convergio.graphflow.engine.submission import Entrance, Submission
from convergio.graphflow.flow import document
from convergio.graphflow.journal.rows import ForkKind, RunRow
from convergio.graphflow.library import Catalog
from convergio.graphflow.model import errors, ids
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState
from convergio.tasks import shown
from convergio.tasks.conversation.archive import Archive

QUEUE = "convergio"
SUBMITTED = "SUBMITTED"
"""State of a submit task whose run has not ended yet."""


class EntryWorker(Protocol):
    """What the entries need."""

    entrance: Entrance
    catalog: Catalog
    callers: Callers
    archive: Archive


class Callers(Protocol):
    """Who else waits for a run: submit tasks whose key named a run that was there before."""

    def add(self, ref: RunRef, task_id: str, node: str) -> None:
        """Raises BoardUnavailable if the task could not be remembered, and would never be answered."""


class Entry(Task[Any, Any]):
    """A public entry: acknowledged late, its result kept, tried again while SQL or Redis are away.

    Its run has the task's id, or the caller's key: tried again it is the same run.
    """

    abstract = True
    acks_late = True
    ignore_result = False
    throws = (errors.ConvergioError,)
    autoretry_for = (errors.JournalUnavailable, errors.BoardUnavailable, errors.BoardRebuilding, errors.Overloaded)
    retry_backoff = 1
    retry_backoff_max = 5
    max_retries = 12

    Request = "convergio.tasks.shown:Request"

    @property
    def worker(self) -> EntryWorker:
        return cast(EntryWorker, vars(self.app)["worker"])

    def signature_from_request(self, *args: Any, **options: Any) -> Any:
        """The message of the next try: Celery would show its arguments, whatever the first one showed."""
        made: Any = super().signature_from_request(*args, **options)
        made.set(argsrepr=shown.of_args(made.args), kwargsrepr=shown.of_kwargs(made.kwargs))
        return made

    def retry(self, *args: Any, **options: Any) -> Any:
        """The next try. Where not even that can be sent, the message that is here is delivered again."""
        try:
            return super().retry(*args, **options)
        except Reject as error:
            raise Reject(vars(error)["reason"], requeue=True) from error


def register(app: Celery) -> None:
    """Adds the public entries to the app."""
    _register_submit(app)
    _register_again(app)
    _register_control(app)


def _register_submit(app: Celery) -> None:
    @app.task(base=Entry, bind=True, shared=False, name="convergio.submit")
    def submit(
        self: Entry,
        workflow: str,
        input: Any = None,
        key: str | None = None,
        tenant: str = ids.DEFAULT_TENANT,
        submitter: str = "",
        priority: str | None = None,
    ) -> Any:
        with said_whole():
            row = self.worker.entrance.submit(
                Submission(
                    workflow=self.worker.catalog.get(workflow),
                    input=input,
                    run_id=str(self.request.id),
                    tenant=tenant,
                    submitter=submitter or origin_of(self),
                    key=key,
                    priority=priority,
                )
            )
        return followed(self, row)


def _register_again(app: Celery) -> None:
    @app.task(base=Entry, bind=True, shared=False, name="convergio.retry")
    def retry(
        self: Entry, run: str, key: str | None = None, tenant: str = ids.DEFAULT_TENANT, submitter: str = ""
    ) -> Any:
        ref = RunRef(tenant=tenant, run=run)
        name, task_id = submitter or origin_of(self), str(self.request.id)
        with said_whole():
            fork = Fork(ref=ref, submitter=name, kind=ForkKind.RETRY, run_id=task_id, key=key)
            row = self.worker.entrance.fork(fork).run
        return followed(self, row)

    @app.task(base=Entry, bind=True, shared=False, name="convergio.fork")
    def fork(
        self: Entry,
        run: str,
        step: str | None = None,
        input: Any = UNCHANGED,
        definition: Mapping[str, Any] | None = None,
        key: str | None = None,
        tenant: str = ids.DEFAULT_TENANT,
        submitter: str = "",
    ) -> Any:
        with said_whole():
            edited = None if definition is None else document.parse_document(definition, source="definition")
            wanted = Fork(
                ref=RunRef(tenant=tenant, run=run),
                submitter=submitter or origin_of(self),
                step=step,
                input=input,
                definition=edited,
                run_id=str(self.request.id),
                key=key,
            )
            row = self.worker.entrance.fork(wanted).run
        return followed(self, row)


def _register_control(app: Celery) -> None:
    @app.task(base=Entry, bind=True, shared=False, name="convergio.signal")
    def signal(
        self: Entry, run: str, name: str, data: Any = None, tenant: str = ids.DEFAULT_TENANT, by: str = ""
    ) -> bool:
        ref = RunRef(tenant=tenant, run=run)
        caller = by or origin_of(self)
        with said_whole():
            return self.worker.entrance.signal(ref, name=name, data=data, by=caller, signal_id=self.request.id)

    @app.task(base=Entry, bind=True, shared=False, name="convergio.say")
    def say(
        self: Entry,
        run: str,
        text: str,
        step: str | None = None,
        if_busy: str | None = None,
        tenant: str = ids.DEFAULT_TENANT,
        by: str = "",
    ) -> str:
        ref, task_id = RunRef(tenant=tenant, run=run), str(self.request.id)
        with said_whole():
            saying = Saying(ref=ref, text=text, by=by or origin_of(self), step=step, if_busy=if_busy, id=task_id)
            return engine.say(self.worker.entrance, saying).run_id

    @app.task(base=Entry, bind=True, shared=False, name="convergio.cancel")
    def cancel(self: Entry, run: str, reason: str = "", tenant: str = ids.DEFAULT_TENANT, by: str = "") -> str:
        caller = by or origin_of(self)
        with said_whole():
            return self.worker.entrance.cancel(RunRef(tenant=tenant, run=run), by=caller, reason=reason).state.value

    @app.task(base=Entry, bind=True, shared=False, name="convergio.pause")
    def pause(self: Entry, run: str, tenant: str = ids.DEFAULT_TENANT, by: str = "") -> str:
        with said_whole():
            ref = RunRef(tenant=tenant, run=run)
            return self.worker.entrance.pause(ref, by=by or origin_of(self)).state.value

    @app.task(base=Entry, bind=True, shared=False, name="convergio.resume")
    def resume(self: Entry, run: str, tenant: str = ids.DEFAULT_TENANT, by: str = "") -> str:
        with said_whole():
            ref = RunRef(tenant=tenant, run=run)
            return self.worker.entrance.resume(ref, by=by or origin_of(self)).state.value

    @app.task(base=Entry, bind=True, shared=False, name="convergio.thread")
    def thread(self: Entry, run: str, tenant: str = ids.DEFAULT_TENANT) -> dict[str, Any]:
        return self.worker.archive.past(tenant, run).as_dict()


def origin_of(task: Entry) -> str:
    """Who sent the message, where it names nobody."""
    return str(task.request.origin or "celery")


def followed(task: Entry, row: RunRow) -> Any:
    """The run's result, if it has ended; else the task goes on, and is answered when it does."""
    if row.terminal:
        return _ended(task, row)
    ref = RunRef(tenant=row.tenant, run=row.run_id)
    task.worker.callers.add(ref, str(task.request.id), str(task.request.hostname))
    task.send_event("task-submitted", run=row.run_id)
    task.update_state(state=SUBMITTED, meta={"run": row.run_id})
    # A fast run may have ended before this caller was known, or its answer was overwritten by the line above.
    return _ended(task, row)


def _ended(task: Entry, row: RunRow) -> Any:
    """The run's result, read from SQL: whole, however large it is. Ignore while there is none."""
    now = task.worker.entrance.doors.run(row.tenant, row.run_id)
    if now.terminal:
        return result_of(now)
    raise Ignore


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
