"""Celery tasks of a user's own modules as steps: each runs inside our step task, under its claim and its hooks.

Celery's own tracer runs it, as it does for `task.apply()`: signals, `before_start`, `on_failure` and the like happen as
ever, nothing is sent, and no result is stored. A retry that the task asks for becomes a retry of the step.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

from convergio.graphflow.flow.registry import REGISTRY, Registered, Registry
from convergio.graphflow.model import errors, instance
from convergio.tasks.body import Again, Body

if TYPE_CHECKING:
    from celery import Celery, Task

    from convergio.graphflow.engine.claims import Claim
    from convergio.tasks.app import FlowTask

INSIDE: Final = "convergio_step"
"""Attribute of the request of a task that runs inside a step: tenant, run and step."""

CHANGED: Final = "arguments."
"""Key prefix of a recorded fact: the arguments that a task wants from an attempt on (`self.retry(kwargs=...)`)."""

REFUSED: Final = "a step ends with a result or an error: return one, or raise"


def adopt(modules: Iterable[ModuleType], registry: Registry = REGISTRY) -> None:
    """Registers the Celery tasks of these modules, and all others of the same apps, under their Celery names.

    NameTaken if a function of another kind has the name.
    """
    if "celery" not in sys.modules:
        return  # none of them can have a task then
    seen: set[str] = set()
    for app in _apps(modules):
        for name, task in app.tasks.items():
            if not name.startswith("celery.") and name not in seen:
                seen.add(name)
                registry.add(Registered(name=name, function=Adopted(task)))
    _adopt_decorated(registry)


def _adopt_decorated(registry: Registry) -> None:
    """Celery tasks that have `@step` above them: they keep the name and the defaults that it gave them."""
    from celery import Task

    for entry in map(registry.get, registry.names()):
        function: Any = entry.function
        if isinstance(function, Task):
            registry.add(replace(entry, function=Adopted(cast(Any, function))))


def apps(modules: Iterable[ModuleType]) -> Mapping[str, Celery]:
    """The Celery apps of these modules by their names (`Celery("shop")`)."""
    return {str(app.main): app for app in _apps(modules) if app.main}


def _apps(modules: Iterable[ModuleType]) -> list[Celery]:
    """The apps whose tasks the modules have; first the one that shared tasks belong to while the modules are at home.

    Shared tasks are not looked at here: each look asks whichever app is current for them.
    """
    if "celery" not in sys.modules:
        return []
    from celery import Celery, Task, current_app
    from celery.local import PromiseProxy, Proxy

    found: dict[int, Celery] = {}
    shared = False
    for value in [value for module in modules for value in vars(module).values()]:
        app: Any = None
        if type(value) is Proxy:
            shared = True
        elif isinstance(value, Celery):
            app = value
        elif type(value) is PromiseProxy or isinstance(value, Task):
            app = cast(Any, value).app
        if app is not None:
            found.setdefault(id(app), app)
    if not found and not shared:
        return []
    home: Celery = cast(Any, current_app)._get_current_object()
    if id(home) in found or not found:
        return [home, *(app for app in found.values() if app is not home)]
    return list(found.values())


class Adopted(Body):
    """A Celery task as the body of a step."""

    def __init__(self, task: Task[Any, Any]) -> None:
        self.task = task
        self.__name__ = task.name
        self.__module__ = inspect.unwrap(task.run).__module__
        self.__qualname__ = inspect.unwrap(task.run).__qualname__
        with suppress(ValueError):  # what it takes may not be known: then nothing is checked before it runs
            self.__signature__ = inspect.signature(task.run)
        _tame(task)

    def __call__(self, **arguments: Any) -> Any:
        return self.task(**arguments)

    def perform(self, task: FlowTask, arguments: Mapping[str, Any]) -> Any:
        """Its result. Raises Again for `self.retry`, else what the task raised; Ignore and Reject become errors."""
        claim = task.claim
        args, kwargs = _changed(claim) or ([], dict(arguments))
        with _current(self.task.app):
            traced = self._tracer(_id(claim), args, kwargs, _request(task, claim))
        if traced.info is None:
            return traced.retval
        return self._not_well(task, traced.info.state, traced.info.retval, (args, kwargs))

    @functools.cached_property
    def _tracer(self) -> Any:
        from celery.app.trace import build_tracer

        return build_tracer(self.task.name, self.task, app=self.task.app, eager=True)

    def _not_well(self, task: FlowTask, state: str, error: Any, given: tuple[list[Any], dict[str, Any]]) -> NoReturn:
        from celery import states

        match state:
            case states.RETRY:
                self._again(task, error, given)
            case states.IGNORED:
                raise errors.Permanent(f"task '{self.task.name}' raised Ignore: {error}", hint=REFUSED)
            case states.REJECTED:
                said = f"task '{self.task.name}' raised Reject: {error.reason}"
                if error.requeue:
                    raise errors.Transient(said, hint="give the step a retry policy to have it run again")
                raise errors.Permanent(said, hint=REFUSED)
            case _:
                raise error

    def _again(self, task: FlowTask, retry: Any, given: tuple[list[Any], dict[str, Any]]) -> NoReturn:
        """Another attempt, as the task wants it. A Retry that it raised by itself has no limit: the policy's counts."""
        seconds = self._seconds(retry.when)
        signature = retry.sig
        if signature is None:
            raise errors.Transient(f"task '{self.task.name}': {retry}", retry_after=seconds) from retry.exc
        wanted = (list(signature.args), dict(signature.kwargs))
        if wanted != given:
            key = f"{CHANGED}{task.claim.held.attempt + 1}"
            task.worker.steps.record(task.claim, key, {"args": wanted[0], "kwargs": wanted[1]})
        why = f"{type(retry.exc).__name__}: {retry.exc}" if retry.exc is not None else "it asked for a retry"
        raise Again(seconds, errors.StepFailed(f"task '{self.task.name}': {why}"))

    def _seconds(self, when: Any) -> float:
        from celery.utils.time import maybe_make_aware

        if isinstance(when, datetime):
            aware = maybe_make_aware(when, self.task.app.timezone)
            return max(0.0, (aware - datetime.now(UTC)).total_seconds())
        return max(0.0, float(self.task.default_retry_delay if when is None else when))


def _changed(claim: Claim) -> tuple[list[Any], dict[str, Any]] | None:
    """The arguments that the task last wanted for this attempt and those after it."""
    for attempt in range(claim.held.attempt, 1, -1):
        fact = claim.held.records.get(f"{CHANGED}{attempt}")
        if fact is not None:
            return fact["args"], fact["kwargs"]
    return None


def _id(claim: Claim) -> str:
    return f"{claim.held.ref.run}.{instance.slug(claim.held.step)}"


def _request(task: FlowTask, claim: Claim) -> dict[str, Any]:
    """What `self.request` tells the task. Its id stays the same for all attempts, as Celery's does."""
    held, ours = claim.held, task.request
    where = {"tenant": held.ref.tenant, "run": held.ref.run, "step": held.step}
    delivery = dict(ours.delivery_info or {}) | {"redelivered": held.deliveries > 0}
    return {
        "id": _id(claim),
        "root_id": held.ref.run,
        "parent_id": ours.id,
        "retries": held.attempt - 1,
        "hostname": ours.hostname,
        "shadow": f"{held.meta['workflow']}/{instance.label(held.step)}",
        "delivery_info": delivery,
        "origin": "convergio",
        "headers": where,
        "ignore_result": True,
        INSIDE: where,
    }


@contextmanager
def _current(app: Celery) -> Generator[None]:
    """`current_app`, and every shared task that the body names, belong to the task's own app meanwhile."""
    from celery import current_app

    before: Celery = cast(Any, current_app)._get_current_object()
    app.set_current()
    try:
        yield
    finally:
        before.set_current()


def _tame(task: Task[Any, Any]) -> None:
    """Teaches the task that inside a step nobody but the step sends its retries; elsewhere it stays as it was."""
    if INSIDE in vars(task):
        return
    plain_retry, plain_replace = task.retry, task.replace

    def retry(*args: Any, **kwargs: Any) -> Any:
        request = cast(Any, task.request)
        if not hasattr(request, INSIDE):
            return plain_retry(*args, **kwargs)
        request.is_eager = True  # Celery leaves the sending to whoever runs an eager task
        try:
            return plain_retry(*args, **kwargs)
        finally:
            request.is_eager = False

    def replace(sig: Any) -> Any:
        if hasattr(task.request, INSIDE):
            hint = "make what replaces it steps of the workflow"
            raise errors.Permanent(f"task '{task.name}' wants to be replaced, which a step cannot be", hint=hint)
        return plain_replace(sig)

    vars(task).update({"retry": retry, "replace": replace, INSIDE: True})
