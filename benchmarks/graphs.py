"""Random workflows: chains, fans, diamonds, meshes, conditions, flaky, slow, durable and broken steps, approvals. Pure.

Every graph comes from a seed and is a value that is turned twice: into a document for the engine, and into an
expectation by the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType
from typing import Any, Final

FUNCTION: Final = "chaos.work"
"""The name under which the body of every task step is registered."""

INPUT: Final = "input"


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
class Node:
    """One step. `flaws`: so many attempts fail first; of an approval: 1 is a rejection. `millis`: how long it takes."""

    name: str
    links: tuple[Link, ...] = ()
    gate: Gate | None = None
    approval: bool = False
    millis: int = 20
    flaws: int = 0
    retries: int = 0
    durable: bool = False

    @property
    def fails(self) -> bool:
        """Whether it ends FAILED when it is reached."""
        return self.flaws > self.retries

    @property
    def step_durable(self) -> bool:
        """Whether its successors must wait for the journal: approvals always are."""
        return self.durable or self.approval


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A workflow and the value its run is given; the nodes are listed after their parents."""

    name: str
    shape: str
    value: int
    nodes: Mapping[str, Node]

    @property
    def approvals(self) -> tuple[str, ...]:
        """The steps that wait for a signal."""
        return tuple(node.name for node in self.nodes.values() if node.approval)

    def document(self) -> dict[str, Any]:
        """The workflow as people would write it. Input: `{run, value}`."""
        steps = {name: self._step(node) for name, node in self.nodes.items()}
        return {"workflow": self.name, "version": 1, "steps": steps}

    def _step(self, node: Node) -> dict[str, Any]:
        edges = [{"step": link.step, **_when(link.gate)} for link in node.links]
        shared = {"needs": edges, **_when(node.gate)}
        if node.approval:
            return {**shared, "approval": {"title": node.name}}
        parents = [link.step for link in node.links]
        durable = [name for name in parents if self.nodes[name].step_durable]
        return {
            **shared,
            "task": FUNCTION,
            "with": {
                "run": "input.run",
                "value": "input.value",
                "step": f"'{node.name}'",
                "millis": node.millis,
                "flaws": node.flaws,
                "parents": "{" + ", ".join(f"'{name}': {name}" for name in parents) + "}",
                "durable": "[" + ", ".join(f"'{name}'" for name in durable) + "]",
            },
            "retry": {"max": node.retries, "backoff": 0.2, "factor": 1.5, "jitter": 0.5},
            "durability": "step" if node.durable else "stream",
        }


def _when(gate: Gate | None) -> dict[str, str]:
    return {} if gate is None else {"when": gate.text}


# --- drawing ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sketch:
    """A graph that is being drawn. The parts are put one after the other: each begins where the last one ended."""

    random: Random
    nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    end: str = ""

    def add(self, parents: Sequence[str | Link] | None = None, **policy: Any) -> str:
        """A new node; without `parents` it follows the end of what there is. Returns its name, and is the end now."""
        before = [self.end] if self.end else []
        links = tuple(Link(step=parent) if isinstance(parent, str) else parent for parent in (parents or before))
        name = f"s{len(self.nodes)}"
        policy.setdefault("millis", self.random.randint(5, 120))
        policy.setdefault("durable", self.random.random() < 0.2)
        self.nodes[name] = Node(name=name, links=links, **policy)
        self.end = name
        return name

    def gate(self, of: str) -> Gate:
        return Gate(of=of, modulus=self.random.choice((2, 3)), below=self.random.choice((1, 1, 2)))


def _chain(sketch: Sketch) -> None:
    for _ in range(sketch.random.randint(2, 5)):
        sketch.add()


def _fan(sketch: Sketch) -> None:
    hub = sketch.add()
    sketch.add([sketch.add([hub]) for _ in range(sketch.random.randint(3, 8))])


def _diamond(sketch: Sketch) -> None:
    """Two branches, of which either, both or none is taken."""
    top = sketch.add()
    left = sketch.add([Link(step=top, gate=sketch.gate(top))])
    right = sketch.add([Link(step=top, gate=sketch.gate(top))])
    sketch.add([left, sketch.add([right])])


def _mesh(sketch: Sketch) -> None:
    """Layers in which every node needs some of the layer before."""
    layer = [sketch.add()]
    for _ in range(2):
        layer = [
            sketch.add(
                [_edge(sketch, name) for name in sketch.random.sample(layer, sketch.random.randint(1, len(layer)))]
            )
            for _ in range(3)
        ]
    sketch.add(layer)


def _edge(sketch: Sketch, name: str) -> Link:
    return Link(step=name, gate=sketch.gate(name) if sketch.random.random() < 0.25 else None)


def _condition(sketch: Sketch) -> None:
    """A step whose own condition looks at the input, and a way around it."""
    before = sketch.add()
    maybe = sketch.add([before], gate=sketch.gate(INPUT))
    sketch.add([before, maybe])


def _flaky(sketch: Sketch) -> None:
    flaws = sketch.random.randint(1, 2)
    sketch.add(flaws=flaws, retries=flaws + sketch.random.randint(0, 1))
    sketch.add()


def _slow(sketch: Sketch) -> None:
    hub = sketch.add()
    sketch.add([sketch.add([hub], millis=sketch.random.randint(1_000, 2_500)), sketch.add([hub])])


def _durable(sketch: Sketch) -> None:
    for _ in range(3):
        sketch.add(durable=True)


def _approval(sketch: Sketch) -> None:
    asks = sketch.add()
    sketch.add([sketch.add([asks], approval=True), sketch.add([asks])])


def _broken(sketch: Sketch) -> None:
    """A step that fails for good, or a rejection, beside a branch that does not."""
    top = sketch.add()
    if sketch.random.random() < 0.5:
        bad = sketch.add([top], flaws=2, retries=sketch.random.randint(0, 1))
    else:
        bad = sketch.add([top], approval=True, flaws=1)
    sketch.add([sketch.add([top]), sketch.add([bad])])


SHAPES: Final[Mapping[str, Callable[[Sketch], None]]] = MappingProxyType(
    {
        "chain": _chain,
        "fan": _fan,
        "diamond": _diamond,
        "mesh": _mesh,
        "condition": _condition,
        "flaky": _flaky,
        "slow": _slow,
        "durable": _durable,
        "approval": _approval,
        "broken": _broken,
    }
)

_FILLERS: Final = tuple(draw for name, draw in SHAPES.items() if name not in ("broken", "slow"))


def draw(name: str, shape: str, random: Random) -> Graph:
    """A graph that has a part of this shape, with other parts before or after it."""
    sketch = Sketch(random)
    parts = [SHAPES[shape], random.choice(_FILLERS)]
    if random.random() < 0.5 and shape != "broken":
        parts.reverse()
    for part in parts:
        part(sketch)
    return Graph(name=name, shape=shape, value=random.randrange(1_000_000), nodes=MappingProxyType(sketch.nodes))


def draw_many(prefix: str, count: int, random: Random) -> list[Graph]:
    """`count` graphs that have every shape in turn."""
    shapes = [*SHAPES]
    return [draw(f"{prefix}_{index}", shapes[index % len(shapes)], random) for index in range(count)]
