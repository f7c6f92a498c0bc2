"""Histories as an engine without faults would leave them, for tests to spoil."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from convergio.benchmarks import graphs, reference
from convergio.benchmarks.effects import Execution
from convergio.benchmarks.evidence import Event, History, Outcome, Run, Signal
from convergio.benchmarks.graphs import Graph, Node
from convergio.benchmarks.reference import Expected, Fate

RUN = "r1"
BEGAN_MS = 1_000_000
PID = 100


@dataclass(slots=True, kw_only=True)
class Told:
    """The history of one run, in parts that can be changed."""

    graph: Graph
    runs: list[Run]
    outcomes: dict[str, Outcome] = field(default_factory=dict[str, Outcome])
    events: list[Event] = field(default_factory=list[Event])
    signals: list[Signal] = field(default_factory=list[Signal])
    executions: list[Execution] = field(default_factory=list[Execution])
    dead: int = 0

    @property
    def accepted(self) -> Mapping[str, Graph]:
        return {RUN: self.graph}

    @property
    def history(self) -> History:
        outcomes = sorted(self.outcomes.values(), key=lambda row: row.order)
        return History(runs=self.runs, outcomes=outcomes, events=self.events, signals=self.signals, dead=self.dead)

    def of(self, step: str) -> Execution:
        """The last execution of a step."""
        return [one for one in self.executions if one.step == step][-1]


def tell(graph: Graph) -> Told:
    """Runs the graph step by step, a tenth of a second each, on a machine where nothing goes wrong."""
    expected = reference.execute(graph)
    run = Run(run=RUN, state=expected.state, created_ms=BEGAN_MS, started_ms=BEGAN_MS, finished_ms=BEGAN_MS + 900_000)
    told = Told(graph=graph, runs=[run])
    for number, node in enumerate(graph.nodes.values()):
        wanted = expected.steps[node.name]
        if wanted.fate is not Fate.UNREACHED:
            _tell_step(told, node, wanted, number)
    told.events.append(_event("", f"run.{expected.state.lower()}"))
    return told


def _tell_step(told: Told, node: Node, wanted: Expected, number: int) -> None:
    start = 100 * number
    saw = {name: str(told.outcomes[name].output["by"]) for name in sorted(wanted.parents)}
    ran = wanted.fate is not Fate.SKIPPED and not node.approval
    for attempt in range(1, wanted.attempt + 1 if ran else 1):
        at, last = start + 30 * (attempt - 1), attempt == wanted.attempt
        told.executions.append(
            execution(node.name, attempt, at=at, saw=saw, succeeded=last and wanted.fate is Fate.SUCCEEDED)
        )
    if node.approval and wanted.fate is not Fate.SKIPPED:
        told.signals.append(Signal(run=RUN, step=node.name, created_ms=BEGAN_MS, settled=True))
        told.events.append(_event(node.name, "signal.applied", how="applied"))
    output: dict[str, object] = {}
    if wanted.fate is Fate.SUCCEEDED:
        by = "chaos" if node.approval else told.of(node.name).nonce
        output = {"digest": wanted.digest, "value": reference.value_of(wanted.digest), "by": by}
        output |= {} if node.approval else {"saw": saw}
    told.outcomes[node.name] = Outcome(
        run=RUN,
        step=node.name,
        state=wanted.fate.value,
        attempt=wanted.attempt,
        output=output,
        order=(1, number),
        started_ms=BEGAN_MS + start if ran else None,
        finished_ms=BEGAN_MS + start + 95,
    )


def execution(
    step: str,
    attempt: int = 1,
    *,
    at: int,
    saw: Mapping[str, str] | None = None,
    succeeded: bool = True,
    pid: int = PID,
) -> Execution:
    """An execution that began `at` milliseconds after the run and took twenty."""
    return Execution(
        nonce=f"{pid}-{step}-{attempt}-{at}",
        run=RUN,
        step=step,
        attempt=attempt,
        pid=pid,
        began=at / 1000,
        began_ms=BEGAN_MS + at,
        saw=saw or {},
        ended=(at + 20) / 1000,
        ended_ms=BEGAN_MS + at + 20,
        succeeded=succeeded,
    )


def _event(step: str, kind: str, **data: object) -> Event:
    return Event(run=RUN, step=step, type=kind, at_ms=BEGAN_MS, data=data)


def fan() -> Graph:
    """One step, three after it, and a join of these."""
    middle = [graphs.Node(name=name, links=(graphs.Link(step="first"),)) for name in ("a", "b", "c")]
    join = graphs.Node(name="join", links=tuple(graphs.Link(step=node.name) for node in middle))
    return graph(graphs.Node(name="first"), *middle, join)


def graph(*nodes: Node, value: int = 7) -> Graph:
    """A graph of these nodes."""
    return Graph(name="g", shape="by hand", value=value, nodes={node.name: node for node in nodes})


def random_graph(seed: int) -> Graph:
    """A graph that has a part of a shape, each seed another."""
    shapes = [*graphs.SHAPES]
    return graphs.draw(f"g{seed}", shapes[seed % len(shapes)], Random(seed))
