"""`convergio run`: start a run."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convergio.graphflow.model.workflow import PRIORITIES
from convergio.workers.cli import exits
from convergio.workers.cli.menu import Command
from convergio.workers.cli.session import Session, as_json, with_session

if TYPE_CHECKING:
    from convergio.graphflow.engine.submission import Submission
    from convergio.graphflow.journal.rows import RunRow
    from convergio.graphflow.model.workflow import Workflow

FILES = (".yaml", ".yml", ".json")


@click.command(cls=Command)
@click.argument("workflow")
@click.option("--input", "-i", "given_input", default="{}", help="A JSON or YAML file, JSON text, or - for stdin.")
@click.option("--each", metavar="FILE", help="A run for each line of FILE (JSON lines, - for stdin): many at once.")
@click.option("--brief", is_flag=True, help="The example input that ships with the workflow.")
@click.option("--key", help="The same key means the same run: a repeated call starts nothing new.")
@click.option("--priority", type=click.Choice(PRIORITIES), help="How urgent it is; without it the workflow's.")
@click.option("--watch", is_flag=True, help="Follow it until it ends, and ask for approvals here.")
@click.option("--yes", is_flag=True, help="With --watch: approve everything.")
@click.option("--json", "json_wanted", is_flag=True, help="JSON on standard output.")
@with_session
def run(
    session: Session,
    workflow: str,
    given_input: str,
    each: str | None,
    brief: bool,
    key: str | None,
    priority: str | None,
    watch: bool,
    yes: bool,
    json_wanted: bool,
) -> int:
    """Start a run of WORKFLOW: a name (`convergio workflows list`) or a YAML file."""
    from convergio.workers.cli import given

    definition = definition_of(session, workflow)
    if each is not None:
        return _run_each(session, definition, each, key=key, priority=priority, watched=watch or brief)
    source = shipped_brief(definition) if brief else given_input
    row = submit(session, definition, given.value(source, what="--input"), key=key, priority=priority)
    if watch:
        return _watch(session, row, yes=yes, json_wanted=json_wanted)
    if json_wanted:
        click.echo(as_json({"id": row.run_id, "workflow": row.workflow, "state": row.state}))
    else:
        click.echo(row.run_id)
    return exits.OK


def definition_of(session: Session, text: str) -> Workflow:
    """The workflow of this name or in this file. Raises UnknownWorkflow, InvalidWorkflow, DefinitionRefused."""
    if not text.endswith(FILES):
        return session.catalog.get(text)
    from convergio.graphflow import library
    from convergio.workers import boot
    from convergio.workers.cli.workflows import known

    found, definition = library.load(Path(text), known=known(session))
    boot.trust(session.settings, session.revoked).check(definition)
    return found


def shipped_brief(definition: Workflow) -> str:
    """The file of a workflow's example input. Raises InvalidInput if none ships."""
    from convergio.graphflow import library
    from convergio.graphflow.model import errors

    found = library.brief(definition.name)
    if found is None:
        raise errors.InvalidInput(f"no brief ships with '{definition.name}'", hint="give an input: --input FILE")
    return str(found)


def submit(
    session: Session, definition: Workflow, value: object, *, key: str | None, priority: str | None = None
) -> RunRow:
    """Accepts the run. Raises InvalidInput, KeyConflict, BoardUnavailable, JournalUnavailable."""
    return session.entrance.submit(_submission(session, definition, value, key=key, priority=priority))


def _submission(
    session: Session, definition: Workflow, value: object, *, key: str | None, priority: str | None
) -> Submission:
    from convergio.graphflow.engine.submission import Submission

    return Submission(
        workflow=definition,
        input=value,
        tenant=session.settings.tenant,
        submitter=session.submitter,
        key=key,
        priority=priority,
    )


def _run_each(
    session: Session, definition: Workflow, path: str, *, key: str | None, priority: str | None, watched: bool
) -> int:
    """Prints the id of each run once it is accepted. With a key, a repeated call goes on where the last one ended."""
    from convergio.graphflow.engine.submission import MANY
    from convergio.graphflow.model import errors
    from convergio.workers.cli import given

    if watched:
        raise errors.InvalidInput(
            "--each goes with neither --watch nor --brief", hint="watch one: convergio runs watch RUN"
        )
    values = enumerate(given.lines(path, what="--each"), 1)
    while some := list(islice(values, MANY)):
        wanted = [
            _submission(session, definition, value, key=key and f"{key}:{number}", priority=priority)
            for number, value in some
        ]
        for row in session.entrance.submit_many(wanted):
            click.echo(row.run_id)
    return exits.OK


def _watch(session: Session, row: RunRow, *, yes: bool, json_wanted: bool) -> int:
    from convergio.workers.cli.answers import Person, Yes
    from convergio.workers.cli.follow import Follower

    answers = Yes() if yes else Person()
    follower = Follower(session, session.ref(row.run_id), as_json=json_wanted, answers=answers)
    code = follower.follow()
    if not json_wanted:
        ended = session.history.run(row.tenant, row.run_id)
        click.echo(f"run {row.run_id} {ended.state}")
        click.echo(as_json(ended.output if ended.error is None else ended.error))
    return code
