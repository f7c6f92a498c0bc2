"""The test servers do what the tests that use them rely on."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import redis
import sqlalchemy
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests import leaks
from tests.conftest import ValkeyFactory


@pytest.mark.parametrize("round_", [1, 2])
def test_every_test_starts_with_an_empty_server(valkey: str, round_: int) -> None:
    with redis.Redis.from_url(valkey) as client:
        assert client.dbsize() == 0
        client.set("left", round_)


def test_both_implementations_answer(board_url: str) -> None:
    with redis.Redis.from_url(board_url) as client:
        assert client.eval("return redis.call('TIME')[1]", 0)


def test_a_killed_server_comes_back_with_what_it_had_acknowledged(valkey_server: ValkeyFactory) -> None:
    server = valkey_server()
    with server.client() as client:
        client.set("fact", "kept")
        first_run = client.info("server")["run_id"]
        server.kill()
        assert not server.alive
        server.restart()
        assert client.get("fact") == b"kept"
        assert client.info("server")["run_id"] != first_run


def test_a_cut_tail_loses_the_newest_writes_only(valkey_server: ValkeyFactory) -> None:
    server = valkey_server()
    with server.client() as client:
        client.set("old", "kept")
        client.set("new", "x" * 100)
        server.kill()
        assert server.cut_aof_tail(50) == 50
        server.start()
        assert client.get("old") == b"kept"
        assert client.get("new") is None


def test_a_server_without_aof_comes_back_empty(valkey_server: ValkeyFactory) -> None:
    server = valkey_server(aof=False)
    with server.client() as client:
        client.set("fact", "lost")
        server.stop()
        server.start()
        assert client.get("fact") is None


def test_the_unix_socket_reaches_the_same_server(valkey_server: ValkeyFactory) -> None:
    server = valkey_server()
    with redis.Redis.from_url(server.unix_url) as over_socket, server.client() as over_tcp:
        over_socket.set("fact", "one")
        assert over_tcp.get("fact") == b"one"


def test_a_paused_server_keeps_connections_and_answers_later(valkey_server: ValkeyFactory) -> None:
    server = valkey_server()
    with redis.Redis(port=server.port, socket_timeout=0.2, retry=Retry(NoBackoff(), 0)) as client:
        client.ping()
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()
        assert client.ping()


def test_journal_databases_are_empty_and_of_both_kinds(journal_url: str) -> None:
    engine = sqlalchemy.create_engine(journal_url)
    try:
        assert sqlalchemy.inspect(engine).get_table_names() == []
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE mine (id integer primary key)"))
    finally:
        engine.dispose()


def test_the_leak_checker_sees_an_orphan() -> None:
    before = leaks.census()
    script = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid)"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as parent:
        assert parent.stdout is not None
        orphan = int(parent.stdout.readline())
    seen = leaks.census() - before
    leaks.end(seen)
    assert [leak.number for leak in seen] == [orphan]
    assert leaks.census_since(before) == frozenset()


def test_the_leak_checker_sees_a_process_and_a_port() -> None:
    before = leaks.census()
    child = subprocess.Popen(["sleep", "60"])
    bare = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={})
    try:
        assert {child.pid, bare.pid} == {leak.number for leak in leaks.census() - before}
    finally:
        leaks.end(leaks.census() - before)
        child.wait()
        bare.communicate()
    assert leaks.census_since(before) == frozenset()
    assert os.getpid() not in {leak.number for leak in before}
