"""`convergio worker` as an operator uses it: several processes, any pool, a probe, one signal to stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest

from tests.acceptance.town import Place, Town, going
from tests.servers import valkey_running
from tests.waiting import wait_until

RUN = "workflow: held\nversion: 1\nsteps: {a: {task: demo.wait_for, with: {gate: \"'g'\"}}}\n"


@pytest.fixture
def own(new_place: Place, sqlite_url: str) -> Iterator[Place]:
    """Servers of one's own, and a journal that is migrated."""
    with valkey_running() as server:
        urls = {"CONVERGIO_REDIS_URL": server.url, "CONVERGIO_JOURNAL_URL": sqlite_url}
        place = Place(home=new_place.home, extra={**new_place.extra, **urls})
        place.ok("migrate")
        yield place


def workers(town: Town) -> list[int]:
    """The worker processes that are supervised."""
    found = psutil.Process(town.process.pid).children()
    return [child.pid for child in found if "--no-service" in _command(child)]


def _command(process: psutil.Process) -> list[str]:
    """Its words; none if it has just died."""
    try:
        return process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return []


def probe(place: Place) -> int:
    return place.cli("worker", "--probe").returncode


def test_a_worker_that_dies_is_replaced_within_two_seconds_and_the_probe_follows(own: Place) -> None:
    with going("worker", "-n", "2", "--pool", "prefork", "-c", "1", env=own.env) as town:
        town.wait_for("2 worker processes and a service process are ready")
        wait_until(lambda: probe(own) == 0, timeout=20)
        victim = workers(town)[0]
        children = [child.pid for child in psutil.Process(victim).children()]
        assert children
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        wait_until(lambda: len(set(workers(town)) - {victim}) == 2, timeout=10)
        assert time.monotonic() - killed < 2
        town.wait_for("ended (SIGKILL): started again")
        wait_until(lambda: not any(map(psutil.pid_exists, children)), timeout=5)
        wait_until(lambda: probe(own) == 0, timeout=30)
        assert own.cli("run", "market_entry", "--brief", "--watch", "--yes").returncode == 0
        assert town.interrupt() == 0


def test_the_probe_names_a_worker_that_does_not_consume(own: Place) -> None:
    with going("worker", "--no-service", env=own.env) as town:
        wait_until(lambda: probe(own) == 0, timeout=60)
        town.process.send_signal(signal.SIGSTOP)
        done = wait_until(lambda: failed(own), timeout=20)
        assert "its pop was answered (" in done
        town.process.send_signal(signal.SIGCONT)
    done = own.cli("worker", "--probe").stdout
    assert done.startswith("no worker runs here: ")


def failed(place: Place) -> str:
    """What the probe said when it failed; empty while it does not."""
    done = place.cli("worker", "--probe", "--within", "4")
    return done.stdout if done.returncode == 1 else ""


def test_one_signal_moves_what_runs_to_a_worker_that_stays(own: Place) -> None:
    """A deploy: the old worker is asked to stop, and the step it runs is finished by the new one, uncounted."""
    path = own.home / "held.yaml"
    path.write_text(RUN)
    short = {**own.env, "CONVERGIO_DRAIN_SECONDS": "1"}
    with going("worker", env=short) as old:
        old.wait_for("are ready")
        run = own.ok("run", str(path)).strip()
        wait_until(lambda: own.state(run, "a") == "RUNNING", timeout=30)
        with going("worker", env=own.env) as new:
            new.wait_for("are ready")
            assert old.interrupt() == 0
            wait_until(lambda: own.state(run, "a") == "RUNNING", timeout=10)
            (own.home / "gates" / "g").touch()
            assert own.cli("runs", "watch", run).returncode == 0
