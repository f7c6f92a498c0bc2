"""A small Celery app for the contract tests of transport and bell, and real workers that run it.

A worker reads BELL_BROKER (a URL) and BELL_APP (JSON: the keyword arguments of `make_app`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import redis
from celery import Celery, Task
from celery.app import amqp as stock_amqp

from convergio.graphflow.engine.bell import Route
from convergio.tasks import bell, transport

ROOT: Final = Path(__file__).parents[2]
SEEN: Final = "seen"
"""The Redis list to which every task appends what it saw of itself."""

GATE: Final = "gate"
"""The Redis key without which steps named `hold`, and entries, do not end for a minute."""

ATTRIBUTES: Final = ("id", "root_id", "parent_id", "tenant", "submitter", "traceparent", "shadow", "delivery_info")


def make_app(
    url: str,
    *,
    stock: bool = False,
    settings: Mapping[str, Any] | None = None,
    **broker: Any,
) -> Celery:
    """An app on the broker at `url`, with our transport or kombu's own; `settings` override ours."""
    app = Celery("bell", amqp=stock_amqp.AMQP if stock else transport.AMQP, set_as_current=False)
    app.conf.update(transport.broker_settings(url, **broker) | transport.consumer_settings())
    app.conf.update(task_ignore_result=True)
    app.conf.update(settings or {})
    for name in ("convergio.step", "convergio.agent", "convergio.approval", "convergio.canary"):
        app.task(name=name, bind=True, shared=False)(_answer)
    app.task(name="convergio.submit", bind=True, shared=False)(_enter)
    app.task(name="ring_again", bind=True, shared=False)(_ring_again)
    return app


@contextmanager
def broker_client(app: Celery) -> Generator[redis.Redis]:
    """A Redis client by whatever way the app reaches its broker, with its key prefix."""
    with app.connection_for_write() as connection:
        yield cast(transport.Channel, connection.default_channel).client


def _answer(self: Task[Any, Any], run: str, step: str, ring: str) -> None:
    with broker_client(self.app) as client:
        _note(self, client, [run, step, ring])
        if step == "hold":
            _wait_for_the_gate(client)


def _enter(self: Task[Any, Any], name: str) -> None:
    with broker_client(self.app) as client:
        _note(self, client, [name])
        _wait_for_the_gate(client)


def _ring_again(self: Task[Any, Any]) -> None:
    """Renders a doorbell where the engine often does: inside a running task."""
    route = Route(queue="turns", task="convergio.agent", priority=0)
    message = bell.Bell(self.app).render(
        route, tenant="default", submitter="cli", run="r2", step="next", ring="1.1", label="flow/next"
    )
    with broker_client(self.app) as client:
        client.rpush(SEEN, message)


def _note(task: Task[Any, Any], client: redis.Redis, args: list[str]) -> None:
    seen = {name: getattr(task.request, name, None) for name in ATTRIBUTES}
    client.rpush(SEEN, json.dumps(seen | {"task": task.name, "args": args, "at": time.monotonic()}))


def _wait_for_the_gate(client: redis.Redis) -> None:
    deadline = time.monotonic() + 60
    while not client.exists(GATE) and time.monotonic() < deadline:
        time.sleep(0.02)


@contextmanager
def running_worker(
    url: str, *arguments: str, log: Path, events: bool = False, **options: Any
) -> Generator[subprocess.Popen[bytes]]:
    """A real `celery worker` on the broker; `arguments` follow its command, `options` go to `make_app`."""
    command = [sys.executable, "-m", "celery", "-A", "tests.integration.bell_app", "worker", "--loglevel", "INFO"]
    command += ["--without-gossip", "--without-mingle", *(["-E"] if events else []), *arguments]
    environment = {**os.environ, "BELL_BROKER": url, "BELL_APP": json.dumps(options)}
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


if "BELL_BROKER" in os.environ:
    app = make_app(os.environ["BELL_BROKER"], **json.loads(os.environ["BELL_APP"]))
