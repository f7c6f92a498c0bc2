"""Is this worker alive? A worker that consumes says so in a file; the probe reads it. Standard library only.

`convergio worker --probe`, or, without the command line's start-up time, `python -m convergio.workers.probe FOLDER
[SECONDS]`. Exit code 0: every worker that runs here has consumed lately. A process that runs, and a server that answers
others, prove nothing: only the consumer's own loop writes, and only when its own connection was answered.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

FOLDER: Final = "alive"
"""Where the signs are, in HOME."""

WITHIN: Final = 30.0
"""Seconds that a sign may be old. A lost connection is noticed after 6 s and made anew in some more."""

SIZE: Final = 256
"""Bytes of a sign: always as many, so that one write is whole."""


class Doing(StrEnum):
    """What a worker does, as far as its sign says."""

    STARTS = "starts"
    CONSUMES = "consumes"
    BUSY = "busy"
    STOPS = "stops"


SAYS: Final = {
    Doing.STARTS: "it has not consumed yet",
    Doing.CONSUMES: "its pop was answered",
    Doing.BUSY: "all its slots are taken",
    Doing.STOPS: "it was asked to stop",
}


class Sign:
    """A worker's file. Its lock is held for as long as the process lives, whatever pid the next one has."""

    def __init__(self, folder: Path, name: str) -> None:
        """Raises OSError where the folder cannot be written."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / name
        self._file = _locked(self.path)
        self.give(Doing.STARTS)

    def give(self, doing: Doing, *, lasting: float = 0.0) -> None:
        """The worker lives; so it does for `lasting` more seconds. Any thread may call this."""
        facts = {"doing": doing, "at": time.monotonic() + lasting}
        os.pwrite(self._file, json.dumps(facts).encode().ljust(SIZE), 0)

    def close(self) -> None:
        """The worker ends."""
        self.path.unlink(missing_ok=True)
        os.close(self._file)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One worker, as its sign shows it."""

    name: str
    doing: Doing
    age: float
    """seconds since it proved that it lives; below zero: it has time until then"""

    def lives(self, within: float) -> bool:
        """Whether it has consumed lately."""
        return self.doing is not Doing.STARTS and self.age <= within

    @property
    def words(self) -> str:
        return f"{self.name}: {SAYS[self.doing]} ({max(0.0, self.age):.1f} s ago)"


def look(folder: Path) -> list[Seen]:
    """Every worker that runs. Signs of processes that are gone are removed."""
    return list(_look(folder))


def main(arguments: list[str]) -> int:
    """Prints what it saw. 0: all workers live; 1: one does not, or there is none; 2: wrong arguments."""
    try:
        folder, within = Path(arguments[0]), float(arguments[1]) if len(arguments) > 1 else WITHIN
    except (IndexError, ValueError):
        print("usage: python -m convergio.workers.probe HOME/alive [SECONDS]", file=sys.stderr)
        return 2
    return report(folder, within)


def report(folder: Path, within: float) -> int:
    """The same for a folder and the greatest age in seconds."""
    seen = look(folder)
    dead = [one for one in seen if not one.lives(within)]
    for one in dead or seen:
        print(one.words)
    if not seen:
        print(f"no worker runs here: {folder} has no sign of one")
    return 1 if dead or not seen else 0


def _look(folder: Path) -> Iterator[Seen]:
    for path in sorted(folder.glob("*")):
        with suppress(FileNotFoundError), path.open("rb") as file:
            if _is_held(file.fileno()):
                facts = json.loads(file.read(SIZE) or b'{"doing": "starts", "at": 0}')
                yield Seen(name=path.name, doing=Doing(facts["doing"]), age=time.monotonic() - facts["at"])
            else:
                path.unlink(missing_ok=True)


def _is_held(file: int) -> bool:
    """Whether a living process has the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _locked(path: Path) -> int:
    """The file, opened and locked; made again if a probe removed it meanwhile."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(file).st_ino:
                return file
        os.close(file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
