"""What every script of the board promises: under the wrong epoch it creates nothing, asked twice it does its work once,
it touches only the keys it was given, and nothing it writes ever expires."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import pytest
import redis

from convergio.graphflow.board import connection, scripts
from convergio.graphflow.board.connection import NEW_WORK, Link
from convergio.graphflow.board.keys import SCHEMA, Epoch
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import Nonces
from tests.integration.board_calls import CALLS
from tests.integration.board_stage import Stage, stage_on, timeless
from tests.integration.lost_answers import lose_next_answer
from tests.waiting import wait_until

SCRIPTS = sorted(path.name[:-4] for path in (resources.files("convergio.graphflow.board") / "lua").iterdir())
every_call = pytest.mark.parametrize("name", CALLS)


@pytest.fixture
def stage(board_url: str) -> Iterator[Stage]:
    with stage_on(board_url) as made:
        yield made


def test_every_script_is_called_by_these_tests() -> None:
    called = {name.split(" ", 1)[0] for name in CALLS}
    assert called | {"begin", "prelude", "publish"} == set(SCRIPTS)


def test_nothing_that_any_script_writes_has_a_ttl(stage: Stage) -> None:
    epoch = stage.epoch
    for prepare in CALLS.values():
        stage.client.flushall()
        stage.client.set(f"{stage.link.prefix}:epoch", epoch.text)
        prepare(stage)()
        assert sorted(stage.lasting()) == sorted(stage.dump())


# --- the epoch --------------------------------------------------------------------------------------------------------


@every_call
def test_without_an_epoch_key_a_script_answers_rebuild_and_creates_nothing(stage: Stage, name: str) -> None:
    call = CALLS[name](stage)
    stage.client.delete(f"{stage.link.prefix}:epoch")
    before = stage.dump()
    with pytest.raises(errors.BoardRebuilding):
        call()
    assert stage.dump() == before


@every_call
def test_on_a_flushed_server_a_script_answers_rebuild_and_creates_nothing(stage: Stage, name: str) -> None:
    call = CALLS[name](stage)
    stage.client.flushall()
    with pytest.raises(errors.BoardRebuilding):
        call()
    assert stage.dump() == {}


@every_call
def test_under_another_epoch_schema_or_server_a_script_answers_rebuild_and_creates_nothing(
    stage: Stage, name: str
) -> None:
    call, epoch = CALLS[name](stage), stage.epoch
    before = stage.dump()
    for other in (
        Epoch(number=epoch.number + 1, server=epoch.server),
        Epoch(number=epoch.number, server=epoch.server, schema=SCHEMA + 1),
        Epoch(number=epoch.number, server="0" * 40),
    ):
        stage.client.set(key := f"{stage.link.prefix}:epoch", other.text)
        with pytest.raises(errors.BoardRebuilding):
            call()
        assert stage.dump() == {**before, key: other.text}
        stage.client.set(key, epoch.text)
        assert stage.link.refresh() == epoch


# --- asked twice ------------------------------------------------------------------------------------------------------


TOLD_AGAIN = {"post": "entries are idempotent by what they say", "record": "the first of a key counts"}
"""What these write a second time changes nothing for who reads it: tests of `decide` and of records hold that."""


@pytest.mark.parametrize("name", [name for name in CALLS if name not in TOLD_AGAIN])
def test_a_script_whose_answer_got_lost_does_its_work_once(
    stage: Stage, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, before = CALLS[name](stage), stage.dump()
    once()
    assert stage.dump() != before or name == "post (look)", "the call had nothing to do"
    expected = nameless(stage)

    stage.client.flushall()
    stage.client.set(f"{stage.link.prefix}:epoch", stage.epoch.text)
    stage.nonces = Nonces()
    twice = CALLS[name](stage)
    with monkeypatch.context() as patch:
        lost = lose_next_answer(patch)
        twice()
    assert lost == ["lost"]
    assert nameless(stage) == expected


def test_a_fact_whose_answer_got_lost_counts_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    held = stage.running(stage.begun())
    with monkeypatch.context() as patch:
        lost = lose_next_answer(patch)
        scripts.record(stage.link, held, key="answer", value="1")
    assert lost == ["lost"]
    scripts.record(stage.link, held, key="answer", value="2")
    again = stage.claim(held.ref, "a", stage.rung_again(held))
    assert again.records == {"answer": 1}


def nameless(stage: Stage) -> Any:
    """The whole board without times, and without the names that a process gives its claims, locks and commits."""
    text = json.dumps(timeless(stage.dump()), sort_keys=True)
    return json.loads(re.sub(r'"@commit": "[0-9a-f]+"', '"@commit": "NAME"', text.replace(stage.nonces.boot, "BOOT")))


# --- keys -------------------------------------------------------------------------------------------------------------


@every_call
def test_every_key_that_a_script_touches_is_one_of_its_keys(stage: Stage, name: str) -> None:
    call = CALLS[name](stage)
    text, sha = connection.script(name.split(" ", 1)[0])
    assert stage.client.script_load(text) == sha
    commands = overheard(stage, call)

    declared = {key for command in commands for key in keys_of(command, sha)}
    touched = {command.split(" ")[1] for kind, command in commands if kind == "lua" and command != "TIME"}
    assert declared
    assert touched
    assert touched <= declared


def overheard(stage: Stage, call: Any) -> list[tuple[str, str]]:
    """(client type, command) of everything the server does during `call`, as MONITOR tells it."""
    heard: list[tuple[str, str]] = []
    with stage.client.monitor() as monitor, redis.Redis(connection_pool=stage.link.pool) as other:

        def listen() -> None:
            for told in iter(monitor.next_command, None):
                heard.append((str(told["client_type"]), str(told["command"])))
                if told["command"] == "ECHO over":
                    return

        listener = threading.Thread(target=listen)
        listener.start()
        call()
        other.echo("over")
        listener.join(timeout=10)
        assert not listener.is_alive()
    return heard


def keys_of(command: tuple[str, str], sha: str) -> list[str]:
    """KEYS of the script call, if it is one."""
    words = command[1].split(" ")
    if command[0] == "lua" or words[:2] != ["EVALSHA", sha]:
        return []
    return words[3 : 3 + int(words[2])]


# --- a full server ----------------------------------------------------------------------------------------------------


@pytest.fixture
def full(stage: Stage) -> Iterator[Callable[[], None]]:
    """Fills the server: it has less memory than it uses from now on."""

    def fill() -> None:
        stage.client.set("ballast", "x" * 1_000_000)
        stage.client.config_set("maxmemory", 1_000_000)
        with pytest.raises(redis.OutOfMemoryError):
            stage.client.set("more", "x")

    yield fill
    stage.client.config_set("maxmemory", 0)


@pytest.mark.parametrize("name", [name for name in CALLS if name not in NEW_WORK])
def test_what_runs_goes_on_when_the_server_is_full(stage: Stage, name: str, full: Callable[[], None]) -> None:
    """It is what makes room again."""
    call = CALLS[name](stage)
    full()
    before = stage.dump()
    call()
    assert stage.dump() != before or name == "post (look)"


@pytest.mark.parametrize("name", sorted(NEW_WORK))
def test_a_full_server_takes_no_new_run_and_says_why(stage: Stage, name: str, full: Callable[[], None]) -> None:
    call = CALLS[name](stage)
    full()
    before = stage.dump()
    with pytest.raises(errors.BoardUnavailable, match="memory") as caught:
        call()
    assert caught.value.retryable
    assert stage.dump() == before


# --- the texts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_at_most_forty_lines_of_code(name: str) -> None:
    text = source(name)
    code = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("--")]
    assert 0 < len(code) <= 40


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "prelude"])
def test_a_header_says_purpose_keys_arguments_and_answers(name: str) -> None:
    text = source(name)
    header = header_of(text)
    assert header.startswith(f"-- {name}: ")
    for word in ("-- KEYS: 1 epoch", "-- ARGV: 1 token", "-- Returns: "):
        assert word in header

    documented = {int(number) for number in re.findall(r"(?:KEYS:|,) (\d+)", keys_line(header))}
    used = {int(number) for number in re.findall(r"KEYS\[(\d+)\]", text[len(header) :])}
    assert used <= documented
    assert documented - used <= {8, 10}, "keys that no line uses"  # complete and commit count their lists


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in ("begin", "prelude", "publish")])
def test_a_script_compares_the_epoch_before_it_does_anything(name: str) -> None:
    text = source(name)
    first = text[len(header_of(text)) :].strip().splitlines()[0]
    assert first == "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end"


def source(name: str) -> str:
    return (resources.files("convergio.graphflow.board") / "lua" / f"{name}.lua").read_text()


def header_of(text: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if line.startswith("--"))


def keys_line(header: str) -> str:
    return header[header.index("-- KEYS:") : header.index("-- ARGV:")]


# --- the server itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["redis+cluster", "rediscluster"])
def test_a_cluster_url_is_refused_in_words(scheme: str) -> None:
    with pytest.raises(errors.UnsupportedServer, match="Cluster"):
        Link(f"{scheme}://127.0.0.1:1/0")


def test_a_script_flushed_from_the_server_is_sent_again(stage: Stage) -> None:
    stage.begun()
    stage.client.script_flush()
    assert isinstance(stage.start("r2"), scripts.Locked)


def test_a_broken_connection_does_not_fail_a_call(stage: Stage) -> None:
    ref = stage.begun()
    stage.client.client_kill_filter(skipme=True)
    wait_until(lambda: len(stage.client.client_list()) == 1)
    assert stage.running(ref).fence
