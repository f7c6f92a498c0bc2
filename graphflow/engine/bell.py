"""How the engine rings: a port. What the bytes are is the business of Celery and kombu (`convergio.tasks.bell`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.workflow import Step, StepKind

CONTINUATION: Final = 0
"""kombu's priority list for steps of runs that have begun: consumed first."""

FRESH: Final = 3
"""kombu's priority list for the first steps of new runs."""

QUEUES: Final = ("steps", "turns", "tools", "control")
"""The doorbell queues."""

TASK_OF: Final = {
    StepKind.TASK: "convergio.step",
    StepKind.AGENT: "convergio.agent",
    StepKind.APPROVAL: "convergio.approval",
}

CANARY_TASK: Final = "convergio.canary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a doorbell goes: the queue, the Celery task that answers, kombu's priority (0 is first on Redis)."""

    queue: str
    task: str
    priority: int


class Bell(Protocol):
    """Renders doorbells."""

    def render(self, route: Route, *, tenant: str, submitter: str, run: str, step: str, ring: str, label: str) -> bytes:
        """The message for one ring, as Celery itself would have sent it. `label` is its readable name."""
        ...

    def list_of(self, route: Route) -> str:
        """The Redis list that the route's messages are pushed to."""
        ...


def route_of(step: Step, *, fresh: bool) -> Route:
    """The route of a step's doorbells."""
    return Route(queue=step.queue, task=TASK_OF[step.kind], priority=FRESH if fresh else CONTINUATION)


def canary_route(queue: str, priority: int) -> Route:
    """The route of a queue list's canary."""
    return Route(queue=queue, task=CANARY_TASK, priority=priority)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """For whom doorbells are rung: which run, of which workflow, submitted by whom."""

    ref: RunRef
    workflow: str
    submitter: str
