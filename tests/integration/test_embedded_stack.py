"""The embedded stack as one: a Celery worker on it, what others see of it, and how it ends."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import celery
import psutil
import pytest
import redis

from convergio.graphflow.model import errors
from convergio.workers.embedded import model_file
from convergio.workers.embedded.child import Child
from convergio.workers.embedded.directory import DataDirectory
from convergio.workers.embedded.stack import Plan, Stack
from tests.integration.nursery import runs
from tests.waiting import wait_until

WORKER = """
import os
from celery import Celery, signals
from convergio.workers.embedded import readiness
url = os.environ["CONVERGIO_REDIS_URL"]
app = Celery("stack_worker", broker=url, backend=url)
app.conf.update(worker_hijack_root_logger=False, broker_connection_retry_on_startup=True)
@app.task(name="double")
def double(number):
    return 2 * number
signals.worker_ready.connect(lambda **_: readiness.announce(), weak=False)
"""

#: Uses what it was told of before it says that it is ready.
VISITOR = """
import os, signal, sqlite3, redis
from convergio.workers.embedded import model_server, readiness
from convergio.workers.embedded.model_endpoint import ModelEndpoint
redis.Redis.from_url(os.environ["CONVERGIO_REDIS_URL"]).rpush("visits", os.getpid())
path = os.environ["CONVERGIO_JOURNAL_URL"].removeprefix("sqlite:///")
sqlite3.connect(path).execute("SELECT * FROM migrated")
model = ModelEndpoint.given()
if model is None or model_server.ready(model.url, model.key):
    readiness.announce()
signal.pause()
"""

FOREGROUND = """
import sys
from pathlib import Path
from tests.integration.test_embedded_stack import plan
from convergio.workers.embedded.stack import Stack
Stack(plan(Path(sys.argv[1]), "prefork")).run(when_ready=lambda stack: print(stack.endpoints.redis_url, flush=True))
"""


ROOT = Path(__file__).parents[2]


def migrate(url: str) -> None:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    connection.execute("CREATE TABLE IF NOT EXISTS migrated (version TEXT)")
    connection.close()


def plan(directory: Path, *programs: str) -> Plan:
    """A stack in `directory` with a Celery worker per named pool, or a `visitor`."""
    directory.mkdir(exist_ok=True)
    (directory / "stack_worker.py").write_text(WORKER)
    return Plan(directory=directory, migrate=migrate, programs=[program(directory, name) for name in programs])


def program(directory: Path, name: str) -> Child:
    options = ["--pool", name, "--concurrency", "2", "--loglevel", "WARNING", "--without-mingle", "--without-gossip"]
    worker = ["-m", "celery", "-A", "stack_worker", "worker", "-n", name, *options]
    return Child(
        name=name,
        argv=(sys.executable, *(["-c", VISITOR] if name == "visitor" else worker)),
        env={"PYTHONPATH": str(directory)},
        needs=("valkey", "model"),
        announces=True,
    )


def doubled(url: str, number: int) -> int:
    """The result of a task on the stack's worker."""
    with celery.Celery(broker=url, backend=url) as app:
        answer: int = app.send_task("double", (number,)).get(timeout=20)
        return answer


def visits(url: str) -> list[int]:
    with redis.Redis.from_url(url) as board:
        return [int(pid) for pid in board.lrange("visits", 0, -1)]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data"


# --- running --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_tasks_go_on_after_the_worker_and_the_broker_were_killed(directory: Path, pool: str) -> None:
    with Stack(plan(directory, pool)) as stack:
        url = stack.endpoints.redis_url
        assert doubled(url, 1) == 2
        stack.supervisor.kill(pool)
        assert doubled(url, 2) == 4
        stack.supervisor.kill("valkey")
        stack.supervisor.wait_ready("valkey")
        assert doubled(url, 3) == 6


def test_programs_find_valkey_journal_and_model_ready(directory: Path) -> None:
    wanted = plan(directory, "visitor")
    with Stack(Plan(directory=directory, migrate=migrate, programs=wanted.programs, model={"context": 256})) as stack:
        assert visits(stack.endpoints.redis_url) == [stack.supervisor.pid("visitor")]
        assert [status.name for status in stack.supervisor.status()] == ["valkey", "model", "visitor"]
        running = DataDirectory(root=directory).running()
        assert running is not None
        assert running.env["CONVERGIO_EMBEDDED_MODEL_URL"] == running.urls["model"]


def test_another_terminal_finds_the_running_stack_as_it_is_now(directory: Path) -> None:
    outside = DataDirectory(root=directory)
    told: list[str] = []
    with Stack(plan(directory, "visitor"), on_change=lambda status: told.append(status.name)) as stack:
        running = outside.running()
        assert running is not None
        assert running.pid == os.getpid()
        assert running.env["CONVERGIO_REDIS_URL"] == stack.endpoints.redis_url
        assert running.env["CONVERGIO_HOME"] == str(directory)
        killed = stack.supervisor.kill("visitor")
        now = stack.supervisor.wait_ready("visitor").pid
        assert now != killed
        wait_until(lambda: (seen := outside.running()) is not None and seen.pids.get("visitor") == now)
    assert outside.running() is None
    assert set(told) == {"valkey", "visitor"}


def test_what_is_external_is_used_and_not_started(directory: Path, valkey: str) -> None:
    own = plan(directory, "visitor")
    with Stack(Plan(directory=directory, migrate=migrate, programs=own.programs, redis_url=valkey)) as stack:
        assert [status.name for status in stack.supervisor.status()] == ["visitor"]
        assert visits(valkey) == [stack.supervisor.pid("visitor")]


def test_the_local_model_is_asked_around_the_users_proxy(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "example.com")
    with Stack(plan(directory, "visitor")) as stack:
        pid = stack.supervisor.pid("visitor")
        assert psutil.Process(pid).environ()["no_proxy"] == "example.com,127.0.0.1,localhost"


# --- what may go wrong ----------------------------------------------------------------------------------------------


def test_a_second_stack_on_the_directory_is_refused_and_the_first_goes_on(directory: Path) -> None:
    with Stack(plan(directory, "visitor")) as stack:
        with pytest.raises(errors.DirectoryInUse, match=str(os.getpid())), Stack(plan(directory)):
            pass
        with redis.Redis.from_url(stack.endpoints.redis_url) as board:
            assert board.ping()
        assert DataDirectory(root=directory).running() is not None


def test_without_weights_nothing_is_started_and_the_directory_is_free(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_file, "PACKAGE", "no_such_package")
    with pytest.raises(errors.ModelUnavailable), Stack(Plan(directory=directory, migrate=migrate, model={})):
        pass
    assert not (directory / "logs" / "valkey.log").exists()
    with DataDirectory(root=directory).lock():
        pass


def test_a_failed_migration_starts_nothing(directory: Path) -> None:
    def fail(_url: str) -> None:
        raise errors.JournalUnavailable

    with pytest.raises(errors.JournalUnavailable), Stack(Plan(directory=directory, migrate=fail)):
        pass
    assert not (directory / "logs" / "valkey.log").exists()


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.fixture
def foreground(directory: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], str]]]:
    """Starts a stack with a prefork worker as `up` does, in its own process group; returns it and its Redis URL."""
    hosts: list[subprocess.Popen[str]] = []

    def start() -> tuple[subprocess.Popen[str], str]:
        argv = [sys.executable, "-c", FOREGROUND, str(directory)]
        host = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=ROOT)
        hosts.append(host)
        assert host.stdout is not None
        return host, host.stdout.readline().strip()

    yield start
    for host in hosts:
        host.kill()
        host.communicate()


def test_one_ctrl_c_ends_everything(
    foreground: Callable[[], tuple[subprocess.Popen[str], str]], directory: Path
) -> None:
    host, _ = foreground()
    family = psutil.Process(host.pid).children(recursive=True)
    assert len(family) >= 4, "Valkey, the worker and its two children"
    os.killpg(host.pid, signal.SIGINT)
    assert host.wait(timeout=20) == 0
    assert not any(runs(child.pid) for child in family)
    assert "is now ready to exit" in (directory / "logs" / "valkey.log").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process when its parent dies")
def test_a_killed_stack_leaves_nothing_behind_and_the_next_has_its_data(
    foreground: Callable[[], tuple[subprocess.Popen[str], str]], directory: Path
) -> None:
    host, url = foreground()
    family = psutil.Process(host.pid).children(recursive=True)
    with redis.Redis.from_url(url) as board:
        board.rpush("visits", 1)
    host.kill()
    host.wait()
    with Stack(plan(directory)) as stack:  # at once, while the old Valkey may still be dying
        assert stack.endpoints.redis_url == url
        assert visits(url) == [1]
        wait_until(lambda: not any(runs(child.pid) for child in family))
