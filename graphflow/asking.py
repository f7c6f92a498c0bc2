"""Steps that ask what to do when they have failed for good: the part of `decide` that is about the answers.

The outcome is not told before the answer is there: a step's outcome never changes. What went wrong is kept in the
step's state meanwhile. An answer counts only while the question stands: one that comes early or late is none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from convergio.graphflow.board import fields
from convergio.graphflow.decision import Answer, Entry
from convergio.graphflow.limiting import Limited
from convergio.graphflow.model.outcome import Outcome
from convergio.graphflow.model.states import BlockedOn, StepState
from convergio.graphflow.model.workflow import OnFailure, Step

ASKED: Final = "step.asked"
ANSWERED: Final = "step.answered"


class Asking(Limited):
    """The question, and what has been answered."""

    def give_up(self, step: Step, outcome: Outcome) -> None:
        """The step has failed for good, and no worker tells so: it asks, or that is its end."""
        if step.on_failure is not OnFailure.ASK:
            self.conclude(step.name, outcome)
            return
        error = outcome.error or {}
        self.let_go(step.name)
        word = fields.Word(StepState.BLOCKED, f"{BlockedOn.SIGNAL}|{self.now_ms}|{detail_of(error)}|")
        self.put(fields.state(step.name), word.text)
        self.tell(ASKED, step.name, {"error": error, "attempt": int(self.get(fields.attempt(step.name)) or 1)})

    def is_asking(self, step: str) -> bool:
        """Whether the step's failure is a question."""
        return self.plan.step(step).on_failure is OnFailure.ASK

    def once_more(self, step: Step, entry: Entry) -> int:
        """Another attempt, with nothing counted against it. Returns its number."""
        attempt = int(self.get(fields.attempt(step.name)) or 1) + 1
        self.put(fields.attempt(step.name), str(attempt))
        for name in (fields.deliveries(step.name), fields.unclaimed(step.name)):
            self.put(name, "")
        by = entry["data"].get("by", "")
        self.tell(ANSWERED, step.name, {"answer": Answer.RETRY.value, "attempt": attempt, "by": by})
        return attempt

    def settle_for(self, step: Step, word: fields.Word, entry: Entry) -> None:
        """No other attempt: the step has failed, and its error says what was answered."""
        data = entry["data"]
        error = {**error_of(word), "answer": data["decision"], "by": data.get("by", "")}
        attempt = int(self.get(fields.attempt(step.name)) or 1)
        outcome = Outcome(state=StepState.FAILED, error=error, attempt=attempt, started_ms=word.since_ms)
        self.conclude(step.name, outcome)

    def answer_to(self, step: str) -> str:
        """What was answered to a step that has failed; "" if it did not ask. Skipped, it has no result: see `kept`."""
        if not self.is_asking(step) or self.word(step).state is StepState.SUCCEEDED:
            return ""
        error = self.get(fields.output(step))
        if not error and self.word(step).state is StepState.FAILED:
            return Answer.SKIP.value
        return str(json.loads(error or "{}").get("answer", ""))


def detail_of(error: Mapping[str, Any]) -> str:
    """What went wrong, as the state of a step that asks keeps it."""
    return json.dumps(error, ensure_ascii=False, separators=(",", ":"))


def error_of(word: fields.Word) -> dict[str, Any]:
    """The inverse of `detail_of`. The text may hold what separates the parts of a state."""
    found: dict[str, Any] = json.loads(word.rest.split("|", 2)[2].rsplit("|", 1)[0])
    return found
