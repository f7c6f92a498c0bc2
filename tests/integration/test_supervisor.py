"""Supervised processes: started in order, restarted within 2 s, and never left behind. Real processes, real kills."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from convergio.graphflow.model import errors
from convergio.workers.embedded import unit
from convergio.workers.embedded.child import Child, State, Status
from convergio.workers.embedded.log import Log
from convergio.workers.embedded.supervisor import Supervisor
from tests.integration.nursery import PROGRAM, Nursery, runs
from tests.waiting import wait_until

RESTART_BOUND_S = 2.0

#: Has a child of its own, whose pid it writes down.
FORKING = """
import os, signal, sys
from convergio.workers.embedded import readiness
if (pid := os.fork()):
    open(sys.argv[1], "w").write(str(pid))
    readiness.announce()
while True:
    signal.pause()
"""


@pytest.fixture
def nursery(tmp_path: Path) -> Nursery:
    return Nursery(tmp_path)


def back(supervisor: Supervisor, name: str, killed: int | None) -> int:
    """The pid of the child that took the killed one's place, once it is ready."""
    status = supervisor.wait_ready(name)
    assert status.pid is not None
    assert status.pid != killed
    return status.pid


# --- order ----------------------------------------------------------------------------------------------------------


def test_children_start_after_what_they_need_and_stop_before_it(nursery: Nursery) -> None:
    server, left, right = (
        nursery.child("server"),
        nursery.child("left", needs=("server",)),
        nursery.child("right", needs=("server",)),
    )
    last = nursery.child("last", needs=("left", "right"))
    with nursery.supervise(server, left, right, last):
        assert nursery.read()[0] == "server starts"
        assert nursery.read()[3] == "last starts"
    stops = nursery.read()[4:]
    assert stops[0] == "last SIGTERM"
    assert sorted(stops[1:3]) == ["left SIGTERM", "right SIGTERM"]
    assert stops[3] == "server SIGTERM"


@pytest.mark.parametrize(
    ("names", "needs", "message"),
    [
        (("a", "a"), (), "two children are named 'a'"),
        (("a", "b"), ("c",), "'b' needs c, which must be listed before it"),
    ],
)
def test_children_that_do_not_fit_are_refused(
    nursery: Nursery, names: tuple[str, str], needs: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        nursery.supervise(nursery.child(names[0]), nursery.child(names[1], needs=needs))


def test_every_change_is_told_in_order(nursery: Nursery) -> None:
    told: list[Status] = []
    with nursery.supervise(nursery.child("worker"), on_change=told.append) as supervisor:
        killed = supervisor.kill("worker")
        back(supervisor, "worker", killed)
    states = [status.state for status in told]
    assert states[:4] == [State.STARTING, State.READY, State.BACKOFF, State.STARTING]
    assert states[-1] is State.STOPPED
    assert told[2].last_end == "SIGKILL"
    assert told[-1].restarts == 1


# --- death ----------------------------------------------------------------------------------------------------------


def test_a_killed_child_is_back_within_two_seconds_however_often(nursery: Nursery) -> None:
    with nursery.supervise(nursery.child("worker")) as supervisor:
        pids = {supervisor.pid("worker")}
        for _ in range(6):
            killed = supervisor.pid("worker")
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            killed_at = time.monotonic()
            wait_until(lambda killed=killed: supervisor.pid("worker") not in (None, killed))  # type: ignore[misc]
            assert time.monotonic() - killed_at < RESTART_BOUND_S
            pids.add(back(supervisor, "worker", killed))
        assert len(pids) == 7


def test_the_first_restart_does_not_wait(nursery: Nursery) -> None:
    with nursery.supervise(nursery.child("worker")) as supervisor:
        killed_at = time.monotonic()
        killed = supervisor.kill("worker")
        wait_until(lambda: supervisor.pid("worker") not in (None, killed), interval=0.005)
        assert time.monotonic() - killed_at < 0.5


def test_the_pause_between_restarts_grows_and_stays_under_the_bound() -> None:
    pauses = [unit.backoff_s(crashes) for crashes in range(5000)]
    assert pauses[0] == 0
    assert pauses == sorted(pauses)
    assert 0 < pauses[1] < pauses[-1] <= RESTART_BOUND_S / 2


def test_a_child_that_ran_well_for_long_is_restarted_at_once_again(
    nursery: Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit, "BACKOFF_S", 60.0)
    monkeypatch.setattr(unit, "BACKOFF_MAX_S", 60.0)
    monkeypatch.setattr(unit, "STABLE_S", 0.0)
    with nursery.supervise(nursery.child("worker")) as supervisor:
        for _ in range(3):
            killed = supervisor.kill("worker")
            back(supervisor, "worker", killed)
            assert supervisor.pid("worker") not in (None, killed), "after its third death it would pause for a minute"


def test_kill_returns_when_the_process_is_dead(nursery: Nursery) -> None:
    with nursery.supervise(nursery.child("worker")) as supervisor:
        pid = supervisor.kill("worker")
        assert pid is not None
        assert not psutil.pid_exists(pid), "neither running nor a zombie"


def test_a_child_that_ends_by_itself_is_restarted_too(nursery: Nursery) -> None:
    with nursery.supervise(nursery.child("worker")) as supervisor:
        pid = supervisor.pid("worker")
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: supervisor.pid("worker") not in (None, pid))
        assert supervisor.wait_ready("worker").last_end == "exit 0"


def test_a_child_that_is_not_to_be_restarted_stays_down(nursery: Nursery) -> None:
    with nursery.supervise(replace(nursery.child("once"), restart=False), nursery.child("other")) as supervisor:
        supervisor.kill("once")
        assert [status.state for status in supervisor.status()] == [State.STOPPED, State.READY]
        with pytest.raises(errors.ProcessNotReady, match="once is stopped"):
            supervisor.wait_ready("once", timeout_s=0.2)


def test_a_held_child_stays_down_until_it_is_released(nursery: Nursery) -> None:
    with nursery.supervise(nursery.child("worker"), nursery.child("other")) as supervisor:
        killed = supervisor.hold("worker")
        # The other's restart proves that the supervisor has had its turn since.
        back(supervisor, "other", supervisor.kill("other"))
        assert supervisor.status()[0].state is State.HELD
        assert supervisor.pid("worker") is None
        supervisor.release("worker")
        back(supervisor, "worker", killed)


def test_a_restart_on_request_lets_the_process_end_properly(nursery: Nursery) -> None:
    with nursery.supervise(nursery.child("worker")) as supervisor:
        pid = supervisor.pid("worker")
        supervisor.restart("worker")
        back(supervisor, "worker", pid)
        assert nursery.read() == ["worker starts", "worker SIGTERM", "worker starts"]


def test_what_a_killed_child_forked_ends_with_it(nursery: Nursery) -> None:
    with nursery.supervise(child_that_forks(nursery)) as supervisor:
        first = forked(nursery)
        killed = supervisor.kill("forking")
        wait_until(lambda: not runs(first))
        back(supervisor, "forking", killed)
        second = forked(nursery)
    wait_until(lambda: not runs(second))


def child_that_forks(nursery: Nursery) -> Child:
    argv = (sys.executable, "-c", FORKING, str(nursery.directory / "forked"))
    return Child(name="forking", argv=argv, announces=True)


def forked(nursery: Nursery) -> int:
    return int((nursery.directory / "forked").read_text())


def test_an_unknown_name_is_refused(nursery: Nursery) -> None:
    with (
        nursery.supervise(nursery.child("worker")) as supervisor,
        pytest.raises(ValueError, match="no child is named 'wrker'; there are worker"),
    ):
        supervisor.kill("wrker")


def test_a_stopped_supervisor_says_so(nursery: Nursery) -> None:
    with nursery.supervise(nursery.child("worker")) as supervisor:
        pass
    with pytest.raises(errors.ProcessNotReady, match="not running"):
        supervisor.kill("worker")
    assert supervisor.pid("worker") is None


# --- the first start ------------------------------------------------------------------------------------------------


def test_a_child_that_dies_at_its_start_is_an_error_with_its_last_words(nursery: Nursery) -> None:
    broken = nursery.child("broken", program="print('\\n'.join(f'line {n}' for n in range(50))); raise SystemExit(3)")
    started: list[int | None] = []
    supervisor = nursery.supervise(
        nursery.child("server"),
        replace(broken, needs=("server",)),
        on_change=lambda status: started.append(status.pid) if status.name == "server" else None,
    )
    with pytest.raises(errors.ProcessNotReady, match=r"broken did not become ready: exit 3\.") as caught, supervisor:
        pass
    assert "line 49" in (caught.value.hint or "")
    assert "line 3\n" not in (caught.value.hint or "")
    assert nursery.read() == ["server starts", "server SIGTERM"]
    assert not any(pid is not None and runs(pid) for pid in started)


def test_a_child_that_never_gets_ready_is_an_error(nursery: Nursery) -> None:
    silent = replace(nursery.child("silent", program="import time; time.sleep(60)"), ready_timeout_s=0.5)
    (nursery.directory / "silent.log").write_text("words of the last time\n")
    with pytest.raises(errors.ProcessNotReady, match=r"not ready within 0\.5 s") as caught, nursery.supervise(silent):
        pass
    assert "words of the last time" not in (caught.value.hint or "")


def test_a_program_that_does_not_exist_is_an_error(nursery: Nursery) -> None:
    missing = Child(name="missing", argv=("/no/such/program",), announces=True)
    with pytest.raises(errors.ProcessNotReady) as caught, nursery.supervise(missing):
        pass
    assert "/no/such/program: No such file or directory" in (caught.value.hint or "")


def test_a_child_that_can_be_repaired_gets_another_try(nursery: Nursery) -> None:
    broken = nursery.directory / "broken"
    broken.touch()
    picky = f"import os, sys\nif os.path.exists({str(broken)!r}): sys.exit('broken thing found')\n" + PROGRAM
    seen: list[str] = []

    def repair(tail: str) -> bool:
        seen.append(tail)
        found = broken.exists()
        broken.unlink(missing_ok=True)
        return found

    with nursery.supervise(replace(nursery.child("picky", program=picky), repair=repair)) as supervisor:
        assert supervisor.status()[0].last_end == "exit 1, repaired"
    assert seen == ["broken thing found"]


def test_what_an_earlier_process_announced_does_not_count_for_the_next(nursery: Nursery) -> None:
    gate = nursery.directory / "gate"
    gate.touch()
    waits = f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n" + PROGRAM
    with nursery.supervise(nursery.child("worker", program=waits), nursery.child("other")) as supervisor:
        gate.unlink()
        supervisor.kill("worker")
        back(supervisor, "other", supervisor.kill("other"))
        assert supervisor.status()[0].state is State.STARTING
        gate.touch()
        supervisor.wait_ready("worker")


# --- logs -----------------------------------------------------------------------------------------------------------


def test_output_is_logged_and_unwanted_lines_are_not(nursery: Nursery) -> None:
    noisy = nursery.child("noisy", program="print('a harmless warning')\nprint('useful', flush=True)\n" + PROGRAM)
    log = nursery.directory / "noisy.log"
    with nursery.supervise(replace(noisy, drop=("harmless",))):
        wait_until(lambda: log.read_text() == "useful\n")
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_large_log_is_set_aside_when_its_process_starts_again(tmp_path: Path) -> None:
    log = Log(path=tmp_path / "worker.log", rotate_bytes=10)
    for text in (b"first", b" and more", b"second"):
        with log.open() as file:
            file.write(text)
    assert log.path.read_bytes() == b"second"
    assert (tmp_path / "worker.log.1").read_bytes() == b"first and more"


def test_a_large_log_is_set_aside_while_its_process_runs(nursery: Nursery) -> None:
    child = nursery.child("chatty", program="print('x' * 100, flush=True)\n" + PROGRAM)
    with nursery.supervise(child) as supervisor:
        log = supervisor._units["chatty"].log
        wait_until(lambda: log.path.stat().st_size == 101)
        supervisor._units["chatty"].log = replace(log, rotate_bytes=10)
        aside = log.path.with_name("chatty.log.1")
        wait_until(lambda: aside.exists() and log.path.stat().st_size == 0)
        assert aside.read_text() == "x" * 100 + "\n"
        assert aside.stat().st_mode & 0o777 == 0o600


def test_the_process_appends_where_the_log_was_cut_and_its_end_is_found(tmp_path: Path) -> None:
    log = Log(path=tmp_path / "worker.log", rotate_bytes=10)
    with log.open() as file:
        file.write(b"a first line\n")
        start = file.tell()
        log.rotate()
        file.write(b"second\n")
    assert log.path.read_bytes() == b"second\n"
    assert log.tail(since=start) == "second"


def test_the_end_of_a_log_is_what_was_written_since_the_start(tmp_path: Path) -> None:
    log = Log(path=tmp_path / "worker.log")
    assert log.tail() == ""
    log.path.write_bytes(b"old\n" + b"new\n" * 3)
    assert log.tail(since=4) == "new\nnew\nnew"
    assert log.tail(lines=1) == "new"
    log.path.write_bytes(b"x" * 100_000 + b"\nlast \xff\n")
    assert log.tail(lines=1) == "last \ufffd"
