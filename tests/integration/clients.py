"""Celery apps in the test's own process: a foreign client, and the end of one, which Celery leaves to the collector."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import celery
from kombu import pools


@contextmanager
def foreign(url: str) -> Generator[celery.Celery]:
    """A Celery client that imports nothing of ours; broker and results are at `url`."""
    app = celery.Celery("foreign", broker=url, backend=url, set_as_current=False)
    try:
        yield app
    finally:
        let_go(app)


def let_go(app: celery.Celery) -> None:
    """Closes all connections of an app, also those that a result would open once more when it is collected."""
    backend = cast("Any", app.backend)
    consumer = backend.result_consumer
    consumer.stop()
    consumer._pubsub = None
    pools.reset()
    backend.client.connection_pool.disconnect()
    app.close()
