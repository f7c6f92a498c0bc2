"""Doorbells whose Celery task this version does not know: their steps stay READY, for a worker that knows it.

Celery drops such a message. Not even one that is handed over may be given back at once: the step would go to and fro
for ever; and one that is popped would count as lost each time. So the step is claimed, and declined like one whose
function nobody here knows: rung again now and then, and `runs why` says NO_WORKER.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Final

from celery import signals

from convergio.graphflow.engine.bell import QUEUES
from convergio.graphflow.engine.steps import Steps
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import DEFAULT_TENANT, RunRef
from convergio.tasks.app import queue_list

logger = logging.getLogger(__name__)

TENANT: Final = "tenant"
"""The header of a doorbell that says whose run it is."""


class Strangers:
    """Declines what Celery cannot answer. `steps`: made when the first one comes, in the process that consumes."""

    def __init__(self, queues: tuple[str, ...], steps: Callable[[], Steps]) -> None:
        self.queues = {*QUEUES, *queues}
        self.steps = steps

    def listen(self) -> None:
        """From now on Celery tells of each."""
        signals.task_unknown.connect(self.meet, weak=False)

    def meet(self, message: Any = None, name: str = "", **_: Any) -> None:
        """A message whose task is unknown; a public entry's, or what is no doorbell at all, is Celery's own matter."""
        info = message.delivery_info or {}
        if info.get("routing_key") not in self.queues:
            return
        try:
            (run, step, ring), _kwargs, _embed = message.decode()
        except (TypeError, ValueError):
            return
        steps = self.steps()
        try:
            ref = RunRef(tenant=(message.headers or {}).get(TENANT, DEFAULT_TENANT), run=run)
            claim = steps.claim(ref, step=step, ring=ring, queue_list=queue_list(info))
            if claim is not None:
                steps.decline(claim, missing=f"Convergio {version('convergio')} knows no task '{name}'")
        except (errors.StaleFence, errors.BoardUnavailable, errors.BoardRebuilding) as error:
            logger.warning("doorbell of %s/%s, which is for task %s: %s", run, step, name, error)
