"""`convergio.celery_task`: a task of another Celery app, sent under its own name and awaited by its result.

steps:
  invoice:
    task: convergio.celery_task
    with: {name: "'billing.load'", queue: "'billing'", kwargs: "{'id': input.id}", deadline: "'10m'"}

It is sent at most once per attempt of the step: the fact that it will be sent is in SQL before it is. While it is
awaited the step holds no slot. A run that is cancelled does not take it back.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from convergio.graphflow.flow import durations
from convergio.graphflow.flow.registry import REGISTRY, Registered, Registry
from convergio.graphflow.model import errors, instance
from convergio.tasks.body import Body, Later

if TYPE_CHECKING:
    from celery import Celery

    from convergio.graphflow.engine.claims import Claim
    from convergio.tasks.app import FlowTask

logger = logging.getLogger(__name__)

NAME: Final = "convergio.celery_task"

SENT: Final = "sent."
"""Key prefix of the recorded fact that an attempt's task is sent, or is about to be."""

DEADLINE: Final = 3600.0
"""Seconds after which a result is not waited for any more, where a step says nothing else."""

SOONEST, LATEST, SHARE = 0.5, 60.0, 0.1
"""Seconds between two looks: at least, at most, and as a share of the time that passed since it was sent."""

CONNECT: Final = 5.0
"""Seconds in which the other app's broker must take a connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What is asked of the other app. `deadline` in seconds; `queue` None: as `app` routes it; `app` None: ours."""

    name: str
    queue: str | None = None
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    deadline: float = DEADLINE
    app: str | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """From a step's arguments. Permanent with what is wrong."""
        given = {name: value for name, value in arguments.items() if value is not None}
        texts = [name for name in ("name", "queue", "app") if not isinstance(given.get(name, "text"), str)]
        if texts or not given.get("name"):
            raise _wrong(f"'{(texts or ['name'])[0]}' is not a text", "write it as CEL text: name: \"'billing.load'\"")
        if not isinstance(given.get("args", []), list):
            raise _wrong("'args' is not a list", "write args: [input.id]")
        if not isinstance(given.get("kwargs", {}), dict):
            raise _wrong("'kwargs' is not a mapping", "write kwargs: \"{'id': input.id}\"")
        try:
            given["deadline"] = durations.seconds(given.get("deadline", DEADLINE))
        except ValueError as error:
            raise _wrong(f"'deadline' {error}", durations.EXPECTED) from None
        return cls(**given)


def _wrong(said: str, hint: str) -> errors.Permanent:
    return errors.Permanent(f"{NAME}: {said}", hint=hint)


class CeleryTask(Body):
    """The body of such a step. `apps`: those of the included modules, by name."""

    def __init__(self) -> None:
        self.__name__ = self.__qualname__ = "celery_task"
        self.__signature__ = inspect.signature(Errand)
        self.apps: dict[str, Celery] = {}

    def perform(self, task: FlowTask, arguments: Mapping[str, Any]) -> Any:
        """Its result. Raises Later while there is none, StepFailed with what the task raised, StepTimeout."""
        errand, held = Errand.of(arguments), task.claim.held
        app = self._app(task, errand)
        task_id = f"{held.ref.run}.{instance.slug(held.step)}.{held.attempt}"
        sent = held.records.get(f"{SENT}{held.attempt}")
        if sent is None:
            self._send(task, app, errand, task_id)
            raise _later(errand, task_id, 0.0)
        waited = (held.at_ms - sent["at_ms"]) / 1000
        return _result(app, errand, task_id, waited)

    def _app(self, task: FlowTask, errand: Errand) -> Celery:
        from celery.backends.base import DisabledBackend

        if errand.app is None:
            return task.app
        app = self.apps.get(errand.app)
        if app is None:
            known = ", ".join(sorted(self.apps)) or "none"
            raise _wrong(f"no included module has an app '{errand.app}'", f"apps by their names: {known}")
        if isinstance(app.backend, DisabledBackend):
            raise _wrong(f"app '{errand.app}' has no result backend", "there is no other way to learn of its results")
        return app

    def _send(self, task: FlowTask, app: Celery, errand: Errand, task_id: str) -> None:
        """First a connection, then the fact, then the message: what fails before the fact may be tried again.

        What fails after it may have been sent, or not: nobody can know, and it is not sent a second time.
        """
        from kombu.exceptions import OperationalError

        claim = task.claim
        with app.producer_or_acquire() as producer:
            try:
                producer.connection.ensure_connection(max_retries=1, timeout=CONNECT)
            except (OperationalError, OSError) as error:
                raise errors.Transient(f"{NAME}: the broker of '{errand.name}' does not answer: {error}") from error
            steps = task.worker.steps
            fact = {"task_id": task_id, "name": errand.name, "at_ms": claim.held.at_ms, "worker": steps.worker}
            steps.guard(claim, f"{SENT}{claim.held.attempt}", fact)
            _publish(app, producer, errand, task_id, claim)


def _publish(app: Celery, producer: Any, errand: Errand, task_id: str, claim: Claim) -> None:
    """As `send_task` does, but without a subscription to the result, which it would keep for as long as we live."""
    import kombu

    args, kwargs = tuple(errand.args), dict(errand.kwargs)
    # To a queue by its name, as anybody may send there who knows nothing of the app that serves it.
    options: dict[str, Any] = {"queue": kombu.Queue(errand.queue)} if errand.queue is not None else {}
    if errand.app is None and errand.queue is None:
        options = {"queue": kombu.Queue("celery")}
    amqp: Any = app.amqp
    route = amqp.router.route(options, errand.name, args, kwargs)
    root = claim.held.ref.run
    message = amqp.create_task_message(task_id, errand.name, args, kwargs, root_id=root, ignore_result=False)
    amqp.send_task_message(producer, errand.name, message, retry=False, **route)


def _result(app: Celery, errand: Errand, task_id: str, waited: float) -> Any:
    from celery import states

    try:
        meta = app.backend.get_task_meta(task_id, cache=False)
    except Exception as error:  # noqa: BLE001  # whatever the driver of that backend raises
        logger.warning("the result of %s '%s' cannot be read: %s", task_id, errand.name, error)
        meta = {"status": f"unknown, as the result backend fails: {type(error).__name__}: {error}", "result": None}
    match meta["status"]:
        case states.SUCCESS:
            return meta["result"]
        case states.FAILURE:
            raised = meta["result"]
            said = f"task '{errand.name}' failed: {type(raised).__name__}: {raised}"
            cause = raised if isinstance(raised, BaseException) else None
            raise errors.StepFailed(said, hint="the log of the worker that ran it has the traceback") from cause
        case states.REVOKED:
            raise errors.Permanent(f"task '{errand.name}' was revoked", hint="start the run again if it should run")
        case status if waited < errand.deadline:
            raise _later(errand, task_id, waited, str(status))
        case status:
            said = f"task '{errand.name}' ({task_id}) gave no result within {errand.deadline:g} s: it is {status}"
            hint = (
                f"is queue '{errand.queue or 'celery'}' served, does the task keep its result, and in the backend"
                " that is looked at? A worker that was killed at the moment of sending may not have sent it"
            )
            raise errors.StepTimeout(said, hint=hint)


def _later(errand: Errand, task_id: str, waited: float, status: str = "PENDING") -> Later:
    what = f"the result of Celery task '{errand.name}' ({task_id}, {status})"
    return Later(pause(waited, errand.deadline), what)


def pause(waited: float, deadline: float) -> float:
    """Seconds until the next look, `waited` seconds after the sending: long tasks are looked at rarely."""
    return max(SOONEST, min(waited * SHARE, LATEST, deadline - waited))


CELERY_TASK: Final = CeleryTask()


def register(apps: Mapping[str, Celery] | None = None, registry: Registry = REGISTRY) -> None:
    """Makes `convergio.celery_task` callable by steps; `apps` by the name that a step gives as `app`."""
    CELERY_TASK.apps.update(apps or {})
    registry.add(Registered(name=NAME, function=CELERY_TASK))
