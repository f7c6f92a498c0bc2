"""Who answers an approval from this terminal: the person at it, or `--yes`."""

from __future__ import annotations

import os
import select
import sys
import textwrap
from collections.abc import Mapping
from typing import Any, Final

import click

from convergio.graphflow.engine.reason import RunView, StepView
from convergio.workers.cli import look

LOOK_EVERY: Final = 0.2
"""Seconds after which a signal that was overlooked is seen."""


class Yes:
    """Approves everything: `--yes`, for CI and demonstrations."""

    def decide(self, view: RunView, step: StepView) -> Mapping[str, Any] | None:
        """Approve, and say so."""
        if step.asks_people:
            click.echo(f"{step.name} waits for somebody's words ({step.note}): answered by --yes")
            return {"text": "Yes, go on."}
        click.echo(f"approval {step.name} ({step.does}): approved by --yes")
        return {"decision": "approve", "reason": "--yes"}


class Person:
    """Asks whoever sits at the terminal, or writes to standard input."""

    def __init__(self) -> None:
        self._keyboard = Keyboard()

    def decide(self, view: RunView, step: StepView) -> Mapping[str, Any] | None:
        """The person's decision, or words; None at the end of input."""
        if step.asks_people:
            return self._words(view, step)
        spec = view.workflow.steps[step.name].spec
        look.say(f"\n⏸ {step.does}", style="bold yellow")
        look.say("  " + " · ".join([f"step {step.name}", *([f"risk {spec['risk']}"] if spec.get("risk") else [])]))
        if step.note:
            look.say(textwrap.indent(textwrap.fill(step.note, 96), "  "))
        answer = self._line("  approve? [y/n] ")
        while answer is not None and answer.lower() not in ("y", "yes", "n", "no"):
            answer = self._line("  please answer y or n: ")
        if answer is None:
            how = f"convergio runs signal {view.id} {step.name} --approve"
            click.echo(f"\n  no answer here. Give it from another terminal: {how} (or --reject)")
            return None
        approved = answer.lower().startswith("y")
        why = self._line("  reason (may be empty): ") or ""
        return {"decision": "approve" if approved else "reject", "reason": why}

    def _words(self, view: RunView, step: StepView) -> Mapping[str, Any] | None:
        """What the person says to a conversation that waits for it."""
        answer = self._line("you: ")
        while answer == "":
            answer = self._line("please say something: ")
        if answer is None:
            click.echo(f"\n  no answer here. Give it later: convergio chat --resume {view.id} TEXT")
        return None if answer is None else {"text": answer}

    def _line(self, prompt: str) -> str | None:
        """A line of standard input; None at its end."""
        click.echo(prompt, nl=False)
        sys.stdout.flush()
        line = self._keyboard.line()
        return None if line is None else line.strip()


class Nobody:
    """Leaves a conversation that waits for words: `convergio chat` where nobody sits at the terminal."""

    def decide(self, view: RunView, step: StepView) -> Mapping[str, Any] | None:
        """Raises LeftWaiting."""
        if step.asks_people:
            raise LeftWaiting(step.note)
        return None


class LeftWaiting(Exception):  # no error: the conversation goes on when somebody answers
    """A conversation waits for words that nobody can give here."""


class Keyboard:
    """Lines of standard input, awaited so that no signal is overlooked.

    A signal that comes in the moment before a read begins does not interrupt it: Python would learn of the Ctrl-C when
    the next line comes. So nothing is read before there is something to read.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._over = False

    def line(self) -> str | None:
        """The next line; None at the end."""
        while b"\n" not in self._rest and not self._over:
            if select.select([sys.stdin], [], [], LOOK_EVERY)[0]:
                more = os.read(sys.stdin.fileno(), 4096)
                self._over = not more
                self._rest += more
        line, found, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="replace") if found or line else None
