"""The C library's memory in a process of many threads."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import Final

ARENAS: Final = 2
"""Heaps that all threads share. Python holds its lock while it allocates: more of them only lie fallow."""

_M_ARENA_MAX: Final = -8
"""Its number in glibc's <malloc.h>."""

VARIABLE: Final = "MALLOC_ARENA_MAX"
"""glibc's own setting: it stands, if somebody has made it."""


def share_arenas() -> None:
    """Keeps glibc from a heap for each few threads (eight for each processor). Before there are threads; where there is
    another C library, nothing happens."""
    if VARIABLE in os.environ:
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)
