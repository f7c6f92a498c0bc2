"""`convergio runs export`: all that was said in a run's conversation."""

from __future__ import annotations

import json

import click

from convergio.workers.cli import exits
from convergio.workers.cli.menu import Command
from convergio.workers.cli.session import Session, as_json, with_session


@click.command(cls=Command)
@click.argument("run")
@click.option("--step", help="Which conversation, if the run has several.")
@click.option("--format", "form", type=click.Choice(["markdown", "json"]), default="markdown", show_default=True)
@click.option("--alone", is_flag=True, help="Without the conversations that it goes on from.")
@with_session
def export(session: Session, run: str, step: str | None, form: str, alone: bool) -> int:
    """Print all that was said in a run's conversation: messages, tools, whose turn it was and why, tokens."""
    from convergio.graphflow.engine.say import conversation
    from convergio.graphflow.flow.plan import Plan
    from convergio.graphflow.journal.blobs import Blobs
    from convergio.tasks.conversation import transcript
    from convergio.tasks.conversation.archive import Archive, Place

    ref = session.ref(run)
    row = session.history.run(ref.tenant, ref.run)
    plan = Plan.from_json(json.dumps(session.history.definition(row.digest)))
    place = Place(run=ref.run, step=conversation(plan, step).name)
    archive = Archive(session.database, Blobs(session.database, limit=session.settings.blob_limit))
    chapters = archive.chapters(ref.tenant, place)[-1 if alone else 0 :]
    click.echo(as_json(transcript.as_data(chapters)) if form == "json" else transcript.as_markdown(chapters))
    return exits.OK
