"""`convergio migrate` and `convergio rebuild`: the journal's tables, and a new board from them."""

from __future__ import annotations

import click

from convergio.workers.cli import exits
from convergio.workers.cli.menu import Command
from convergio.workers.cli.session import Session, with_session


@click.command(cls=Command)
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if there is something to do.")
@with_session
def migrate(session: Session, check: bool) -> int:
    """Bring the journal's tables to this version. Safe to run twice, and from several machines at once."""
    from convergio.graphflow.journal import schema
    from convergio.workers import boot
    from convergio.workers.cli.up import masked

    url = boot.journal_url(session.settings)
    pending = schema.pending(url, boot.migrations())
    if check:
        click.echo("\n".join(pending) if pending else "nothing to do")
        return exits.FAILED if pending else exits.OK
    boot.migrate(url)
    click.echo(f"{masked(url)}: {f'applied {len(pending)} migrations' if pending else 'nothing to do'}")
    return exits.OK


@click.command(cls=Command)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--adopt", is_flag=True, help="The board may be another journal's: that journal is gone for good.")
@with_session
def rebuild(session: Session, yes: bool, adopt: bool) -> int:
    """Make a new board from the journal (a new epoch).

    Runs go on where they were; steps that run now are taken over, or run again. The service process does this by itself
    when the board is lost: this is for a board that is there and wrong. With --adopt a board that belongs to another
    journal becomes this one's; what was on it and is not in this journal is dropped.
    """
    from convergio.graphflow.model import errors
    from convergio.workers import boot

    if not yes:
        click.confirm("Make a new board from the journal?", abort=True)
    service = boot.service(session.settings)  # only made, not started
    try:
        epoch = service.rebuilder.rebuild(adopt=adopt)
    finally:
        service.link.close()
        service.sweeper.history.close()
    if epoch is None:
        raise errors.BoardRebuilding("another process is rebuilding the board at this moment", hint="convergio doctor")
    click.echo(f"epoch {epoch.number}: the board is new")
    return exits.OK
