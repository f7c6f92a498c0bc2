"""The C library's heaps in a process of many threads, by its own count. Each case is a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from convergio.workers import allocator

ALLOCATING = """
import ctypes, sys, threading

if "shared" in sys.argv:
    from convergio.workers.allocator import share_arenas
    share_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(16)

def allocate():
    together.wait()
    libc.malloc(ctypes.c_size_t(1000))
    together.wait()

threads = [threading.Thread(target=allocate) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_stats()
"""


def arenas(*arguments: str, **environment: str) -> int:
    """How many heaps 16 threads have made that allocated at the same time."""
    bare = {name: value for name, value in os.environ.items() if name != allocator.VARIABLE}
    command = [sys.executable, "-c", ALLOCATING, *arguments]
    done = subprocess.run(command, env=bare | environment, check=True, capture_output=True, text=True, timeout=60)
    return done.stderr.count("Arena ")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has arenas")
def test_threads_share_few_heaps_unless_somebody_has_set_how_many() -> None:
    assert arenas() > allocator.ARENAS, "without it, threads have heaps of their own"
    assert arenas("shared") <= allocator.ARENAS
    assert arenas("shared", **{allocator.VARIABLE: "5"}) > allocator.ARENAS, "a setting of somebody's own stands"
