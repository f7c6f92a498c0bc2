"""Supervises processes: starts them in order, restarts the dead within 2 s, stops them in reverse order.

One thread owns all children, because the leash (`PR_SET_PDEATHSIG`) hangs on the thread that started them, and because
only one may reap. Everything else asks that thread.
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Self, TypeVar

from convergio.graphflow.model import errors
from convergio.workers.embedded.child import Child, State, Status
from convergio.workers.embedded.log import Log
from convergio.workers.embedded.unit import AT_REST, RUNNING, Unit

T = TypeVar("T")

#: How long a death may go unnoticed.
TICK_S = 0.05

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Keeps the children running. Use it as a context manager, or `run` it in the foreground.

    `on_change` is told every change of a child's state, on the supervisor's thread: it must be quick.
    """

    def __init__(
        self, children: Sequence[Child], *, logs: Path, on_change: Callable[[Status], None] | None = None
    ) -> None:
        """`logs` is the directory of the children's logs. Raises `ValueError` for names or needs that do not fit."""
        _check(children)
        self._units = {child.name: Unit(child, Log(path=logs / f"{child.name}.log")) for child in children}
        self._on_change = on_change
        # SimpleQueue: its `put` may be called in a signal handler, even in the middle of another `put`.
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._statuses = {name: unit.status for name, unit in self._units.items()}
        self._stopping = False
        self._over = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def __enter__(self) -> Self:
        """Starts; returns when all children are ready."""
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stops all children."""
        self.stop()

    def start(self) -> None:
        """Starts the children; returns when all are ready, or when `stop` was asked for meanwhile.

        Raises `ProcessNotReady` with the end of its log when one dies or stays silent; then all are stopped.
        """
        self._thread.start()
        try:
            self._wait(
                lambda: self._stopping or self._over or all(s.state is State.READY for s in self._statuses.values())
            )
        except BaseException:
            self.stop()
            raise
        if self._stopping or self._over:
            self._wait_until_over()

    def stop(self) -> None:
        """Stops all children, those first that no other needs. A Ctrl-C meanwhile ends them at once."""
        self._commands.put(self._begin_stop)
        try:
            self._wait_until_over()
        except KeyboardInterrupt:
            self._commands.put(self._request_stop)
            self._wait_until_over()
            raise

    def run(self, *, when_ready: Callable[[], None] | None = None) -> None:
        """Starts, calls `when_ready`, and supervises until Ctrl-C, SIGTERM or SIGHUP; then stops all.

        A second signal ends them at once. Main thread only. Raises `ProcessNotReady` like `start`.
        """
        with self._stopping_by_signal():
            self.start()
            try:
                if when_ready is not None and not self._stopping:
                    when_ready()
            except BaseException:
                self.stop()
                raise
            self._wait_until_over()

    def status(self) -> tuple[Status, ...]:
        """All children, in the order given."""
        with self._changed:
            return tuple(self._statuses.values())

    def pid(self, name: str) -> int | None:
        """The child's process id now; None while it does not run."""
        return self._status(name).pid

    def kill(self, name: str) -> int | None:
        """`kill -9`s the child, which is restarted; returns when it is dead, with its pid (None when it was down)."""
        return self._ask(lambda: self._unit(name).kill(time.monotonic()))

    def hold(self, name: str) -> int | None:
        """`kill -9`s the child and keeps it down until `release`."""
        return self._ask(lambda: self._unit(name).kill(time.monotonic(), hold=True))

    def release(self, name: str) -> None:
        """Starts a held child again."""
        self._ask(lambda: self._unit(name).start(time.monotonic()))

    def restart(self, name: str) -> None:
        """Stops the child as at the end of all, and starts it again; returns at once."""
        self._ask(lambda: self._unit(name).restart(time.monotonic()))

    def wait_ready(self, name: str, timeout_s: float = 30.0) -> Status:
        """Returns the child's status once it is ready. Raises `ProcessNotReady` after `timeout_s`."""
        self._unit(name)
        self._wait(lambda: self._over or self._statuses[name].state is State.READY, timeout_s)
        status = self._status(name)
        if status.state is not State.READY:
            raise errors.ProcessNotReady(f"{name} is {status.state}.", hint=f"It last ended with {status.last_end}.")
        return status

    # --- called on any thread -----------------------------------------------------------------------------------

    def _unit(self, name: str) -> Unit:
        if name not in self._units:
            raise ValueError(f"no child is named {name!r}; there are {', '.join(self._units)}")
        return self._units[name]

    def _status(self, name: str) -> Status:
        self._unit(name)
        with self._changed:
            return self._statuses[name]

    def _wait(self, predicate: Callable[[], bool], timeout_s: float | None = None) -> None:
        # Not `Thread.join`: a KeyboardInterrupt in it marks a running thread as ended before Python 3.13.
        with self._changed:
            self._changed.wait_for(predicate, timeout_s)

    def _wait_until_over(self) -> None:
        self._wait(lambda: self._over)
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _ask(self, action: Callable[[], T]) -> T:
        """Does it on the supervisor's thread; returns what it returns, once others can see the change."""
        answer: Future[T] = Future()

        def act() -> None:
            try:
                result = action()
            except BaseException as error:  # noqa: BLE001 - it is raised where it was asked for
                answer.set_exception(error)
            else:
                self._publish()
                answer.set_result(result)

        self._commands.put(act)
        while True:
            with suppress(TimeoutError):
                return answer.result(timeout=0.5)
            if self._over and not answer.done():
                raise errors.ProcessNotReady("The supervisor is not running.")

    @contextmanager
    def _stopping_by_signal(self) -> Generator[None]:
        def handle(_number: int, _frame: FrameType | None) -> None:
            self._commands.put(self._request_stop)

        before = {sign: signal.signal(sign, handle) for sign in STOP_SIGNALS}
        try:
            yield
        finally:
            for sign, handler in before.items():
                signal.signal(sign, handler)

    # --- called on the supervisor's thread only -----------------------------------------------------------------

    def _supervise(self) -> None:
        try:
            while not (self._stopping and all(unit.state in AT_REST for unit in self._units.values())):
                with suppress(queue.Empty):
                    self._commands.get(timeout=TICK_S)()
                self._advance(time.monotonic())
                self._publish()
        except BaseException as error:  # noqa: BLE001 - `_wait_until_over` raises it
            self._error = error
        finally:
            self._end_all_now()
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _advance(self, now: float) -> None:
        for unit in self._units.values():
            if self._stopping and not self._is_needed(unit):
                unit.stop(now)
            elif unit.state is State.WAITING and not self._stopping and self._has_its_needs(unit):
                unit.start(now)
            unit.advance(now)
            if unit.failure is not None and not self._stopping:
                self._error = unit.failure
                self._stopping = True

    def _has_its_needs(self, unit: Unit) -> bool:
        return all(self._units[need].was_ready for need in unit.child.needs)

    def _is_needed(self, unit: Unit) -> bool:
        """Whether a child that needs this one still runs."""
        return any(unit.child.name in other.child.needs and other.state in RUNNING for other in self._units.values())

    def _request_stop(self) -> None:
        if self._stopping:
            self._end_all_now()
        self._begin_stop()

    def _begin_stop(self) -> None:
        self._stopping = True

    def _end_all_now(self) -> None:
        for unit in reversed(self._units.values()):
            unit.end_now()
        self._publish()

    def _publish(self) -> None:
        with self._changed:
            before, self._statuses = self._statuses, {name: unit.status for name, unit in self._units.items()}
            changed = [status for name, status in self._statuses.items() if status != before[name]]
            self._changed.notify_all()
        for status in changed:
            if self._on_change is not None:
                # What it prints to may be gone: a closed terminal must not end the children uncleanly.
                with suppress(OSError):
                    self._on_change(status)


def _check(children: Sequence[Child]) -> None:
    names: set[str] = set()
    for child in children:
        if child.name in names:
            raise ValueError(f"two children are named {child.name!r}")
        if missing := [need for need in child.needs if need not in names]:
            raise ValueError(f"{child.name!r} needs {', '.join(missing)}, which must be listed before it")
        names.add(child.name)
