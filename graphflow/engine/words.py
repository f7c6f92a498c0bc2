"""What people say to a conversation, at the door: whether it can be said at all, and whether it can be said now."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, cast

from convergio.graphflow.board import fields
from convergio.graphflow.board.connection import UNREACHABLE, Link
from convergio.graphflow.engine.claims import AWAY
from convergio.graphflow.flow import expressions, inputs
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import StepState
from convergio.graphflow.model.workflow import OnFailure, Step, StepKind, Workflow
from convergio.graphflow.talking import CUTS, ENQUEUE, IF_BUSY, REJECT, TEXT, conversation_of, waits_for_people

LONGEST: Final = 1_000_000
"""Characters that begin a conversation, at most. What is said while it goes on travels, and has a smaller limit."""

POLICIES: Final = (ENQUEUE, REJECT, *CUTS)


def are_words(step: Step, data: Any) -> bool:
    """Whether these are words to a conversation; False: they answer a step that has failed and asks. Raises
    InvalidInput."""
    if isinstance(data, dict) and TEXT not in data and step.on_failure is OnFailure.ASK:
        return False
    text, policy = (data.get(TEXT), data.get(IF_BUSY)) if isinstance(data, dict) else (None, None)
    if not isinstance(text, str) or not text.strip():
        raise errors.InvalidInput("the signal's data has no words for the conversation", hint='send {"text": "..."}')
    if policy not in (None, *POLICIES):
        raise errors.InvalidInput(f"if_busy is {policy!r}", hint=f"use one of {', '.join(POLICIES)}")
    return True


def check_turn(link: Link, plan: Plan, ref: RunRef, name: str, data: Any) -> None:
    """Raises ConversationBusy for words that are to be rejected while a turn runs, if one does."""
    talk = conversation_of(plan, name)
    if talk is None or not isinstance(data, dict) or TEXT not in data:
        return
    if (data.get(IF_BUSY) or plan.step(talk).spec["if_busy"]) != REJECT:
        return
    try:
        run = link.keys(link.epoch()).run(ref)
        at = instance.named(talk, int(link.client.hget(run, fields.round_of(talk)) or 0))
        word = fields.Word.parse(cast("str | None", link.client.hget(run, fields.state(at))))
    except (*AWAY, *UNREACHABLE):
        return  # the board decides
    if word.state in (StepState.READY, StepState.RUNNING, StepState.BLOCKED) and not waits_for_people(word, at):
        hint = "say it when the turn is over, or with if_busy: enqueue, interrupt or rollback"
        raise errors.ConversationBusy("a turn runs, and the conversation takes no word now", hint=hint, run=ref.run)


def check_openings(workflow: Workflow, given: Any, *, size: int) -> None:
    """Raises MessageTooLarge if what begins a conversation is too long, as far as the input alone says it."""
    if size <= LONGEST:
        return
    for step in workflow.steps.values():
        if step.kind is StepKind.CONVERSATION and _of_input(step):
            with suppress(errors.ExpressionFailed):  # the run says so, when it comes to that
                _check_length(inputs.prompt(step, {expressions.INPUT: given}))


def _check_length(text: str) -> None:
    if len(text) > LONGEST:
        hint = "give the conversation what matters of it, or let a step summarize it first"
        raise errors.MessageTooLarge(f"a message has {len(text)} characters, and may have {LONGEST}", hint=hint)


def _of_input(step: Step) -> bool:
    return expressions.template_references(step.spec["prompt"]) <= {expressions.INPUT}
