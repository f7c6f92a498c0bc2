"""Ties a program to its parent's life: `python -I -S leash.py PARENT_PID PROGRAM ARGUMENTS...`.

Runs as a file, before any package is importable, and is gone after its `exec`: the pid is the program's own. A small
program instead of `preexec_fn`, which may deadlock in a process that has threads.

On Linux the kernel then sends SIGKILL to the program when the *thread* that started it ends (`PR_SET_PDEATHSIG`,
prctl(2)): start programs from a thread that lives as long as they should. Other systems have no such call; there a
killed supervisor leaves its children, and the next start on the directory ends the Valkey among them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
CANNOT_START = 127


def main() -> int:
    """Becomes the program; returns only when that is not possible, or when the parent is already gone."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The parent may have died between the fork and the prctl; then no signal comes any more.
    if os.getppid() != parent:
        return CANNOT_START
    try:
        os.execvp(program[0], program)
    except OSError as error:
        print(f"{program[0]}: {error.strerror}", file=sys.stderr)
        return CANNOT_START


if __name__ == "__main__":
    sys.exit(main())
