"""One process's log file: rotated by size, its end shown when the process fails."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

#: A log larger than this becomes NAME.log.1.
ROTATE_BYTES = 10_000_000

#: How much of the end is read to find the last lines.
TAIL_BYTES = 16_384


@dataclass(frozen=True, kw_only=True)
class Log:
    """The file at `path`."""

    path: Path
    rotate_bytes: int = ROTATE_BYTES

    def open(self) -> IO[bytes]:
        """The file, to append to; the caller closes it. A large one is set aside first, over the one before it."""
        if self.path.exists() and self.path.stat().st_size > self.rotate_bytes:
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))
        file = self.path.open("ab", buffering=0)
        self.path.chmod(0o600)
        return file

    def rotate(self) -> None:
        """Sets a large one aside while its process runs, which goes on at the beginning of the same file: it appends.

        A line that it writes at this very moment may be lost.
        """
        try:
            if self.path.stat().st_size > self.rotate_bytes:
                aside = self.path.with_name(f"{self.path.name}.1")
                shutil.copyfile(self.path, aside)
                aside.chmod(0o600)
                os.truncate(self.path, 0)
        except OSError:  # a full disk, or a log that somebody took away: the process matters more
            return

    def tail(self, lines: int = 20, *, since: int = 0) -> str:
        """The last lines written after byte `since`."""
        try:
            with self.path.open("rb") as file:
                size = self.path.stat().st_size
                file.seek(max(since if since <= size else 0, size - TAIL_BYTES))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])


def drop_lines(source: IO[bytes], sink: IO[bytes], parts: Sequence[str]) -> threading.Thread:
    """Copies lines from a pipe to a log until the pipe's last writer ends, without those that contain one of `parts`.

    Returns the thread that does it; it closes both.
    """
    unwanted = [part.encode() for part in parts]

    def copy() -> None:
        with source, sink:
            for line in source:
                if not any(part in line for part in unwanted):
                    sink.write(line)

    thread = threading.Thread(target=copy, name="log", daemon=True)
    thread.start()
    return thread
