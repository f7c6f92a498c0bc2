"""`convergio worker`: worker processes, and a service process beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping

import click

from convergio.workers.cli import exits
from convergio.workers.cli.menu import Command
from convergio.workers.cli.session import Session, with_session
from convergio.workers.probe import WITHIN


@click.command(cls=Command)
@click.option("--processes", "-n", default=1, show_default=True, type=click.IntRange(1, 256), help="Worker processes.")
@click.option("--queues", "-Q", help="Queues to serve, separated by commas (default: all).")
@click.option("--pool", type=click.Choice(["threads", "solo", "prefork"]), help="Celery pool (default threads).")
@click.option("--concurrency", "-c", type=click.IntRange(1, 1000), help="Steps at once in each process (default 8).")
@click.option("--include", "-I", help="Python modules with your steps and Celery tasks, separated by commas.")
@click.option("--no-service", is_flag=True, help="No service process: one runs elsewhere.")
@click.option("--probe", is_flag=True, help="Start nothing: exit code 0 if the workers of HOME consume, else 1.")
@click.option("--within", default=WITHIN, show_default=True, type=click.FloatRange(min=2), help="... in these seconds.")
def worker(
    processes: int,
    queues: str | None,
    pool: str | None,
    concurrency: int | None,
    include: str | None,
    no_service: bool,
    probe: bool,
    within: float,
) -> int:
    """Serve the queues of a Redis and a journal of your own (CONVERGIO_REDIS_URL, CONVERGIO_JOURNAL_URL).

    Processes that die are started again. With `--processes 1 --no-service` this process is the worker.
    """
    if probe:
        return look(within)
    given = {"QUEUES": queues, "POOL": pool, "CONCURRENCY": concurrency, "INCLUDE": include}
    os.environ.update({f"CONVERGIO_{name}": str(value) for name, value in given.items() if value is not None})
    if processes == 1 and no_service:
        return serve()
    return supervise(processes, with_service=not no_service)


def look(within: float) -> int:
    """Says which workers of HOME live. Fast: nothing is loaded that connects to anything."""
    from convergio.config import settings
    from convergio.workers.probe import FOLDER, report

    return report(settings.load().home.absolute() / FOLDER, within)


@with_session
def serve(session: Session) -> int:
    """This process is the worker, until SIGTERM or Ctrl-C."""
    from celery import signals

    from convergio.workers import boot
    from convergio.workers.embedded import readiness
    from convergio.workers.log import to_stderr

    to_stderr(session.settings)
    boot.core(session.settings)  # raises where nothing says where the board is
    boot.admit(session.settings)
    made = boot.worker(session.settings)
    signals.worker_ready.connect(lambda **_: readiness.announce(), weak=False)
    return made.run()


@with_session
def supervise(session: Session, processes: int, *, with_service: bool) -> int:
    """Keeps so many workers running, until SIGTERM or Ctrl-C."""
    from dataclasses import replace

    from convergio.workers import boot
    from convergio.workers.cli import local
    from convergio.workers.cli.up import told
    from convergio.workers.embedded.supervisor import Supervisor

    settings = session.settings
    if not settings.redis_url:
        boot.core(settings)  # raises, and says what to do
    boot.admit(settings)
    env = _addresses(session)
    names = [f"{local.WORKER}-{number}" for number in range(1, processes + 1)]
    children = [local.worker(settings, name=name, env=env, alone=True) for name in names]
    if with_service:
        children.insert(0, replace(local.service(env), needs=()))
    logs = settings.home.absolute() / "logs" / f"worker-{os.getpid()}"
    logs.mkdir(parents=True, exist_ok=True)
    supervisor = Supervisor(children, logs=logs, on_change=told)
    said = f"{processes} worker processes{' and a service process' if with_service else ''}"
    supervisor.run(when_ready=lambda: click.echo(f"{said} are ready; their logs: {logs}. Ctrl-C stops them."))
    return exits.OK


def _addresses(session: Session) -> Mapping[str, str]:
    """Where the machines are, for processes that must not depend on how we found them."""
    settings = session.settings
    return {"CONVERGIO_REDIS_URL": settings.redis_url, "CONVERGIO_JOURNAL_URL": settings.journal_url}
