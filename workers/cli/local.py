"""The stack of one machine: which model answers, and which processes run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from convergio.graphflow.model import errors
from convergio.workers.embedded import model_file, model_server
from convergio.workers.embedded.child import Child
from convergio.workers.embedded.stack import Plan

if TYPE_CHECKING:
    from convergio.config.settings import Settings

SERVICE: Final = "service"
WORKER: Final = "worker"
FLOWER: Final = "flower"

SCRIPTED: Final = "scripted"
LOCAL: Final = model_server.ModelServer.name

STOP_MARGIN: Final = 5.0
"""Seconds a worker has for its own end after its steps have had theirs."""


@dataclass(frozen=True, kw_only=True)
class Brain:
    """Which model answers: in words, what the stack must start for it (None: nothing), and what workers are told."""

    words: str
    options: model_server.Options | None = None
    env: Mapping[str, str] = field(default_factory=dict[str, str])


def brain(settings: Settings, *, scripted: bool = False) -> Brain:
    """The model that is configured, else the embedded one if it is installed, else the scripted one.

    Raises ModelUnavailable if the embedded model is asked for by its name and is not installed.
    """
    name = settings.model_name
    if scripted or name == SCRIPTED:
        words = "the scripted model: no language model, its answers are made up from the question"
        return Brain(words=words, env={"CONVERGIO_MODEL_NAME": SCRIPTED})
    if settings.models or "/" in name:
        from convergio.workers import boot

        chosen = boot.chosen_model(settings)
        if chosen is not None:
            return Brain(words=chosen.place)
    if settings.model_base_url or settings.model_api_key.get_secret_value() or os.environ.get("OPENAI_API_KEY"):
        return Brain(words=f"{name or 'the default model'} at {settings.model_base_url or 'OpenAI'}")
    try:
        model_server.check_engine()
        model_file.find()
    except errors.ModelUnavailable as missing:
        if name:
            raise
        words = f"the scripted model, which makes answers up, because no model is there: {missing.message}"
        return Brain(words=words, env={"CONVERGIO_MODEL_NAME": SCRIPTED})
    options: model_server.Options = {"threads": settings.model_threads}
    return Brain(
        words=f"{LOCAL}, a very small language model on this machine: fluent, and often wrong", options=options
    )


def plan(settings: Settings, which: Brain, *, programs: Sequence[Child]) -> Plan:
    """What the stack runs. `settings` must not be resolved: an address in them is an external server's."""
    from convergio.workers import boot

    return Plan(
        directory=settings.home,
        migrate=boot.migrate,
        programs=programs,
        redis_url=settings.redis_url or None,
        journal_url=settings.journal_url or None,
        model=which.options,
    )


def service(env: Mapping[str, str] | None = None) -> Child:
    """The service process: journaler and sweeper."""
    return Child(
        name=SERVICE, argv=command(SERVICE), env=env or {}, needs=("valkey",), announces=True, ready_timeout_s=60
    )


def worker(
    settings: Settings, *, name: str = WORKER, env: Mapping[str, str] | None = None, alone: bool = False
) -> Child:
    """A worker process. `alone`: it needs nothing of this stack."""
    return Child(
        name=name,
        argv=command("worker", "--processes", "1", "--no-service"),
        env=env or {},
        needs=() if alone else ("valkey", "model", SERVICE),
        announces=True,
        ready_timeout_s=60,
        stop_grace_s=settings.drain_seconds + STOP_MARGIN,
    )


def flower(port: int) -> Child:
    """Flower on loopback. It does not end by itself once its broker is gone, so it gets little time for that."""
    from convergio.workers.flower import server

    return Child(
        name=FLOWER,
        argv=command("flower", "--port", str(port)),
        needs=("valkey",),
        ready=lambda _pid: server.healthy(port),
        ready_timeout_s=60,
        stop_grace_s=2,
    )


def command(*arguments: str) -> tuple[str, ...]:
    """A command line of ours, run by this Python."""
    return (sys.executable, "-m", "convergio.workers.cli", *arguments)


def here(home: Path) -> str:
    """What has to be added to a command so that it finds the stack from this directory."""
    return "" if home.absolute() == Path(".convergio").absolute() else f" --home {home}"
