"""`convergio chaos` and `convergio bench`: what the product claims, measured."""

from __future__ import annotations

import importlib
import re
from importlib import resources
from typing import Final

import click

from convergio.workers.cli import exits

PACKAGE: Final = "convergio.benchmarks"
OWN_COMMANDS: Final = frozenset({"chaos"})
AS_GIVEN: Final = {"ignore_unknown_options": True, "help_option_names": list[str]()}


@click.command(context_settings=AS_GIVEN)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def chaos(arguments: tuple[str, ...]) -> int:
    """Kill, wipe and cut things while runs go on, and check what is left (`convergio chaos --help`)."""
    return _main("chaos", arguments)


@click.command(context_settings=AS_GIVEN)
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(name: str | None, arguments: tuple[str, ...]) -> int:
    """Run the benchmark NAME; without a name, list them (`convergio bench NAME --help`)."""
    found = names()
    if name is None or name in ("-h", "--help", "list"):
        click.echo("\n".join(f"convergio bench {one}" for one in found))
        return exits.OK
    if name not in found:
        from convergio.graphflow.flow.spelling import did_you_mean

        hint = did_you_mean(name, found) or f"there are: {', '.join(found)}"
        raise click.UsageError(f"there is no benchmark '{name}'; {hint}")
    return _main(name, arguments)


def names() -> list[str]:
    """Modules of benchmarks that can be run: those with a `main(argv)`."""
    files = (file for file in resources.files(PACKAGE).iterdir() if file.name.endswith(".py"))
    runnable = (
        file.name.removesuffix(".py") for file in files if re.search(r"^def main\(argv", file.read_text(), re.M)
    )
    return sorted(set(runnable) - OWN_COMMANDS)


def _main(name: str, arguments: tuple[str, ...]) -> int:
    module = importlib.import_module(f"{PACKAGE}.{name}")
    return int(module.main(list(arguments)) or exits.OK)
