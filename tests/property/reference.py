"""What a run must come to, worked out without any of the engine: one pass over the graph in topological order.

Independent on purpose: it shares no code with `decide`, knows no board, no order of arrivals and no CEL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

THRESHOLD: Final = 5
"""`big` conditions hold for inputs above it."""

NEVER: Final = "NEVER"
"""A step that is never reached, because the run ends before."""


class Boom(Exception):
    """A condition that cannot be evaluated."""


@dataclass(frozen=True, slots=True)
class Cond:
    """A condition: `ok` or `not_ok` of a step's result, `big` input, `boom` (cannot be evaluated)."""

    kind: str
    step: str = ""

    @property
    def cel(self) -> str:
        """The same as an expression."""
        texts = {
            "ok": f"{self.step} != null && {self.step}.ok",
            "not_ok": f"{self.step} == null || !{self.step}.ok",
            "big": f"input.n > {THRESHOLD}",
            "boom": f"{self.step}.nothing > 1",
        }
        return texts[self.kind]

    def holds(self, results: Mapping[str, Any], n: int) -> bool:
        """Its value."""
        if self.kind == "boom":
            raise Boom
        if self.kind == "big":
            return n > THRESHOLD
        result = results.get(self.step)
        ok = bool(result is not None and result["ok"])
        return ok if self.kind == "ok" else not ok


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A step: what it waits for, and how it ends when it runs. `needs`: (step, condition of the edge)."""

    name: str
    needs: tuple[tuple[str, Cond | None], ...] = ()
    when: Cond | None = None
    approval: bool = False
    durable: bool = False
    flaky: int = 0
    """attempts that fail before the last one; the retry policy allows exactly these"""
    ends: str = "SUCCEEDED"
    """SUCCEEDED, FAILED, or QUARANTINED: each worker that runs it dies"""
    ok: bool = True

    @property
    def result(self) -> dict[str, Any]:
        """Its output if it succeeds."""
        return {"by": "ann", "decision": "approve", "ok": self.ok} if self.approval else {"ok": self.ok}


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """`states`: how each step ends if nothing ends the run before. `failing`: steps that end the run."""

    states: Mapping[str, str]
    results: Mapping[str, Any]

    @property
    def failing(self) -> frozenset[str]:
        return frozenset(name for name, state in self.states.items() if state in ("FAILED", "QUARANTINED"))


def expected(nodes: Sequence[Node], n: int) -> Expected:
    """How a run of `nodes` (each after what it needs) ends on the input {"n": n}."""
    states: dict[str, str] = {}
    results: dict[str, Any] = {}
    for node in nodes:
        states[node.name] = _state(node, states, results, n)
        if states[node.name] == "SUCCEEDED":
            results[node.name] = node.result
    return Expected(states=states, results=results)


def _state(node: Node, states: Mapping[str, str], results: Mapping[str, Any], n: int) -> str:
    open_needs, taken = False, 0
    for source, condition in node.needs:
        if states[source] == "SUCCEEDED":
            try:
                taken += condition is None or condition.holds(results, n)
            except Boom:
                return "FAILED"
        elif states[source] != "SKIPPED":
            open_needs = True
    if open_needs:
        return NEVER
    if node.needs and not taken:
        return "SKIPPED"
    try:
        return node.ends if node.when is None or node.when.holds(results, n) else "SKIPPED"
    except Boom:
        return "FAILED"


def document(nodes: Sequence[Node]) -> dict[str, Any]:
    """The workflow that the nodes describe; its output names every step's result."""
    return {
        "workflow": "play",
        "version": 1,
        "steps": {node.name: _step(node) for node in nodes},
        "output": {node.name: node.name for node in nodes},
    }


def _step(node: Node) -> dict[str, Any]:
    made: dict[str, Any] = {
        "needs": [name if when is None else {"step": name, "when": when.cel} for name, when in node.needs],
        "when": None if node.when is None else node.when.cel,
    }
    if node.approval:
        return {**made, "approval": {"title": node.name}}
    durability = "step" if node.durable else "stream"
    return {**made, "task": "play.step", "durability": durability, "retry": node.flaky}
