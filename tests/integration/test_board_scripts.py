"""What every script of the board promises: under the wrong epoch it creates nothing, asked twice it does its work once,
it touches only the keys it was given, and nothing it writes ever expires."""

from __future__ import annotations

import dataclasses
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
from tests.integration.board_calls import CALLS, FOLLOWING, scripts_of
from tests.integration.board_stage import NEXT, Stage, message, run_ref, stage_on, timeless
from tests.integration.lost_answers import lose_next_answer
from tests.waiting import wait_until

FOLDER = resources.files("convergio.graphflow.board") / "lua"
SCRIPTS = sorted(path.name[:-4] for path in FOLDER.iterdir() if path.name.endswith(".lua"))
PIECES = sorted(path.name[:-4] for path in (FOLDER / "shared").iterdir())
"""What scripts are made with; none of them is a script of its own."""
every_call = pytest.mark.parametrize("name", CALLS)


@pytest.fixture
def stage(board_url: str) -> Iterator[Stage]:
    with stage_on(board_url) as made:
        yield made


def test_every_script_is_called_by_these_tests() -> None:
    called = {script for name in CALLS for script in scripts_of(name)} - {""}
    assert called | {"begin", "publish", "speak"} == set(SCRIPTS)  # `speak` tells readers, and is test_turns' matter
    assert PIECES == ["both", "events", "grant", "limits", "prelude"]


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


# --- the next doorbell, with the answer to how a step ended -----------------------------------------------------------


@pytest.fixture(params=["arrive", "arrive (step)", "complete"])
def ends(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """The ways to tell how a step ended: called with the stage, the claim, and what is wanted besides."""

    def tell(stage: Stage, held: scripts.Claimed, then: scripts.Next) -> Any:
        if request.param == "complete":
            return stage.complete(held, FOLLOWING, then=then)
        return stage.arrive(held, durable=request.param == "arrive (step)", then=then)

    return tell


def test_the_next_doorbell_is_popped_and_its_step_claimed_as_claim_would(
    stage: Stage, ends: Callable[..., Any]
) -> None:
    held, ref = stage.running(stage.begun()), stage.rung()
    assert stage.client.lrange(NEXT, 0, -1) == [text := message("r2.a.1.1", tenant="default")]
    then, taken = stage.next(nonce="n-1")
    ends(stage, held, then)
    (one,) = taken
    assert (one.queue_list, one.message, one.ref, one.step, one.ring) == (NEXT, text, ref, "a", "1.1")
    assert isinstance(one.claim, scripts.Claimed)
    by_claim = stage.claim(ref, "a", "1.1", nonce="n-1")
    assert dataclasses.replace(one.claim, at_ms=0) == dataclasses.replace(by_claim, at_ms=0)
    assert one.claim.fence == "1.1.n-1"
    assert stage.word(ref, "a") == "RUNNING|1.1.n-1"
    assert set(stage.leases()) == {f"{ref}/a/1.1.n-1"}
    keys = stage.link.keys(stage.epoch)
    assert not stage.client.exists(NEXT, keys.rung(NEXT))
    assert [entry["type"] for _, entry in stage.feed(ref)].count("step.running") == 1


def test_a_doorbell_of_an_instance_is_claimed_under_its_own_name(stage: Stage) -> None:
    """Ids write `a~1000` for `a#1000`: a page that shows them must find its path whole."""
    held = stage.running(stage.begun())
    ref = stage.begun("r2")
    stage.decided(ref, writes=[("s:a#1000", "", "READY|1.1")])
    stage.client.lpush(NEXT, message("r2.a~1000.1.1", tenant="default"))
    then, taken = stage.next(nonce="n-1")
    stage.complete(held, then=then)
    (one,) = taken
    assert (one.ref, one.step, one.ring) == (ref, "a#1000", "1.1")
    assert isinstance(one.claim, scripts.Claimed)
    assert (one.claim.step, stage.word(ref, "a#1000")) == ("a#1000", "RUNNING|1.1.n-1")


def test_who_may_not_tell_how_a_step_ended_takes_nothing(stage: Stage, ends: Callable[..., Any]) -> None:
    ref = stage.begun()
    fenced = stage.running(ref)
    stage.rung_again(fenced)
    stage.rung()
    then, taken = stage.next()
    before = stage.dump()
    gone = dataclasses.replace(fenced, ref=run_ref("gone"))
    for held in (fenced, gone):
        with pytest.raises(errors.StaleFence):
            ends(stage, held, then)
    assert stage.dump() == before
    assert not taken


def test_where_no_doorbell_waits_nothing_is_taken(stage: Stage, ends: Callable[..., Any]) -> None:
    held = stage.running(stage.begun())
    stage.rung(queue_list="elsewhere")
    then, taken = stage.next(NEXT, "other")
    ends(stage, held, then)
    assert not taken
    assert stage.client.llen("elsewhere") == 1
    assert stage.word(held.ref, "a") not in ("", f"RUNNING|{held.fence}"), "how the step ended is told all the same"


def test_while_a_message_waits_that_has_to_be_popped_nothing_is_taken(stage: Stage, ends: Callable[..., Any]) -> None:
    held = stage.running(stage.begun())
    stage.rung()
    then, taken = stage.next()
    stage.client.lpush("entries", "submit")
    ends(stage, held, dataclasses.replace(then, rivals=["others", "entries"]))
    assert not taken
    then, taken = stage.next()
    stage.client.delete("entries")
    stage.complete(stage.running(stage.begun("r9")), then=dataclasses.replace(then, rivals=["others", "entries"]))
    assert len(taken) == 1


def test_the_first_list_comes_first_and_its_oldest_doorbell(stage: Stage) -> None:
    """LPUSH and the right end, as kombu does it; one doorbell each time."""
    for name, queue_list in [("r2", "low"), ("r3", "high"), ("r4", "high"), ("r5", "low")]:
        stage.rung(name, queue_list=queue_list)
    order: list[str] = []
    held = stage.running(stage.begun())
    for lists in (["low", "high"], ["high", "low"], ["high", "low"], ["high", "low"]):
        then, taken = stage.next("absent", *lists)
        stage.complete(held, then=then)
        (one,) = taken
        assert one.ref is not None
        order.append(one.ref.run)
    assert order == ["r2", "r3", "r4", "r5"]


PLAIN = {
    "no JSON": "cheep",
    "empty": "",
    "a task of somebody else": message("4f9e7f6c-3f1d-4c58-9e3d-0c4f3c9b7a10", compact=False),
    "the same, written as the bell does": message("4f9e7f6c-3f1d-4c58-9e3d-0c4f3c9b7a10", tenant="default"),
    "a canary": message("canary.steps.1f-00ff-3", tenant="default"),
    "a canary of a list with a priority": message("canary.steps\x06\x163.1f-00ff-3", tenant="default"),
    "an escaped id": message('r2.a"b.1.1', tenant="default"),
    "an id that is not ASCII": message("r2.\u00e4.1.1", tenant="default"),
    "an id of too many parts": message("r2.x.a.1.1", tenant="default"),
    "an id without a ring": message("r2.a", tenant="default"),
    "a ring of letters": message("r2.a.one.two", tenant="default"),
    "no tenant": message("r2.a.1.1"),
    "an escaped tenant": message("r2.a.1.1", tenant='de"fault'),
    "a name that quotes a doorbell": message("x", tenant="default", shadow='"id":"r2.a.1.1"'),
    "a doorbell that was put back": message("r2.a.1.1", compact=False, tenant="default"),
}
"""Messages in a list of doorbells that are none, or do not look like one: their task claims for itself, if it does."""


@pytest.mark.parametrize("kind", PLAIN)
def test_a_message_that_is_no_doorbell_is_handed_over_as_it_is_and_nothing_is_claimed(stage: Stage, kind: str) -> None:
    held, ref = stage.running(stage.begun()), stage.rung(queue_list="elsewhere")
    stage.client.lpush(NEXT, PLAIN[kind])
    before, leases = stage.values(ref), stage.leases()
    then, taken = stage.next()
    stage.arrive(held, then=then)
    assert taken == [scripts.Taken(queue_list=NEXT, message=PLAIN[kind])]
    assert stage.values(ref) == before
    assert stage.leases().keys() == leases.keys() - {f"{held.ref}/a/{held.fence}"}


FORGED = {"reserved words": ("rung", "elsewhere"), "a run's feed": ("default", "r2:feed")}
"""Tenant and run of messages that nobody of ours sends; where they lead, there is something else than a run."""


@pytest.mark.parametrize("kind", FORGED)
def test_no_message_harms_the_step_that_ended(stage: Stage, kind: str) -> None:
    """Whoever may push may push anything; the step that has ended just then has nothing to do with it."""
    held = stage.running(stage.begun())
    stage.rung(queue_list="elsewhere")
    tenant, run = FORGED[kind]
    stage.client.lpush(NEXT, text := message(f"{run}.a.1.1", tenant=tenant))
    then, taken = stage.next()
    assert isinstance(stage.arrive(held, then=then), scripts.Locked)
    assert [one.message for one in taken] == [text]
    assert all(not isinstance(one.claim, scripts.Claimed) for one in taken)


def test_a_doorbell_that_rings_for_nothing_is_taken_off_and_says_why(stage: Stage) -> None:
    ref, held = stage.rung(), stage.running(stage.begun())
    claimed = stage.claim(ref, "a", "1.1", nonce="n-1")
    stage.rung("r3")
    stage.decided(run_ref("r3"), writes=[("@stop", "", "FAILED")])
    stage.client.lpush(NEXT, message("r4.a.1.1", tenant="default"))
    leases = stage.leases()
    answers: list[Any] = []
    for _ in range(3):
        then, taken = stage.next()
        stage.complete(held, then=then)
        answers.append(taken[0].claim)
    duplicate = scripts.Refused(why="DUPLICATE", state=f"RUNNING|{claimed.fence}")
    assert answers == [duplicate, scripts.Refused(why="STOPPED"), scripts.Refused(why="GONE")]
    assert stage.client.llen(NEXT) == 0
    assert stage.leases().keys() == leases.keys() - {f"{held.ref}/a/{held.fence}"}


def test_after_a_lost_answer_every_doorbell_is_in_its_list_or_has_a_lease(
    stage: Stage, ends: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ask's doorbell is nobody's: it costs one lease, which nobody prolongs, and not more."""
    held, refs = stage.running(stage.begun()), [stage.rung("r2"), stage.rung("r3"), stage.rung("r4")]
    then, taken = stage.next()
    with monkeypatch.context() as patch:
        lost = lose_next_answer(patch)
        ends(stage, held, then)
    assert lost == ["lost"]
    assert [one.ref for one in taken] == [refs[1]]
    assert [stage.word(ref, "a").split("|")[0] for ref in refs] == ["RUNNING", "RUNNING", "READY"]
    assert stage.client.llen(NEXT) == 1
    ends_at = stage.leases()[f"{refs[0]}/a/1.1.{then.nonce}"]
    assert ends_at <= stage.now_ms() + scripts.LEASE_MS
    assert [stage.client.xlen(stage.link.keys(stage.epoch).feed(ref)) for ref in refs[:2]] == [3, 3]


# --- keys -------------------------------------------------------------------------------------------------------------


@every_call
def test_every_key_that_a_script_touches_is_one_of_its_keys(stage: Stage, name: str) -> None:
    call = CALLS[name](stage)
    text, sha = connection.script(*scripts_of(name))
    assert stage.client.script_load(text) == sha
    commands = overheard(stage, call)

    declared = {key for command in commands for key in keys_of(command, sha)}
    touched = {key for kind, command in commands if kind == "lua" for key in touched_by(command.split(" "))}
    assert declared
    assert touched
    if scripts_of(name)[1] == "take":
        keys, ref = stage.link.keys(stage.epoch), run_ref("r2")
        assert touched - declared == {keys.run(ref), keys.feed(ref), keys.rung(NEXT)}, "which run, the message says"
    else:
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


def touched_by(words: list[str]) -> list[str]:
    """The keys of a command."""
    if words[0] == "LMPOP":
        return words[2 : 2 + int(words[1])]
    return words[1:2]


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


@pytest.mark.parametrize("name", [name for name in CALLS if scripts_of(name)[0] not in NEW_WORK])
def test_what_runs_goes_on_when_the_server_is_full(stage: Stage, name: str, full: Callable[[], None]) -> None:
    """It is what makes room again."""
    call = CALLS[name](stage)
    full()
    before = stage.dump()
    call()
    assert stage.dump() != before or name == "post (look)"


@pytest.mark.parametrize("name", [name for name in CALLS if scripts_of(name)[0] in NEW_WORK])
def test_a_full_server_takes_no_new_run_and_says_why(stage: Stage, name: str, full: Callable[[], None]) -> None:
    call = CALLS[name](stage)
    full()
    before = stage.dump()
    with pytest.raises(errors.BoardUnavailable, match="memory") as caught:
        call()
    assert caught.value.retryable
    assert stage.dump() == before


# --- the texts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SCRIPTS, *(f"shared/{piece}" for piece in PIECES)])
def test_a_script_and_a_piece_is_at_most_forty_lines_of_code(name: str) -> None:
    text = source(name)
    code = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("--")]
    assert 0 < len(code) <= 40


@pytest.mark.parametrize("name", PIECES)
def test_a_piece_says_where_it_is_put(name: str) -> None:
    assert header_of(source(f"shared/{name}")).startswith(("-- Put before ", "-- Put behind "))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_header_says_purpose_keys_arguments_and_answers(name: str) -> None:
    text = source(name)
    header = header_of(text)
    assert header.startswith(f"-- {name}: ")
    for word in ("-- KEYS: 1 epoch", "-- ARGV: 1 token", "-- Returns: "):
        assert word in header

    documented = {int(number) for number in re.findall(r"(?:KEYS:|,) (\d+)", keys_line(header))}
    used = {int(number) for number in re.findall(r"KEYS\[(\d+)\]", text[len(header) :])}
    assert used <= documented
    listed = {3} if name == "take" else {8, 10}  # complete, commit and take count their lists
    assert documented - used <= listed, "keys that no line uses"


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in ("begin", "publish")])
def test_a_script_compares_the_epoch_before_it_does_anything(name: str) -> None:
    text = source(name)
    first = text[len(header_of(text)) :].strip().splitlines()[0]
    assert first == "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return REBUILD end"


def source(name: str) -> str:
    return (FOLDER / f"{name}.lua").read_text()


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
