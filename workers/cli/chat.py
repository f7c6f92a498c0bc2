"""`convergio chat`: a team talks; whoever says something more is heard, in the conversation or, if it has ended, in one
that goes on from it."""

from __future__ import annotations

import base64
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convergio.workers.cli import exits
from convergio.workers.cli.menu import Command
from convergio.workers.cli.session import Session, as_json, with_session
from convergio.workers.cli.teams import STEP

if TYPE_CHECKING:
    from convergio.graphflow.journal.rows import RunRow
    from convergio.graphflow.model.workflow import Workflow


@click.command(cls=Command)
@click.argument("words", nargs=-1, metavar="TEAM TEXT")
@click.option("--resume", "earlier", help="Speak to the conversation of this run: give the TEXT alone.")
@click.option("--if-busy", type=click.Choice(["enqueue", "reject", "interrupt", "rollback"]), help="If a turn runs.")
@click.option(
    "--behind", type=click.IntRange(1), help="With --resume: go on behind this turn, as if no other had been."
)
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Show the team this image, too (PNG, JPEG, GIF, WEBP; 5 MB). May be given again.",
)
@click.option("--edit", help="With --resume: what was said last there, in other words. TEXT may be left out.")
@click.option("--model", help="With --resume: all agents go on with this model. TEXT may be left out.")
@click.option("--turns", type=click.IntRange(1, 1000), help="Turns that the team may take, at most.")
@click.option("--json", "json_wanted", is_flag=True, help="JSON on standard output: every event.")
@click.option(
    "--tool", "tools", multiple=True, metavar="NAME=TOOL", help="Of an AutoGen file: our tool instead of its source."
)
@with_session
def chat(session: Session, /, words: tuple[str, ...], earlier: str | None, json_wanted: bool, **more: Any) -> int:
    """Let TEAM talk about TEXT. TEAM: a file with a team (YAML), one of AutoGen's (JSON), or names of the roster:
    amy,ali"""
    changes = {name: more[name] for name in ("behind", "edit", "model", "turns") if more[name] is not None}
    images = [_image(path) for path in more["images"]]
    if earlier is None:
        if len(words) != 2:
            raise click.UsageError("give TEAM and TEXT, or a TEXT alone with --resume")
        flow, given = _team(session, words[0], more), {"said": words[1], "after": None, "images": images}
        if images and STEP not in flow.steps:
            raise click.UsageError("this team became steps of a workflow, which are shown no images")
        row, goes_on = _begun(session, flow, given), STEP in flow.steps
        return _listen(session, row.run_id, json_wanted=json_wanted, goes_on=goes_on)
    silent = not words and changes.keys() & {"behind", "edit", "model"}
    if len(words) != 1 and not silent:
        raise click.UsageError("give a TEXT alone with --resume")
    text = words[0] if words else ""
    forks = changes or images
    given = {"said": text, "images": images}
    row = _forked(session, earlier, given, changes) if forks else _said(session, earlier, text, more["if_busy"])
    return _listen(session, row.run_id, json_wanted=json_wanted, goes_on=True)


def _team(session: Session, text: str, more: Mapping[str, Any]) -> Workflow:
    from convergio.workers import boot
    from convergio.workers.cli import teams
    from convergio.workers.cli.workflows import known

    trust = boot.trust(session.settings, session.revoked)
    tools = teams.tools_of(more["tools"])
    return teams.workflow_of(text, tools=tools, known=known(session), trust=trust, turns=more["turns"])


def _said(session: Session, earlier: str, text: str, if_busy: str | None) -> RunRow:
    from convergio.graphflow.engine.say import Saying, say

    saying = Saying(ref=session.ref(earlier), text=text, by=session.submitter, if_busy=if_busy)
    return say(session.entrance, saying)


def _forked(session: Session, earlier: str, given: Mapping[str, Any], changes: Mapping[str, Any]) -> RunRow:
    """A conversation of its own, that goes on from a place of another one."""
    from convergio.workers.cli import teams
    from convergio.workers.cli.workflows import known

    ref = session.ref(earlier)
    step, team = _earlier(session, ref.run)
    if "model" in changes:
        members = [{"name": one} if isinstance(one, str) else one for one in team["agents"]]
        team = {**team, "agents": [{**one, "model": changes["model"]} for one in members]}
    place = {"run": ref.run, "step": step, "turn": changes.get("behind"), "edit": changes.get("edit")}
    after = {name: value for name, value in place.items() if value is not None}
    flow = teams.talking(team, source=ref.run, known=known(session), turns=changes.get("turns"))
    return _begun(session, flow, {**given, "after": after})


def _begun(session: Session, flow: Workflow, given: Mapping[str, Any]) -> RunRow:
    from convergio.workers.cli.run import submit

    return submit(session, flow, dict(given), key=None)


def _image(path: Path) -> str:
    """An image as it travels. What it is, is looked at where it is used."""
    return f"data:image/{path.suffix.lstrip('.') or 'png'};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _earlier(session: Session, run: str) -> tuple[str, dict[str, Any]]:
    """The step and the team of a run's conversation. Raises UnknownRun if it had none, or several."""
    from convergio.graphflow.model import errors

    row = session.history.run(session.settings.tenant, run)
    steps: dict[str, Any] = (session.history.definition(row.digest) or {}).get("steps", {})
    talks = [name for name, step in steps.items() if "conversation" in step]
    if len(talks) != 1:
        raise errors.UnknownRun(f"run {run} is no conversation", hint="convergio runs list --workflow chat")
    return talks[0], steps[talks[0]]["conversation"]


def _listen(session: Session, run: str, *, json_wanted: bool, goes_on: bool) -> int:
    from convergio.workers.cli.answers import LeftWaiting, Nobody, Person
    from convergio.workers.cli.follow import Follower, on_screen
    from convergio.workers.cli.talk import Listener

    shown = None if json_wanted else Listener()
    answers = Person() if sys.stdin.isatty() and not json_wanted else Nobody()
    try:
        follower = Follower(session, session.ref(run), as_json=json_wanted, shown=shown, answers=answers)
        code = on_screen(follower, run)
    except LeftWaiting:
        if not json_wanted:
            click.echo(f"waits for an answer: convergio chat --resume {run} TEXT")
        return exits.OK
    if json_wanted:
        return code
    row = session.history.run(session.settings.tenant, run)
    if row.error is not None:
        click.echo(as_json(row.error))
    if goes_on:
        click.echo(f"go on with: convergio chat --resume {run} TEXT")
    return code
