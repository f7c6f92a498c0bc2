"""How this process gets its memory from the C library."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import Final

M_ARENA_MAX: Final = -8
"""The parameter's number in glibc's malloc.h."""

ARENAS: Final = 2


def share_arenas() -> None:
    """Lets all threads share two arenas, unless MALLOC_ARENA_MAX says something else.

    glibc gives threads arenas of their own, up to eight for each core, and what is free in one of them is not given to
    the others: a worker with many threads would have 10 MB more. Other C libraries have no such parameter. Source:
    mallopt(3).
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
