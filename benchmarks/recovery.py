"""What a fault cost: how long what it touched stood still, and what ran twice because of it.

**Recovery**: for every step that was live when the fault came (all it needs was there, its outcome was not), the
seconds from the fault (from its end, where a store was away for a while) until it went on: until it ran (again) after
the fault, or, where its execution survived, from the end of its body until the board had the outcome. A step that
became ready only after the fault and then stood still for more than a second is a sample too, so that what a fault
leaves behind counts. Not measured is what waits for its turn anyhow: steps with a concurrency key, items of a map that
lets few run at once, steps that ask; nor maps and children as such, but their items and their steps.

**Run twice though healthy**: a step's attempt ran again although the process of the first execution lived on, had not
been frozen, and what it was given was in the journal when the board was lost. Not counted: an execution that had ended
before a store was wiped, where the step is `stream`-durable (its outcome was lost with the store, which is what that
durability means) or where it had failed (a retry is parked on the board alone). Counted are thus those whose body still
ran when the store blinked, and all `step`-durable ones. Not counted either: an item of a map that lets few run at once,
where items before it had ended and that was lost (it is not its turn any more); and what a frozen process begins when
it thaws, with a claim that it has lost: its outcome is refused.

**Unknown outcomes**: bodies that ended well, whose outcome the journal does not have, and which nobody refused: the
effect happened, and the engine cannot know.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from convergio.benchmarks import reference
from convergio.benchmarks.checker import nonce_of
from convergio.benchmarks.effects import Execution
from convergio.benchmarks.evidence import History, Run
from convergio.benchmarks.graphs import Graph, Node
from convergio.benchmarks.reference import Expected

STALL_MS = 1_000
"""A step that waits longer than this after a fault, and not for what it needs, waits because of the fault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """A fault as it came: when (monotonic seconds and wall milliseconds), and which processes it killed or froze.

    Of one that wipes the board the moment after: whatever ended before it may have told the old board.
    `wiped`: the board lost data, or its server was another one afterwards. `over_ms`: when it was over, for one that
    lasts: nothing can go on before.
    """

    at: float
    at_ms: int
    wiped: bool = False
    processes: frozenset[int] = field(default_factory=frozenset[int])
    over_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one round's fault cost. `samples`: seconds of recovery."""

    samples: Sequence[float]
    fenced: int
    healthy_run_twice: int
    unknown_outcomes: int


def cost(accepted: Mapping[str, Graph], history: History, executions: Sequence[Execution], fault: Disturbance) -> Cost:
    """Adds up one round."""
    cases = list(_cases(accepted, history, executions))
    return Cost(
        samples=[seconds for case in cases for seconds in case.samples(fault)],
        fenced=sum(case.fenced() for case in cases),
        healthy_run_twice=sum(case.healthy_run_twice(fault) for case in cases),
        unknown_outcomes=sum(case.unknown_outcomes() for case in cases),
    )


def _cases(accepted: Mapping[str, Graph], history: History, executions: Sequence[Execution]) -> Iterator[_Case]:
    known = {nonce_of(row.output): row.finished_ms or 0 for row in history.outcomes}
    for run in history.runs:
        graph = accepted.get(run.run)
        if run.parent in accepted:
            above = accepted[run.parent]
            child = above.nodes[run.parent_step].child
            graph = replace(child, value=above.value) if child is not None else None
        if graph is not None:
            yield _Case(run, graph, history, executions, known)


def _is_measured(wanted: Expected) -> bool:
    """Whether it goes on as soon as all it needs is there, by itself: no turn to wait for, no question."""
    node = wanted.node
    waits = node.keyed or bool(node.answer) or (node.items is not None and node.items.width > 0)
    return not waits and (node.runs or node.approval or wanted.member)


class _Case:
    """One run, which may be a child."""

    def __init__(
        self, run: Run, graph: Graph, history: History, executions: Sequence[Execution], known: Mapping[str, int]
    ) -> None:
        """`known`: the claims whose outcomes the journal has, of all runs, and when the board had them."""
        self.run = run
        self.graph = graph
        self.expected = reference.execute(graph).steps
        self.outcomes = {row.step: row for row in history.outcomes if row.run == run.run}
        self.signals = {row.step: row.created_ms for row in history.signals if row.run == run.run}
        self.executions = [one for one in executions if one.run == run.run]
        self.known = known

    def of(self, step: str) -> list[Execution]:
        return [execution for execution in self.executions if execution.step == step]

    def recorded(self, step: str) -> str:
        """Whose outcome the journal has: the claim that brought it, or who decided."""
        outcome = self.outcomes.get(step)
        return nonce_of(outcome.output) if outcome is not None else ""

    # --- recovery -------------------------------------------------------------------------------------------------

    def samples(self, fault: Disturbance) -> Iterator[float]:
        """Seconds that the run's steps stood still because of the fault."""
        if self.run.finished_ms is not None and self.run.finished_ms < fault.at_ms:
            return
        for name, wanted in self.expected.items():
            millis = self._still(name, wanted, fault.over_ms or fault.at_ms) if _is_measured(wanted) else None
            if millis is not None:
                yield max(0, millis) / 1000

    def _still(self, name: str, wanted: Expected, fault_ms: int) -> int | None:
        ready_ms = self._ready_ms(wanted)
        outcome = self.outcomes.get(name)
        if ready_ms is None or outcome is None or outcome.state not in ("SUCCEEDED", "FAILED"):
            return None
        finished_ms = outcome.finished_ms
        if finished_ms is None or finished_ms < fault_ms:
            return None
        millis = self._progress_ms(name, wanted.node, max(fault_ms, ready_ms), finished_ms)
        touched = ready_ms <= fault_ms
        return millis if millis is not None and (touched or millis > STALL_MS) else None

    def _ready_ms(self, wanted: Expected) -> int | None:
        """When all that the step needs was there; for an approval, when its signal was there too."""
        times = [self.run.created_ms]
        for name in wanted.after:
            parent = self.outcomes.get(name)
            if parent is None or (parent.finished_ms is None and parent.state != "SKIPPED"):
                return None
            times.append(parent.finished_ms or 0)
        if wanted.node.approval:
            times.append(self.signals.get(wanted.node.name, 0))
        return max(times)

    def _progress_ms(self, name: str, node: Node, since_ms: int, finished_ms: int) -> int | None:
        if node.approval:
            return finished_ms - since_ms
        done = self.of(name)
        again = [one.began_ms for one in done if one.began_ms >= since_ms]
        kept = [one for one in done if one.nonce == self.recorded(name)]
        delivered = finished_ms - max(since_ms, kept[0].ended_ms or finished_ms) if kept else 0
        if again and not (kept and kept[0].began_ms < since_ms):
            return max(min(again) - since_ms, delivered)
        return delivered

    # --- twice, fenced, unknown -----------------------------------------------------------------------------------

    def fenced(self) -> int:
        """Executions that lost their claim to a later one of the same step."""
        return sum(
            1
            for one in self.executions
            if one.fenced is not None and any(o.began > one.began for o in self.of(one.step))
        )

    def healthy_run_twice(self, fault: Disturbance) -> int:
        """Executions that were repeated without need."""
        return sum(1 for name in {one.step for one in self.executions} for _ in self._repeated(name, fault))

    def _repeated(self, name: str, fault: Disturbance) -> Iterator[Execution]:
        done = self.of(name)
        for first, second in pairwise(done):
            healthy = first.pid not in fault.processes and first.attempt == second.attempt
            thawed = second.pid in fault.processes and second.fenced is not None
            needless = healthy and not thawed and self._inputs_hold(first) and not self._lost_its_place(first, fault)
            if needless and not self._was_wiped(name, first, second, fault):
                yield second

    def _inputs_hold(self, execution: Execution) -> bool:
        """Whether what it was given was in the journal when the board was lost: an outcome that had to be told to the
        new board has a time after the beginning of those that had gone on with it."""
        known = (self.known.get(nonce, math.inf) for nonce in execution.saw.values() if nonce)  # turns always are
        return all(at_ms <= execution.began_ms for at_ms in known)

    def _lost_its_place(self, execution: Execution, fault: Disturbance) -> bool:
        """Whether it is an item of a map that lets few run at once, and was one of these because items before it had
        ended, whose outcomes were lost: they ran again."""
        wanted = self.expected.get(execution.step)
        if (
            not fault.wiped
            or wanted is None
            or not wanted.member
            or not wanted.node.items
            or not wanted.node.items.width
        ):
            return False
        of_map, _, number = execution.step.partition("#")
        before = [
            one
            for one in self.executions
            if one.step.partition("#")[0] == of_map and int(one.step.partition("#")[2] or 0) < int(number)
        ]
        ended = {one.step for one in before if one.ended is not None and one.ended <= execution.began}
        return any(one.step in ended and one.began > fault.at for one in before)

    def _was_wiped(self, name: str, first: Execution, second: Execution, fault: Disturbance) -> bool:
        """Whether its outcome was on the board alone when that was wiped."""
        if not fault.wiped or first.ended is None or not first.ended <= fault.at <= second.began:
            return False
        wanted = self.expected.get(name)
        durable = wanted is None or wanted.node.step_durable  # what undoes always is
        return not (durable and first.succeeded)

    def unknown_outcomes(self) -> int:
        """Effects that the engine cannot know of."""
        return sum(
            1
            for one in self.executions
            if one.succeeded and one.fenced is None and one.nonce != self.recorded(one.step)
        )


def percentile(values: Iterable[float], share: float) -> float | None:
    """The nearest-rank percentile; None without values."""
    ranked = sorted(values)
    if not ranked:
        return None
    rank = max(1, -(-len(ranked) * round(share * 100) // 100))
    return ranked[rank - 1]
