"""How the engine rings: a port. What the bytes are is the business of Celery and kombu (`convergio.tasks.bell`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol, Self

from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.workflow import DEFAULT_PRIORITY, Step, StepKind

LISTS: Final = (0, 3, 6, 9)
"""kombu's priority lists of a queue, in the order in which they are consumed."""

LADDER: Final = MappingProxyType({"critical": (0, 0), "high": (0, 3), "medium": (3, 6), "low": (6, 9)})
"""By priority: the list for steps of runs that have begun, and the one for first steps of new runs."""

CONTINUATION, FRESH = LADDER[DEFAULT_PRIORITY]
"""The pair of who asks for no priority."""

QUEUES: Final = ("steps", "turns", "tools", "control")
"""The doorbell queues."""

TASK_OF: Final = {
    StepKind.TASK: "convergio.step",
    StepKind.AGENT: "convergio.agent",
    StepKind.APPROVAL: "convergio.approval",
    StepKind.CONVERSATION: "convergio.turn",
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


def pair_of(step: Step, priority: str) -> tuple[int, int]:
    """The lists of a step's doorbells: its own priority counts, else that of its run."""
    return LADDER[step.priority or priority]


def route_of(step: Step, *, priority: str, fresh: bool) -> Route:
    """The route of a step's doorbells in a run of this priority."""
    return Route(queue=step.queue, task=TASK_OF[step.kind], priority=pair_of(step, priority)[fresh])


def canary_route(queue: str, priority: int) -> Route:
    """The route of a queue list's canary."""
    return Route(queue=queue, task=CANARY_TASK, priority=priority)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """For whom doorbells are rung: which run, of which workflow, submitted by whom, how urgent."""

    ref: RunRef
    workflow: str
    submitter: str
    priority: str

    @classmethod
    def of(cls, ref: RunRef, meta: Mapping[str, Any]) -> Self:
        """By the run's @meta."""
        return cls(ref=ref, workflow=meta["workflow"], submitter=meta["submitter"], priority=meta["priority"])
