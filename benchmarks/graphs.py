"""Workflows as values: steps of every kind, edges, conditions, loops, maps, talks, children and undoing. Pure.

Every graph comes from a seed (`shapes`) and is turned twice: into a document for the engine, and into an expectation
by the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from convergio.benchmarks.talks import Talk

FUNCTION: Final = "chaos.work"
"""The name under which the body of every task step is registered."""

UNDO: Final = "chaos.undo"
"""The name of the body that undoes a step."""

UNDOES: Final = "undo:"
"""What the name of the step that undoes another one begins with."""

INPUT: Final = "input"

LIMIT: Final = 2
"""So many steps of one concurrency key run at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A condition: the value of a step, or of the run's input, modulo `modulus` is less than `below`."""

    of: str
    modulus: int
    below: int

    def holds(self, value: int) -> bool:
        return value % self.modulus < self.below

    @property
    def text(self) -> str:
        """The condition in CEL."""
        return f"{self.of}.value % {self.modulus} < {self.below}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An edge from `step`."""

    step: str
    gate: Gate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Items:
    """A map over `numbers` of a step: how many attempts of each item fail first, how many items run at once (0: all),
    and how many may fail for good."""

    over: str
    flaws: tuple[int, ...]
    width: int = 0
    tolerate: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """Going back from a step to an earlier one, `until` it is good; after `most` rounds it goes on, or fails."""

    back_to: str
    until: Gate
    most: int
    goes_on: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One step. `flaws`: so many attempts fail first; of an approval: 1 is a rejection. `millis`: how long it takes.

    `on_failure`: fail, continue, compensate; `answer`: it asks, and that is what it is told. `undo`: it can be undone,
    after so many attempts at that which fail. `deals`: it gives so many numbers, for a map. `sees`: a step behind it in
    its loop, whose last round it is given. `keyed`: it has a concurrency key. `child`: it is a run of its own.
    `talk`: it is a conversation.
    """

    name: str
    links: tuple[Link, ...] = ()
    gate: Gate | None = None
    approval: bool = False
    millis: int = 20
    flaws: int = 0
    retries: int = 0
    durable: bool = False
    on_failure: str = "fail"
    answer: str = ""
    undo: int | None = None
    deals: int = 0
    items: Items | None = None
    loop: Loop | None = None
    sees: str = ""
    keyed: bool = False
    child: Graph | None = None
    talk: Talk | None = None

    @property
    def fails(self) -> bool:
        """Whether it ends FAILED when it is reached."""
        return self.flaws > self.retries and self.answer != "retry"

    @property
    def lenient(self) -> bool:
        """Whether its run goes on all the same."""
        return self.on_failure == "continue" or self.answer == "skip"

    @property
    def ends_undone(self) -> bool:
        """Whether its failure has the run undone."""
        return self.on_failure == "compensate" or self.answer == "compensate"

    @property
    def step_durable(self) -> bool:
        """Whether its successors must wait for the journal: approvals and turns always are."""
        return self.durable or self.approval or self.talk is not None

    @property
    def runs(self) -> bool:
        """Whether a body runs in its own name: not for approvals, maps, talks and children."""
        return not self.approval and self.items is None and self.child is None and self.talk is None

    @property
    def end(self) -> str:
        """Its last instance: of a talk its last turn."""
        return (
            self.name if self.talk is None or len(self.talk.turns) == 1 else f"{self.name}#{len(self.talk.turns) - 1}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A workflow and the value its run is given; the nodes are listed after their parents.

    The steps of a loop stand together. `undone`: whatever makes the run fail, or cancels it, it is undone then.
    """

    name: str
    shape: str
    value: int
    nodes: Mapping[str, Node]
    undone: bool = False

    @property
    def approvals(self) -> tuple[str, ...]:
        """The steps that wait for a signal."""
        return tuple(node.name for node in self.nodes.values() if node.approval)

    @property
    def children(self) -> Iterator[Graph]:
        """The graphs that are runs of their own below this one."""
        return (node.child for node in self.nodes.values() if node.child is not None)

    @property
    def end(self) -> Node:
        """The last step."""
        return list(self.nodes.values())[-1]

    def region(self, end: Node) -> list[Node]:
        """The steps of the loop that goes back from `end`, in their order."""
        assert end.loop is not None, f"{end.name} ends no loop"
        names = list(self.nodes)
        return [self.nodes[name] for name in names[names.index(end.loop.back_to) : names.index(end.name) + 1]]

    @property
    def looped(self) -> frozenset[str]:
        """The steps that are in a loop."""
        ends = [node for node in self.nodes.values() if node.loop is not None]
        return frozenset(node.name for end in ends for node in self.region(end))

    def document(self) -> dict[str, Any]:
        """The workflow as people would write it. Input: `{run, value}`. Output: what its last step gave."""
        steps = {name: self._step(node) for name, node in self.nodes.items()}
        ending = "compensate" if self.undone else "fail"
        output = {"out": self.end.name}
        return {"workflow": self.name, "version": 1, "on_failure": ending, "steps": steps, "output": output}

    def _step(self, node: Node) -> dict[str, Any]:
        shared: dict[str, Any] = {
            "needs": [{"step": link.step, **_when(link.gate)} for link in node.links],
            **_when(node.gate),
        }
        if node.loop is not None:
            ends = "continue" if node.loop.goes_on else "fail"
            back = {"back_to": node.loop.back_to, "until": node.loop.until.text, "max": node.loop.most, "on_max": ends}
            shared["loop"] = back
        if node.approval:
            return {**shared, "approval": {"title": node.name}}
        if node.child is not None:
            return {**shared, "workflow": node.child.name, "with": {"run": "input.run", "value": "input.value"}}
        if node.talk is not None:
            again = {"max": node.retries, "backoff": 0.2, "factor": 1.5, "jitter": 0.5}
            begins = f"{node.name} {{{{ input.value }}}}"
            return {**shared, "conversation": node.talk.team(), "prompt": begins, "retry": again, "timeout": "30s"}
        shared["on_failure"] = "ask" if node.answer else node.on_failure
        if node.undo is not None:
            shared["compensate"] = {"task": UNDO, "with": self._undo(node), "retry": {"max": node.undo, "backoff": 0.1}}
        if node.items is None:
            return {**shared, **self._task(node)}
        join = {"tolerate": node.items.tolerate} if node.items.tolerate else "all"
        limits: dict[str, Any] = {"max_concurrency": node.items.width} if node.items.width else {}
        over = f"{node.items.over}.numbers"
        return {**shared, "map": {"over": over, "join": join, **limits, "each": self._task(node)}}

    def _task(self, node: Node) -> dict[str, Any]:
        parents = [*(link.step for link in node.links), *([node.sees] if node.sees else [])]
        above = [self.nodes[name] for name in parents if node.name not in self.looped]
        durable = [one.end for one in above if one.step_durable]
        given = {
            "value": "input.value",
            "step": f"'{node.name}'",
            "millis": str(node.millis),
            "flaws": str(node.flaws),
            "parents": "{" + ", ".join(f"'{name}': {name}" for name in parents) + "}",
            "durable": "[" + ", ".join(f"'{name}'" for name in durable) + "]",
        }
        if node.deals:
            given["deals"] = str(node.deals)
        if node.name in self.looped:
            given["round"] = "iteration"
        if node.items is not None:
            given |= {"value": "item", "place": "index", "flaws": f"{list(node.items.flaws)}[index]"}
        keyed: dict[str, Any] = {}
        if node.keyed:
            given["key"] = "'chaos-' + string(input.value % 3)"
            keyed["concurrency_key"] = {"key": "chaos-{{ input.value % 3 }}", "limit": LIMIT}
        return {
            "task": FUNCTION,
            "with": given,
            "retry": {"max": node.retries, "backoff": 0.2, "factor": 1.5, "jitter": 0.5},
            "durability": "step" if node.durable else "stream",
            **keyed,
        }

    def _undo(self, node: Node) -> dict[str, Any]:
        return {"step": f"'{node.name}'", "flaws": str(node.undo), "result": node.name}


def _when(gate: Gate | None) -> dict[str, str]:
    return {} if gate is None else {"when": gate.text}
