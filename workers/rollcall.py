"""Who is there: our workers that answer now, and what they say: broadcasts of Celery's remote control."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

from celery import Celery
from celery.exceptions import OperationalError

HOST: Final = "@convergio"
"""What the node names of our workers end with: other Celery apps on the same Redis answer the broadcast too."""

TIMEOUT: Final = 0.8
"""Seconds in which a live worker answers, also one whose threads are all busy: its main loop does."""


def queues(app: Celery, *, timeout: float = TIMEOUT) -> Mapping[str, list[str]]:
    """Workers by the queue they serve. Empty when nobody answers."""
    try:
        answers = app.control.inspect(timeout=timeout).active_queues() or {}
    except (OperationalError, OSError):
        return {}
    served: dict[str, list[str]] = {}
    for node, consumed in sorted(answers.items()):
        if node.endswith(HOST):
            for queue in consumed:
                served.setdefault(str(queue["name"]), []).append(node.removesuffix(HOST))
    return served


def visibility_timeouts(app: Celery, *, timeout: float = TIMEOUT) -> Mapping[str, int]:
    """The visibility timeout, in seconds, of every worker that answers."""
    try:
        answers = app.control.inspect(timeout=timeout).conf() or {}
    except (OperationalError, OSError):
        return {}
    options = {
        node.removesuffix(HOST): cast("Mapping[str, Any]", conf).get("broker_transport_options") or {}
        for node, conf in answers.items()
        if node.endswith(HOST)
    }
    return {name: int(said["visibility_timeout"]) for name, said in options.items() if "visibility_timeout" in said}
