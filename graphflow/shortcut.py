"""What follows from a step's success if nothing contends: known from the plan alone, so that one script can do it all.

The semantics are those of `decide`; this says only for which steps they are so simple that no decision is needed.
`tests/property/test_shortcut.py` holds the two equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model.workflow import Durability, JoinKind, Step, StepKind

WIDEST: Final = 32
"""Followers of a step that are worth naming in every success; more are decided in batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Follower:
    """A step with an unconditional edge from the one that succeeded.

    Where that is its only edge, it becomes READY; else its join is raised by one edge taken.
    """

    step: str
    edges: int
    """how many edges end at it"""


def followers(plan: Plan, step: str) -> tuple[Follower, ...] | None:
    """Whom the success of `step` moves, without a decision. None: that needs one."""
    if step not in plan.successors or step in plan.loops:
        return None  # one of many, of which only a decision knows the others; or an undo
    edges, steps = plan.successors[step], plan.workflow.steps
    if steps[step].durability is Durability.STEP or steps[step].concurrency is not None or len(edges) > WIDEST:
        return None
    if plan.ranks and any(plan.indegree[edge.target] == 1 for edge in edges):
        return None  # its doorbell has a place among those of the run, which is looked up
    if not all(edge.when is None and _simple(plan, steps[edge.target]) for edge in edges):
        return None
    return tuple(Follower(step=edge.target, edges=plan.indegree[edge.target]) for edge in edges)


def _reads(plan: Plan, step: Step) -> tuple[str, ...]:
    return plan.references[step.name] if plan.loops else ()


def _simple(plan: Plan, step: Step) -> bool:
    """Whether one edge taken does no more to the step than to count it, or to ring it."""
    if step.kind is StepKind.MAP or step.name in plan.loops or not plan.loops.keys().isdisjoint(_reads(plan, step)):
        return False
    if plan.indegree[step.name] > 1:
        return step.when is None and step.join.kind is JoinKind.ALL
    rung = step.kind not in (StepKind.WAIT, StepKind.WORKFLOW) and step.queue_timeout is None
    return step.when is None and rung and step.concurrency is None
