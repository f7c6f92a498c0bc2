"""Which board this is: the epoch, the server it was made on, and what happens when either changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from convergio.graphflow.board import scripts
from convergio.graphflow.board.connection import Link
from convergio.graphflow.board.keys import SCHEMA, Epoch
from convergio.graphflow.model import errors
from tests import servers
from tests.integration.board_calls import CALLS, FOLLOWING
from tests.integration.board_stage import LIST, Stage, published, run_ref, stage_on
from tests.waiting import wait_until


@pytest.fixture
def stage(board_url: str) -> Iterator[Stage]:
    with stage_on(board_url) as made:
        yield made


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[servers.ValkeyServer]:
    """A server of this test's own, that keeps what it acknowledged."""
    binary = servers.valkey_binary() if request.param == "valkey" else servers.redis_binary()
    if binary is None:
        pytest.skip("no redis-server on this machine (Debian: apt install redis-server)")
    with servers.valkey_running(binary=binary) as running:
        yield running


# --- publishing -------------------------------------------------------------------------------------------------------


def test_publishing_never_goes_backwards(stage: Stage) -> None:
    here, key = stage.link.server(), f"{stage.link.prefix}:epoch"
    assert published(stage.link, Epoch(number=5, server=here))
    for old in (Epoch(number=4, server=here), Epoch(number=5, server=here, schema=SCHEMA + 1)):
        assert not published(stage.link, old)
    assert stage.link.refresh() == Epoch(number=5, server=here)
    assert published(stage.link, Epoch(number=10, server=here)), "numbers are compared, not texts"
    assert not published(stage.link, Epoch(number=9, server=here))

    stage.client.set(key, Epoch(number=11, server="f" * 40).text)
    assert not published(stage.link, Epoch(number=11, server=here)), "another server has this number"
    assert published(stage.link, Epoch(number=12, server=here)), "a restarted server gets a board of its own"


def test_a_board_is_published_only_on_the_server_it_was_made_on(stage: Stage) -> None:
    before = stage.dump()
    with pytest.raises(errors.BoardRebuilding):
        published(stage.link, Epoch(number=5, server="f" * 40))
    assert stage.dump() == before


def test_publishing_the_same_board_twice_is_one_publication(stage: Stage) -> None:
    new = Epoch(number=2, server=stage.link.server())
    assert scripts.begin(stage.link, new)
    assert scripts.begin(stage.link, new)
    assert scripts.publish(stage.link, new)
    assert scripts.publish(stage.link, new)


def test_an_epoch_key_has_no_ttl(stage: Stage) -> None:
    assert stage.client.pttl(f"{stage.link.prefix}:epoch") == -1


def test_a_board_that_was_wiped_while_it_was_made_is_not_published(stage: Stage) -> None:
    new = Epoch(number=2, server=stage.link.server())
    assert scripts.begin(stage.link, new)
    stage.client.flushall()
    assert not scripts.publish(stage.link, new)
    with pytest.raises(errors.BoardRebuilding):
        stage.link.refresh()
    assert published(stage.link, new)


def test_of_two_boards_that_are_made_at_once_the_later_one_is_published(stage: Stage) -> None:
    older, newer = (Epoch(number=number, server=stage.link.server()) for number in (2, 3))
    assert scripts.begin(stage.link, older)
    assert scripts.begin(stage.link, newer)
    assert not scripts.publish(stage.link, older)
    assert not scripts.begin(stage.link, older)
    assert scripts.publish(stage.link, newer)
    assert stage.link.refresh() == newer


def test_a_board_serves_no_longer_once_the_next_one_is_begun(stage: Stage) -> None:
    assert scripts.begin(stage.link, Epoch(number=2, server=stage.link.server()))
    with pytest.raises(errors.BoardRebuilding):
        stage.start("r1")


# --- reading the epoch ------------------------------------------------------------------------------------------------


def test_without_an_epoch_key_the_board_is_being_rebuilt(board_url: str) -> None:
    link = Link(board_url)
    with pytest.raises(errors.BoardRebuilding):
        link.epoch()
    link.close()


def test_another_schema_is_refused_in_words(stage: Stage) -> None:
    other = Epoch(number=2, server=stage.link.server(), schema=SCHEMA + 1)
    stage.client.set(f"{stage.link.prefix}:epoch", other.text)
    with pytest.raises(errors.SchemaMismatch, match=f"schema {SCHEMA + 1}, this is {SCHEMA}") as caught:
        stage.link.refresh()
    assert caught.value.hint


def test_after_a_rebuild_answer_the_next_call_uses_the_new_epoch(stage: Stage) -> None:
    stage.begun()
    assert published(stage.link, Epoch(number=2, server=stage.link.server()))
    with pytest.raises(errors.BoardRebuilding):
        stage.start("r2")
    assert stage.start("r2") is not None
    assert stage.epoch.number == 2


def test_two_boards_with_different_prefixes_do_not_see_each_other(stage: Stage, board_url: str) -> None:
    stage.begun()
    other = Link(board_url, prefix="other")
    with pytest.raises(errors.BoardRebuilding):
        other.epoch()
    assert published(other, Epoch(number=7, server=other.server()))
    with pytest.raises(errors.UnknownRun):
        scripts.post(other, run_ref(), entry="", token="t1")
    other.close()


# --- another server ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["stop", "kill"])
def end(request: pytest.FixtureRequest) -> Callable[[servers.ValkeyServer], None]:
    """How the server ends: as an operator would, or at once."""
    return servers.ValkeyServer.stop if request.param == "stop" else servers.ValkeyServer.kill


def test_a_server_that_restarted_with_all_its_data_is_another_board(
    server: servers.ValkeyServer, end: Callable[[servers.ValkeyServer], None]
) -> None:
    with stage_on(server.url) as stage:
        held = stage.running(stage.begun())
        calls = prepared(stage)
        before = stage.dump()
        epoch = stage.epoch
        end(server)
        server.start()

        for name, call in calls.items():
            with pytest.raises((errors.BoardRebuilding, errors.BoardUnavailable)):
                call()
            assert stage.dump() == before, name
        with pytest.raises(errors.BoardRebuilding):
            stage.link.refresh()
        with pytest.raises(errors.BoardRebuilding):
            scripts.beat(stage.link, epoch, [f"{held.ref}/a/{held.fence}"])
        assert stage.dump() == before
        assert before[f"{stage.link.prefix}:epoch"] == epoch.text, "the old epoch key is there"


def prepared(stage: Stage) -> dict[str, Callable[[], object]]:
    """Calls that would have something to do."""
    stage.ready(stage.begun("r2"), "b")
    scripts.hatch(stage.link, stage.epoch, queue_list=LIST, canary="c1", instead_of="", content=b"1")
    return {
        "claim": lambda: stage.claim(run_ref("r2"), "b", "1.1"),
        "post": lambda: scripts.post(stage.link, run_ref(), entry='{"t":"x"}', token="t1"),
        "start": lambda: stage.start("r3"),
        "eat": lambda: scripts.eat(stage.link, queue_list=LIST, canary="c1"),
    }


def test_a_new_process_does_not_take_the_old_epoch_of_a_restarted_server(server: servers.ValkeyServer) -> None:
    with stage_on(server.url) as stage:
        stage.begun()
    server.restart()
    link = Link(server.url)
    with pytest.raises(errors.BoardRebuilding):
        link.epoch()
    link.close()


def test_the_board_goes_on_when_the_restarted_server_got_its_own_epoch(server: servers.ValkeyServer) -> None:
    with stage_on(server.url) as stage:
        stage.begun()
        server.restart()
        with pytest.raises((errors.BoardRebuilding, errors.BoardUnavailable)):
            stage.start("r2")
        assert published(stage.link, Epoch(number=2, server=stage.link.server()))
        assert stage.start("r2") is not None


def test_a_claim_made_before_a_restart_cannot_be_used_after_it(server: servers.ValkeyServer) -> None:
    with stage_on(server.url) as stage:
        held = stage.running(stage.begun())
        server.restart()
        with stage_on(server.url, number=2) as after:
            before = after.dump()
            for verb in (
                lambda: stage.arrive(held),
                lambda: stage.complete(held, FOLLOWING),
                lambda: stage.park(held),
                lambda: scripts.record(stage.link, held, key="k", value="1"),
            ):
                with pytest.raises(errors.BoardRebuilding):
                    verb()
            assert after.dump() == before


# --- a server that is away --------------------------------------------------------------------------------------------


def test_a_server_that_is_away_is_named_with_what_to_do(server: servers.ValkeyServer) -> None:
    with stage_on(server.url) as stage:
        server.stop()
        with pytest.raises(errors.BoardUnavailable, match="Redis does not answer") as caught:
            stage.start()
        assert caught.value.retryable
        assert caught.value.hint
        with pytest.raises(errors.BoardUnavailable):
            stage.link.refresh()


def test_a_server_that_is_silent_counts_as_away_after_the_socket_timeout(server: servers.ValkeyServer) -> None:
    link = Link(server.url, socket_timeout=0.2)
    assert published(link, Epoch(number=1, server=link.server()))
    stage = Stage(link=link)
    held = stage.running(stage.begun())
    server.pause()
    with pytest.raises(errors.BoardUnavailable):
        stage.arrive(held)
    server.resume()
    # The server may have done what it was told while nobody listened: asked again, it says so and does it once.
    answer = wait_until(lambda: stage.arrive(held, token="t2") or stage.inbox(held.ref))
    assert answer
    assert [entry["t"] for _, entry in stage.journaled()].count("step.succeeded") == 1
    link.close()


def test_a_loading_or_restarting_server_never_sees_a_call_twice_done(server: servers.ValkeyServer) -> None:
    """Whatever was acknowledged before the kill is there once; the call after it is refused, not repeated."""
    with stage_on(server.url) as stage:
        call = CALLS["record"](stage)
        call()
        server.restart()
        with pytest.raises((errors.BoardRebuilding, errors.BoardUnavailable)):
            call()
        with server.client() as client:
            assert client.hget("convergio:1:default:r1", "x:a") == b'answer\t{"paid":true}\n'


# --- START ------------------------------------------------------------------------------------------------------------


def start_at(stage: Stage, not_after_ms: int | None, name: str = "r1") -> scripts.Locked | None:
    return scripts.start(
        stage.link,
        run_ref(name),
        not_after_ms=not_after_ms,
        submitter="ann",
        digest="d",
        plan="{}",
        meta="{}",
        given="null",
        size=1,
        control=0,
        token=stage.nonces.next(),
        wanted=["@state", "@open", "@cv"],
    )


def test_a_run_is_started_once(stage: Stage) -> None:
    locked = start_at(stage, None)
    assert locked is not None
    assert (locked.entries, locked.values) == ([{"t": "start"}], {"@state": "RUNNING", "@open": "1", "@cv": "0"})
    before = stage.dump()
    assert start_at(stage, None) is None
    assert start_at(stage, 0) is None, "a late start of a run that is there is no failure"
    assert stage.dump() == before


def test_a_start_after_its_time_is_refused_and_creates_nothing(stage: Stage) -> None:
    before = stage.dump()
    with pytest.raises(errors.SubmitTooLate):
        start_at(stage, stage.now_ms() - 1)
    assert stage.dump() == before
    assert start_at(stage, stage.now_ms() + 60_000, "r2") is not None


def test_a_start_pins_the_definition_and_announces_the_run(stage: Stage) -> None:
    start_at(stage, None)
    keys = stage.link.keys(stage.epoch)
    assert stage.client.get(keys.plan("d")) == "{}"
    assert list(stage.scores(keys.runs)) == ["default/r1"]
    assert [(entry["t"], entry["r"], entry["u"], entry["q"]) for _, entry in stage.journaled()] == [
        ("run.started", "default/r1", "ann", "1")
    ]


# --- canaries ---------------------------------------------------------------------------------------------------------


def test_of_two_who_replace_a_canary_one_succeeds(stage: Stage) -> None:
    assert scripts.hatch(stage.link, stage.epoch, queue_list=LIST, canary="c1", instead_of="", content=b"1")
    assert not scripts.hatch(stage.link, stage.epoch, queue_list=LIST, canary="c2", instead_of="", content=b"2")
    assert scripts.hatch(stage.link, stage.epoch, queue_list=LIST, canary="c3", instead_of="c1", content=b"3")
    assert stage.client.lrange(LIST, 0, -1) == ["3", "1"], "the producing end"


def test_only_the_current_canary_counts(stage: Stage) -> None:
    scripts.hatch(stage.link, stage.epoch, queue_list=LIST, canary="c1", instead_of="", content=b"1")
    key = stage.link.keys(stage.epoch).canary(LIST)
    assert not scripts.eat(stage.link, queue_list=LIST, canary="c0")
    assert not scripts.eat(stage.link, queue_list="other", canary="c1")
    assert "eaten" not in stage.client.hgetall(key)
    assert scripts.eat(stage.link, queue_list=LIST, canary="c1")
    assert abs(int(stage.client.hget(key, "eaten") or 0) - stage.now_ms()) < 2_000
    scripts.hatch(stage.link, stage.epoch, queue_list=LIST, canary="c2", instead_of="c1", content=b"2")
    assert "eaten" not in stage.client.hgetall(key)


# --- connections that get lost ----------------------------------------------------------------------------------------


def test_a_process_that_lost_many_connections_still_has_its_board(stage: Stage) -> None:
    """The pool of redis-py makes a hundred at most, and nobody gives it back those that broke."""
    lost = 0
    while lost < stage.link.pool.max_connections + 10:
        with suppress(errors.BoardUnavailable):  # one that is cut is noticed by the next call
            stage.link.refresh()
            lost += stage.client.client_kill_filter(_type="normal", skipme=True)
    with suppress(errors.BoardUnavailable):
        stage.link.refresh()
    assert stage.link.refresh().server == stage.link.server()
