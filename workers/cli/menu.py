"""All commands, in one table. A command's module is imported when the command is called, not when it is listed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import click

from convergio.workers.cli import failure

PACKAGE: Final = "convergio.workers.cli"


class Item(NamedTuple):
    """One command: the module that has it, under which section it is listed ("" = hidden), and its line there."""

    module: str
    section: str
    line: str


ITEMS: Final[Mapping[str, Item]] = {
    "demo": Item("demo", "Start", "A business workflow from brief to plan, on this machine, step by step."),
    "up": Item("up", "Start", "Everything on this machine: Valkey, journal, workers, local model."),
    "worker": Item("worker", "Start", "Worker processes for a Redis and a journal of your own."),
    "flower": Item("flower", "Start", "Flower, the dashboard for Celery, on our broker."),
    "run": Item("run", "Work", "Start a run of a workflow."),
    "runs": Item("runs", "Work", "List, show, watch, explain, cancel, signal, retry and fork runs."),
    "chat": Item("chat", "Work", "Let a team of agents talk, and listen; go on with it days later."),
    "workflows": Item("workflows", "Work", "List, show, validate and import workflows."),
    "agents": Item("agents", "Work", "List and show agents; sign and verify definitions."),
    "models": Item("models", "Work", "List models, and check whether they answer."),
    "doctor": Item("doctor", "Operate", "Check this machine, Redis, the journal and the workers."),
    "migrate": Item("journal", "Operate", "Bring the journal's tables to this version."),
    "rebuild": Item("journal", "Operate", "Make a new board from the journal."),
    "chaos": Item("prove", "Prove", "Kill, wipe and cut things while runs go on, and check what is left."),
    "bench": Item("prove", "Prove", "Measure: `convergio bench` lists what."),
    "service": Item("service", "", "The service process: journaler and sweeper."),
}


class Menu(click.Group):
    """A group that knows its commands by name and line only."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands that are listed."""
        return [name for name, item in ITEMS.items() if item.section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command; this imports its module."""
        item = ITEMS.get(cmd_name)
        if item is None:
            return None
        command = getattr(importlib.import_module(f"{PACKAGE}.{item.module}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is called. Raises click.UsageError with the nearest name."""
        if args and args[0] not in ITEMS and not args[0].startswith("-"):
            from convergio.graphflow.flow.spelling import did_you_mean

            hint = did_you_mean(args[0], self.list_commands(ctx)) or "`convergio --help` lists the commands"
            raise click.UsageError(f"there is no command '{args[0]}'; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the commands by section."""
        for section in dict.fromkeys(item.section for item in ITEMS.values() if item.section):
            with formatter.section(section):
                formatter.write_dl([(name, item.line) for name, item in ITEMS.items() if item.section == section])


class Command(click.Command):
    """A command of ours: every one can be pointed at another stack by `--home`."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.params.append(home_option())


class Group(click.Group):
    """A group whose commands are ours."""

    command_class = Command


def home_option() -> click.Option:
    """`--home`: it sets the variable, so that the processes we start know it too."""

    def choose(_ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
        if value is not None:
            os.environ["CONVERGIO_HOME"] = str(value.absolute())

    return click.Option(
        ["--home"],
        type=click.Path(file_okay=False, path_type=Path),
        expose_value=False,
        callback=choose,
        help="Directory of the embedded stack (default .convergio).",
    )


@click.command(cls=Menu, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(package_name="convergio", message="%(version)s")
def convergio(debug: bool) -> None:
    """Durable multi-agent workflows as Celery tasks."""
    if debug:
        os.environ[failure.DEBUG] = "1"


convergio.params.append(home_option())
