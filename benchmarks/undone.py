"""The part of the checker about undoing: all that succeeded, nothing else, each once, in reverse order, one by one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Protocol

from convergio.benchmarks.effects import Execution
from convergio.benchmarks.evidence import Event, Outcome, Run
from convergio.benchmarks.graphs import UNDOES, Graph
from convergio.benchmarks.reference import Expectation
from convergio.benchmarks.violations import Fault, Violation


class Case(Protocol):
    """What is asked of one run: see `checker.Case`."""

    @property
    def graph(self) -> Graph: ...
    @property
    def row(self) -> Run | None: ...
    @property
    def expected(self) -> Expectation: ...
    @property
    def outcomes(self) -> Mapping[str, Outcome]: ...
    @property
    def executions(self) -> Sequence[Execution]: ...
    @property
    def by_nonce(self) -> Mapping[str, Execution]: ...
    def says(self, fault: Fault, step: str, said: str) -> Violation: ...
    def origin(self, step: str, nonce: str) -> Iterator[Violation]: ...
    def recorded(self, name: str) -> str: ...


def names(graph: Graph) -> frozenset[str]:
    """The steps that undo others."""
    return frozenset(f"{UNDOES}{node.name}" for node in graph.nodes.values() if node.undo is not None)


def violations(case: Case, events: Sequence[Event]) -> Iterator[Violation]:
    """What is wrong with what was undone."""
    began = [event for event in events if event.type == "run.compensating"]
    ran = [one for one in case.executions if one.step in names(case.graph)]
    told = [case.outcomes[name] for name in names(case.graph) & case.outcomes.keys()]
    if (ran or told) and not (began and _is_undone(case)):
        yield case.says(Fault.WRONG, "", "was undone, and should not be")
    for node in case.graph.nodes.values():
        if node.undo is not None:
            yield from _of_one(case, node.name, whole=_is_whole(case, began))
    yield from _turns(case, told)
    if ran and began:
        yield from _nothing_else(case, min(one.began_ms for one in ran), began[0])


def _is_undone(case: Case) -> bool:
    """Whether the run is undone when it ends as it did."""
    failing = [one.node for one in case.expected.steps.values() if one.ends_the_run]
    return case.graph.undone or any(node.ends_undone for node in failing)


def _is_whole(case: Case, began: Sequence[Event]) -> bool:
    """Whether all must be undone: a cancel ends the undoing of a run that had failed before."""
    if not _is_undone(case) or case.row is None or case.row.state not in ("FAILED", "CANCELLED"):
        return False
    if case.row.state == "FAILED":
        return True
    return case.graph.undone and all(event.data.get("state") == "CANCELLED" for event in began)


def _of_one(case: Case, step: str, *, whole: bool) -> Iterator[Violation]:
    name = f"{UNDOES}{step}"
    done, undo = case.outcomes.get(step), case.outcomes.get(name)
    good = done is not None and done.state == "SUCCEEDED"
    if not good and (undo is not None or any(one.step == name for one in case.executions)):
        yield case.says(Fault.WRONG, name, "ran, and there was nothing to undo")
    if good and whole and (undo is None or undo.state != "SUCCEEDED"):
        yield case.says(Fault.LOST, name, f"did not undo what succeeded ({undo.state if undo else 'none'})")
    if undo is None or undo.state != "SUCCEEDED":
        return
    yield from case.origin(name, str(undo.output.get("by", "")))
    if undo.output.get("saw") != {step: case.recorded(step)}:
        yield case.says(Fault.DOUBLED, name, f"was given another result than the journal has of {step}")


def _turns(case: Case, told: Sequence[Outcome]) -> Iterator[Violation]:
    """In reverse order, one after the other."""
    ordered = [row for row in sorted(told, key=lambda row: row.order) if row.state == "SUCCEEDED"]
    for first, second in pairwise(ordered):
        before, after = (case.by_nonce.get(str(row.output.get("by", ""))) for row in (first, second))
        if before is not None and after is not None and after.began < (before.ended or before.began):
            yield case.says(Fault.ORDER, second.step, f"began before {first.step} had ended")
    place = {row.step.removeprefix(UNDOES): number for number, row in enumerate(ordered)}
    for step, number in place.items():
        for parent in _above(case.graph, step) & place.keys():
            if place[parent] < number:
                yield case.says(Fault.ORDER, f"{UNDOES}{parent}", f"was undone before {step}, which stands on it")


def _above(graph: Graph, step: str) -> frozenset[str]:
    """All that a step needs, directly or not."""
    found: set[str] = set()
    pending = [step]
    while pending:
        parents = {link.step for link in graph.nodes[pending.pop()].links} - found
        found |= parents
        pending += parents
    return frozenset(found)


def _nothing_else(case: Case, first_ms: int, began: Event) -> Iterator[Violation]:
    """A run that is being undone does nothing else, and is known to be undone before anything is."""
    if first_ms < began.at_ms:
        yield case.says(Fault.ORDER, "", "was undone before it was known to be")
    for one in case.executions:
        if one.step not in names(case.graph) and one.began_ms > first_ms and one.fenced is None:
            yield case.says(Fault.ORDER, one.step, "began when the run was being undone already")
