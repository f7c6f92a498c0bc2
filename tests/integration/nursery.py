"""Small programs to supervise, and what happened to them: for the tests of the supervisor."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import psutil

from convergio.workers.embedded.child import Child, Status
from convergio.workers.embedded.supervisor import Supervisor

#: Writes what happens to it into the diary, a line each, and announces itself.
PROGRAM = """
import os, signal, sys, time
from convergio.workers.embedded import readiness
name, diary = sys.argv[1:3]
def write(event):
    with open(diary, "a") as file:
        file.write(f"{name} {event}\\n")
def stop(number, frame):
    write(signal.Signals(number).name)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
write("starts")
readiness.announce()
while True:
    signal.pause()
"""

#: Writes down what it is asked, and does not do it.
STUBBORN = """
import signal, sys
from convergio.workers.embedded import readiness
def ignore(number, frame):
    open(sys.argv[2], "a").write(signal.Signals(number).name)
signal.signal(signal.SIGTERM, ignore)
readiness.announce()
while True:
    signal.pause()
"""


class Nursery:
    """Children of one test, in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.diary = directory / "diary"

    def child(self, name: str, *, program: str = PROGRAM, needs: tuple[str, ...] = ()) -> Child:
        argv = (sys.executable, "-c", program, name, str(self.diary))
        return Child(name=name, argv=argv, announces=True, needs=needs)

    def supervise(self, *children: Child, on_change: Callable[[Status], None] | None = None) -> Supervisor:
        return Supervisor(children, logs=self.directory, on_change=on_change)

    def read(self) -> list[str]:
        return self.diary.read_text().splitlines() if self.diary.exists() else []


def runs(pid: int) -> bool:
    """Whether a process runs; one that ended and was not yet collected by its new parent does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
