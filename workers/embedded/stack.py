"""The embedded stack: Valkey, the journal, the local model and our own processes, from one plan, in one directory."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from convergio.workers.embedded import valkey
from convergio.workers.embedded.child import Child, Status
from convergio.workers.embedded.directory import DataDirectory, Running
from convergio.workers.embedded.model_endpoint import ModelEndpoint
from convergio.workers.embedded.model_server import ModelServer, Options
from convergio.workers.embedded.supervisor import Supervisor

VALKEY = "valkey"
MODEL = "model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What to run. All that is external is given by its URL and not started.

    `programs` are our own processes, in the order of their `needs`, among which may be `valkey` and `model` whether or
    not those are started here. `migrate` is called with the journal's URL before anything starts. `model` is None for
    no local model, else its options (`{}` for the defaults); `model_path` another file than the shipped one. `urls`
    are published beside ours (Flower's, say).
    """

    directory: Path
    migrate: Callable[[str], None]
    programs: Sequence[Child] = ()
    redis_url: str | None = None
    journal_url: str | None = None
    model: Options | None = None
    model_path: Path | None = None
    fsync: str = "everysec"
    urls: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Endpoints:
    """Where the machines are."""

    home: Path
    redis_url: str = dataclasses.field(repr=False)
    journal_url: str = dataclasses.field(repr=False)
    model: ModelEndpoint | None = None

    @property
    def env(self) -> Mapping[str, str]:
        """The variables that lead a process of ours there. They hold passwords."""
        settings = {
            "CONVERGIO_HOME": str(self.home),
            "CONVERGIO_REDIS_URL": self.redis_url,
            "CONVERGIO_JOURNAL_URL": self.journal_url,
        }
        return {**settings, **(self.model.env if self.model is not None else {})}


class Stack:
    """One plan, running. Use it as a context manager, or `run` it in the foreground."""

    def __init__(self, plan: Plan, *, on_change: Callable[[Status], None] | None = None) -> None:
        """`on_change` is told every change of a process's state, on another thread."""
        self._plan = plan
        self._on_change = on_change
        self._started_at = time.time()
        self._leaving = ExitStack()
        self.directory: DataDirectory
        self.endpoints: Endpoints
        self.supervisor: Supervisor

    def __enter__(self) -> Self:
        """Starts all; returns when all are ready.

        Raises `DirectoryInUse`, `ModelUnavailable`, `BoardUnavailable`, `ProcessNotReady`, and what `migrate` raises.
        """
        with ExitStack() as entering:
            entering.enter_context(self._prepared())
            entering.enter_context(self.supervisor)
            self._leaving = entering.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stops all."""
        self._leaving.close()

    def run(self, *, when_ready: Callable[[Stack], None] | None = None) -> None:
        """Starts all, calls `when_ready`, and stops all on Ctrl-C, SIGTERM or SIGHUP. Raises like entering does."""
        with self._prepared():
            self.supervisor.run(when_ready=lambda: when_ready(self) if when_ready is not None else None)

    @contextmanager
    def _prepared(self) -> Generator[None]:
        """Locks the directory and builds what runs in it, the likely errors first: before anything is started."""
        self.directory = DataDirectory.open(self._plan.directory)
        with self.directory.lock():
            model = self._model()
            server = None if self._plan.redis_url else valkey.Server.open(self.directory.valkey, fsync=self._plan.fsync)
            self.endpoints = self._endpoints(server, model)
            self._plan.migrate(self.endpoints.journal_url)
            own = [server.child(VALKEY)] if server is not None else []
            own += [model.child(MODEL)] if model is not None else []
            children = [*own, *self._programs(started={child.name for child in own})]
            self.supervisor = Supervisor(children, logs=self.directory.logs, on_change=self._changed)
            yield

    def _model(self) -> ModelServer | None:
        if self._plan.model is None:
            return None
        return ModelServer.open(self.directory.root / "model.json", path=self._plan.model_path, **self._plan.model)

    def _endpoints(self, server: valkey.Server | None, model: ModelServer | None) -> Endpoints:
        return Endpoints(
            home=self.directory.root,
            redis_url=self._plan.redis_url or (server.url if server is not None else ""),
            journal_url=self._plan.journal_url or f"sqlite:///{self.directory.journal}",
            model=model.endpoint if model is not None else None,
        )

    def _programs(self, *, started: set[str]) -> list[Child]:
        """The plan's programs, told where the machines are, and rid of needs that are met elsewhere."""
        external = {VALKEY, MODEL} - started
        return [
            dataclasses.replace(
                child,
                env={**self.endpoints.env, **_no_proxy(), **child.env},
                needs=tuple(need for need in child.needs if need not in external),
            )
            for child in self._plan.programs
        ]

    def _changed(self, status: Status) -> None:
        self.directory.publish(
            Running(
                pid=os.getpid(),
                started_at=self._started_at,
                urls=self._urls(),
                env=self.endpoints.env,
                pids={child.name: child.pid for child in self.supervisor.status() if child.pid is not None},
            )
        )
        if self._on_change is not None:
            self._on_change(status)

    def _urls(self) -> Mapping[str, str]:
        urls = {"redis": self.endpoints.redis_url, "journal": self.endpoints.journal_url}
        model = {MODEL: self.endpoints.model.url} if self.endpoints.model is not None else {}
        return {**urls, **model, **self._plan.urls}


def _no_proxy() -> dict[str, str]:
    """Loopback around the user's proxy, which HTTP clients would ask for the local model otherwise."""
    variables = ("NO_PROXY", "no_proxy")
    theirs = next((os.environ[name] for name in variables if os.environ.get(name)), "")
    value = ",".join(part for part in (theirs, "127.0.0.1", "localhost") if part)
    return dict.fromkeys(variables, value)
