"""Who answers an approval from this terminal: the person at it, or `--yes`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from typing import Any

import click

from convergio.graphflow.engine.reason import RunView, StepView
from convergio.workers.cli import look


class Yes:
    """Approves everything: `--yes`, for CI and demonstrations."""

    def decide(self, view: RunView, step: StepView) -> Mapping[str, Any] | None:
        """Approve, and say so."""
        click.echo(f"approval {step.name} ({step.does}): approved by --yes")
        return {"decision": "approve", "reason": "--yes"}


class Person:
    """Asks whoever sits at the terminal, or writes to standard input."""

    def decide(self, view: RunView, step: StepView) -> Mapping[str, Any] | None:
        """The person's decision; None at the end of input."""
        spec = view.workflow.steps[step.name].spec
        look.say(f"\n⏸ {step.does}", style="bold yellow")
        look.say("  " + " · ".join([f"step {step.name}", *([f"risk {spec['risk']}"] if spec.get("risk") else [])]))
        if step.note:
            look.say(textwrap.indent(textwrap.fill(step.note, 96), "  "))
        answer = _line("  approve? [y/n] ")
        while answer is not None and answer.lower() not in ("y", "yes", "n", "no"):
            answer = _line("  please answer y or n: ")
        if answer is None:
            how = f"convergio runs signal {view.id} {step.name} --approve"
            click.echo(f"\n  no answer here. Give it from another terminal: {how} (or --reject)")
            return None
        approved = answer.lower().startswith("y")
        why = _line("  reason (may be empty): ") or ""
        return {"decision": "approve" if approved else "reject", "reason": why}


def _line(prompt: str) -> str | None:
    """A line of standard input; None at its end."""
    click.echo(prompt, nl=False)
    sys.stdout.flush()
    line = sys.stdin.readline()
    return line.strip() if line else None
