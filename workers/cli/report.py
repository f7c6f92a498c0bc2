"""What a demonstration leaves on the screen: the outcome in words, what it took, and where to look next."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from convergio.graphflow.engine import reason
from convergio.graphflow.engine.reason import RunView
from convergio.graphflow.model.workflow import StepKind
from convergio.workers.cli import look, picture
from convergio.workers.cli.local import here

if TYPE_CHECKING:
    from convergio.workers.embedded.directory import DataDirectory

WIDTH: Final = 96


def report(view: RunView, directory: DataDirectory) -> None:
    """Prints it. The last line is the run's state."""
    _outcome(view)
    look.say("\nWhat it took", style="bold")
    look.show(picture.steps(view))
    look.say(_totals(view))
    _next(view, directory)
    look.say(f"\n{view.workflow.name} ", look.shown(view.state))
    click.echo(view.state.value)


def _outcome(view: RunView) -> None:
    if view.error is not None:
        look.say(f"\n{view.error.get('code', '')}  {view.error.get('message', '')}", style="red")
        for step in view.steps.values():
            if step.error:
                look.say(f"  {step.name} {reason.of_step(view, step)}")
    for name, text in _texts(view.output):
        look.say(f"\n{name.replace('_', ' ')}", style="bold")
        look.say(textwrap.indent(textwrap.fill(text, WIDTH, replace_whitespace=False), "  "))


def _texts(output: Any) -> list[tuple[str, str]]:
    """What a run's output says, name by name."""
    if not isinstance(output, dict):
        return [] if output is None else [("outcome", str(output))]
    return [(str(name), str(value)) for name, value in output.items()]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _totals(view: RunView) -> str:
    """Time from the submission to the end, time of the agents, and tokens."""
    took = {
        step.name: step.finished_ms - step.started_ms
        for step in view.steps.values()
        if step.kind in (StepKind.AGENT, StepKind.CONVERSATION)
        and step.started_ms is not None
        and step.finished_ms is not None
    }
    tokens = sum(step.tokens for step in view.steps.values())
    ended = view.finished_ms or view.now_ms
    return (
        f"total {reason.span(ended - view.created_ms)}; agents worked {reason.span(sum(took.values()))}"
        f" and used {tokens} tokens"
    )


def _next(view: RunView, directory: DataDirectory) -> None:
    home = Path(directory.root)
    add, convergio = here(home), look.command()
    lines = [
        f"journal  {directory.journal}",
        f"logs     {directory.logs}",
        "Try next:",
        f"  {convergio} runs show {view.id}{add}",
        f"  {convergio} workflows show {view.workflow.name}",
        f"  {convergio} up --flower{add}     (the same stack and Flower; then, in another terminal:)",
        f"  {convergio} run {view.workflow.name} --brief --watch{add}",
    ]
    look.say("\nWhere it is", style="bold")
    click.echo("\n".join(lines))
