"""The service process: journaler, sweeper and those who read SQL for it, clerk and nurse; leaders by lease.

They are apart, as a sweep must not wait for a database that does not answer, and children not for the clerk's turn.

Never threads beside task bodies: a commit beside busy Python threads takes a hundred times longer, with SQL's lock
held.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from convergio.graphflow.board.connection import UNREACHABLE, Link
from convergio.graphflow.engine import definitions
from convergio.graphflow.engine.canaries import Canaries
from convergio.graphflow.engine.children import BATCH, Children
from convergio.graphflow.engine.journaler import Journaler
from convergio.graphflow.engine.leader import Leader
from convergio.graphflow.engine.outage import Outage
from convergio.graphflow.engine.rebuild import Rebuilder
from convergio.graphflow.engine.sweeper import INTERVAL, Sweeper
from convergio.graphflow.model import errors
from convergio.tasks.revocation import Revocations

logger = logging.getLogger(__name__)

PATIENCE: Final = 0.2
"""Seconds between two tries while a store is away."""

CLERK_INTERVAL: Final = 1.0
"""Seconds between two looks at the rows that the board may have missed."""

TIDY_EVERY: Final = 120
"""Such looks between two of which definitions the board still needs."""

AWAY: Final = (errors.BoardUnavailable, errors.BoardRebuilding, errors.JournalUnavailable, *UNREACHABLE)


class Service:
    """Runs until it is stopped. `phase` is told what begins, for tests that kill it there."""

    def __init__(
        self,
        *,
        link: Link,
        journaler: Journaler,
        sweeper: Sweeper,
        children: Children,
        canaries: Canaries,
        rebuilder: Rebuilder,
        revocations: Revocations,
        name: str,
        phase: Callable[[str], None],
    ) -> None:
        self.link = link
        self.journaler = journaler
        self.sweeper = sweeper
        self.children = children
        self.canaries = canaries
        self.rebuilder = rebuilder
        self.revocations = revocations
        self.phase = phase
        self.writer_lease = Leader(link, "journaler", name)
        self.sweeper_lease = Leader(link, "sweeper", name)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._serve, args=(self._journal,), name="convergio-journaler", daemon=True),
            threading.Thread(target=self._serve, args=(self._sweep,), name="convergio-sweeper", daemon=True),
            threading.Thread(target=self._serve, args=(self._keep_books,), name="convergio-clerk", daemon=True),
            threading.Thread(target=self._serve, args=(self._tend,), name="convergio-nurse", daemon=True),
        ]
        self._swept = self._kept = 0
        self.refused: errors.ConvergioError | None = None
        """why this service may not serve, and has stopped"""
        self.on_refused: Callable[[], object] = lambda: None
        """called once then, on one of its threads"""

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends the threads and gives the leases up."""
        self._stop.set()
        self.children.news.set()
        for thread in self._threads:
            thread.join(timeout=10)
        self.writer_lease.resign()
        self.sweeper_lease.resign()
        self.link.close()

    def run(self) -> None:
        """Until `stop` is called on another thread or in a signal handler."""
        self.start()
        while not self._stop.wait(1.0):
            pass
        if self.refused is not None:
            raise self.refused

    def _serve(self, work: Callable[[], float]) -> None:
        """Calls `work` again and again; it returns how long to wait."""
        outage = Outage(logger, threading.current_thread().name)
        while not self._stop.is_set():
            try:
                wait = work()
                outage.over()
            except errors.AnotherJournal as error:
                self._refuse(error)
                return
            except AWAY as error:
                outage.met(error)
                wait = PATIENCE
            except Exception:  # the loop must outlive one bad row: it is logged, and tried again
                logger.exception("%s failed", threading.current_thread().name)
                wait = 1.0
            self._stop.wait(wait)

    def _refuse(self, error: errors.ConvergioError) -> None:
        """The board is another journal's: whoever serves that one must not wait for our leases."""
        logger.error("this service process ends: %s", error)
        was, self.refused = self.refused, error
        self._stop.set()
        self.children.news.set()
        if was is None:
            self.on_refused()

    def _journal(self) -> float:
        self.rebuilder.admit()
        if not self.writer_lease.holds():
            return 1.0
        if self.journaler.step(between=self.phase):
            # Commits may have half of this thread's time: what comes meanwhile shares the next one.
            self._stop.wait(self.journaler.took)
            self.journaler.gather()
        return 0.0

    def _sweep(self) -> float:
        """What time does, from the board alone: it goes on while SQL is away. Whoever finds no board makes one."""
        with suppress(errors.JournalUnavailable):
            self.rebuilder.admit()
        try:
            self.link.refresh()
        except errors.BoardRebuilding:
            if not self.rebuilder.ensure(self.phase):
                return INTERVAL
        if not self.sweeper_lease.holds():
            return INTERVAL
        self.phase("sweep")
        self.sweeper.sweep()
        self._swept += 1
        if self._swept % 2 == 0:
            self.canaries.watch()
        return INTERVAL

    def _keep_books(self) -> float:
        """What SQL knows and the board may have missed; also that the journal follows another board than this one."""
        self.rebuilder.admit()
        if self.sweeper_lease.holds() and self.rebuilder.ensure(self.phase):
            self.revocations.settle()
            self.sweeper.apply_rows()
            self._kept += 1
            if self._kept % TIDY_EVERY == 0:
                definitions.drop_unused(self.link, self.link.epoch())
        return CLERK_INTERVAL

    def _tend(self) -> float:
        """Children: at once when the journaler has news of them, and now and then in case nobody heard of it."""
        self.rebuilder.admit()
        told = self.children.news.wait(CLERK_INTERVAL)
        self.children.news.clear()
        if (told or self.sweeper_lease.holds()) and self.children.tend() == BATCH:
            self.children.news.set()  # there may be more than one look takes
        return 0.0
