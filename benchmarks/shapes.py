"""Random workflows: chains, fans, meshes, conditions, loops, maps, children, talks, questions, sagas, approvals.

And those that end badly: whatever makes a run fail, some of them undone then. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from types import MappingProxyType
from typing import Any, Final

from convergio.benchmarks.graphs import INPUT, Gate, Graph, Items, Link, Loop, Node
from convergio.benchmarks.talks import FAILURES, Speech, Talk


@dataclass(slots=True)
class Sketch:
    """A graph that is being drawn. The parts are put one after the other: each begins where the last one ended."""

    random: Random
    nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    end: str = ""
    undone: bool = False

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


def _map(sketch: Sketch) -> None:
    """A map, of which some items may fail, and a step that is given what the others gave."""
    size, tolerate = sketch.random.randint(1, 12), sketch.random.choice((0, 0, 2))
    flaws = [sketch.random.choice((0, 0, 0, 1)) for _ in range(size)]
    for index in sketch.random.sample(range(size), min(tolerate, size - 1)):
        flaws[index] = 9
    _spread(sketch, flaws, tolerate)
    sketch.add()


def _spread(sketch: Sketch, flaws: Sequence[int], tolerate: int) -> None:
    head = sketch.add(deals=len(flaws))
    items = Items(over=head, flaws=tuple(flaws), width=sketch.random.choice((0, 0, 1, 3)), tolerate=tolerate)
    sketch.add([head], items=items, retries=1, keyed=sketch.random.random() < 0.25)


def _loop(sketch: Sketch) -> None:
    _rounds(sketch, goes_on=True)
    sketch.add()


def _rounds(sketch: Sketch, *, goes_on: bool) -> None:
    """A loop around one step, or around two branches and their join; its first step is given what the last one gave."""
    sketch.add()
    head = sketch.add()
    if sketch.random.random() < 0.7:
        flaws = sketch.random.choice((0, 1))
        sketch.add([sketch.add([head], flaws=flaws, retries=1), sketch.add([head])])
    end, most = sketch.end, sketch.random.randint(1, 4) if goes_on else 2
    until = Gate(of=end, modulus=3, below=1 if goes_on else 0)
    sketch.nodes[end] = replace(sketch.nodes[end], loop=Loop(back_to=head, until=until, most=most, goes_on=goes_on))
    if end != head:
        sketch.nodes[head] = replace(sketch.nodes[head], sees=end)


def _talk(sketch: Sketch) -> None:
    """A conversation beside a branch, and a step that is given what was said last."""
    top, random = sketch.add(), sketch.random
    turns = tuple(_speech(f"s{len(sketch.nodes)}.{turn}", random) for turn in range(random.randint(2, 6)))
    talk = Talk(members=random.randint(2, 3), turns=turns, pace=random.choice((0.005, 0.02, 0.08)))
    sketch.add([sketch.add([top], talk=talk, retries=1), sketch.add([top])])


def _speech(name: str, random: Random) -> Speech:
    """Its notes are like no others of the run."""
    rounds = [
        [f"{name}.{place}.{one}" for one in range(random.randint(1, 2))] for place in range(random.choice((0, 0, 1, 2)))
    ]
    words = " ".join(f"{random.randrange(16**4):04x}" for _ in range(random.randint(1, 12)))
    failure = random.choice(FAILURES) if random.random() < 0.2 else ""
    return Speech(text=words, notes=tuple(map(tuple, rounds)), failure=failure)


def _child(sketch: Sketch) -> None:
    top, parts = sketch.add(), (_chain, _fan, _map, _loop, _durable, _talk)
    sketch.add([_call(sketch, sketch.random.choice(parts)), sketch.add([top])])


def _call(sketch: Sketch, draw_part: Callable[[Sketch], None]) -> str:
    """A step that is a run of its own, of one part; the run has the value of the one above it."""
    below = Sketch(sketch.random)
    draw_part(below)
    name = f"child_{sketch.random.randrange(16**8):08x}"
    nodes = MappingProxyType(below.nodes)
    return sketch.add(child=Graph(name=name, shape="child", value=0, nodes=nodes), durable=False)


def _asking(sketch: Sketch) -> None:
    """A step that fails for good, and asks; and one whose failure nobody minds."""
    top, retries = sketch.add(), sketch.random.randint(0, 1)
    answer = sketch.random.choice(("retry", "retry", "skip"))
    asks = sketch.add([top], flaws=retries + sketch.random.randint(1, 2), retries=retries, answer=answer)
    sketch.add([asks, sketch.add([top], flaws=1, on_failure="continue")])


def _keyed(sketch: Sketch) -> None:
    hub = sketch.add()
    sketch.add([sketch.add([hub], keyed=True, flaws=sketch.random.choice((0, 0, 1)), retries=1) for _ in range(4)])


def _saga(sketch: Sketch) -> None:
    """Steps that can be undone, and perhaps a failure behind them."""
    top = sketch.add(undo=0)
    sketch.add([sketch.add([top], undo=sketch.random.choice((0, 1))), sketch.add([top], undo=0, millis=300)])
    sketch.undone = sketch.random.random() < 0.5
    ends: Mapping[str, Any] = {
        "well": {},
        "badly": {"flaws": 1, "on_failure": "compensate"},
        "after a question": {"flaws": 1, "answer": "compensate"},
    }
    sketch.add(undo=0, **ends[sketch.random.choice(("well", "badly", "badly", "after a question"))])


def _broken(sketch: Sketch) -> None:
    """Something that fails for good beside a branch that does not: a step, a rejection, a map, a loop, a child."""
    top = sketch.add()
    sketch.random.choice((_bad_step, _rejection, _bad_map, _bad_loop, _bad_child, _refused))(sketch)
    bad = sketch.end
    sketch.add([sketch.add([top]), bad])


def _bad_step(sketch: Sketch) -> None:
    sketch.add(flaws=2, retries=sketch.random.randint(0, 1))


def _rejection(sketch: Sketch) -> None:
    sketch.add(approval=True, flaws=1)


def _bad_map(sketch: Sketch) -> None:
    flaws = [0] * sketch.random.randint(2, 9)
    flaws[sketch.random.randrange(len(flaws))] = 9
    _spread(sketch, flaws, 0)


def _bad_loop(sketch: Sketch) -> None:
    _rounds(sketch, goes_on=False)


def _bad_child(sketch: Sketch) -> None:
    _call(sketch, _bad_step)


def _refused(sketch: Sketch) -> None:
    sketch.add(flaws=1, answer="fail")


SHAPES: Final[Mapping[str, Callable[[Sketch], None]]] = MappingProxyType(
    {
        "chain": _chain,
        "fan": _fan,
        "map": _map,
        "diamond": _diamond,
        "loop": _loop,
        "mesh": _mesh,
        "child": _child,
        "talk": _talk,
        "condition": _condition,
        "saga": _saga,
        "flaky": _flaky,
        "slow": _slow,
        "asking": _asking,
        "durable": _durable,
        "keyed": _keyed,
        "approval": _approval,
        "broken": _broken,
    }
)

_FILLERS: Final = tuple(draw for name, draw in SHAPES.items() if name not in ("broken", "saga", "slow", "child"))


def draw(name: str, shape: str, random: Random) -> Graph:
    """A graph that has a part of this shape, with other parts before or after it."""
    sketch = Sketch(random)
    parts = [SHAPES[shape], random.choice(_FILLERS)]
    if random.random() < 0.5 and shape != "broken":
        parts.reverse()
    for part in parts:
        part(sketch)
    nodes, value = MappingProxyType(sketch.nodes), random.randrange(1_000_000)
    return Graph(name=name, shape=shape, value=value, nodes=nodes, undone=sketch.undone)


def draw_many(prefix: str, count: int, random: Random, *, often: str = "") -> list[Graph]:
    """`count` graphs that have every shape in turn, and every fourth of them the shape `often`."""
    shapes = [*SHAPES]
    named = [often if often and index % 4 == 3 else shapes[index % len(shapes)] for index in range(count)]
    return [draw(f"{prefix}_{index}", shape, random) for index, shape in enumerate(named)]
