"""The history checker: holds the journal and the effects of some runs against what the reference says of their graphs.

Independent of the engine: it imports none of it, and knows only SQL rows and what bodies wrote down themselves.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from convergio.benchmarks import reference
from convergio.benchmarks.effects import Execution
from convergio.benchmarks.evidence import TERMINAL, Event, History, Outcome, Run, Signal
from convergio.benchmarks.graphs import Graph, Node
from convergio.benchmarks.reference import Expected, Fate

Row = TypeVar("Row", Outcome, Event, Signal, Execution)


class Fault(StrEnum):
    """What can be wrong with a history; the values are fields of the report."""

    LOST = "lost"  # an accepted run, an outcome, a signal or an event is not there
    DOUBLED = "double_committed"  # two outcomes of one step counted, or one that no execution brought
    ORDER = "order_violations"  # a step began before what it needs was there
    FAN_IN = "incomplete_fanins"  # a step did not see the outputs of exactly those parents that succeeded
    WRONG = "wrong_outcomes"  # another state, output or attempt than the reference has


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One thing that is wrong, in words."""

    fault: Fault
    run: str
    step: str
    said: str

    def __str__(self) -> str:
        return f"{self.fault} {self.run}/{self.step}: {self.said}"


def check(
    accepted: Mapping[str, Graph],
    history: History,
    executions: Iterable[Execution],
    *,
    cancelled: frozenset[str] = frozenset(),
) -> list[Violation]:
    """All that is wrong with the runs in `accepted` (run id -> its graph). `cancelled`: runs somebody cancelled."""
    runs = {run.run: run for run in history.runs}
    outcomes, events = _by_run(history.outcomes), _by_run(history.events)
    signals, done = _by_run(history.signals), _by_run(executions)
    found: list[Violation] = []
    for name, graph in accepted.items():
        run = runs.get(name)
        cut = name in cancelled and run is not None and run.state == "CANCELLED"
        case = Case(name, graph, outcomes=outcomes[name], executions=done[name], cancelled=cut)
        found += case.run_violations(run, events[name], signals[name])
        for node in graph.nodes.values():
            found += case.step_violations(node)
        found += case.execution_violations()
    if history.dead:
        found.append(Violation(fault=Fault.LOST, run="*", step="", said=f"{history.dead} events could not be kept"))
    return found


def _by_run(rows: Iterable[Row]) -> defaultdict[str, list[Row]]:
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.run].append(row)
    return groups


class Case:
    """One run: what should be, what the journal has, what bodies did. `cancelled`: it was, and ended so."""

    def __init__(
        self,
        run: str,
        graph: Graph,
        *,
        outcomes: Sequence[Outcome],
        executions: Sequence[Execution],
        cancelled: bool = False,
    ) -> None:
        self.run = run
        self.graph = graph
        self.expected = reference.execute(graph)
        self.state = "CANCELLED" if cancelled else self.expected.state
        self.outcomes = {row.step: row for row in reversed(outcomes)}
        self.counts = Counter(row.step for row in outcomes)
        self.executions = executions
        self.by_nonce = {execution.nonce: execution for execution in executions}

    def says(self, fault: Fault, step: str, said: str) -> Violation:
        return Violation(fault=fault, run=self.run, step=step, said=said)

    # --- the run --------------------------------------------------------------------------------------------------

    def run_violations(
        self, run: Run | None, events: Sequence[Event], signals: Sequence[Signal]
    ) -> Iterator[Violation]:
        """What is wrong with the run as a whole."""
        if run is None:
            yield self.says(Fault.LOST, "", "was accepted, and the journal does not know it")
            return
        if run.state not in TERMINAL:
            yield self.says(Fault.LOST, "", f"did not end: {run.state}")
        elif run.state != self.state:
            yield self.says(Fault.WRONG, "", f"ended {run.state}, should be {self.state}")
        for signal in signals:
            if run.state in TERMINAL and not signal.settled:
                yield self.says(Fault.LOST, signal.step, "its signal was neither applied nor dropped")
        yield from self._ends(events)
        yield from self._failure()
        for step in self.counts.keys() - self.graph.nodes.keys():
            yield self.says(Fault.WRONG, step, "has an outcome, and is no step of this workflow")

    def _ends(self, events: Sequence[Event]) -> Iterator[Violation]:
        ends = [event.type for event in events if event.type in {f"run.{state.lower()}" for state in TERMINAL}]
        if len(ends) > 1:
            yield self.says(Fault.DOUBLED, "", f"ended {len(ends)} times: {', '.join(ends)}")
        applied = Counter(
            event.step for event in events if event.type == "signal.applied" and event.data.get("how") == "applied"
        )
        for step, count in applied.items():
            if count > 1:
                yield self.says(Fault.DOUBLED, step, f"its decision was applied {count} times")

    def _failure(self) -> Iterator[Violation]:
        if self.state == "FAILED" and not any(row.state == "FAILED" for row in self.outcomes.values()):
            yield self.says(Fault.LOST, "", "failed, and no step has the outcome FAILED")

    # --- steps ----------------------------------------------------------------------------------------------------

    def step_violations(self, node: Node) -> Iterator[Violation]:
        """What is wrong with the outcome of one step."""
        if self.counts[node.name] > 1:
            yield self.says(Fault.DOUBLED, node.name, f"has {self.counts[node.name]} outcomes")
        wanted, found = self.expected.steps[node.name], self.outcomes.get(node.name)
        if found is None or found.state == "CANCELLED":
            if self.state == "SUCCEEDED":
                yield self.says(Fault.LOST, node.name, f"has no outcome ({found.state if found else 'none'})")
            return
        if wanted.fate is Fate.UNREACHED:
            yield self.says(Fault.ORDER, node.name, f"is {found.state}, though what it needs failed")
        elif found.state != wanted.fate:
            yield self.says(Fault.WRONG, node.name, f"is {found.state}, should be {wanted.fate}")
        elif found.state == "SUCCEEDED":
            yield from self._output(node, wanted, found)
        yield from self._place(node, found)

    def _output(self, node: Node, wanted: Expected, found: Outcome) -> Iterator[Violation]:
        output = found.output
        if node.approval:
            if output.get("digest") != wanted.digest:
                yield self.says(Fault.WRONG, node.name, "has another decision than was signalled")
            return
        if found.attempt != wanted.attempt:
            yield self.says(Fault.WRONG, node.name, f"took attempt {found.attempt}, should be {wanted.attempt}")
        saw: Mapping[str, str] = output.get("saw", {})
        if frozenset(saw) != wanted.parents:
            yield self.says(Fault.FAN_IN, node.name, f"saw {sorted(saw)}, should be {sorted(wanted.parents)}")
        elif output.get("digest") != wanted.digest:
            yield self.says(Fault.WRONG, node.name, f"gave {output.get('digest')}, should be {wanted.digest}")
        yield from self._origin(node.name, output.get("by", ""))
        for parent, nonce in saw.items():
            if nonce != self._recorded(parent):
                yield self.says(Fault.DOUBLED, node.name, f"used an output of {parent} that is not the journal's")

    def _recorded(self, step: str) -> str:
        """Whose outcome the journal has: the claim that brought it, or who decided."""
        outcome = self.outcomes.get(step)
        return str(outcome.output.get("by")) if outcome is not None else "none"

    def _origin(self, step: str, nonce: str) -> Iterator[Violation]:
        origin = self.by_nonce.get(nonce)
        if origin is None or origin.step != step or not origin.succeeded:
            yield self.says(Fault.DOUBLED, step, f"has an outcome that no execution brought ({nonce or 'unnamed'})")
            return
        for other in self.executions:
            if other.step == step and origin.ended is not None and other.began > origin.ended:
                yield self.says(Fault.DOUBLED, step, f"ran again ({other.nonce}) after its outcome ({nonce})")

    def _place(self, node: Node, found: Outcome) -> Iterator[Violation]:
        """Where the outcome stands in the streams, and on the board's clock, beside those of its parents."""
        for link in node.links:
            parent = self.outcomes.get(link.step)
            if parent is None:
                yield self.says(Fault.ORDER, node.name, f"has an outcome, and {link.step} has none")
            elif parent.order >= found.order:
                yield self.says(Fault.ORDER, node.name, f"stands before {link.step} in the journal")
            elif found.started_ms and parent.finished_ms and found.started_ms < parent.finished_ms:
                early = f"{parent.finished_ms - found.started_ms} ms before {link.step} had finished"
                yield self.says(Fault.ORDER, node.name, f"started {early} (at {found.started_ms}, {found.order})")

    # --- executions -----------------------------------------------------------------------------------------------

    def execution_violations(self) -> Iterator[Violation]:
        """What is wrong with executions, whether or not their outcomes count."""
        for execution in self.executions:
            wanted = self.expected.steps.get(execution.step)
            if wanted is None or wanted.fate in (Fate.SKIPPED, Fate.UNREACHED):
                yield self.says(Fault.WRONG, execution.step, "ran, and should not")
                continue
            for parent in execution.early:
                yield self.says(Fault.ORDER, execution.step, f"began before {parent} was in the journal")
            for link in self.graph.nodes[execution.step].links:
                yield from self._began_after(execution, link.step)

    def _began_after(self, execution: Execution, parent: str) -> Iterator[Violation]:
        """The output it was given is one of an execution that had ended before."""
        if self.expected.steps[parent].fate is not Fate.SUCCEEDED or self.graph.nodes[parent].approval:
            return
        given = self.by_nonce.get(execution.saw.get(parent, ""))
        if given is None or given.ended is None or given.ended > execution.began:
            yield self.says(Fault.ORDER, execution.step, f"began before {parent} had ended ({execution.nonce})")
