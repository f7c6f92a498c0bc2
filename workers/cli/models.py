"""`convergio models`: which models there are, and whether they answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from convergio.workers.cli import exits
from convergio.workers.cli.menu import Group
from convergio.workers.cli.session import Session, as_json, with_session

if TYPE_CHECKING:
    from convergio.graphflow.model.errors import ConvergioError
    from convergio.tasks.agents.model import ModelSettings
    from convergio.tasks.agents.registry import Registry

QUESTION: Final = "Say yes."
SHORT: Final = 16
"""Tokens of a check's answer, at most."""


@click.group(cls=Group)
def models() -> None:
    """List models, and check whether they answer."""


@models.command("list")
@click.option("--json", "json_wanted", is_flag=True, help="JSON on standard output.")
@with_session
def list_models(session: Session, json_wanted: bool) -> int:
    """The models that the settings, their file and the roster name: where they are, their limits, who else answers."""
    from convergio.workers import boot

    known = boot.models(session.settings)
    found = [_told(known, name) for name in _names(session, known)]
    if json_wanted:
        click.echo(as_json(found))
        return exits.OK
    from convergio.workers.cli import look

    table = look.table("MODEL", "WHERE", "IMAGES", "LIMITS", "ELSE", "PROBLEM")
    for one in found:
        limits = ", ".join(f"{name}: {value}" for name, value in one["limits"].items())
        others, seen = ", ".join(one["fallbacks"]), "yes" if one["vision"] else "no"
        table.add_row(one["model"], one["where"], seen, limits, others, (one["problem"] or {}).get("message", ""))
    look.show(table)
    return exits.OK


@models.command("check")
@click.argument("names", nargs=-1, metavar="[MODEL]...")
@click.option("--timeout", type=click.FloatRange(0.1, 600), default=30.0, show_default=True, help="Seconds for each.")
@click.option("--json", "json_wanted", is_flag=True, help="JSON on standard output.")
@with_session
def check(session: Session, names: tuple[str, ...], timeout: float, json_wanted: bool) -> int:
    """Ask each MODEL (without any: all that are known) one short question. It costs a few tokens, and no other model
    answers instead."""
    from convergio.workers import boot

    known = boot.models(session.settings)
    found = asyncio.run(_checked(known, names or _names(session, known), timeout))
    for one in () if json_wanted else found:
        error = one["error"]
        said = f"{one['ms']} ms, {one['output_tokens']} tokens" if error is None else _line(error)
        click.echo(f"{'ok' if error is None else 'FAILED'}  {one['model']}  {said}")
    if json_wanted:
        click.echo(as_json(found))
    failed = [one["error"]["code"] for one in found if one["error"] is not None]
    return exits.of(failed[0]) if failed else exits.OK


def _names(session: Session, known: Registry) -> list[str]:
    """Every model that something names, once, the default one first."""
    from convergio.workers import boot

    agents = (profile.spec.model for profile in boot.roster(session.settings))
    tiers = session.settings.tier_models.values()
    return list(dict.fromkeys([*known.titles(), *tiers, *(name for name in agents if name)]))


def _told(known: Registry, name: str) -> dict[str, Any]:
    """What is known of a model. One that cannot be used says why."""
    from convergio.graphflow.model import errors

    try:
        model, problem = known.named(name), None
    except errors.ConvergioError as error:
        model, problem = None, error.as_dict()
    limits = {} if model is None else _limits(model)
    return {
        "model": name,
        "where": "" if model is None else model.place,
        "kind": None if model is None or model.scripted else model.kind,
        "vision": model is not None and model.vision,
        "limits": limits,
        "fallbacks": [] if model is None else [one.title for one in model.fallbacks],
        "problem": problem,
    }


def _limits(model: ModelSettings) -> dict[str, int]:
    names = ("concurrent", "requests_per_minute", "tokens_per_minute")
    given = {name: getattr(model.limits, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


async def _checked(known: Registry, names: Iterable[str], timeout: float) -> list[dict[str, Any]]:
    from convergio.tasks.agents.autogen_adapter import AutogenRunner

    runner = AutogenRunner()
    try:
        return [await _asked(runner, known, name, timeout) for name in names]
    finally:
        await runner.close()


async def _asked(runner: Any, known: Registry, name: str, timeout: float) -> dict[str, Any]:
    from convergio.graphflow.model import errors
    from convergio.tasks.agents.spec import AgentSpec

    spec = AgentSpec(name="check", description="", system_message="Answer with one word.", max_tokens=SHORT)
    began, written = time.monotonic(), 0
    error: ConvergioError | None = None
    try:
        model = replace(known.named(name), fallbacks=())
        written = (await runner.answer(spec, model, QUESTION, deadline_s=timeout)).usage.output_tokens
    except errors.ConvergioError as found:
        error = found
    ms = round((time.monotonic() - began) * 1000)
    told = None if error is None else error.as_dict()
    return {"model": name, "ms": ms, "output_tokens": written, "error": told}


def _line(error: dict[str, Any]) -> str:
    said = f"{error['code']}  {error['message']}"
    return f"{said}. {error['hint']}" if error["hint"] else said
