"""The service process of a chaos run: the product's own, which dies or wipes the board when a phase begins, if told to.

`python -m convergio.benchmarks.doomed`. The order is a file that names the deed and the phase; it is carried out once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import redis

from convergio.config.settings import load
from convergio.workers import boot
from convergio.workers.log import to_stderr

VARIABLE: Final = "CONVERGIO_CHAOS_ORDERS"
"""Names the directory of the orders."""

STOP: Final = (signal.SIGTERM, signal.SIGINT)

KILL: Final = "kill"
WIPE: Final = "wipe"

PHASES: Final = ("commit", "release", "sweep")
"""Phases that come again and again while runs go on."""

REBUILD_PHASES: Final = ("rebuild", "raised", "salvaged", "written")
"""Phases of a rebuild, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """An order that was carried out."""

    deed: str
    phase: str
    pid: int
    at: float
    ms: int


class Orders:
    """The directory in which orders are given and deeds reported."""

    def __init__(self, directory: Path) -> None:
        self.order = directory / "order"
        self.report = directory / "done"

    def give(self, deed: str, phase: str) -> None:
        """To whichever service process gets to the phase first."""
        self.report.unlink(missing_ok=True)
        fresh = self.order.with_suffix(".new")
        fresh.write_text(f"{deed} {phase}")
        fresh.replace(self.order)

    def withdraw(self) -> None:
        """Takes an order back that nobody carried out."""
        self.order.unlink(missing_ok=True)

    def done(self) -> Deed | None:
        """The last order, once it was carried out."""
        try:
            return Deed(**json.loads(self.report.read_text()))
        except (FileNotFoundError, ValueError):
            return None

    def take(self, phase: str) -> str | None:
        """The deed to do in this phase, for one taker."""
        try:
            deed, wanted = self.order.read_text().split()
            if wanted != phase:
                return None
            self.order.unlink()
        except (FileNotFoundError, ValueError):
            return None
        return deed

    def tell(self, deed: str, phase: str) -> None:
        """Reports a deed, just before it is done."""
        done = Deed(deed=deed, phase=phase, pid=os.getpid(), at=time.monotonic(), ms=time.time_ns() // 1_000_000)
        self.report.write_text(json.dumps(asdict(done)))


def main() -> int:
    """Serves until SIGTERM."""
    settings = load()
    orders = Orders(Path(os.environ[VARIABLE]))

    def phase(name: str) -> None:
        deed = orders.take(name)
        if deed is None:
            return
        orders.tell(deed, name)
        if deed == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        with redis.Redis.from_url(settings.redis_url) as client:
            client.flushall()

    to_stderr(settings)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP)  # before any thread is made: all of them inherit it
    service = boot.service(settings, phase=phase)
    service.start()
    signal.sigwait(STOP)
    service.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
