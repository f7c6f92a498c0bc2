"""Threads of a worker share the C library's arenas."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import Final

import pytest

PROGRAM: Final = """
import ctypes, sys, threading
from convergio.workers import malloc

if sys.argv[1] == "shared":
    malloc.share_arenas()
malloc_of = ctypes.CDLL(None).malloc
barrier = threading.Barrier(9)

def work():
    malloc_of(1000)
    barrier.wait()
    barrier.wait()

for _ in range(8):
    threading.Thread(target=work).start()
barrier.wait()
ends = set()
for line in open("/proc/self/maps"):
    start, end = (int(part, 16) for part in line.split()[0].split("-"))
    if start % (64 << 20) == 0 and line.split()[1] == "rw-p" and len(line.split()) == 5:
        ends.add(start)
barrier.wait()
print(len(ends))
"""
"""How many arenas eight threads use beside the main one: each begins at a multiple of 64 MiB."""


def arenas(how: str, **environment: str) -> int:
    given = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(given, capture_output=True, text=True, check=True, env=environment).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has arenas for threads")
def test_threads_share_two_arenas_unless_the_environment_says_another_number() -> None:
    assert arenas("as ever") > 2
    assert arenas("shared") <= 2
    assert arenas("shared", MALLOC_ARENA_MAX="6") > 2
