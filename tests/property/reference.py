"""What a run must come to, worked out without any of the engine: one pass over the graph in topological order.

Independent on purpose: it shares no code with `decide`, knows no board, no order of arrivals and no CEL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

THRESHOLD: Final = 5
"""`big` conditions hold for inputs above it."""

NEVER: Final = "NEVER"
"""A step that is never reached, because the run ends before."""

BROKEN: Final = ("FAILED", "QUARANTINED")

NOBODY: Final = "nobody"
"""The signal that never comes."""

KEY: Final = "k"
"""The concurrency key of all steps that have one."""

EMPTY: Final[Mapping[str, str]] = MappingProxyType({})


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
    join: tuple[str, int] = ("all", 0)
    """policy and number"""
    when: Cond | None = None
    approval: bool = False
    child: bool = False
    """a step that is a run of its own"""
    waits: float = 0
    """a step that waits for so many seconds, without a worker"""
    signal: str = ""
    """a step that waits for this signal"""
    timeout: float = 0
    """the patience of `signal`, or with the queue; 0 is endless"""
    durable: bool = False
    flaky: int = 0
    """attempts that fail before the last one; the retry policy allows exactly these"""
    ends: str = "SUCCEEDED"
    """SUCCEEDED, FAILED, or QUARANTINED: each worker that runs it dies"""
    lenient: bool = False
    """its failure does not end the run"""
    ok: bool = True
    limit: int = 0
    """how many steps of its concurrency key run at once; 0: it has none. Nothing comes of it but an order."""
    asks: bool = False
    """its failure is a question"""
    undo: bool = False
    """it can be undone"""
    undoing: bool = False
    """its failure has the run undone"""
    lonely: bool = False
    """no worker listens to its queue"""

    @property
    def result(self) -> dict[str, Any] | None:
        """Its output if it succeeds."""
        if self.waits:
            return None
        if self.approval:
            return {"by": "ann", "decision": "approve", "ok": self.ok}
        return {"by": "ann", "ok": self.ok} if self.signal else {"ok": self.ok}

    @property
    def open_end(self) -> bool:
        """Whether a race decides how it ends: it may time out, and it may succeed before."""
        return self.timeout > 0 and self.signal != NOBODY and not self.lonely

    @property
    def least(self) -> int:
        """How many of its needs are taken or at least resolved when it runs."""
        kind, count = self.join
        return max(1, count) if kind in ("any", "quorum") else len(self.needs)

    def starts(self, taken: int, missed: int) -> bool | None:
        """What the join says when so many needs were taken and so many were not: yes, never, or neither."""
        kind, count = self.join
        open_needs = len(self.needs) - taken - missed
        if kind in ("any", "quorum"):
            return True if taken >= self.least else None if taken + open_needs >= self.least else False
        if kind == "tolerate" and missed > count:
            return False
        return None if open_needs else taken > 0 or not self.needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """`states`: how each step ends if nothing ends the run before. `failing`: steps that end the run."""

    states: Mapping[str, str]
    results: Mapping[str, Any]
    lenient: frozenset[str]

    @property
    def failing(self) -> frozenset[str]:
        return frozenset(name for name, state in self.states.items() if state in BROKEN) - self.lenient


def expected(nodes: Sequence[Node], n: int, races: Mapping[str, str] = EMPTY) -> Expected:
    """How a run of `nodes` (each after what it needs) ends on the input {"n": n}.

    `races`: how those ended for which a race decides; one that is not named is never through.
    """
    states: dict[str, str] = {}
    results: dict[str, Any] = {}
    lenient = frozenset(node.name for node in nodes if node.lenient)
    for node in nodes:
        ends = races.get(node.name, NEVER) if node.open_end else node.ends
        states[node.name] = _state(node, ends, states, results, n)
        if states[node.name] == "SUCCEEDED":
            results[node.name] = node.result
        elif states[node.name] in BROKEN and node.lenient:
            results[node.name] = None
    return Expected(states=states, results=results, lenient=lenient)


def _state(node: Node, ends: str, states: Mapping[str, str], results: Mapping[str, Any], n: int) -> str:
    """`results` has all that ended and let the run go on, but for what was skipped."""
    taken = missed = 0
    try:
        for source, condition in node.needs:
            if source in results:
                holds = condition is None or condition.holds(results, n)
                taken, missed = taken + holds, missed + (not holds)
            missed += states[source] == "SKIPPED"
        starts = node.starts(taken, missed)
        if starts is None:
            return NEVER
        return ends if starts and (node.when is None or node.when.holds(results, n)) else "SKIPPED"
    except Boom:
        return "FAILED"


def undo_of(node: Node) -> Node:
    """The step that undoes this one. It does not end well for one that is not ok."""
    ends = "SUCCEEDED" if node.ok else "FAILED"
    return Node(name=f"undo:{node.name}", durable=True, flaky=min(1, node.flaky), ends=ends)


def document(nodes: Sequence[Node], *, undone: bool = False) -> dict[str, Any]:
    """The workflow that the nodes describe; its output names every step's result. `undone`: so it is when it fails."""
    return {
        "workflow": "play",
        "version": 1,
        "on_failure": "compensate" if undone else "fail",
        "steps": {node.name: _step(node) for node in nodes},
        "output": {node.name: node.name for node in nodes},
    }


def _on_failure(node: Node) -> str:
    if node.lenient:
        return "continue"
    return "ask" if node.asks else "compensate" if node.undoing else "fail"


def _step(node: Node) -> dict[str, Any]:
    policy, count = node.join
    made: dict[str, Any] = {
        "needs": [name if when is None else {"step": name, "when": when.cel} for name, when in node.needs],
        "join": {policy: count} if policy in ("quorum", "tolerate") else policy,
        "when": None if node.when is None else node.when.cel,
        "on_failure": _on_failure(node),
    }
    if node.undo:
        made["compensate"] = {"task": "play.undo", "retry": undo_of(node).flaky}
    timeout = node.timeout or None
    if node.approval:
        return {**made, "approval": {"title": node.name}}
    if node.child:
        return {**made, "workflow": "other", "retry": node.flaky}
    if node.waits:
        return {**made, "wait": {"for": node.waits}}
    if node.signal:
        return {**made, "wait": {"signal": node.signal, "timeout": timeout}}
    durability = "step" if node.durable else "stream"
    if node.limit:
        made["concurrency_key"] = {"key": KEY, "limit": node.limit}
    return {**made, "task": "play.step", "durability": durability, "retry": node.flaky, "timeout": {"queue": timeout}}
