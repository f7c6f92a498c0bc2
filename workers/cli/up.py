"""`convergio up`: everything on one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from convergio.workers.cli import exits, look
from convergio.workers.cli.menu import Command

if TYPE_CHECKING:
    from convergio.config.settings import Settings
    from convergio.workers.cli.local import Brain
    from convergio.workers.embedded.child import Status
    from convergio.workers.embedded.stack import Stack


@click.command(cls=Command)
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Worker processes.")
@click.option("--flower", is_flag=True, help="Also start Flower, on loopback.")
@click.option("--scripted", is_flag=True, help="The scripted model, whatever is installed or configured.")
def up(workers: int, flower: bool, scripted: bool) -> int:
    """Everything on this machine, in one directory: Valkey, the journal (SQLite), workers, and a local model.

    What CONVERGIO_REDIS_URL, CONVERGIO_JOURNAL_URL or CONVERGIO_MODEL_BASE_URL name is used instead. One Ctrl-C stops
    all; what runs is finished first.
    """
    from dataclasses import replace

    from convergio.config import settings
    from convergio.workers.cli import local
    from convergio.workers.embedded.stack import Stack

    given = settings.load()
    which = local.brain(given, scripted=scripted)
    names = [local.WORKER if workers == 1 else f"{local.WORKER}-{number}" for number in range(1, workers + 1)]
    programs = [local.service(which.env), *(local.worker(given, name=name, env=which.env) for name in names)]
    url = ""
    if flower:
        port = _flower_port(given)
        programs.append(local.flower(port))
        url = f"http://127.0.0.1:{port}"
    plan = local.plan(given, which, programs=programs)
    if url:
        plan = replace(plan, urls={"flower": url})
    click.echo(f"starting in {given.home.absolute()} ...")
    Stack(plan, on_change=told).run(when_ready=lambda stack: _summary(stack, given, which, url))
    click.echo("stopped")
    return exits.OK


def _flower_port(given: Settings) -> int:
    """The port of the settings, if it is free; else another, so that a second stack starts as well."""
    from convergio.workers.embedded import port

    wanted = given.flower_port
    return wanted if wanted and port.is_free(wanted) else port.free()


def told(status: Status) -> None:
    """Says what an operator would want to know of a process."""
    from convergio.workers.embedded.child import State

    if status.state is State.BACKOFF:
        click.echo(f"{status.name} ended ({status.last_end}): started again", err=True)


def _summary(stack: Stack, given: Settings, which: Brain, flower: str) -> None:
    from convergio.workers.cli.local import here

    add, convergio = here(given.home), look.command()
    lines = [
        "Convergio is up.",
        f"  Redis    {masked(stack.endpoints.redis_url)}",
        f"  journal  {masked(stack.endpoints.journal_url)}",
        f"  model    {which.words}",
        *([f"  Flower   {flower}"] if flower else []),
        f"  logs     {stack.directory.logs}",
        "Next, in another terminal:",
        f"  {convergio} run market_entry --brief --watch{add}",
        f"  {convergio} runs list{add}",
        f"  {convergio} doctor{add}",
        "Ctrl-C stops everything.",
    ]
    click.echo("\n".join(lines))


def masked(url: str) -> str:
    """The URL without its password."""
    head, at, tail = url.rpartition("@")
    if not at:
        return url
    scheme, _, credentials = head.partition("://")
    user = credentials.partition(":")[0]
    return f"{scheme}://{user}{':***' if ':' in credentials else ''}@{tail}"
