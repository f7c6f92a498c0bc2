"""Steps that are runs of their own: the part of `decide` that is about children.

A child has the run, the step and the attempt for its name, so that whoever starts it starts the same one. It is started
outside of the decision, from the journaled event `child.wanted`; how it ended comes as an entry of the inbox, as often
as it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from convergio.graphflow.asking import Asking
from convergio.graphflow.board import fields
from convergio.graphflow.decision import Entry
from convergio.graphflow.model import errors
from convergio.graphflow.model.outcome import Outcome
from convergio.graphflow.model.states import BlockedOn, StepState
from convergio.graphflow.model.workflow import Step

WANTED: Final = "child.wanted"
"""The event from which a child is started."""

LEFT: Final = "child.left"
"""Nobody waits for the child any more. A hint: the rows say the same."""


class Nested(Asking):
    """What starts a child, and what follows from its end."""

    def want_child(self, step: Step, attempt: int = 1) -> None:
        """The step is BLOCKED until its child has ended, or for as long as its timeout."""
        due = None if step.timeout is None else self.now_ms + round(step.timeout * 1000)
        word = fields.Word(StepState.BLOCKED, f"{BlockedOn.CHILD}|{self.now_ms}|{attempt}|")
        self.put(fields.state(step.name), word.text)
        if due is not None:
            self.made.timers.append((step.name, BlockedOn.CHILD, due))
        self.tell(WANTED, step.name, {"workflow": step.spec["workflow"], "attempt": attempt, "due_ms": due})

    def child(self, entry: Entry) -> None:
        """A child has ended, or cannot be started. Only the attempt that the step waits for counts."""
        self.room()
        name = entry["step"]
        word = self.word(name)
        if self.ended() or word.blocked_on is not BlockedOn.CHILD or attempt_of(word) != entry["attempt"]:
            return
        step = self.plan.step(name)
        if step.timeout is not None:
            self.made.timers.append((name, BlockedOn.CHILD, None))
        if entry["state"] != StepState.SUCCEEDED:
            self.child_failed(step, word, entry["error"])
            return
        outcome = Outcome(
            state=StepState.SUCCEEDED, output=entry["output"], attempt=entry["attempt"], started_ms=word.since_ms
        )
        self.conclude(name, outcome)

    def child_late(self, step: Step, word: fields.Word) -> None:
        """The child takes too long: it counts as failed, and is cancelled."""
        self.tell(LEFT, step.name, {"attempt": attempt_of(word)})
        error = errors.StepTimeout(f"the child run of '{step.spec['workflow']}' took longer than {step.timeout:g} s")
        self.child_failed(step, word, error.as_dict())

    def child_failed(self, step: Step, word: fields.Word, error: Mapping[str, Any]) -> None:
        """Another attempt is another child, if the step's policy allows one."""
        attempt, policy = attempt_of(word), step.retry
        names = [str(error[name]) for name in ("code", "cause") if name in error]
        if not error.get("retryable") or attempt > policy.max or not policy.covers(*names):
            outcome = Outcome(state=StepState.FAILED, error=error, attempt=attempt, started_ms=word.since_ms)
            self.give_up(step, outcome)
            return
        seconds = policy.delay(attempt, f"{self.now_ms}/{step.name}")
        waits = fields.Word(StepState.BLOCKED, f"{BlockedOn.RETRY}|{self.now_ms}|{attempt + 1}|")
        self.put(fields.state(step.name), waits.text)
        self.put(fields.attempt(step.name), str(attempt + 1))
        self.made.timers.append((step.name, BlockedOn.RETRY, self.now_ms + round(seconds * 1000)))
        self.tell("step.retry", step.name, {"error": error, "attempt": attempt + 1, "seconds": round(seconds, 3)})


def attempt_of(word: fields.Word) -> int:
    """Which attempt a step is at that waits for its child, or for its next one."""
    return int(word.rest.split("|")[2])
