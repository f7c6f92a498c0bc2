"""Undoing what a run has done, when it cannot go on: the part of `decide` that is about compensation.

The undo of a step is a step of its own, `undo:STEP`, that a worker claims like any other. It begins when SQL knows that
the run is COMPENSATING: after a wiped board no step may run that was undone before. What is next is read from the
states of the steps, so that nothing is undone twice, however often it is asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from convergio.graphflow.board import fields
from convergio.graphflow.decision import Event, Unloaded
from convergio.graphflow.draft import AHEAD
from convergio.graphflow.model.states import TERMINAL_STEP, BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import UNDO, OnFailure
from convergio.graphflow.talking import Talking

GATE: Final = UNDO
"""Stands where a step stands, until SQL knows that the run is being undone; no step has this name."""

COMPENSATING: Final = "run.compensating"

MOST_NAMED: Final = 100
"""Steps that the error of an undone run names, at most."""


class Undoing(Talking):
    """What is undone, in which order, and what the run comes to then."""

    def undoes(self, step: str = "") -> bool:
        """Whether the run is undone when it fails, or when the step makes it fail."""
        workflow = self.plan.workflow
        wishes: list[str] = [workflow.on_failure]
        if step:
            wishes += [self.plan.step(step).on_failure, self.answer_to(step)]
        return bool(self.plan.undone) and OnFailure.COMPENSATE in wishes

    def begin_undo(self, state: RunState, error: Mapping[str, Any]) -> None:
        """Nothing of the run is live. It is undone as soon as SQL knows that, and ends in `state` then."""
        facts = json.dumps({"state": state.value, "error": error}, ensure_ascii=False, separators=(",", ":"))
        self.put(fields.STATE, RunState.COMPENSATING)
        self.put(fields.STOP, "")
        self.put(fields.UNDO, facts)
        gate = fields.Word(StepState.BLOCKED, f"{BlockedOn.JOURNAL}|{self.now_ms}|{StepState.SUCCEEDED}|{GATE}")
        self.put(fields.state(GATE), gate.text)
        self.made.events.append(Event(kind=COMPENSATING, step=GATE, data=facts, park=True))

    def undo_on(self) -> None:
        """Fires the next undo, if none is under way: of the steps that succeeded, the last one first."""
        if self.get(fields.STOP) or self.word(GATE).state is not StepState.SUCCEEDED:
            return
        done = int(self.get(fields.cursor(GATE)) or 0)
        names = self.plan.undone
        while done < len(names):
            self.room()
            self.look_at(names[done : done + AHEAD])
            step, undo = self.word(names[done]), self.word(f"{UNDO}{names[done]}")
            waits = undo.state is StepState.WAITING
            if waits and step.parked is not None and step.parked.state is StepState.SUCCEEDED:
                return  # its RELEASE asks again
            if waits and step.state is StepState.SUCCEEDED:
                self.fire(f"{UNDO}{names[done]}", fresh=False)
            elif not waits and undo.state not in TERMINAL_STEP:
                return
            else:
                done += 1
                self.put(fields.cursor(GATE), str(done))
        facts = json.loads(self.get(fields.UNDO))
        self.finish(RunState(facts["state"]), output="", error=self.undone(facts["error"]))

    def look_at(self, steps: tuple[str, ...]) -> None:
        """Asks for the states of these steps, and of their undoing, at once."""
        names = [fields.state(f"{prefix}{step}") for step in steps for prefix in ("", UNDO)]
        missing = [name for name in names if not self.view.knows(name)]
        if missing:
            raise Unloaded(missing)

    def undone(self, error: Mapping[str, Any]) -> str:
        """Why the run ended, with what was undone and what was not, as JSON."""
        done: list[str] = []
        left: list[dict[str, Any]] = []
        for step in self.plan.undone:
            self.look_at((step,))
            undo = f"{UNDO}{step}"
            state = self.word(undo).state
            if state is StepState.SUCCEEDED:
                done.append(step)
            elif state is not StepState.WAITING or self.word(step).state is StepState.SUCCEEDED:
                why = json.loads(self.get(fields.output(undo)) or "{}")
                left.append({"step": step, **{name: why[name] for name in ("code", "message") if name in why}})
        facts = {**error, "compensated": done[:MOST_NAMED], "uncompensated": left[:MOST_NAMED]}
        return json.dumps(facts, ensure_ascii=False, separators=(",", ":"))
