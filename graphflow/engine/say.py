"""Saying something to a conversation, whether it goes on or ended days ago: what the CLI and the public entry call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from convergio.graphflow.engine.submission import Entrance, Submission
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.journal.rows import RunRow
from convergio.graphflow.model import errors, ids
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.workflow import Step, StepKind
from convergio.graphflow.talking import IF_BUSY, TEXT

AFTER: Final = "input.after"
"""What a conversation that can be gone on with in another run says in `after`, and in `prompt`: `{{ input.said }}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saying:
    """What somebody says. `step`: to which conversation of the run, if it has several; `if_busy`: what becomes of it
    while a turn runs, if not what the team says; `id`: the same one is said once."""

    ref: RunRef
    text: str
    by: str
    step: str | None = None
    if_busy: str | None = None
    id: str = field(default_factory=ids.new_run_id)


def say(entrance: Entrance, saying: Saying) -> RunRow:
    """The run in which the words are heard: the same one, or a new one that goes on from one that has ended.

    Raises UnknownRun, UnknownStep, ConversationBusy, InvalidInput, and as `signal` and `submit` do.
    """
    row = entrance.doors.run(saying.ref.tenant, saying.ref.run)
    plan = entrance.starter.plans.get(row.digest)
    step = conversation(plan, saying.step)
    if row.terminal:
        return _begin_anew(entrance, saying, plan, step)
    data = {TEXT: saying.text, **({} if saying.if_busy is None else {IF_BUSY: saying.if_busy})}
    entrance.signal(saying.ref, name=step.name, data=data, by=saying.by, signal_id=saying.id)
    return row


def conversation(plan: Plan, name: str | None) -> Step:
    """The run's conversation of this name, or its only one. Raises UnknownStep, InvalidInput."""
    talks = [step for step in plan.workflow.steps.values() if step.kind is StepKind.CONVERSATION]
    names = ", ".join(step.name for step in talks) or "none"
    if name is None and len(talks) > 1:
        raise errors.InvalidInput("the run has several conversations", hint=f"name one of them: {names}")
    found = next((step for step in talks if name in (None, step.name)), None)
    if found is None:
        raise errors.UnknownStep(f"'{name or plan.workflow.name}' is no conversation", hint=f"conversations: {names}")
    return found


def _begin_anew(entrance: Entrance, saying: Saying, plan: Plan, step: Step) -> RunRow:
    if step.spec["after"] != AFTER:
        hint = "it was part of a workflow; talk with its team: convergio chat TEAM TEXT"
        raise errors.InvalidInput("the conversation is over, and its workflow takes no other words", hint=hint)
    given: dict[str, Any] = {"said": saying.text, "after": {"run": saying.ref.run, "step": step.name}}
    new = Submission(
        workflow=plan.workflow, input=given, run_id=saying.id, tenant=saying.ref.tenant, submitter=saying.by
    )
    return entrance.submit(new)
