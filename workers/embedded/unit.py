"""One child under supervision: its state, and what moves it on. Pure of threads; the supervisor's thread drives it."""

from __future__ import annotations

from collections.abc import Mapping

from convergio.graphflow.model import errors
from convergio.workers.embedded.child import Child, State, Status
from convergio.workers.embedded.log import Log
from convergio.workers.embedded.process import Process
from convergio.workers.embedded.readiness import ReadyFile

#: A process that stayed ready this long has no crashes to its name.
STABLE_S = 5.0

#: The pause before the second restart in a row; it doubles from there. The first restart is immediate.
BACKOFF_S = 0.1

#: The longest pause: with the time to notice a death and to start, a process is back within 2 s.
BACKOFF_MAX_S = 1.0

RUNNING = frozenset({State.STARTING, State.READY, State.STOPPING})
AT_REST = frozenset({State.WAITING, State.BACKOFF, State.HELD, State.STOPPED, State.FAILED})


class Unit:
    """The child, its present process, and its history. Times are monotonic seconds, given by the caller."""

    def __init__(self, child: Child, log: Log) -> None:
        self.child = child
        self.log = log
        self.state = State.WAITING
        self.was_ready = False
        self.failure: errors.ProcessNotReady | None = None
        self._process: Process | None = None
        self._restarts = 0
        self._crashes = 0
        self._last_end: str | None = None
        self._since = 0.0
        self._deadline = 0.0
        self._start_after_stop = False

    @property
    def status(self) -> Status:
        """A snapshot for others."""
        pid = self._process.pid if self._process is not None and self.state in RUNNING else None
        return Status(name=self.child.name, state=self.state, pid=pid, restarts=self._restarts, last_end=self._last_end)

    def advance(self, now: float) -> None:
        """Looks at the process and moves on: to ready, to the next try, to stopped."""
        if self.state is State.BACKOFF and now >= self._deadline:
            self.start(now)
        elif self.state is State.STARTING:
            self._advance_start(now)
        elif self.state is State.READY and (end := self._ended()):
            self._died(now, end)
        elif self.state is State.READY:
            self.log.rotate()
        elif self.state is State.STOPPING:
            self._advance_stop(now)

    def start(self, now: float) -> None:
        """Starts a process."""
        if self.state in RUNNING:
            return
        self._since = now
        try:
            self._process = Process(self.child.argv, env=self._env(), log=self.log, drop=self.child.drop)
        except OSError as error:
            self._start_failed(now, str(error))
        else:
            self.state = State.STARTING

    def stop(self, now: float, *, start_again: bool = False) -> None:
        """Asks the process to end; it has `stop_grace_s` for it."""
        if self._process is None or self.state not in RUNNING:
            self.state = State.FAILED if self.state is State.FAILED else State.STOPPED
            return
        self._start_after_stop = start_again
        if self.state is not State.STOPPING:
            self.state = State.STOPPING
            self._deadline = now + self.child.stop_grace_s
            self._process.ask_to_stop(self.child.stop_signal)

    def restart(self, now: float) -> None:
        """Stops the process and starts it again; only starts it when none runs."""
        if self.state in RUNNING:
            self.stop(now, start_again=True)
        else:
            self.start(now)

    def kill(self, now: float, *, hold: bool = False) -> int | None:
        """`kill -9`, then restart or hold. Returns the pid that was killed; None when none ran."""
        pid = self.status.pid
        if self._process is not None and pid is not None:
            self._died(now, self._process.kill())
        if hold:
            self.state = State.HELD
        return pid

    def end_now(self) -> None:
        """Ends the process and all it forked without asking; for good."""
        if self._process is not None:
            self._last_end = self._process.kill()
        self.state = State.FAILED if self.state is State.FAILED else State.STOPPED

    def _ended(self) -> str | None:
        return self._process.ended() if self._process is not None else None

    def _is_ready(self) -> bool:
        ready = self._ready_file.ready if self.child.announces else self.child.ready
        return ready is None or (self._process is not None and ready(self._process.pid))

    def _env(self) -> Mapping[str, str]:
        return {**self.child.env, **self._ready_file.env} if self.child.announces else self.child.env

    @property
    def _ready_file(self) -> ReadyFile:
        return ReadyFile(path=self.log.path.with_name(f".{self.child.name}.ready"))

    def _advance_start(self, now: float) -> None:
        if end := self._ended():
            self._start_failed(now, end)
        elif self._is_ready():
            self.state, self.was_ready, self._since = State.READY, True, now
        elif self._process is not None and now - self._since > self.child.ready_timeout_s:
            self._process.kill()
            self._start_failed(now, f"not ready within {self.child.ready_timeout_s:g} s")

    def _start_failed(self, now: float, end: str) -> None:
        tail = self.log.tail(since=self._process.log_start if self._process is not None else 0)
        if self.child.repair is not None and self.child.repair(tail):
            self._died(now, f"{end}, repaired")
        elif self.was_ready:
            self._died(now, end)
        else:
            self.state, self._last_end = State.FAILED, end
            self.failure = errors.ProcessNotReady(
                f"{self.child.name} did not become ready: {end}.",
                hint=f"Its log is {self.log.path}; the end of it:\n{tail}" if tail else f"Its log is {self.log.path}.",
                process=self.child.name,
            )

    def _died(self, now: float, end: str) -> None:
        self._last_end = end
        if not self.child.restart:
            self.state = State.STOPPED
            return
        if self.state is State.READY and now - self._since >= STABLE_S:
            self._crashes = 0
        self.state = State.BACKOFF
        self._deadline = now + backoff_s(self._crashes)
        self._crashes += 1
        self._restarts += 1

    def _advance_stop(self, now: float) -> None:
        end = self._ended()
        if end is None and now >= self._deadline and self._process is not None:
            end = self._process.kill()
        if end is None:
            return
        self._last_end, self.state = end, State.STOPPED
        if self._start_after_stop:
            self._start_after_stop = False
            self._restarts += 1
            self.start(now)


def backoff_s(crashes: int) -> float:
    """The pause before a restart, after this many crashes in a row before this one."""
    if crashes == 0:
        return 0.0
    # The exponent is bounded: a child may crash all night, and 2.0 ** 1024 is an error.
    return min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(crashes - 1, 10))
