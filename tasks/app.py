"""The Celery app, and FlowTask: the base of every doorbell task, which claims the step and asks the pre-run hooks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Protocol, cast

from celery import Celery, Task
from celery.exceptions import Ignore

from convergio.graphflow.board.address import without_master
from convergio.graphflow.board.keys import DEFAULT, queue_prefix
from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.engine.steps import Steps
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.tasks import hooks, transport

logger = logging.getLogger(__name__)

PRIORITY_SEPARATOR = "\x06\x16"
"""kombu's own: a queue's lists are `queue`, `queue<sep>3`, ..."""


LIST_PREFIX = "list_prefix"
"""The attribute of an app that says what its lists begin with; asked for every doorbell."""


class Worker(Protocol):
    """What a worker process gives its tasks. Set as `app.worker` by `workers/boot.py`."""

    steps: Steps
    hooks: hooks.Hooks
    draining: bool
    overtime: Callable[[], Callable[[], object]] | None
    """called when the step of the body that runs is taken from it; None where nothing can be done about that"""


def list_prefix(app: Celery) -> str:
    """What the app's lists begin with."""
    return str(vars(app).get(LIST_PREFIX, ""))


def queue_list(delivery_info: Mapping[str, Any], prefix: str = "") -> str:
    """The Redis list that a doorbell came by."""
    queue, priority = delivery_info.get("routing_key", ""), delivery_info.get("priority") or 0
    name = f"{prefix}{queue}"
    return f"{name}{PRIORITY_SEPARATOR}{priority}" if priority else name


def make_app(
    redis_url: str,
    *,
    key_prefix: str = DEFAULT,
    visibility_timeout: int = 15,
    socket_timeout: float = 5.0,
    task_events: bool = True,
) -> Celery:
    """The app that workers, doors and Flower share. It connects to nothing until it is used."""
    url, master = without_master(redis_url)
    app = Celery("convergio", amqp=transport.AMQP, set_as_current=False)
    prefix = vars(app)[LIST_PREFIX] = queue_prefix(key_prefix)
    of_results = {"master_name": master, "global_keyprefix": prefix}
    app.conf.update(
        **transport.broker_settings(
            url,
            visibility_timeout=visibility_timeout,
            socket_timeout=max(2.0, socket_timeout),
            key_prefix=prefix,
            master_name=master,
        ),
        **transport.consumer_settings(),
        result_backend=url,
        result_backend_transport_options={name: value for name, value in of_results.items() if value},
        result_expires=24 * 3600,
        task_serializer="json",
        accept_content=["json"],
        result_accept_content=["json"],
        task_ignore_result=True,
        task_track_started=False,
        task_send_sent_event=False,
        worker_send_task_events=task_events,
        worker_disable_rate_limits=True,
        # A child makes its own connections before it is up: on a busy machine that takes more than Celery's 4 s.
        worker_proc_alive_timeout=60.0,
        # Tasks hold on to the process they are made in: a new interpreter could not import them.
        worker_pool_start_method="fork",
        # A public entry whose prefork child dies is delivered again: its run has the same id, so nothing is doubled.
        task_reject_on_worker_lost=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_log_color=False,
        enable_utc=True,
        result_backend_always_retry=True,
        result_backend_max_retries=100,
        result_backend_base_sleep_between_retries_ms=50,
        result_backend_max_sleep_between_retries_ms=1000,
        redis_socket_timeout=max(5.0, socket_timeout),
        redis_backend_health_check_interval=10,
    )
    return app


class FlowTask(Task[Any, Any]):
    """Claims the step that the doorbell rang for, and asks the pre-run hooks, before the body runs."""

    abstract = True
    acks_late = True
    ignore_result = True
    reject_on_worker_lost = False  # the board rings the step of a child that died; this doorbell has failed
    throws = (errors.ConvergioError,)
    typing = False

    @property
    def worker(self) -> Worker:
        """What this process gives its tasks."""
        return cast(Worker, vars(self.app)["worker"])

    @property
    def claim(self) -> Claim:
        """The claim of the doorbell that is being answered."""
        return cast(Claim, vars(self.request)["claim"])

    def before_start(self, task_id: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """CLAIM, then the hooks under its fence. Raises Ignore where nothing is to be done, StepDenied on a veto."""
        run, step, ring = args
        request, worker = self.request, self.worker  # looked up by thread, each time
        ref = RunRef(tenant=vars(request)["tenant"], run=run)
        try:
            came_by = queue_list(request.delivery_info or {}, list_prefix(self.app))
            claim = worker.steps.claim(ref, step=step, ring=ring, queue_list=came_by)
        except (errors.BoardUnavailable, errors.BoardRebuilding) as error:
            # The board is away or new: it rings again what is ready there.
            logger.warning("doorbell %s: %s", task_id, error)
            raise Ignore from error
        if claim is None:
            self.send_event("task-duplicate")
            raise Ignore
        vars(request)["claim"] = claim
        claim.on_lost = worker.overtime and worker.overtime()
        if worker.draining:
            self.give_back()
        self._hold_up(claim)
        self._ask_hooks(claim)
        if time.monotonic() > claim.sure_until or claim.lost.is_set():
            self.give_back()  # this process stood still: the step may be another's by now

    def fenced(self) -> NoReturn:
        """The step has another owner by now: this task ends quietly."""
        self.send_event("task-fenced")
        raise Ignore from None

    def give_back(self) -> NoReturn:
        """The body does not run here: the step is rung again at once, for another. No failure, and no delivery."""
        try:
            self.worker.steps.give_back(self.claim)
        except errors.StaleFence:
            self.fenced()
        self.send_event("task-returned")
        raise Ignore from None

    def _hold_up(self, claim: Claim) -> None:
        """Ends the task where the journal is too far behind for one more step."""
        try:
            held_up = self.worker.steps.is_held_up(claim)
        except errors.StaleFence:
            self.fenced()
        if held_up:
            self.send_event("task-deferred", reason="JOURNAL")
            raise Ignore

    def _ask_hooks(self, claim: Claim) -> None:
        steps = self.worker.steps
        kind = steps.step(claim).kind
        if not self.worker.hooks.concern(kind):
            return
        context = hooks.context(claim.held, kind)
        answer = self.worker.hooks.ask(context)
        try:
            match answer:
                case hooks.Deny(reason):
                    denied = errors.StepDenied(reason, run=claim.held.ref.run, step=claim.held.step)
                    steps.fail(claim, denied)
                    self.send_event("task-denied", reason=reason)
                    raise denied
                case hooks.Defer(until, reason):
                    # Both by the board's clock; a difference of two times in one zone would leave its changes out.
                    seconds = max(0.0, until.timestamp() - context.now.timestamp())
                    steps.defer(claim, seconds=seconds, reason=reason)
                    self.send_event("task-deferred", reason=reason)
                    raise Ignore
                case _:
                    return
        except errors.StaleFence:
            self.fenced()
