"""`convergio doctor`: is everything there, and right?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from convergio.workers.cli import exits
from convergio.workers.cli.menu import Command
from convergio.workers.cli.session import Session, as_json, with_session

if TYPE_CHECKING:
    from convergio.config.settings import Settings

MARKS: Final = {"OK": ("●", "green"), "WARN": ("⚠", "yellow"), "FAIL": ("✕", "red")}


@click.command(cls=Command)
@click.option("--settings", "settings_wanted", is_flag=True, help="Print every setting, its value and its source.")
@click.option("--json", "json_wanted", is_flag=True, help="JSON on standard output.")
@with_session
def doctor(session: Session, settings_wanted: bool, json_wanted: bool) -> int:
    """Check this machine, Redis, the journal, the service process and the workers. Exit code 1 if a check fails."""
    if settings_wanted:
        return _print_settings(json_wanted=json_wanted)
    from convergio.workers.cli import checks
    from convergio.workers.cli.check import Level

    found = list(checks.every(session))
    failed = any(check.level is Level.FAIL for check in found)
    if json_wanted:
        click.echo(as_json([asdict(check) for check in found]))
        return exits.FAILED if failed else exits.OK
    from rich.text import Text

    from convergio.workers.cli import look

    table = look.table("CHECK", "", "SAW", "WHAT TO DO")
    for check in found:
        icon, style = MARKS[check.level]
        table.add_row(check.name, Text(f"{icon} {check.level}", style=style), check.saw, check.hint)
    look.show(table)
    return exits.FAILED if failed else exits.OK


def _print_settings(*, json_wanted: bool) -> int:
    from convergio.config import settings
    from convergio.workers.cli import look

    loaded = settings.load()
    rows = [
        {
            "name": name,
            "value": shown(loaded, name),
            "source": settings.source(loaded, name),
            "variable": settings.variable(name),
            "meaning": field.description or "",
        }
        for name, field in type(loaded).model_fields.items()
    ]
    if json_wanted:
        click.echo(as_json(rows))
        return exits.OK
    table = look.table("VARIABLE", "VALUE", "SOURCE", "MEANING")
    for row in rows:
        table.add_row(row["variable"], row["value"], row["source"], row["meaning"])
    look.show(table)
    return exits.OK


def shown(loaded: Settings, name: str) -> str:
    """A setting's value for the eye: secrets and passwords are masked."""
    from pydantic import SecretStr

    from convergio.workers.cli.up import masked

    value = getattr(loaded, name)
    if isinstance(value, SecretStr):
        return "***" if value.get_secret_value() else ""
    return masked(value) if isinstance(value, str) and "://" in value else str(value)
