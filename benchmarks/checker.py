"""The history checker: holds the journal and the effects of some runs against what the reference says of their graphs.

Independent of the engine: it imports none of it, and knows only SQL rows and what bodies wrote down themselves. What
was undone is the matter of `undone`, what was said that of `talked`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from convergio.benchmarks import graphs, reference, talked, undone
from convergio.benchmarks.effects import Execution, Note
from convergio.benchmarks.evidence import TERMINAL, Event, History, Outcome, Run, Signal
from convergio.benchmarks.graphs import Graph
from convergio.benchmarks.reference import Expected, Fate
from convergio.benchmarks.violations import Fault, Violation

Row = TypeVar("Row", Outcome, Event, Signal, Execution)

REACH_MS = 20_000
"""Milliseconds after the end of a run in which its children must have heard of it, whatever else happens."""


def check(
    accepted: Mapping[str, Graph],
    history: History,
    executions: Iterable[Execution],
    *,
    cancelled: frozenset[str] = frozenset(),
    notes: Iterable[Note] = (),
) -> list[Violation]:
    """All that is wrong with the runs in `accepted` (run id -> its graph) and with their children. `cancelled`: runs
    that somebody cancelled; `notes`: what tools wrote down."""
    everything = Everything(history, executions, notes)
    found: list[Violation] = []
    for name, graph in accepted.items():
        found += Case(everything, name, graph, cancelled=name in cancelled).violations()
    found += everything.limit_violations()
    if history.dead:
        found.append(Violation(fault=Fault.LOST, run="*", step="", said=f"{history.dead} events could not be kept"))
    return found


def _by_run(rows: Iterable[Row]) -> defaultdict[str, list[Row]]:
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.run].append(row)
    return groups


class Everything:
    """What the journal has and what bodies did, of all runs."""

    def __init__(self, history: History, executions: Iterable[Execution], notes: Iterable[Note] = ()) -> None:
        self.threads = talked.Threads(history.talked, notes)
        self.runs = {run.run: run for run in history.runs}
        self.outcomes, self.events = _by_run(history.outcomes), _by_run(history.events)
        self.signals, self.executions = _by_run(history.signals), _by_run(executions)
        self.by_nonce = {one.nonce: one for some in self.executions.values() for one in some}
        self.below: defaultdict[tuple[str, str], list[Run]] = defaultdict(list)
        for run in history.runs:
            self.below[run.parent, run.parent_step].append(run)

    def limit_violations(self) -> Iterator[Violation]:
        """More steps of a concurrency key ran at once than its limit, all of them with outcomes that count."""
        by_key: defaultdict[str, list[Execution]] = defaultdict(list)
        for row in (row for rows in self.outcomes.values() for row in rows):
            one = self.by_nonce.get(nonce_of(row.output))
            if one is not None and one.key and one.ended is not None and one.step == row.step:
                by_key[one.key].append(one)
        for key, some in by_key.items():
            for one in some:
                beside = [other for other in some if other.began <= one.began < (other.ended or 0)]
                if len(beside) > graphs.LIMIT:
                    said = f"is one of {len(beside)} that ran at once under the key {key}"
                    yield Violation(fault=Fault.LIMIT, run=one.run, step=one.step, said=said)


def nonce_of(output: Any) -> str:
    """Whose outcome it is, if one body brought it."""
    if not isinstance(output, dict):
        return ""
    facts = cast("dict[str, Any]", output)
    return str(facts.get("by", ""))


class Case:
    """One run: what should be, what the journal has, what bodies did. `cancelled`: it was, by whomever."""

    def __init__(
        self, everything: Everything, run: str, graph: Graph, *, cancelled: bool = False, above: Run | None = None
    ) -> None:
        self.everything = everything
        self.run = run
        self.graph = graph
        self.row = everything.runs.get(run)
        self.above = above
        self.expected = reference.execute(graph)
        cut = cancelled and self.row is not None and self.row.state == "CANCELLED"
        self.state = "CANCELLED" if cut else self.expected.state
        rows = everything.outcomes[run]
        self.outcomes = {row.step: row for row in reversed(rows)}
        self.counts = Counter(row.step for row in rows)
        self.executions = everything.executions[run]
        self.by_nonce = everything.by_nonce
        self.below = {name: one for name in self.expected.steps if (one := self._child(name)) is not None}

    def _child(self, name: str) -> Case | None:
        """The run that a step wanted. It is cancelled when its parent ends before it."""
        graph, rows = self.expected.steps[name].node.child, self.everything.below[self.run, name]
        if graph is None or not rows:
            return None
        left = self.row is not None and self.row.state in ("CANCELLED", "FAILED")
        return Case(
            self.everything, rows[0].run, replace(graph, value=self.graph.value), cancelled=left, above=self.row
        )

    def violations(self) -> Iterator[Violation]:
        """All that is wrong with it."""
        yield from self.run_violations(self.everything.events[self.run], self.everything.signals[self.run])
        for name in self.expected.steps:
            yield from self.step_violations(name)
            yield from self.child_violations(name)
        yield from self.execution_violations()
        yield from undone.violations(self, self.everything.events[self.run])
        yield from talked.violations(self, self.everything.threads)

    def says(self, fault: Fault, step: str, said: str) -> Violation:
        return Violation(fault=fault, run=self.run, step=step, said=said)

    # --- the run --------------------------------------------------------------------------------------------------

    def run_violations(self, events: Sequence[Event], signals: Sequence[Signal]) -> Iterator[Violation]:
        """What is wrong with the run as a whole."""
        run = self.row
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
        for step in self.counts.keys() - self.expected.steps.keys() - undone.names(self.graph):
            yield self.says(Fault.WRONG, step, "has an outcome, and is no step of this workflow")

    def _ends(self, events: Sequence[Event]) -> Iterator[Violation]:
        ends = [event.type for event in events if event.type in {f"run.{state.lower()}" for state in TERMINAL}]
        if len(ends) > 1:
            yield self.says(Fault.DOUBLED, "", f"ended {len(ends)} times: {', '.join(ends)}")
        applied = Counter(
            event.step for event in events if event.type == "signal.applied" and event.data.get("how") == "applied"
        )
        for step, count in applied.items():
            if count > 1 and step in self.graph.approvals:
                yield self.says(Fault.DOUBLED, step, f"its decision was applied {count} times")

    def _failure(self) -> Iterator[Violation]:
        because = {name for name, step in self.expected.steps.items() if step.ends_the_run}
        ended = {
            name for name in because & self.outcomes.keys() if self.outcomes[name].state in ("FAILED", "SUCCEEDED")
        }
        if self.state == "FAILED" and not ended:
            yield self.says(Fault.LOST, "", "failed, and no step has the outcome that makes it fail")

    # --- steps ----------------------------------------------------------------------------------------------------

    def step_violations(self, name: str) -> Iterator[Violation]:
        """What is wrong with the outcome of one instance of a step."""
        if self.counts[name] > 1:
            yield self.says(Fault.DOUBLED, name, f"has {self.counts[name]} outcomes")
        wanted, found = self.expected.steps[name], self.outcomes.get(name)
        if found is None or found.state == "CANCELLED":
            if self.state == "SUCCEEDED":
                yield self.says(Fault.LOST, name, f"has no outcome ({found.state if found else 'none'})")
            return
        if wanted.fate is Fate.UNREACHED:
            yield self.says(Fault.ORDER, name, f"is {found.state}, though what it needs failed")
        elif found.state != wanted.fate:
            yield self.says(Fault.WRONG, name, f"is {found.state}, should be {wanted.fate}")
        elif found.state == "SUCCEEDED":
            yield from self._output(name, wanted, found)
        yield from self._place(name, wanted.after, found)

    def _output(self, name: str, wanted: Expected, found: Outcome) -> Iterator[Violation]:
        node, output = wanted.node, found.output
        if node.approval:
            if output.get("digest") != wanted.digest:
                yield self.says(Fault.WRONG, name, "has another decision than was signalled")
            return
        if found.attempt != wanted.attempt:
            yield self.says(Fault.WRONG, name, f"took attempt {found.attempt}, should be {wanted.attempt}")
        if node.talk is not None:
            if reference.seen(output)[0] != wanted.digest:
                yield self.says(Fault.WRONG, name, f"ended with {output['text']!r}")
            return
        if node.child is not None or (node.items is not None and not wanted.member):
            yield from self._gathered(name, wanted, output)
            return
        saw: Mapping[str, str] = output.get("saw", {})
        yield from self._saw(name, wanted.parents, saw)
        if saw.keys() == wanted.parents.keys() and output.get("digest") != wanted.digest:
            yield self.says(Fault.WRONG, name, f"gave {output.get('digest')}, should be {wanted.digest}")
        yield from self.origin(name, output.get("by", ""))

    def _gathered(self, name: str, wanted: Expected, output: Any) -> Iterator[Violation]:
        """What a map made of its items, or what a child gave: no body brought it."""
        text, parts = reference.seen(output)
        yield from self._saw(name, wanted.gives, parts)
        if parts.keys() == wanted.gives.keys() and text != wanted.digest:
            yield self.says(Fault.WRONG, name, f"gave {text}, should be {wanted.digest}")
        if wanted.members and len(output) != len(wanted.members):
            yield self.says(Fault.FAN_IN, name, f"has {len(output)} results of {len(wanted.members)} items")
        for member in wanted.members:
            one, whole = self.outcomes.get(member), self.outcomes[name]
            if one is None or one.state == "CANCELLED":
                yield self.says(Fault.FAN_IN, name, f"succeeded without an outcome of {member}")
            elif one.order >= whole.order:
                yield self.says(Fault.ORDER, name, f"stands before its item {member} in the journal")

    def _saw(self, name: str, wanted: Mapping[str, str], saw: Mapping[str, str]) -> Iterator[Violation]:
        """It was given the outputs of exactly those that succeeded, and those that the journal has."""
        if saw.keys() != wanted.keys():
            yield self.says(Fault.FAN_IN, name, f"saw {sorted(saw)}, should be {sorted(wanted)}")
        for parent in saw.keys() & wanted.keys():
            if saw[parent] != self.recorded(wanted[parent]):
                yield self.says(Fault.DOUBLED, name, f"used an output of {parent} that is not the journal's")

    def recorded(self, name: str) -> str:
        """Whose outcome the journal has: the claim that brought it, or who decided. `call/s3`: a step of a child."""
        call, _, inner = name.partition("/")
        if inner:
            return self.below[call].recorded(inner) if call in self.below else "none"
        outcome = self.outcomes.get(name)
        return nonce_of(outcome.output) if outcome is not None else "none"

    def origin(self, step: str, nonce: str) -> Iterator[Violation]:
        """An outcome comes from an execution that ended well, and nothing ran again after that."""
        origin = self.by_nonce.get(nonce)
        if origin is None or (origin.run, origin.step) != (self.run, step) or not origin.succeeded:
            yield self.says(Fault.DOUBLED, step, f"has an outcome that no execution brought ({nonce or 'unnamed'})")
            return
        for other in self.executions:
            if other.step == step and origin.ended is not None and other.began > origin.ended:
                yield self.says(Fault.DOUBLED, step, f"ran again ({other.nonce}) after its outcome ({nonce})")

    def _place(self, name: str, after: Iterable[str], found: Outcome) -> Iterator[Violation]:
        """Where the outcome stands in the streams, and on the board's clock, beside those of its parents."""
        for before in after:
            parent = self.outcomes.get(before)
            if parent is None:
                yield self.says(Fault.ORDER, name, f"has an outcome, and {before} has none")
            elif parent.order >= found.order:
                yield self.says(Fault.ORDER, name, f"stands before {before} in the journal")
            elif found.started_ms and found.started_ms < self._over_ms(parent) and not self._is_decided(name):
                early = f"{self._over_ms(parent) - found.started_ms} ms before {before} had finished"
                yield self.says(Fault.ORDER, name, f"started {early} (at {found.started_ms}, {found.order})")

    def _is_decided(self, name: str) -> bool:
        """Whether it has no body of its own: what decides begins it, and says when the run's lock was taken for that,
        which may be a moment before the last parent's end was added to what is decided under it."""
        node = self.expected.steps[name].node
        return node.child is not None or (node.items is not None and name == node.name)

    def _over_ms(self, parent: Outcome) -> int:
        """When it was over. An outcome that had to be told again, to a new board, says when that was: then its body
        knows better, and who read it before the wipe may have gone on with it."""
        brought = self.by_nonce.get(nonce_of(parent.output))
        ended_ms = brought.ended_ms if brought is not None and brought.ended_ms is not None else parent.finished_ms
        return min(parent.finished_ms or 0, ended_ms or 0)

    # --- children -------------------------------------------------------------------------------------------------

    def child_violations(self, name: str) -> Iterator[Violation]:
        """A step that is a run of its own: started once, ended, told of, and stopped when nobody waits for it."""
        rows, outcome = self.everything.below[self.run, name], self.outcomes.get(name)
        if self.expected.steps[name].node.child is None:
            return
        if len(rows) > 1:
            yield self.says(Fault.DOUBLED, name, f"is {len(rows)} runs")
        if self.expected.steps[name].fate in (Fate.SKIPPED, Fate.UNREACHED) and rows:
            yield self.says(Fault.WRONG, name, "was started, and should not")
        elif outcome is not None and outcome.state == "SUCCEEDED" and name not in self.below:
            yield self.says(Fault.LOST, name, "has an outcome, and no run")
        if name in self.below:
            yield from self.below[name].violations()
            yield from self.below[name].told(outcome)

    def told(self, outcome: Outcome | None) -> Iterator[Violation]:
        """Of a child: its parent heard how it ended, after it had; it does not outlive its parent."""
        row, above = self.row, self.above
        assert row is not None, "made from its row"
        assert above is not None, "it has a parent"
        if outcome is not None and outcome.state in ("SUCCEEDED", "FAILED"):
            if outcome.state != row.state:
                yield self.says(Fault.WRONG, "", f"ended {row.state}, its parent was told {outcome.state}")
            elif (outcome.finished_ms or 0) < (row.finished_ms or 0):
                yield self.says(Fault.ORDER, "", "ended after its parent was told so")
        if above.finished_ms is not None:
            for one in self.executions:
                if one.began_ms > above.finished_ms + REACH_MS:
                    yield self.says(
                        Fault.LOST, one.step, "began long after the run above had ended: no cancel reached it"
                    )

    # --- executions -----------------------------------------------------------------------------------------------

    def execution_violations(self) -> Iterator[Violation]:
        """What is wrong with executions, whether or not their outcomes count."""
        for execution in self.executions:
            for parent in execution.early:
                yield self.says(Fault.ORDER, execution.step, f"began before {parent} was in the journal")
            if execution.step in undone.names(self.graph):
                continue
            wanted = self.expected.steps.get(execution.step)
            if wanted is None or wanted.fate in (Fate.SKIPPED, Fate.UNREACHED):
                yield self.says(Fault.WRONG, execution.step, "ran, and should not")
                continue
            for parent, name in wanted.parents.items():
                yield from self._began_after(execution, parent, name)

    def _began_after(self, execution: Execution, parent: str, name: str) -> Iterator[Violation]:
        """The output it was given is one of an execution that had ended before."""
        wanted = self.expected.steps.get(name)
        if wanted is not None and (wanted.node.approval or wanted.node.talk is not None):
            return
        given = self.by_nonce.get(execution.saw.get(parent, ""))
        if given is None or given.ended is None or given.ended > execution.began:
            yield self.says(Fault.ORDER, execution.step, f"began before {parent} had ended ({execution.nonce})")
