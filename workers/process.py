"""A worker process: Celery's worker with our tasks, and the threads that keep its claims alive."""

from __future__ import annotations

import time
from typing import Any

from celery import signals

from convergio.config.settings import Settings
from convergio.graphflow.engine.steps import Steps
from convergio.tasks import entries, hooks, step
from convergio.tasks.agents.step import Agents
from convergio.workers import boot
from convergio.workers.beats import Beats
from convergio.workers.callers import Callers
from convergio.workers.loop import Loop


class WorkerProcess:
    """What the tasks of one process need; the app carries it as `app.worker`."""

    def __init__(self, settings: Settings, core: boot.Core, *, name: str) -> None:
        self.settings = settings
        self.core = core
        self.name = name
        self.hooks = hooks.REGISTERED
        self.draining = False
        self.catalog = boot.catalog(settings)
        self.agents: Agents = boot.agents(settings)
        self.entrance = boot.entrance(settings, core)
        self.callers = Callers(core.app, core.link, boot.history(settings))
        step.register(core.app)
        entries.register(core.app)
        vars(core.app)["worker"] = self
        self._open()

    def _open(self) -> None:
        """Threads and loop: made in the process that runs the bodies, so again after a fork."""
        core = self.core
        self.steps = Steps(core.link, core.plans, core.ringer, core.drain, core.nonces, worker=self.name)
        self.loop = Loop()
        self.beats = Beats(self.steps.claims)
        self.beats.start()

    def run(self) -> int:
        """Serves the queues until SIGTERM or SIGINT. Returns Celery's exit code."""
        signals.worker_shutting_down.connect(self._drain, weak=False)
        worker: Any = self.core.app.Worker(
            hostname=f"{self.name}@convergio",
            pool=self.settings.pool,
            concurrency=self.settings.concurrency,
            queues=list(self.settings.queue_names),
            loglevel=self.settings.log_level,
            without_gossip=True,
            without_mingle=True,
            quiet=True,
            optimization="fair",
        )
        worker.start()
        self._hand_over()
        self.close()
        return int(worker.exitcode or 0)

    def _hand_over(self) -> None:
        """What SQL does not have yet lives in this process too: it stays until that is safe, or the time is over."""
        deadline = time.monotonic() + self.settings.drain_seconds
        while self.steps.claims.owing() and time.monotonic() < deadline:
            time.sleep(0.05)

    def close(self) -> None:
        """Stops what was opened."""
        self.beats.stop()
        self.loop.close()
        self.core.link.close()

    def _drain(self, **_: Any) -> None:
        """No more steps: doorbells that still come are given back."""
        self.draining = True
