"""The liveness probe tells a worker that consumes from one that only runs."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from convergio.tasks.app import make_app
from convergio.workers import probe
from convergio.workers.probe import Doing, Seen, Sign
from tests.integration.engine_rig import QUIET
from tests.integration.worker_bodies import JAM
from tests.integration.worker_crew import Crew, crew_on
from tests.waiting import wait_until

pytestmark = [QUIET, pytest.mark.slow]

WITHIN = 4.0
"""Seconds; an idle worker's pop is answered every second."""


@pytest.fixture
def crew(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Crew]:
    with crew_on(valkey, sqlite_url, tmp_path) as made:
        yield made


def lives(crew: Crew) -> bool:
    return probe.report(crew.folder / probe.FOLDER, WITHIN) == 0


def doing(crew: Crew) -> list[Doing]:
    return [seen.doing for seen in probe.look(crew.folder / probe.FOLDER)]


def lives_on(crew: Crew) -> bool:
    """For twice as long as a sign may be old."""
    until = time.monotonic() + 2 * WITHIN
    while time.monotonic() < until:
        if not lives(crew):
            return False
        time.sleep(0.2)
    return True


@pytest.mark.parametrize("pool", ["threads", "prefork", "solo"])
def test_a_worker_that_waits_for_work_lives_and_one_that_was_killed_leaves_no_sign(pool: str, crew: Crew) -> None:
    worker = crew.started("w1", pool=pool, concurrency=2)
    wait_until(lambda: doing(crew) == [Doing.CONSUMES], timeout=10)
    assert lives_on(crew)
    worker.kill()
    worker.wait()
    wait_until(lambda: doing(crew) == [], timeout=5)
    assert not lives(crew)


@pytest.mark.parametrize("pool", ["threads", "prefork", "solo"])
def test_a_worker_whose_slots_are_all_taken_lives(pool: str, crew: Crew) -> None:
    crew.started("w1", pool=pool, concurrency=1)
    crew.named("probe.hold", "long")
    wait_until(lambda: crew.began("long"), timeout=20)
    wait_until(lambda: doing(crew) == [Doing.BUSY], timeout=10)
    assert lives_on(crew)


def test_a_worker_that_has_not_consumed_yet_does_not_live(crew: Crew) -> None:
    worker = crew.start("w1", redis_url="redis://127.0.0.1:1/0")
    wait_until(lambda: doing(crew) == [Doing.STARTS], timeout=20)
    assert not lives(crew)
    worker.kill()


def test_a_worker_whose_loop_is_stuck_is_dead_though_its_threads_run(crew: Crew) -> None:
    crew.started("w1")
    wait_until(lambda: lives(crew), timeout=10)
    (crew.folder / JAM).touch()
    wait_until(lambda: not lives(crew), timeout=2 * WITHIN)
    (crew.folder / JAM).unlink()
    wait_until(lambda: lives(crew), timeout=10)


def test_a_frozen_worker_is_dead(crew: Crew) -> None:
    worker = crew.started("w1")
    wait_until(lambda: lives(crew), timeout=10)
    worker.send_signal(signal.SIGSTOP)
    wait_until(lambda: not lives(crew), timeout=2 * WITHIN)
    worker.send_signal(signal.SIGCONT)
    wait_until(lambda: lives(crew), timeout=10)


def test_a_worker_that_was_told_to_serve_no_queue_is_dead_though_its_loop_turns(crew: Crew) -> None:
    """Like one that came back from a lost connection and forgot to consume."""
    crew.started("w1", queues="steps")
    wait_until(lambda: lives(crew), timeout=10)
    with make_app(crew.settings.redis_url) as app:
        app.control.cancel_consumer("steps")
        wait_until(lambda: not lives(crew), timeout=2 * WITHIN)
        app.control.add_consumer("steps")
        wait_until(lambda: lives(crew), timeout=10)


def test_a_worker_whose_connection_is_half_open_is_dead_though_its_server_lives(crew: Crew) -> None:
    with wire(crew.settings.redis_url) as made:
        crew.started("w1", redis_url=made.url)
        wait_until(lambda: lives(crew), timeout=10)
        made.cut.set()
        wait_until(lambda: not lives(crew), timeout=3 * WITHIN)
        assert crew.entrance.link.client.ping()
        made.cut.clear()
        wait_until(lambda: lives(crew), timeout=30)


def test_a_worker_that_stops_has_its_time(crew: Crew) -> None:
    worker = crew.started("w1", drain_seconds=2 * WITHIN)
    crew.named("probe.hold", "long")
    wait_until(lambda: crew.began("long"), timeout=20)
    worker.send_signal(signal.SIGTERM)
    wait_until(lambda: doing(crew) == [Doing.STOPS], timeout=5)
    assert lives(crew)
    assert worker.wait(timeout=3 * WITHIN) == 0
    assert doing(crew) == []


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_sign_is_made_again_if_a_probe_removed_what_an_earlier_process_left(tmp_path: Path) -> None:
    (tmp_path / "w1").write_text("of another life")
    assert probe.look(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    sign = Sign(tmp_path, "w1")
    sign.give(Doing.CONSUMES)
    (seen,) = probe.look(tmp_path)
    assert (seen.name, seen.doing, seen.lives(1)) == ("w1", Doing.CONSUMES, True)
    sign.close()
    assert probe.look(tmp_path) == []


def test_one_dead_worker_of_two_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signs = [Sign(tmp_path, name) for name in ("w1", "w2")]
    for sign in signs:
        sign.give(Doing.CONSUMES)
    assert probe.main([str(tmp_path), "5"]) == 0
    signs[1].give(Doing.CONSUMES, lasting=-9)
    assert probe.main([str(tmp_path), "5"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "w2: its pop was answered (9.0 s ago)"
    for sign in signs:
        sign.close()
    assert probe.main([str(tmp_path)]) == 1
    assert probe.main([]) == 2


def test_who_has_time_left_lives() -> None:
    assert Seen(name="w1", doing=Doing.STOPS, age=-20.0).lives(0)


# --- a wire that can be cut -------------------------------------------------------------------------------------------


class Wire:
    """Carries bytes to the server and back; when it is cut it accepts connections and carries nothing."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.cut = threading.Event()
        self.over = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.sockets: list[socket.socket] = [self.listener]
        self.url = ""

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.target)
                self.sockets += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                while self.cut.is_set() and not self.over.is_set():
                    time.sleep(0.02)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def wire(redis_url: str) -> Generator[Wire]:
    """A way to the server that can be cut without closing anything."""
    parts = urlsplit(redis_url)
    made = Wire((str(parts.hostname), int(parts.port or 6379)))
    user, at, _ = parts.netloc.rpartition("@")
    made.url = urlunsplit(parts._replace(netloc=f"{user}{at}127.0.0.1:{made.listener.getsockname()[1]}"))
    thread = threading.Thread(target=made.serve, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.over.set()
        for one in made.sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        thread.join(timeout=5)
