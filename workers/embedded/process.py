"""One running program: in a session of its own, on a leash, its output in its log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from convergio.workers.embedded import log as logs

_LEASH = str(Path(__file__).with_name("leash.py"))


class Process:
    """A program that was started. Belongs to the thread that started it; its end ends the program."""

    def __init__(self, argv: Sequence[str], *, env: Mapping[str, str], log: logs.Log, drop: Sequence[str] = ()) -> None:
        """Starts it. Raises `OSError` when this machine cannot start another process."""
        self._copying: threading.Thread | None = None
        with ExitStack() as closing:
            file = closing.enter_context(log.open())
            self.log_start = file.tell()
            self._popen = subprocess.Popen(
                # -I -S: the leash needs neither the user's modules nor the packages, and starts in 20 ms.
                [sys.executable, "-I", "-S", _LEASH, str(os.getpid()), *argv],
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if drop else file,
                stderr=subprocess.STDOUT,
                # Its own session: the terminal's Ctrl-C reaches only us, and all it forks is in one group.
                start_new_session=True,
            )
            if self._popen.stdout is not None:
                self._copying = logs.drop_lines(self._popen.stdout, file, drop)
                closing.pop_all()  # the copying thread closes the file

    @property
    def pid(self) -> int:
        """The program's own process id."""
        return self._popen.pid

    def ended(self) -> str | None:
        """How it ended, in words; None while it runs. Whatever it forked is ended with it."""
        if self._popen.returncode is None and self._waitable():
            self._kill_group()
            self._popen.wait()
            if self._copying is not None:
                self._copying.join(timeout=1)
        return None if self._popen.returncode is None else _in_words(self._popen.returncode)

    def ask_to_stop(self, sign: signal.Signals) -> None:
        """Sends its stop signal, and wakes it where it is paused: a paused process would not see the signal."""
        if self._popen.returncode is None:
            # Not `send_signal`, which reaps first: the group would lose its name before it is ended.
            os.kill(self.pid, sign)
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> str:
        """Ends it and all it forked, now; returns how it ended."""
        if self._popen.returncode is None:
            self._kill_group()
            self._popen.wait()
        return self.ended() or ""

    def _waitable(self) -> bool:
        """Whether it has ended, leaving it unreaped: its pid, and so its group's, cannot be given away meanwhile."""
        if sys.platform == "darwin":  # without waitid the gap between reaping and killing the group is microseconds
            return self._popen.poll() is not None
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS, of a zombie
            os.killpg(self.pid, signal.SIGKILL)


def _in_words(code: int) -> str:
    if code >= 0:
        return f"exit {code}"
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
