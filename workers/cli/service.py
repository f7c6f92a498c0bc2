"""`convergio service` (internal): the service process, journaler and sweeper. `up` and `worker` start it."""

from __future__ import annotations

import os
import signal
import threading
import time

import click

from convergio.workers.cli import exits
from convergio.workers.cli.menu import Command
from convergio.workers.cli.session import Session, with_session

STOP = (signal.SIGTERM, signal.SIGINT)


@click.command(cls=Command)
@with_session
def service(session: Session) -> int:
    """The service process: journaler and sweeper, leaders by lease. `up` and `worker` start it."""
    from convergio.workers import boot
    from convergio.workers.log import to_stderr

    to_stderr(session.settings)
    # Waited for, not handled: a handler that sets an event may find this very thread inside that event's lock.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    made = boot.service(session.settings)
    made.on_refused = lambda: os.kill(os.getpid(), signal.SIGTERM)
    made.start()
    threading.Thread(target=_announce, args=(session,), name="announce", daemon=True).start()
    signal.sigwait(STOP)
    made.stop()
    if made.refused is not None:
        raise made.refused
    return exits.OK


def _announce(session: Session) -> None:
    """Says that this process is ready once there is a board: who waits for that need not try in vain."""
    from convergio.graphflow.model import errors
    from convergio.workers.embedded import readiness

    while True:
        try:
            session.core.link.refresh()
            break
        except (errors.BoardRebuilding, errors.BoardUnavailable):
            time.sleep(0.05)
    readiness.announce()
