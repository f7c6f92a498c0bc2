"""`convergio chat`: a team talks; a conversation that has ended goes on when somebody says something more."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import click

from convergio.workers.cli.menu import Command
from convergio.workers.cli.session import Session, as_json, with_session
from convergio.workers.cli.teams import STEP


@click.command(cls=Command)
@click.argument("words", nargs=-1, required=True, metavar="TEAM TEXT")
@click.option("--resume", "earlier", help="Go on with the conversation of this run: give the TEXT alone.")
@click.option(
    "--behind", type=click.IntRange(1), help="With --resume: behind this turn of it, as if no other had been."
)
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Show the team this image, too (PNG, JPEG, GIF, WEBP; 5 MB). May be given again.",
)
@click.option("--turns", type=click.IntRange(1, 1000), help="Turns that the team may take, at most.")
@click.option("--json", "json_wanted", is_flag=True, help="JSON on standard output: every event.")
@click.option(
    "--tool", "tools", multiple=True, metavar="NAME=TOOL", help="Of an AutoGen file: our tool instead of its source."
)
@with_session
def chat(
    session: Session,
    words: tuple[str, ...],
    earlier: str | None,
    behind: int | None,
    images: tuple[Path, ...],
    turns: int | None,
    json_wanted: bool,
    tools: tuple[str, ...],
) -> int:
    """Let TEAM talk about TEXT. TEAM: a file with a team (YAML), one of AutoGen's (JSON), or names of the roster:
    amy,ali"""
    from convergio.workers.cli import teams
    from convergio.workers.cli.run import submit
    from convergio.workers.cli.workflows import known

    if len(words) != (1 if earlier else 2):
        raise click.UsageError("give a TEXT alone with --resume, else TEAM and TEXT")
    after = None
    if earlier is None:
        flow = teams.workflow_of(words[0], tools=teams.tools_of(tools), known=known(session), turns=turns)
    else:
        ref = session.ref(earlier)
        after = {"run": ref.run, "turn": behind}
        flow = teams.talking(_earlier(session, ref.run), source=words[0], known=known(session), turns=turns)
    if images and STEP not in flow.steps:
        raise click.UsageError("this team became steps of a workflow, which are shown no images")
    said = {"said": words[-1], "after": after, "images": [_image(path) for path in images]}
    row = submit(session, flow, said, key=None)
    return _listen(session, row.run_id, json_wanted=json_wanted, goes_on=STEP in flow.steps)


def _image(path: Path) -> str:
    """An image as it travels. What it is, is looked at where it is used."""
    return f"data:image/{path.suffix.lstrip('.') or 'png'};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _earlier(session: Session, run: str) -> dict[str, Any]:
    """The team of a run's conversation. Raises UnknownRun if it had none."""
    from convergio.graphflow.model import errors

    row = session.history.run(session.settings.tenant, run)
    steps = (session.history.definition(row.digest) or {}).get("steps", {})
    if STEP not in steps or "conversation" not in steps[STEP]:
        raise errors.UnknownRun(f"run {run} is no conversation", hint="convergio runs list --workflow chat")
    found: dict[str, Any] = steps[STEP]["conversation"]
    return found


def _listen(session: Session, run: str, *, json_wanted: bool, goes_on: bool) -> int:
    from convergio.workers.cli.follow import Follower, on_screen
    from convergio.workers.cli.talk import Listener

    shown = None if json_wanted else Listener()
    code = on_screen(Follower(session, session.ref(run), as_json=json_wanted, shown=shown), run)
    if json_wanted:
        return code
    row = session.history.run(session.settings.tenant, run)
    if row.error is not None:
        click.echo(as_json(row.error))
    if goes_on:
        click.echo(f"go on with: convergio chat --resume {run} TEXT")
    return code
