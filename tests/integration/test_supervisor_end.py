"""How supervised processes end: in order, all of them, whatever happens to the supervisor. Real signals, real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from convergio.workers.embedded import leash
from convergio.workers.embedded.child import Status
from tests.integration.nursery import PROGRAM, STUBBORN, Nursery, runs
from tests.waiting import wait_until

#: Kills the server when it is asked to stop, and waits for the next one before it does.
DRAINING = """
import os, pathlib, signal, sys, time
from convergio.workers.embedded import readiness
diary = pathlib.Path(sys.argv[2])
def drain(number, frame):
    os.kill(int((diary.parent / ".server.ready").read_text()), signal.SIGKILL)
    while diary.read_text().count("server starts") < 2:
        time.sleep(0.01)
    with diary.open("a") as file:
        file.write("worker drained\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
readiness.announce()
while True:
    signal.pause()
"""

#: A supervisor in the foreground, as `up` runs it: prints a line when all are ready.
FOREGROUND = """
import sys
from pathlib import Path
from convergio.workers.embedded import leash, unit
from convergio.workers.embedded.child import Child
from convergio.workers.embedded.supervisor import Supervisor
logs, *programs = sys.argv[1:]
children = [
    Child(name=f"c{n}", argv=(sys.executable, "-c", program, f"c{n}", logs + "/diary"), announces=True,
          needs=(f"c{n-1}",) if n else (), stop_grace_s=30)
    for n, program in enumerate(programs)
]
Supervisor(children, logs=Path(logs)).run(when_ready=lambda: print("ready", flush=True))
print("over", flush=True)
"""


@pytest.fixture
def nursery(tmp_path: Path) -> Nursery:
    return Nursery(tmp_path)


# --- the end --------------------------------------------------------------------------------------------------------


def test_a_child_that_ignores_its_stop_signal_is_killed_at_its_deadline(nursery: Nursery) -> None:
    stubborn = replace(nursery.child("stubborn", program=STUBBORN), stop_grace_s=0.3)
    with nursery.supervise(stubborn) as supervisor:
        pid = supervisor.pid("stubborn")
        assert pid is not None
    assert supervisor.status()[0].last_end == "SIGKILL"
    assert not psutil.pid_exists(pid)


def test_a_paused_child_still_ends_properly(nursery: Nursery) -> None:
    with nursery.supervise(nursery.child("worker")) as supervisor:
        pid = supervisor.pid("worker")
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    assert nursery.read() == ["worker starts", "worker SIGTERM"]


def test_what_others_still_need_is_restarted_even_while_all_stop(nursery: Nursery) -> None:
    draining = nursery.child("worker", program=DRAINING, needs=("server",))
    with nursery.supervise(nursery.child("server"), draining):
        pass
    assert nursery.read()[1:] == ["server starts", "worker drained", "server SIGTERM"]


def test_a_listener_whose_terminal_is_gone_does_no_harm(nursery: Nursery) -> None:
    def closed(_status: Status) -> None:
        raise BrokenPipeError

    with nursery.supervise(nursery.child("worker"), on_change=closed):
        pass
    assert nursery.read() == ["worker starts", "worker SIGTERM"]


def test_an_exception_in_the_block_still_stops_the_children(nursery: Nursery) -> None:
    with pytest.raises(ZeroDivisionError), nursery.supervise(nursery.child("worker")):
        raise ZeroDivisionError
    assert nursery.read()[-1] == "worker SIGTERM"


class Foreground:
    """A supervisor in a process of its own, which leads a process group like a terminal's foreground job."""

    def __init__(self, directory: Path, *programs: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FOREGROUND, str(directory), *programs],
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.output = self.process.stdout
        assert self.output.readline() == b"ready\n"
        self.children = [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.output.close()
        for pid in self.children:
            if runs(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def foreground(tmp_path: Path) -> Iterator[Callable[..., Foreground]]:
    with ExitStack() as closing:

        def start(*programs: str) -> Foreground:
            started = Foreground(tmp_path, *programs)
            closing.callback(started.close)
            return started

        yield start


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_ctrl_c_stops_all_in_order_and_reaches_no_child_directly(
    foreground: Callable[..., Foreground], nursery: Nursery, sign: signal.Signals
) -> None:
    host = foreground(PROGRAM, PROGRAM)
    os.killpg(host.process.pid, sign)
    assert host.process.wait(timeout=10) == 0
    assert host.output.read() == b"over\n"
    assert nursery.read() == ["c0 starts", "c1 starts", "c1 SIGTERM", "c0 SIGTERM"]
    assert not any(psutil.pid_exists(pid) for pid in host.children)


def test_a_second_ctrl_c_does_not_wait_for_the_stubborn(
    foreground: Callable[..., Foreground], nursery: Nursery
) -> None:
    host = foreground(STUBBORN)
    os.killpg(host.process.pid, signal.SIGINT)
    wait_until(lambda: nursery.read() == ["SIGTERM"])
    # The stubborn one has 30 s; without the second signal this would take as long.
    os.killpg(host.process.pid, signal.SIGINT)
    assert host.process.wait(timeout=10) == 0
    assert not any(psutil.pid_exists(pid) for pid in host.children)


def test_ctrl_c_while_it_starts_stops_what_has_started(tmp_path: Path) -> None:
    nursery = Nursery(tmp_path)
    arguments = [sys.executable, "-c", FOREGROUND, str(tmp_path), PROGRAM, "import time; time.sleep(60)"]
    host = subprocess.Popen(arguments, stdout=subprocess.PIPE, start_new_session=True)
    wait_until(lambda: len(psutil.Process(host.pid).children()) == 2)
    os.killpg(host.pid, signal.SIGINT)
    assert host.communicate(timeout=10)[0] == b"over\n", "without ever having been ready"
    assert nursery.read() == ["c0 starts", "c0 SIGTERM"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process when its parent dies")
def test_a_killed_supervisor_leaves_no_child_behind(foreground: Callable[..., Foreground]) -> None:
    host = foreground(PROGRAM, STUBBORN)
    assert len(host.children) == 2
    host.process.kill()
    wait_until(lambda: not any(runs(pid) for pid in host.children))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process when its parent dies")
def test_a_supervisor_killed_while_it_starts_its_children_leaves_none_behind(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", FOREGROUND, str(tmp_path), *[STUBBORN] * 3]
    for _ in range(5):
        host = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, start_new_session=True)
        children = wait_until(lambda host=host: psutil.Process(host.pid).children(), interval=0.001)  # type: ignore[misc]
        host.kill()
        host.wait()
        wait_until(lambda children=children: not any(runs(child.pid) for child in children))  # type: ignore[misc]


def test_the_leash_refuses_to_start_a_program_whose_parent_is_gone() -> None:
    argv = [sys.executable, "-I", "-S", leash.__file__, str(os.getppid()), sys.executable, "-c", "print('started')"]
    ended = subprocess.run(argv, capture_output=True, timeout=10)
    assert (ended.returncode, ended.stdout) == (leash.CANNOT_START, b"")
