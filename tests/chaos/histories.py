"""Histories as an engine without faults would leave them, for tests to spoil."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random

from convergio.benchmarks import checker, graphs, reference, shapes
from convergio.benchmarks.effects import Execution, Note
from convergio.benchmarks.evidence import Event, History, Outcome, Run, Signal, Talked
from convergio.benchmarks.graphs import Graph, Node
from convergio.benchmarks.reference import Expectation, Expected, Fate
from convergio.benchmarks.talks import Talk
from tests.chaos import telling

RUN = "r1"
BEGAN_MS = 1_000_000
PID = 100


@dataclass(slots=True, kw_only=True)
class Told:
    """The history of one run and its children, in parts that can be changed. Outcomes are by run and step."""

    graph: Graph
    runs: list[Run] = field(default_factory=list[Run])
    outcomes: dict[tuple[str, str], Outcome] = field(default_factory=dict[tuple[str, str], Outcome])
    events: list[Event] = field(default_factory=list[Event])
    signals: list[Signal] = field(default_factory=list[Signal])
    executions: list[Execution] = field(default_factory=list[Execution])
    talked: list[Talked] = field(default_factory=list[Talked])
    notes: list[Note] = field(default_factory=list[Note])
    dead: int = 0

    @property
    def accepted(self) -> Mapping[str, Graph]:
        return {RUN: self.graph}

    @property
    def history(self) -> History:
        outcomes = sorted(self.outcomes.values(), key=lambda row: row.order)
        return History(
            runs=self.runs,
            outcomes=outcomes,
            events=self.events,
            signals=self.signals,
            talked=telling.together(self.talked),
            dead=self.dead,
        )

    def of(self, step: str, run: str = RUN) -> Execution:
        """The last execution of a step."""
        return [one for one in self.executions if (one.run, one.step) == (run, step)][-1]

    def outcome(self, step: str) -> Outcome:
        """Of a step of the run itself."""
        return self.outcomes[RUN, step]


def tell(graph: Graph) -> Told:
    """Runs the graph step by step, a tenth of a second each, on a machine where nothing goes wrong."""
    told = Told(graph=graph)
    _tell_run(told, RUN, graph)
    return told


def _tell_run(told: Told, run: str, graph: Graph, above: tuple[str, str] = ("", "")) -> str:
    """Its state."""
    expected = reference.execute(graph)
    by: dict[str, str] = {}
    for name, wanted in expected.steps.items():
        if wanted.fate is not Fate.UNREACHED:
            _Telling(told, run, graph, by).step(name, wanted)
    if any(one.ends_the_run for one in expected.steps.values()):
        _undo(told, run, graph, expected)
    told.events.append(_event("", f"run.{expected.state.lower()}", run=run))
    end = BEGAN_MS + (100 * len(told.outcomes) if above[0] else 900_000)
    facts = {"created_ms": BEGAN_MS, "started_ms": BEGAN_MS, "finished_ms": end}
    told.runs.append(Run(run=run, state=expected.state, parent=above[0], parent_step=above[1], **facts))
    return expected.state


@dataclass(slots=True)
class _Telling:
    """Of one run: `by` has whose outcomes its steps gave, by the names under which others see them."""

    told: Told
    run: str
    graph: Graph
    by: dict[str, str]

    def step(self, name: str, wanted: Expected) -> None:
        node, start = wanted.node, 100 * len(self.told.outcomes)
        skipped, whole = wanted.fate is Fate.SKIPPED, node.items is not None and not wanted.member
        saw = {seen: self.by[one] for seen, one in wanted.parents.items()}
        ran = (not skipped and node.runs) or wanted.member
        for attempt in range(1, wanted.attempt + 1 if ran else 1):
            at, last = start + 30 * (attempt - 1), attempt == wanted.attempt
            good = last and wanted.fate is Fate.SUCCEEDED
            self.told.executions.append(
                execution(name, attempt, at=at, saw=saw, succeeded=good, run=self.run, key=_key(node, self.graph))
            )
        output: object = {}
        if node.approval and not skipped:
            self._decided(name)
        if node.child is not None and not skipped:
            output = self._below(name, node.child)
        if wanted.fate is Fate.SUCCEEDED and node.talk is not None:
            self.by[name] = ""
            output = self._turn(name, node, node.talk)
        elif wanted.fate is Fate.SUCCEEDED and node.child is None:
            output = self._map(wanted) if whole else self._output(name, wanted, saw)
        now = 100 * len(self.told.outcomes)
        self._outcome(name, wanted, output, start=start if ran else None, finished=now + 95)

    def _decided(self, name: str) -> None:
        self.told.signals.append(Signal(run=self.run, step=name, created_ms=BEGAN_MS, settled=True))
        self.told.events.append(_event(name, "signal.applied", run=self.run, how="applied"))

    def _output(self, name: str, wanted: Expected, saw: Mapping[str, str]) -> Mapping[str, object]:
        self.by[name] = "chaos" if wanted.node.approval else self.told.of(name, self.run).nonce
        output = {"digest": wanted.digest, "value": reference.value_of(wanted.digest), "by": self.by[name]}
        return output if wanted.node.approval else {**output, "saw": saw}

    def _turn(self, name: str, node: Node, talk: Talk) -> Mapping[str, object]:
        turn = int(name.partition("#")[2] or 0)
        talked, notes = telling.of(talk, self.run, node.name, turn, self.graph.value)
        self.told.talked.append(talked)
        self.told.notes += notes
        return {"speaker": talk.speaker(turn), "text": talk.turns[turn].text}

    def _map(self, wanted: Expected) -> list[object]:
        rows = [self.told.outcomes[self.run, member] for member in wanted.members]
        return [row.output if row.state == "SUCCEEDED" else None for row in rows]

    def _below(self, name: str, graph: Graph) -> object:
        child, below = f"{self.run}-{name}", replace(graph, value=self.graph.value)
        if _tell_run(self.told, child, below, (self.run, name)) == "FAILED":
            return {}
        last = self.told.outcomes.get((child, below.end.name))
        output = last.output if last is not None and last.state == "SUCCEEDED" else None
        self.by |= {
            f"{name}/{step}": checker.nonce_of(row.output)
            for (run, step), row in self.told.outcomes.items()
            if run == child
        }
        return {"out": output}

    def _outcome(self, name: str, wanted: Expected, output: object, *, start: int | None, finished: int) -> None:
        row = Outcome(
            run=self.run,
            step=name,
            state=wanted.fate.value,
            attempt=wanted.attempt,
            output=output,
            order=(1, len(self.told.outcomes)),
            started_ms=BEGAN_MS + start if start is not None else None,
            finished_ms=BEGAN_MS + finished,
        )
        self.told.outcomes[self.run, name] = row


def _undo(told: Told, run: str, graph: Graph, expected: Expectation) -> None:
    """What succeeded is undone, the last one first."""
    failing = [one.node for one in expected.steps.values() if one.ends_the_run]
    if not graph.undone and not any(node.ends_undone for node in failing):
        return
    began = 100 * len(told.outcomes)
    told.events.append(_event("undo:", "run.compensating", run=run, at=began, state="FAILED"))
    for node in reversed(list(graph.nodes.values())):
        done = told.outcomes.get((run, node.name))
        if node.undo is not None and done is not None and done.state == "SUCCEEDED":
            undo_one(told, run, node.name)


def undo_one(told: Told, run: str, step: str) -> None:
    """The step is undone next."""
    name, start = f"{graphs.UNDOES}{step}", 100 * len(told.outcomes)
    saw = {step: str(told.outcomes[run, step].output["by"])}
    told.executions.append(execution(name, at=start, saw=saw, run=run))
    output = {"by": told.of(name, run).nonce, "saw": saw}
    told.outcomes[run, name] = Outcome(
        run=run,
        step=name,
        state="SUCCEEDED",
        attempt=1,
        output=output,
        order=(1, len(told.outcomes)),
        started_ms=BEGAN_MS + start,
        finished_ms=BEGAN_MS + start + 95,
    )


def _key(node: Node, graph: Graph) -> str:
    return f"chaos-{graph.value % 3}" if node.keyed else ""


def execution(
    step: str,
    attempt: int = 1,
    *,
    at: int,
    saw: Mapping[str, str] | None = None,
    succeeded: bool = True,
    pid: int = PID,
    run: str = RUN,
    key: str = "",
) -> Execution:
    """An execution that began `at` milliseconds after the run and took twenty."""
    return Execution(
        nonce=f"{pid}-{run}-{step}-{attempt}-{at}",
        run=run,
        key=key,
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


def _event(step: str, kind: str, *, run: str = RUN, at: int = 0, **data: object) -> Event:
    return Event(run=run, step=step, type=kind, at_ms=BEGAN_MS + at, data=data)


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
    names = [*shapes.SHAPES]
    return shapes.draw(f"g{seed}", names[seed % len(names)], Random(seed))
