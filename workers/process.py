"""A worker process: Celery's worker with our tasks, and the threads that keep its claims alive.

Under the pool `prefork` this process runs no bodies: its children do, each with parts of its own (`children`).
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from celery import signals

from convergio.config.settings import Settings
from convergio.graphflow.engine.steps import Steps
from convergio.graphflow.engine.submission import Entrance
from convergio.graphflow.journal.revoked import Recent, RevokedSignatures
from convergio.graphflow.model import errors
from convergio.graphflow.signature import Revoked
from convergio.tasks import entries, hooks, revocation, step, turn
from convergio.tasks.agents.step import Agents
from convergio.tasks.conversation.archive import Archive
from convergio.tasks.handover import Handover
from convergio.workers import boot
from convergio.workers.beats import Beats
from convergio.workers.callers import Callers
from convergio.workers.children import Children
from convergio.workers.consumer import Consumer
from convergio.workers.farewell import Farewell, Pipe
from convergio.workers.loop import Loop
from convergio.workers.overtime import Overtime
from convergio.workers.probe import FOLDER, Doing, Sign
from convergio.workers.strangers import Strangers

logger = logging.getLogger(__name__)

PREFORK: Final = "prefork"
SOLO: Final = "solo"

LAST_WORDS: Final = 2.0
"""Seconds that a prefork child has for its end, when its time is over or it ends with its body."""


class WorkerProcess:
    """What the tasks of one process need; the app carries it as `app.worker`."""

    steps: Steps
    loop: Loop
    beats: Beats
    agents: Agents
    archive: Archive
    entrance: Entrance
    callers: Callers

    def __init__(self, settings: Settings, core: boot.Core, *, name: str) -> None:
        self.settings = settings
        self.core = core
        self.name = name
        self.hooks = hooks.REGISTERED
        self.draining = False
        self.overtime: Callable[[], Callable[[], None]] | None = None
        self.revoked = Recent(self._revoked)
        self.catalog = boot.catalog(settings, self.revoked)
        step.register(core.app)
        turn.register(core.app)
        entries.register(core.app)
        vars(core.app)["worker"] = self
        self.sign: Sign | None = None
        self.children = Children(core, settings) if settings.pool == PREFORK else None
        self.farewell = Farewell(Pipe(), settings.drain_seconds + (LAST_WORDS if self.children else 0.0))
        if settings.pool == SOLO:
            self.farewell.quiet.set()  # its one thread is in a body, or has nothing to give back
        if self.children is None:
            self._open(core)

    def run(self) -> int:
        """Serves the queues until SIGTERM or SIGINT. Returns Celery's exit code."""
        signals.worker_shutting_down.connect(self.ask_to_stop, weak=False)
        if self.children is None:
            self.farewell.watch(self._interrupt, then=self._leave)
        else:
            self.children.serve(opened=self._open_forked, closed=self._close_forked)
            self.farewell.watch(self.children.pipe.ask, then=_nothing)
        self._open_sign()
        revocation.listen(self.core.link)
        Strangers(self.settings.queue_names, self._declining).listen()
        worker: Any = self.core.app.Worker(
            hostname=f"{self.name}@convergio",
            pool=self.settings.pool,
            consumer_cls=Consumer,
            concurrency=self.settings.concurrency,
            queues=list(self.settings.queue_names),
            loglevel=self.settings.log_level,
            without_gossip=True,
            without_mingle=True,
            quiet=True,
            optimization="fair",
            max_memory_per_child=self.settings.child_memory_mb * 1024 or None,
        )
        gc.freeze()  # what there is now stays: no collection need look at it again
        worker.start()
        self.close()
        return int(worker.exitcode or 0)

    def close(self) -> None:
        """Hands over what SQL does not have yet, then stops what was opened."""
        if self.children is None:
            self._hand_over()
            self._close_parts()
        self.farewell.close()
        if self.sign is not None:
            self.sign.close()
        for pipe in [self.farewell.pipe, *([self.children.pipe] if self.children else [])]:
            pipe.close()
        self.core.link.close()

    def _declining(self) -> Steps:
        """What gives back the steps that nobody here can do. The parent of prefork children has none of its own."""
        if self.children is not None:
            core = self.core
            self.steps = Steps(core.link, core.plans, core.ringer, core.drain, core.nonces, worker=self.name)
        return self.steps

    def _revoked(self) -> Revoked:
        """What the journal says counts no more, by a connection of the process that runs bodies."""
        return RevokedSignatures(self.callers.history.database).now()

    # --- signs of life ----------------------------------------------------------------------------------------------

    def show(self, doing: Doing) -> None:
        """Tells the probe what this process does. One that stops has the time for that."""
        if self.sign is not None:
            self.sign.give(doing, lasting=self.farewell.seconds if doing is Doing.STOPS else 0.0)

    def _open_sign(self) -> None:
        try:
            self.sign = Sign(self.settings.home.absolute() / FOLDER, self.name)
        except OSError as error:
            logger.warning("no probe can see this worker, as it cannot write its sign: %s", error)

    def _show_body(self) -> None:
        """The one thread of a solo pool is in a body: it does not consume, and the lease's beat speaks for it."""
        self.show(Doing.BUSY)

    # --- what runs bodies: this process, or each of its children ----------------------------------------------------

    def _open(self, core: boot.Core) -> None:
        """Threads, loop and connections: made in the process that runs the bodies, so after a fork."""
        self.core = core
        self.agents = boot.agents(self.settings, core.link, self.revoked)
        self.entrance = boot.entrance(self.settings, core, lambda: self.catalog)
        self.callers = Callers(core.app, core.link, boot.history(self.settings))
        blobs = core.drain.blobs = self.entrance.blobs
        self.archive = Archive(self.callers.history.database, self.entrance.blobs)
        self.steps = Steps(
            core.link,
            core.plans,
            core.ringer,
            core.drain,
            core.nonces,
            worker=self.name,
            blobs=blobs,
            handover=Handover(lambda: not self.draining),
            pressure=self.entrance.pressure,
            history=self.callers.history,
        )
        self.loop = Loop()
        self.beats = Beats(self.steps.claims, after=self._show_body if self.settings.pool == SOLO else None)
        self.beats.start()

    def _open_forked(self, core: boot.Core, pid: int) -> None:
        assert self.children is not None
        self.farewell = Farewell(self.children.pipe, self.settings.drain_seconds)
        self.farewell.quiet.set()  # its parent was, before it asked
        self.name = f"{self.name}.{pid}"
        self._open(core)
        self.overtime = Overtime(self._hand_over_soon).watch
        self.farewell.watch(self._interrupt, then=self._leave)

    def _close_forked(self) -> None:
        self._hand_over()
        self._close_parts()
        self.core.link.close()

    def _close_parts(self) -> None:
        self.beats.stop()
        self.loop.close()

    def _hand_over(self) -> None:
        """What SQL does not have yet lives in this process too: it stays until that is safe, or the time is over."""
        self._hand_over_until(self.farewell.deadline or time.monotonic() + self.settings.drain_seconds)

    def _hand_over_soon(self) -> None:
        self._hand_over_until(time.monotonic() + LAST_WORDS)

    def _hand_over_until(self, deadline: float) -> None:
        while self.steps.claims.owing() and time.monotonic() < deadline:
            time.sleep(0.05)

    # --- the end ----------------------------------------------------------------------------------------------------

    def ask_to_stop(self, **_: Any) -> None:
        """May be called in a signal handler, and again: no lock, and no I/O but a write to a pipe."""
        self.draining = True
        self.farewell.pipe.ask()

    def _interrupt(self) -> None:
        """No more steps: doorbells that still come are given back, and so are the steps whose coroutines run."""
        self.draining = True
        self.loop.interrupt()

    def _leave(self) -> None:
        """The time is over. A function in a thread cannot be stopped: its step is given back, and ends with us."""
        for claim in self.steps.claims.running():
            logger.warning("%s still runs after %s s: given back", claim.member, self.settings.drain_seconds)
            try:
                self.steps.give_back(claim)
            except errors.StaleFence as error:
                logger.info("%s", error)
            except Exception:  # the others must be given back all the same, or each counts as a delivery
                logger.exception("%s is not given back: its lease ends", claim.member)


def _nothing() -> None:
    """The parent of prefork children waits for them a little longer than they have, and ends them with itself."""
