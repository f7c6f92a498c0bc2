"""A run as `decide` sees it: fields in a dictionary, decisions applied at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from convergio.graphflow import decide
from convergio.graphflow.board.fields import Word
from convergio.graphflow.decision import Decision, Entry, Event, Ring, Unloaded, View
from convergio.graphflow.flow import document
from convergio.graphflow.flow.plan import Plan

NOW: Final = 1_790_000_000_000
START: Final[Entry] = {"t": "start"}
APPROVE: Final = {"decision": "approve", "by": "ann"}
REJECT: Final = {"decision": "reject", "by": "bob", "reason": "no"}


def plan_of(output: Mapping[str, str] | None = None, /, **steps: Mapping[str, Any]) -> Plan:
    """The plan of a workflow with these steps; one without a kind is a task."""
    kinds = ("approval", "agent", "map", "task", "wait", "workflow")
    written = {
        name: step if any(kind in step for kind in kinds) else {"task": "m.f", **step} for name, step in steps.items()
    }
    head = {"workflow": "play", "version": 1, "steps": written}
    return Plan.of(document.parse_document(head if output is None else {**head, "output": output}))


def arrived(step: str) -> Entry:
    return {"t": "arrived", "step": step}


def signal(name: str, data: Mapping[str, Any], *, id: str = "1") -> Entry:
    return {"t": "signal", "id": id, "name": name, "data": data}


class Run:
    """One run's fields. Everything that was decided is kept: `rings`, `events`."""

    def __init__(self, plan: Plan, *, given: Any = None, budget: int = decide.BUDGET) -> None:
        self.plan = plan
        self.budget = budget
        self.values = {"@state": "RUNNING", "@open": str(plan.size), "@input": json.dumps(given)}
        self.rings: list[Ring] = []
        self.events: list[Event] = []

    def started(self) -> Run:
        """The same run after its start."""
        self.settle({"t": "start"})
        return self

    # --- looking ------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        return self.values["@state"]

    def state_of(self, step: str) -> str:
        return Word.parse(self.values.get(f"s:{step}")).state.value

    def states(self) -> dict[str, str]:
        """Steps that are not WAITING."""
        return {name[2:]: self.state_of(name[2:]) for name in self.values if name.startswith("s:")}

    def rings_of(self, step: str) -> list[str]:
        return [ring.ring for ring in self.rings if ring.step == step]

    # --- deciding -----------------------------------------------------------------------------------------------------

    def decision(self, entries: Sequence[Entry], budget: int) -> Decision:
        """The decision; fields are read as it asks for them."""
        view = View({})
        while True:
            try:
                return decide.decide(self.plan, view, entries, epoch=1, now_ms=NOW, budget=budget)
            except Unloaded as missing:
                if not missing.everything and all(name in view.values for name in missing.names):
                    raise AssertionError("it asks for what it was given") from missing
                names = self.values if missing.everything else missing.names
                view.values.update({name: self.values.get(name, "") for name in names})
                view.complete |= missing.everything

    def apply(self, *entries: Entry) -> Decision:
        """One decision, written."""
        made = self.decision(entries, self.budget)
        for name, (was, to) in made.writes.items():
            assert self.values.get(name, "") == was, name
            if to:
                self.values[name] = str(to)
            else:
                self.values.pop(name, None)
        self.rings += made.rings
        self.events += made.events
        return made

    def settle(self, *entries: Entry) -> Decision:
        """Decisions until the inbox is empty; what they told and rang in one."""
        inbox, whole = list(entries), Decision()
        for _ in range(10_000):
            if not inbox:
                return whole
            made = self.apply(*inbox)
            inbox = [*inbox[made.consumed :], *made.posts]
            whole.writes |= made.writes
            whole.rings += made.rings
            whole.events += made.events
            whole.leases += made.leases
            whole.timers += made.timers
        raise AssertionError(f"decisions do not end: {inbox}")

    # --- what workers do ----------------------------------------------------------------------------------------------

    def succeed(self, step: str, output: Any = None) -> None:
        """ARRIVE, without its consequences."""
        self.values |= {f"s:{step}": "SUCCEEDED|1.1.n", f"o:{step}": json.dumps(output or {"ok": True})}

    def fail(self, step: str, message: str) -> None:
        self.values |= {f"s:{step}": "FAILED|1.1.n", f"o:{step}": json.dumps({"code": "E", "message": message})}

    def arrive(self, step: str, output: Any = None) -> Decision:
        """ARRIVE, and all that follows."""
        self.succeed(step, output)
        return self.settle(arrived(step))

    def release(self, step: str) -> Decision:
        """RELEASE of a parked outcome, and all that follows."""
        parked = Word.parse(self.values[f"s:{step}"]).parked
        assert parked is not None
        self.values[f"s:{step}"] = parked.text
        return self.settle(arrived(step))
