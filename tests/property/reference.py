"""What a run must come to, worked out without any of the engine: one pass over the graph in topological order.

Independent on purpose: it shares no code with `decide`, knows no board, no order of arrivals and no CEL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    items: tuple[str, ...] | None = None
    """a map: how each of its items ends"""
    items_join: tuple[str, int] = ("all", 0)
    width: int = 0
    """so many items run at once; 0 is all"""
    back_to: str = ""
    """it ends a loop that begins there"""
    rounds: int = 1
    """how often the loop is gone, if its end succeeds each time"""
    most: int = 1
    """the bound of its loop, that may be below `rounds`"""
    goes_on: bool = False
    """its loop lets the run go on when it has made all its rounds"""

    @property
    def fate(self) -> str:
        """How it ends when it runs."""
        return self.ends if self.items is None else "SUCCEEDED" if self._enough() else "FAILED"

    def _enough(self) -> bool:
        ends, (kind, count) = self.items or (), self.items_join
        good = sum(end == "SUCCEEDED" for end in ends)
        if not ends or kind in ("any", "quorum"):
            return not ends or good >= max(1, count)
        return len(ends) - good <= (count if kind == "tolerate" else 0)

    @property
    def exhausted(self) -> bool:
        """Whether its loop ends the run."""
        return bool(self.back_to) and self.rounds > self.most and not self.goes_on

    def member(self, index: int) -> Node:
        """One item of a map, as a step."""
        return replace(self, items=None, ends=(self.items or ())[index])

    @property
    def result(self) -> Any:
        """Its output if it succeeds."""
        if self.items is not None:
            return [{"ok": self.ok} if end == "SUCCEEDED" else None for end in self.items]
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
    """`states`: how each step ends if nothing ends the run before. `failing`: steps that end the run. `exhausted`:
    those whose loop does, if they succeed."""

    states: Mapping[str, str]
    results: Mapping[str, Any]
    lenient: frozenset[str]
    exhausted: frozenset[str]

    @property
    def failing(self) -> frozenset[str]:
        broken = frozenset(name for name, state in self.states.items() if state in BROKEN) - self.lenient
        return broken | frozenset(name for name in self.exhausted if self.states[name] == "SUCCEEDED")


def expected(nodes: Sequence[Node], n: int, races: Mapping[str, str] = EMPTY) -> Expected:
    """How a run of `nodes` (each after what it needs) ends on the input {"n": n}.

    `races`: how those ended for which a race decides; one that is not named is never through.
    """
    states: dict[str, str] = {}
    results: dict[str, Any] = {}
    lenient = frozenset(node.name for node in nodes if node.lenient)
    for node in nodes:
        ends = races.get(node.name, NEVER) if node.open_end else node.fate
        states[node.name] = _state(node, ends, states, results, n)
        if states[node.name] == "SUCCEEDED" and not node.exhausted:
            results[node.name] = node.result
        elif states[node.name] in BROKEN and node.lenient:
            results[node.name] = None
    exhausted = frozenset(node.name for node in nodes if node.exhausted)
    return Expected(states=states, results=results, lenient=lenient, exhausted=exhausted)


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
        "loop": _loop(node),
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
    task: dict[str, Any] = {"task": "play.step", "durability": durability, "retry": node.flaky}
    task["timeout"] = {"queue": timeout}
    if node.limit:
        task["concurrency_key"] = {"key": KEY, "limit": node.limit}
    if node.items is None:
        return {**made, **task}
    policy, count = node.items_join
    items = {"over": str(list(range(len(node.items)))), "max_concurrency": node.width or None, "each": task}
    return {**made, "map": {**items, "join": {policy: count} if policy in ("quorum", "tolerate") else policy}}


def _loop(node: Node) -> dict[str, Any] | None:
    if not node.back_to:
        return None
    until = f"iteration >= {node.rounds - 1}"
    return {"back_to": node.back_to, "until": until, "max": node.most, "on_max": "continue" if node.goes_on else "fail"}
