"""However a run failed, its retries end as one would have that never failed; nothing that was done is done again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from convergio.graphflow.engine import reuse
from convergio.graphflow.engine.restore import restore
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import StepState
from tests.property.ledger import Ledger
from tests.unit.deciding import NOW, START, Run, arrived, plan_of

REF = RunRef(tenant="default", run="r1")

Told = tuple[str, str, Mapping[str, Any]]
"""An outcome in the order of the journal: step, state, and the rest of it."""


@dataclass(kw_only=True)
class Played:
    """A run that was played to its end: what SQL has of it, and whose bodies ran."""

    run: Run
    told: list[Told] = field(default_factory=list[Told])
    bodies: list[str] = field(default_factory=list[str])

    def outcome(self, step: str, state: str, **rest: Any) -> None:
        facts = {"output": None, "error": None, "attempt": 1, "started_ms": None, **rest, "state": state}
        self.told.append((step, state, facts))

    def settle(self, *entries: Mapping[str, Any]) -> None:
        for event in self.run.settle(*entries).events:
            if event.kind == "step.skipped":
                self.outcome(event.step, "SKIPPED")

    def go_on(self, broken: Iterable[str], order: st.DataObject) -> Played:
        """Workers take what is ready, in any order, until nothing is."""
        while self.run.state == "RUNNING":
            ready = sorted(step for step, state in self.run.states().items() if state == "READY")
            assert ready, self.run.states()
            step = order.draw(st.sampled_from(ready))
            self.bodies.append(step)
            if step in broken:
                self.run.fail(step, "broken")
                self.outcome(step, "FAILED", error={"code": "E", "message": "broken"})
            else:
                self.run.succeed(step, {"by": step})
                self.outcome(step, "SUCCEEDED", output={"by": step})
            self.settle(arrived(step))
        return self


def anew(plan: Plan) -> Played:
    played = Played(run=Run(plan))
    played.settle(START)
    return played


def retried(plan: Plan, was: Played) -> tuple[Played, set[str]]:
    """The retry as it begins on the board, by the rows that it is accepted with; and the steps that it reuses."""
    ends = {step: StepState(state) for step, state, _ in was.told}
    kept = set(reuse.of(plan, plan, ends).kept)
    ledger = Ledger(REF, plan.workflow.document, plan.digest, None)
    copies = [one for one in was.told if one[0] in kept]
    for number, (step, state, facts) in enumerate(copies, start=1):
        entry = {"t": f"step.{state.lower()}", "s": step, "q": str(number), "a": str(NOW), "d": json.dumps(facts)}
        ledger.take(entry, 1, number)
    made = restore(ledger.facts(), plan, epoch=1, now_ms=NOW)
    run = Run(plan)
    run.values = dict(made.values)
    played = Played(run=run, told=copies)
    for event in made.events:
        if event.kind == "step.skipped":
            played.outcome(event.step, "SKIPPED")
    if made.inbox:
        played.settle(*made.inbox)
    return played, kept


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Plan, set[str], set[str]]:
    """A plan, the steps whose failure ends the run until they are mended, and those that fail and do no harm."""
    names = [f"s{number}" for number in range(draw(st.integers(1, 7)))]
    fate = {name: draw(st.sampled_from(["well", "well", "fatal", "shrugged", "skipped"])) for name in names}
    steps: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        needs = draw(st.lists(st.sampled_from(names[:number]), unique=True, max_size=3)) if number else []
        steps[name] = {"needs": needs, "on_failure": "continue" if fate[name] == "shrugged" else "fail"}
        steps[name] |= {"when": "input == 7"} if fate[name] == "skipped" else {}
    fatal = {name for name in names if fate[name] == "fatal"}
    return plan_of(**steps), fatal, {name for name in names if fate[name] == "shrugged"}


@given(graphs(), st.data())
def test_retries_end_as_if_nothing_had_failed_and_run_nothing_twice_that_was_done(
    made: tuple[Plan, set[str], set[str]], data: st.DataObject
) -> None:
    plan, fatal, shrugged = made
    wanted = anew(plan).go_on(shrugged, data)
    assert wanted.run.state == "SUCCEEDED"
    bodies: Counter[str] = Counter()
    played = anew(plan).go_on(fatal | shrugged, data)
    bodies.update(played.bodies)
    failures = 0
    while played.run.state == "FAILED":
        failures += 1
        fatal.discard(data.draw(st.sampled_from(sorted(fatal))))  # one of them is mended, perhaps not the one that hurt
        played, kept = retried(plan, played)
        before = Counter(bodies)
        played.go_on(fatal | shrugged, data)
        bodies.update(played.bodies)
        assert all(bodies[step] == before[step] for step in kept)
    assert {step: state for step, state, _ in played.told} == {step: state for step, state, _ in wanted.told}
    assert all(count <= 1 + failures for count in bodies.values())
