"""Timestamps that task bodies leave behind, alike for bare Celery and for ours: one line in a file per process."""

from __future__ import annotations

import os
import time
from typing import IO

VARIABLE = "CONVERGIO_BENCH_STAMPS"
_open: dict[int, IO[str]] = {}


def stamp() -> None:
    """Writes down the present moment (seconds), unbuffered."""
    pid = os.getpid()
    file = _open.get(pid)
    if file is None:
        file = _open[pid] = open(os.path.join(os.environ[VARIABLE], str(pid)), "a", buffering=1)  # noqa: SIM115
    file.write(f"{time.time():.6f}\n")
