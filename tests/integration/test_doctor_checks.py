"""Each check of `convergio doctor` on real servers, made to fail: what is wrong is seen, the hint says what to do."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from convergio.config import settings
from convergio.graphflow.journal import database
from convergio.workers import boot
from convergio.workers.cli import checks, redis_checks
from convergio.workers.cli.check import Check, Level
from convergio.workers.cli.session import Session
from convergio.workers.probe import FOLDER, Doing, Sign
from tests import servers
from tests.conftest import ValkeyFactory
from tests.integration.engine_rig import QUIET
from tests.integration.engine_stage import engine_on
from tests.integration.worker_crew import Crew, crew_on
from tests.waiting import wait_until

pytestmark = QUIET


@contextmanager
def opened(redis_url: str, journal_url: str, home: Path, **more: Any) -> Generator[Session]:
    session = Session(settings.load(redis_url=redis_url, journal_url=journal_url, home=home, **more))
    try:
        yield session
    finally:
        session.close()


@pytest.fixture
def session(board_url: str, sqlite_url: str, tmp_path: Path) -> Iterator[Session]:
    """On an empty server: no board, no journal."""
    with opened(board_url, sqlite_url, tmp_path) as made:
        yield made


@pytest.fixture
def changed(board_url: str) -> Iterator[redis.Redis]:
    """The server, whose settings a test changes; they are put back."""
    names = ("maxmemory-policy", "maxmemory", "tcp-keepalive")
    with redis.Redis.from_url(board_url, decode_responses=True) as client:
        before = {name: str(dict(client.config_get(name))[name]) for name in names}
        yield client
        for name, value in before.items():
            client.config_set(name, value)


def server(session: Session) -> dict[str, Check]:
    return {check.name: check for check in redis_checks.redis_server(session)}


def journal(session: Session) -> Check:
    """The finding about the journal, as the whole doctor has it."""
    return next(check for check in checks.every(session) if check.name == "journal")


# --- the server -------------------------------------------------------------------------------------------------------


def test_a_server_that_is_as_it_should_be_passes(valkey_server: ValkeyFactory, sqlite_url: str, tmp_path: Path) -> None:
    with opened(valkey_server(aof=True).url, sqlite_url, tmp_path) as session:
        assert {check.level for check in server(session).values()} == {Level.OK}


def test_a_policy_that_evicts_fails(session: Session, changed: redis.Redis) -> None:
    assert server(session)["eviction"].level is Level.OK
    changed.config_set("maxmemory-policy", "allkeys-lru")
    assert server(session)["eviction"].level is Level.FAIL


def test_a_server_that_is_nearly_full_is_a_warning(session: Session, changed: redis.Redis) -> None:
    assert server(session)["memory"].level is Level.OK
    information: Any = changed.info("memory")
    changed.config_set("maxmemory", int(information["used_memory"] * 1.1))
    check = server(session)["memory"]
    assert (check.level, "CONFIG SET maxmemory" in check.hint) == (Level.WARN, True)


def test_a_server_without_an_append_only_file_is_a_warning(session: Session) -> None:
    assert server(session)["persistence"].level is Level.WARN


def test_an_append_only_file_that_cannot_be_written_fails() -> None:
    check = redis_checks._persistence({"aof_enabled": 1, "aof_last_write_status": "err"})
    assert (check.level, "disk" in check.hint) == (Level.FAIL, True)


def test_a_server_that_does_not_ask_for_its_clients_is_a_warning(session: Session, changed: redis.Redis) -> None:
    changed.config_set("tcp-keepalive", 60)
    assert server(session)["keepalive"].level is Level.OK
    changed.config_set("tcp-keepalive", 0)
    assert server(session)["keepalive"].level is Level.WARN


def test_a_connection_that_is_not_kept_alive_is_a_warning(session: Session, changed: redis.Redis) -> None:
    changed.config_set("tcp-keepalive", 60)
    session.core.app.conf.broker_transport_options.pop("socket_keepalive")
    assert server(session)["keepalive"].level is Level.WARN


def test_a_unix_socket_that_is_told_to_stay_alive_fails(
    valkey_server: ValkeyFactory, sqlite_url: str, tmp_path: Path
) -> None:
    made = valkey_server()
    with opened(f"redis+socket://{made.socket_path}", sqlite_url, tmp_path) as session:
        assert server(session)["keepalive"].level is Level.OK
        session.core.app.conf.redis_socket_keepalive = True
        assert server(session)["keepalive"].level is Level.FAIL


@pytest.mark.parametrize("seconds", [-9.0, 9.0])
def test_a_clock_of_another_time_is_a_warning(
    seconds: float, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server(session)["clock"].level is Level.OK
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + seconds)
    check = server(session)["clock"]
    assert check.level is Level.WARN
    said = re.search(r"([0-9.]+) s (ahead|behind)", check.saw)
    assert said is not None
    assert said[2] == ("behind" if seconds > 0 else "ahead")
    assert float(said[1]) == pytest.approx(9, abs=2)


def test_a_replica_fails(valkey_server: ValkeyFactory, sqlite_url: str, tmp_path: Path) -> None:
    made = valkey_server()
    with made.client() as client, opened(made.url, sqlite_url, tmp_path) as session:
        assert server(session)["redis"].level is Level.OK
        client.replicaof("127.0.0.1", "1")
        check = server(session)["redis"]
        assert (check.level, "primary" in check.hint) == (Level.FAIL, True)


def test_a_node_of_a_cluster_fails(valkey_server: ValkeyFactory, sqlite_url: str, tmp_path: Path) -> None:
    node = valkey_server(aof=False)
    node.stop()
    node.options = ("--cluster-enabled", "yes", "--cluster-port", str(servers.free_port()))
    node.start()
    with opened(node.url, sqlite_url, tmp_path) as session:
        check = server(session)["redis"]
        assert (check.level, "Sentinel" in check.hint) == (Level.FAIL, True)


def test_a_cluster_url_is_refused_in_words() -> None:
    with pytest.raises(settings.SettingError, match=r"CONVERGIO_REDIS_URL.*Redis Cluster cannot carry the board"):
        settings.load(redis_url="redis+cluster://127.0.0.1:7000")


def test_a_server_that_is_too_old_fails() -> None:
    check = redis_checks._server("redis://there", {"redis_version": "6.2.14"})
    assert (check.level, "7.0" in check.hint) == (Level.FAIL, True)


def test_a_server_that_is_not_there_fails(sqlite_url: str, tmp_path: Path) -> None:
    with opened(f"redis://127.0.0.1:{servers.free_port()}/0", sqlite_url, tmp_path) as session:
        check = next(check for check in checks.every(session) if check.name == "redis")
        assert (check.level, "convergio up" in check.hint) == (Level.FAIL, True)


# --- the journal and the board ----------------------------------------------------------------------------------------


def test_a_journal_that_is_not_migrated_fails_and_so_does_one_of_a_newer_version(session: Session) -> None:
    url = session.settings.journal_url
    store = database.connect(url)
    with store.write() as connection:
        connection.execute(sa.text("CREATE TABLE something (id INTEGER)"))
    assert "convergio migrate" in journal(session).hint
    boot.migrate(url)
    assert journal(session).level is Level.OK
    with store.write() as connection:
        connection.execute(sa.text("INSERT INTO alembic_version VALUES ('later')"))
    store.close()
    newer = journal(session)
    assert (newer.level, "SCHEMA_MISMATCH" in newer.saw) == (Level.FAIL, True)


def test_live_runs_that_are_not_on_the_board_are_a_warning(valkey: str, sqlite_url: str, tmp_path: Path) -> None:
    with engine_on(valkey, sqlite_url, tmp_path) as stage, opened(valkey, sqlite_url, tmp_path) as session:
        ref = stage.submit({"first": {"task": "probe.echo"}})
        stage.journal()
        found = {check.name: check.level for check in checks.board(session, with_journal=True)}
        assert found == {"board": Level.OK}
        link = stage.core.link
        link.client.zrem(link.keys(link.epoch()).runs, str(ref))
        found = {check.name: check.level for check in checks.board(session, with_journal=True)}
        assert found == {"board": Level.OK, "runs": Level.WARN}


def test_a_board_of_another_schema_fails(session: Session) -> None:
    link = session.core.link
    link.client.set("convergio:epoch", f"1|999|{link.server()}")
    boot.migrate(session.settings.journal_url)
    check = next(check for check in checks.every(session) if check.name == "board")
    assert (check.level, "schema 999" in check.saw) == (Level.FAIL, True)
    assert "same version" in check.hint


# --- workers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def crew(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Crew]:
    with crew_on(valkey, sqlite_url, tmp_path) as made:
        yield made


@pytest.mark.slow
def test_queues_without_a_worker_and_another_visibility_timeout_are_found(crew: Crew) -> None:
    given = crew.settings
    with opened(given.redis_url, given.journal_url, crew.folder, visibility_timeout=15) as session:
        assert {check.level for check in checks.workers(session)} == {Level.FAIL}
        crew.started("w1", queues="steps,convergio", visibility_timeout=60)
        wait_until(lambda: len(queues(session, Level.OK)) == 2, timeout=20)
        assert queues(session, Level.OK) == {"queue steps", "queue convergio"}
        assert queues(session, Level.FAIL) == {"queue turns", "queue tools", "queue control"}
        (found,) = checks.visibility(session)
        assert (found.level, "60 s at w1" in found.saw) == (Level.WARN, True)
    with opened(given.redis_url, given.journal_url, crew.folder, visibility_timeout=60) as session:
        (found,) = checks.visibility(session)
        assert found.level is Level.OK


def queues(session: Session, level: Level) -> set[str]:
    return {check.name for check in checks.workers(session) if check.level is level}


def test_a_worker_that_runs_and_does_not_consume_fails(session: Session) -> None:
    assert list(checks.signs(session)) == []
    sign = Sign(session.settings.home / FOLDER, "w1")
    sign.give(Doing.CONSUMES)
    assert [check.level for check in checks.signs(session)] == [Level.OK]
    sign.give(Doing.CONSUMES, lasting=-60)
    (check,) = checks.signs(session)
    assert (check.level, "w1: its pop was answered (60" in check.saw) == (Level.FAIL, True)
    sign.close()
