"""How states and times look in a terminal: never by colour alone, the same words and hues everywhere."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from convergio.graphflow.model.states import BlockedOn, RunState, StepState

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

PIPE_WIDTH: Final = 200
"""Columns where nobody's screen says how many there are: wide enough that no cell is cut."""


@cache
def command() -> str:
    """How this command is called from here: by name where the shell finds it, else by its path in `.venv`."""
    called = Path(sys.argv[0])
    found = shutil.which("convergio")
    if called.name != "convergio" or (found is not None and os.path.samefile(found, called)):
        return "convergio"
    try:
        return str(called.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(called.absolute())


class Look(NamedTuple):
    """A symbol, a word and a hue (a style of rich)."""

    icon: str
    word: str
    style: str


LOOKS: Final[Mapping[RunState | StepState, Look]] = {
    StepState.WAITING: Look("○", "waiting", "bright_black"),
    StepState.READY: Look("◔", "ready", "cyan"),
    StepState.RUNNING: Look("◐", "running", "blue"),
    StepState.BLOCKED: Look("⏸", "blocked", "yellow"),
    StepState.SUCCEEDED: Look("●", "succeeded", "green"),
    StepState.FAILED: Look("✕", "failed", "red"),
    StepState.SKIPPED: Look("⤼", "skipped", "dim"),
    StepState.CANCELLED: Look("⊘", "cancelled", "bright_black"),
    StepState.QUARANTINED: Look("⚠", "quarantined", "magenta"),
    RunState.ACCEPTED: Look("◔", "accepted", "cyan"),
    RunState.RUNNING: Look("◐", "running", "blue"),
    RunState.PAUSED: Look("⏸", "paused", "yellow"),
    RunState.COMPENSATING: Look("◐", "compensating", "magenta"),
    RunState.SUCCEEDED: Look("●", "succeeded", "green"),
    RunState.FAILED: Look("✕", "failed", "red"),
    RunState.CANCELLED: Look("⊘", "cancelled", "bright_black"),
}

FOR_WHAT: Final[Mapping[BlockedOn, str]] = {
    BlockedOn.SIGNAL: "a signal",
    BlockedOn.TIMER: "its time",
    BlockedOn.RETRY: "its retry",
    BlockedOn.HOOK: "a hook",
    BlockedOn.JOURNAL: "the journal",
    BlockedOn.LIMIT: "its turn",
    BlockedOn.CHILD: "its run",
    BlockedOn.ITEMS: "its items",
}


def word_of(state: RunState | StepState, on: BlockedOn | None = None) -> str:
    """Icon and word; for a blocked step also what for."""
    look = LOOKS[state]
    return f"{look.icon} {look.word}{f' on {FOR_WHAT[on]}' if on is not None else ''}"


def shown(state: RunState | StepState, on: BlockedOn | None = None) -> Text:
    """The same in its hue."""
    from rich.text import Text

    return Text(word_of(state, on), style=LOOKS[state].style)


@cache
def console() -> Console:
    """Standard output. Without a terminal: no colour, no cut lines. NO_COLOR is respected by rich."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(highlight=False, emoji=False, markup=False, width=width)


def table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table: space between columns, no boxes."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def say(*parts: Any, style: str | None = None) -> None:
    """A line on standard output."""
    console().print(*parts, style=style, soft_wrap=True)


def show(made: Table) -> None:
    """Prints a table; where nobody's screen is, without the blanks that would fill its last column."""
    if console().is_terminal:
        console().print(made)
        return
    with console().capture() as text:
        console().print(made)
    for line in text.get().splitlines():
        sys.stdout.write(f"{line.rstrip()}\n")


def moment(ms: int | None) -> str:
    """A time of ours as the local wall clock."""
    return "" if ms is None else f"{datetime.fromtimestamp(ms / 1000, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
