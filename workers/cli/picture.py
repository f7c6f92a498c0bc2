"""A run as a terminal shows it: one heading line, and a row per step."""

from __future__ import annotations

from typing import Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from convergio.graphflow.engine import reason
from convergio.graphflow.engine.reason import RunView, StepView
from convergio.graphflow.model.states import TERMINAL_STEP, BlockedOn, StepState
from convergio.graphflow.model.workflow import StepKind
from convergio.tasks.conversation.kind import Savings
from convergio.tasks.conversation.pace import Tempo
from convergio.workers.cli import look

ROWS: Final = 60
"""So many steps are shown one by one; of larger runs those that are done or wait are only counted."""


def heading(view: RunView) -> Text:
    """`market_entry  ◐ running  12 s   run 0192...`"""
    ended = view.finished_ms or view.now_ms
    line = Text(view.workflow.name, style="bold")
    return (
        line.append("  ")
        .append_text(look.shown(view.state))
        .append(f"  {reason.span(ended - view.created_ms)}   run {view.id}", style="dim")
    )


def steps(view: RunView) -> Table:
    """Step, state, who or what does it, how long, tokens, and what there is to say."""
    table = look.table("STEP", "STATE", "DOES", "TIME", "TOKENS", "", right=("TIME", "TOKENS"))
    for step in _shown(view):
        tokens = str(step.tokens) if step.tokens else ""
        table.add_row(
            named(step), look.shown(step.state, step.on), step.does, took(view, step), tokens, note(view, step)
        )
    return table


def named(step: StepView) -> str:
    """What a step is called: with its round, but for conversations, whose rounds are their turns."""
    return step.name if step.kind is StepKind.CONVERSATION else step.label


def live(view: RunView, *, saying: str = "") -> Group:
    """What a terminal redraws while a run goes on. `saying`: what an agent has said so far of its message."""
    return Group(heading(view), steps(view), _counts(view) if len(view.steps) > ROWS else "", Text(saying, style="dim"))


def took(view: RunView, step: StepView) -> str:
    """How long the step ran, or has been in the state it is in."""
    if step.state in TERMINAL_STEP:
        if step.started_ms is None or step.finished_ms is None:
            return ""
        return reason.span(step.finished_ms - step.started_ms)
    return "" if step.since_ms is None else reason.span(view.now_ms - step.since_ms)


def note(view: RunView, step: StepView) -> str:
    """The short form of why."""
    if step.reused_from is not None:
        return f"reused from {step.reused_from}"
    if step.state in (StepState.FAILED, StepState.QUARANTINED) and step.error:
        return f"{step.error.get('code', '')} {step.error.get('message', '')}"
    if step.tally is not None:
        return str(step.tally)
    if step.on is not None:
        return _waits(view, step)
    if step.held_ms is not None:
        return "held after a rebuild"
    again = f"attempt {step.attempt}" if step.state is StepState.RUNNING and step.attempt > 1 else ""
    return again or turns(step)


def turns(step: StepView) -> str:
    """How far a conversation is; nothing for other steps."""
    if step.kind is not StepKind.CONVERSATION or step.started_ms is None:
        return ""
    number = step.iteration + 1
    if step.state not in TERMINAL_STEP:
        return f"turn {number}"
    return "1 turn" if number == 1 else f"{number} turns"


def tempo(one: Tempo) -> str:
    """`talk: 4 turns, first words after 310 ms and 4 ms to readers, 42 tokens/s, 11 ms a turn beside all that`"""
    parts = [f"{one.turns} turn{'s' * (one.turns != 1)}"]
    if one.first_token_ms is not None:
        parts.append(f"first words after {one.first_token_ms:.0f} ms and {one.first_told_ms or 0:.0f} ms to readers")
    if one.tokens_per_s is not None:
        parts.append(f"{one.tokens_per_s:.0f} tokens/s")
    parts.append(f"{one.overhead_ms:.0f} ms a turn beside models and tools")
    return f"{one.step}: {', '.join(parts)}"


def savings(one: Savings) -> str:
    """`analysis by scored: 9 turns; a round robin takes 19.1 for this type: 53 % fewer`"""
    said = f"{one.type} by {one.policy}: {one.turns:g} turns"
    if one.saved is None:
        return said
    than = "fewer" if one.saved >= 0 else "more"
    return f"{said}; a round robin takes {one.baseline:g} for this type: {abs(one.saved) * 100:.0f} % {than}"


def _waits(view: RunView, step: StepView) -> str:
    error = step.error or {}
    match step.on:
        case BlockedOn.RETRY:
            due = "" if step.due_ms is None else f" in {reason.span(step.due_ms - view.now_ms)}"
            return f"attempt {step.attempt}{due}: {error.get('message', '')}"
        case BlockedOn.SIGNAL if step.asks_people:
            return step.note
        case BlockedOn.SIGNAL if error:
            return f"asks what to do: {error.get('code', '')} {error.get('message', '')}"
        case BlockedOn.CHILD:
            return f"run {step.child}" if step.child else ""
        case _:
            return step.note if step.on is BlockedOn.HOOK else ""


def _shown(view: RunView) -> list[StepView]:
    every = list(view.steps.values())
    if len(every) <= ROWS:
        return every
    quiet = (StepState.SUCCEEDED, StepState.WAITING, StepState.SKIPPED)
    return [step for step in every if step.state not in quiet][:ROWS]


def _counts(view: RunView) -> Text:
    states = [step.state for step in view.steps.values()]
    return Text("   ".join(f"{look.word_of(state)} {states.count(state)}" for state in StepState if state in states))
