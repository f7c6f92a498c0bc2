"""`convergio flower`: Flower on our broker."""

from __future__ import annotations

import click

from convergio.workers.cli import exits
from convergio.workers.cli.menu import Command
from convergio.workers.cli.session import Session, with_session


@click.command(cls=Command)
@click.option("--port", type=click.IntRange(0, 65535), help="Port (default 5555; 0: any that is free).")
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@with_session
def flower(session: Session, port: int | None, address: str) -> int:
    """Flower, the dashboard for Celery: every step under its readable name, with its state.

    Without a password it serves this machine only and is read-only. FLOWER_BASIC_AUTH=user:password opens it.
    """
    from convergio.workers import boot
    from convergio.workers.embedded import port as ports
    from convergio.workers.flower import server

    chosen = session.settings.flower_port if port is None else port
    chosen = chosen or ports.free()
    if not ports.is_free(chosen):
        from convergio.graphflow.model import errors

        raise errors.InvalidSetting(f"port {chosen} is taken", hint="choose another: --port 0 takes any that is free")
    app = boot.core(session.settings).app  # no journal is needed for it
    click.echo(f"Flower: http://{address}:{chosen}   (Ctrl-C stops it)")
    server.serve(app, address=address, port=chosen)
    return exits.OK
