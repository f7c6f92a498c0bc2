"""Sentinel: the board and the client follow it to another server, and every run goes on there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis

from convergio.graphflow.board import address
from convergio.graphflow.board.connection import Link
from convergio.graphflow.client.run import Wire
from convergio.graphflow.model import errors
from convergio.graphflow.model.states import RunState
from tests import servers
from tests.conftest import ValkeyFactory
from tests.integration.engine_rig import QUIET, chain, stage_on
from tests.waiting import wait_until

pytestmark = QUIET


# --- what a URL says --------------------------------------------------------------------------------------------------


def test_a_url_names_all_sentinels_the_server_and_how_to_log_in() -> None:
    made = address.sentinels_of("sentinel://a:1;sentinel://me:p%40ss@b:2/3?master_name=board")
    assert (made.hosts, made.master) == ((("a", 1), ("b", 2)), "board")
    assert made.options == {"db": 3, "username": "me", "password": "p@ss"}


def test_celery_gets_the_url_and_the_name_apart() -> None:
    assert address.without_master("sentinel://a:1/0?master_name=m") == ("sentinel://a:1/0", "m")
    assert address.without_master("redis://a:1/0?x=1") == ("redis://a:1/0?x=1", None)


def test_a_url_without_the_servers_name_says_how_to_add_it() -> None:
    with pytest.raises(errors.InvalidSetting, match="master_name"):
        Link("sentinel://a:1/0")


def test_a_client_finds_the_board_through_sentinel(valkey_server: ValkeyFactory, tmp_path: Path) -> None:
    primary, replica = valkey_server(aof=False), valkey_server(aof=False)
    with primary.client() as server, servers.sentinel(primary, replica, tmp_path) as port:
        server.set("here", "it is")
        url = f"sentinel://127.0.0.1:{port}/0?master_name=board"
        wire = Wire(url, prefix="convergio", patience=1, submitter="me")
        assert wire.board.get("here") == "it is"
        wire.board.close()
        app = wire.post.app
        assert app.conf.broker_transport_options["master_name"] == "board"
        with app.connection_for_write() as connection:
            channel: Any = connection.default_channel
            assert channel.client.ping()
        app.close()


# --- a failover -------------------------------------------------------------------------------------------------------


def is_primary(server: Any) -> bool:
    return bool(server.info("replication")["role"] == "master")


def test_a_run_goes_on_on_the_server_that_sentinel_names(
    valkey_server: ValkeyFactory, sqlite_url: str, tmp_path: Path
) -> None:
    old, new = valkey_server(aof=False), valkey_server(aof=False)
    with old.client() as first, new.client() as second, servers.sentinel(old, new, tmp_path) as port:
        url = f"sentinel://127.0.0.1:{port}/0?master_name=board"
        with stage_on(url, sqlite_url, tmp_path) as stage:
            ref = stage.submit(chain())
            before = stage.worker.process.core.link.server()
            stage.worker.steps.succeed(stage.claim(ref, "first"), {"n": 1})
            stage.journal()
            with redis.Redis(port=port) as sentinel:
                sentinel.execute_command("SENTINEL", "FAILOVER", "board")
            wait_until(lambda: is_primary(second) and not is_primary(first), timeout=40)
            wait_until(lambda: _made_anew(stage, before), timeout=20)
            stage.worker.meet_new_board()
            stage.pass_time(8)
            stage.answer_all()
            stage.journal()
            assert stage.row(ref).state is RunState.SUCCEEDED
            assert second.exists("convergio:epoch")


def _made_anew(stage: Any, before: str) -> bool:
    """A board on another server than before."""
    try:
        return bool(stage.service.rebuilder.ensure() and stage.service.link.server() != before)
    except (errors.BoardUnavailable, errors.BoardRebuilding):
        return False
