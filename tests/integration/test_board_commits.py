"""The run's lock, and COMMIT: one holder at a time, all or nothing, once."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from convergio.graphflow.board import departure, scripts
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from tests.integration.board_calls import rich_batch
from tests.integration.board_stage import LIST, Stage, doorbell, run_ref, stage_on
from tests.integration.lost_answers import lose_next_answer
from tests.waiting import wait_until

Writes = Sequence[tuple[str, str, str]]


@pytest.fixture
def stage(board_url: str) -> Iterator[Stage]:
    with stage_on(board_url) as made:
        yield made


def commit(stage: Stage, locked: scripts.Locked, batch: scripts.Batch) -> object:
    return scripts.commit(stage.link, locked, submitter="ann", batch=batch)


def look(stage: Stage, ref: RunRef, token: str) -> scripts.Locked | None:
    return scripts.post(stage.link, ref, entry="", token=token)


# --- the inbox and its lock -------------------------------------------------------------------------------------------


def test_an_entry_is_kept_while_somebody_else_holds_the_lock_and_the_holder_finds_it(stage: Stage) -> None:
    ref = stage.begun()
    locked = stage.lock(ref, '{"t":"1"}')
    assert scripts.post(stage.link, ref, entry='{"t":"2"}', token="other") is None
    assert commit(stage, locked, scripts.Batch(consumed=1)) == [{"t": "2"}]
    assert look(stage, ref, "other") is None, "the holder goes on, so it keeps the lock"
    assert commit(stage, locked, scripts.Batch(consumed=1)) == []
    assert stage.inbox(ref) == []


def test_an_empty_inbox_is_locked_by_nobody(stage: Stage) -> None:
    ref = stage.begun()
    assert look(stage, ref, "t1") is None
    assert "@lock" not in stage.values(ref)


def test_an_inbox_is_in_the_index_exactly_while_it_is_not_empty(stage: Stage) -> None:
    ref, inboxes = stage.begun(), stage.link.keys(stage.epoch).inboxes
    assert stage.scores(inboxes) == {}
    locked = stage.lock(ref)
    assert list(stage.scores(inboxes)) == [str(ref)]
    assert commit(stage, locked, scripts.Batch(consumed=1, posts=['{"t":"3"}'])) == [{"t": "3"}]
    assert list(stage.scores(inboxes)) == [str(ref)]
    assert commit(stage, locked, scripts.Batch(consumed=1)) == []
    assert stage.scores(inboxes) == {}


def test_who_looks_into_an_empty_inbox_takes_it_off_the_index(stage: Stage) -> None:
    ref, inboxes = stage.begun(), stage.link.keys(stage.epoch).inboxes
    stage.client.zadd(inboxes, {str(ref): 1, "default/gone": 1})
    assert look(stage, ref, "t1") is None
    with pytest.raises(errors.UnknownRun):
        look(stage, run_ref("gone"), "t1")
    assert stage.scores(inboxes) == {}


def test_an_entry_for_a_run_that_is_not_on_the_board_creates_nothing(stage: Stage) -> None:
    before = stage.dump()
    with pytest.raises(errors.UnknownRun):
        scripts.post(stage.link, run_ref("nowhere"), entry='{"t":"x"}', token="t1")
    assert stage.dump() == before


def test_the_lock_gives_the_fields_that_were_asked_for_however_many(stage: Stage) -> None:
    ref = stage.begun()
    names = [f"f{number}" for number in range(1_001)]
    stage.client.hset(stage.key(ref), mapping={name: name.upper() for name in names[::2]})
    locked = stage.lock(ref, wanted=names)
    assert locked.values == {name: name.upper() if number % 2 == 0 else "" for number, name in enumerate(names)}


def test_a_holder_sees_at_most_a_hundred_entries_at_a_time(stage: Stage) -> None:
    ref = stage.begun()
    for number in range(150):
        scripts.post(stage.link, ref, entry=json.dumps({"n": number}), token="t1")
    locked = look(stage, ref, "t1")
    assert locked is not None
    assert [entry["n"] for entry in locked.entries] == list(range(100))
    left = commit(stage, locked, scripts.Batch(consumed=100))
    assert left == [{"n": number} for number in range(100, 150)]


# --- the lock is a lease ----------------------------------------------------------------------------------------------


def test_a_lock_is_taken_over_only_when_its_lease_is_over(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = stage.begun()
    stage.lock(ref)
    assert look(stage, ref, "other") is None
    monkeypatch.setattr(scripts, "LOCK_MS", 30)
    token = stage.nonces.next()
    ref2 = stage.begun("r2")
    assert scripts.post(stage.link, ref2, entry='{"t":"x"}', token=token) is not None
    assert wait_until(lambda: look(stage, ref2, "other"), timeout=2)
    assert look(stage, ref, "other") is None


def test_the_commit_of_a_holder_whose_lock_was_taken_over_is_refused_and_writes_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = stage.running(stage.begun())
    with monkeypatch.context() as patch:
        patch.setattr(scripts, "LOCK_MS", 1)
        old = stage.lock(held.ref)
    new = wait_until(lambda: look(stage, held.ref, "other"), timeout=2)
    assert new is not None
    before = stage.dump()
    assert commit(stage, old, rich_batch(held.ref, held)) is None
    assert stage.dump() == before
    assert commit(stage, new, rich_batch(held.ref, held)) == [{"t": "later"}]


def test_a_holder_whose_lease_is_over_but_whose_lock_nobody_took_may_commit(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = stage.begun()
    monkeypatch.setattr(scripts, "LOCK_MS", 1)
    locked = stage.lock(ref)
    expiry = int(stage.values(ref)["@lock"].split("|")[1])
    wait_until(lambda: stage.now_ms() > expiry)
    assert commit(stage, locked, scripts.Batch(consumed=1)) == []


def test_a_commit_that_leaves_entries_prolongs_the_lock(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = stage.begun()
    with monkeypatch.context() as patch:
        patch.setattr(scripts, "LOCK_MS", 1)
        locked = stage.lock(ref)
    assert commit(stage, locked, scripts.Batch(consumed=0)) == [{"t": "x"}]
    assert int(stage.values(ref)["@lock"].split("|")[1]) > stage.now_ms() + 1_000


def test_a_commit_without_the_lock_is_refused(stage: Stage) -> None:
    ref = stage.begun()
    locked = stage.lock(ref)
    assert commit(stage, locked, scripts.Batch(consumed=1)) == []
    before = stage.dump()
    assert commit(stage, locked, scripts.Batch(consumed=1, writes=[("f", "", "x")])) is None
    assert stage.dump() == before


def test_a_run_that_left_the_board_is_not_made_again_by_a_commit(stage: Stage) -> None:
    held = stage.running(stage.begun())
    locked = stage.lock(held.ref)
    departure.forget(stage.link, stage.link.keys(stage.epoch), [held.ref])
    before = stage.dump()
    assert commit(stage, locked, rich_batch(held.ref, held)) is None
    assert stage.dump() == before


# --- all or nothing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("wrong", ["other", ""])
def test_if_one_field_is_not_as_it_was_nothing_of_the_commit_is_written(stage: Stage, place: int, wrong: str) -> None:
    held = stage.running(stage.begun())
    locked = stage.lock(held.ref)
    batch = rich_batch(held.ref, held)
    writes = list(batch.writes)
    writes.insert(place, ("@state", wrong, "PAUSED"))
    before = stage.dump()
    assert commit(stage, locked, rich_batch(held.ref, held, writes=writes)) is None
    assert stage.dump() == before


def test_a_field_that_must_be_absent_and_is_there_refuses_the_commit(stage: Stage) -> None:
    held = stage.running(stage.begun())
    locked = stage.lock(held.ref)
    before = stage.dump()
    assert commit(stage, locked, scripts.Batch(consumed=1, writes=[("s:a", "", "READY|1.9")])) is None
    assert stage.dump() == before


def test_a_commit_writes_all_that_was_decided(stage: Stage) -> None:
    held = stage.running(stage.begun())
    ref, keys = held.ref, stage.link.keys(stage.epoch)
    stage.client.zadd(keys.timers, {f"{ref}/c/RETRY": 5})
    locked = stage.lock(ref)
    assert commit(stage, locked, rich_batch(ref, held)) == [{"t": "later"}]

    values = stage.values(ref)
    assert (values["s:a"], values["s:b"], values["n:b"]) == ("CANCELLED", "READY|1.1", "1")
    assert stage.leases() == {}
    assert stage.scores(keys.timers) == {f"{ref}/b/HOOK": 1_700_000_000_000}
    assert stage.client.lrange(LIST, 0, -1) == ["ding-b-1.1", "ding-a-1.1"]
    assert set(stage.scores(keys.rung(LIST))) == {f"{ref}/b/1.1"}
    assert [(entry["t"], entry["s"]) for _, entry in stage.journaled()] == [
        ("run.started", ""),
        ("step.cancelled", "a"),
        ("run.cancelled", ""),
    ]
    last = stage.journaled()[-1][0]
    assert stage.scores(keys.parked) == {f"{ref}/@": int(last.split("-")[1])}


def test_an_empty_value_takes_the_field_away(stage: Stage) -> None:
    ref = stage.begun()
    stage.decided(ref, writes=[("f", "", "x"), ("g", "", "y")])
    stage.decided(ref, writes=[("f", "x", ""), ("g", "y", "y")])
    assert {name: value for name, value in stage.values(ref).items() if name in ("f", "g")} == {"g": "y"}


def test_doorbells_go_to_their_lists_and_ends_in_their_order(stage: Stage) -> None:
    ref = stage.begun()
    bells = [
        scripts.Doorbell(queue_list=name, side=side, content=f"{name}{number}".encode(), step=f"s{number}", ring="1.1")
        for number, (name, side) in enumerate([("z", "L"), ("a", "L"), ("z", "R"), ("z", "L"), ("m", "R")])
    ]
    stage.decided(ref, bells=bells)
    assert {name: stage.client.lrange(name, 0, -1) for name in "amz"} == {
        "a": ["a1"],
        "m": ["m4"],
        "z": ["z3", "z0", "z2"],
    }
    keys = stage.link.keys(stage.epoch)
    assert {name: sorted(stage.scores(keys.rung(name))) for name in "amz"} == {
        "a": [f"{ref}/s1/1.1"],
        "m": [f"{ref}/s4/1.1"],
        "z": [f"{ref}/s0/1.1", f"{ref}/s2/1.1", f"{ref}/s3/1.1"],
    }


def test_the_bytes_of_a_doorbell_arrive_as_they_are(stage: Stage, board_url: str) -> None:
    content = bytes(range(256))
    bell = scripts.Doorbell(queue_list=LIST, side="L", content=content, step="a", ring="1.1")
    stage.decided(stage.begun(), bells=[bell])
    with redis.Redis.from_url(board_url) as raw:
        assert raw.lrange(LIST, 0, -1) == [content]


def test_five_hundred_of_everything_fit_in_one_commit(stage: Stage) -> None:
    ref = stage.begun()
    stage.decided(
        ref,
        writes=[(f"f{number}", "", "v" * 50) for number in range(500)],
        bells=[doorbell(f"s{number}", "1.1") for number in range(500)],
        events=[("step.ready", f"s{number}", "j", "", "{}") for number in range(500)],
        leases=[f"s{number}/1.1.n" for number in range(500)],
        timers=[(f"s{number}/RETRY", "1700000000000") for number in range(500)],
    )
    assert stage.client.llen(LIST) == 500
    assert len(stage.journaled()) == 501


# --- asked twice ------------------------------------------------------------------------------------------------------


def test_a_commit_whose_answer_got_lost_consumes_its_entries_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first entry changes nothing (a duplicate). Between the lock and the commit a second one came."""
    ref = stage.begun()
    locked = stage.lock(ref, '{"t":"duplicate"}')
    assert scripts.post(stage.link, ref, entry='{"t":"wanted"}', token="other") is None
    with monkeypatch.context() as patch:
        lost = lose_next_answer(patch)
        left = commit(stage, locked, scripts.Batch(consumed=1))
    assert lost == ["lost"]
    assert stage.inbox(ref) == ['{"t":"wanted"}']
    assert left in ([{"t": "wanted"}], None)


@pytest.mark.parametrize("posts", [[], ['{"t":"later"}']])
def test_a_commit_whose_answer_got_lost_tells_and_rings_once(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, posts: list[str]
) -> None:
    ref = stage.begun()
    locked = stage.lock(ref)
    batch = scripts.Batch(
        consumed=1, posts=posts, bells=[doorbell("a", "1.1")], events=[("signal.applied", "a", "j", "", "{}")]
    )
    with monkeypatch.context() as patch:
        lose_next_answer(patch)
        commit(stage, locked, batch)
    assert stage.client.llen(LIST) == 1
    assert [entry["t"] for _, entry in stage.journaled()] == ["run.started", "signal.applied"]
    assert stage.inbox(ref) == posts


def test_after_a_lost_answer_the_holder_goes_on_at_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = stage.begun()
    locked = stage.lock(ref)
    with monkeypatch.context() as patch:
        lose_next_answer(patch)
        left = commit(stage, locked, scripts.Batch(consumed=1, posts=['{"t":"later"}']))
    again = locked if left is not None else look(stage, ref, locked.token)
    assert again is not None
    assert commit(stage, again, scripts.Batch(consumed=1)) == []


# --- many at once -----------------------------------------------------------------------------------------------------


def test_many_who_share_a_connection_pool_drain_every_entry_exactly_once(stage: Stage) -> None:
    """Whoever finds the lock free drains for all; nobody waits, and no answer reaches another thread."""
    ref, drained = stage.begun(), list[str]()

    def post_and_drain(author: int) -> None:
        for number in range(25):
            entry = json.dumps({"t": f"{author}-{number}"})
            locked = scripts.post(stage.link, ref, entry=entry, token=stage.nonces.next())
            while locked is not None:
                entries = [str(found["t"]) for found in locked.entries]
                left = scripts.commit(stage.link, locked, submitter="ann", batch=scripts.Batch(consumed=len(entries)))
                assert left is not None
                drained.extend(entries)
                locked = dataclasses.replace(locked, entries=left) if left else None

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(post_and_drain, range(8)))
    assert sorted(drained) == sorted(f"{author}-{number}" for author in range(8) for number in range(25))
    assert stage.inbox(ref) == []
    assert "@lock" not in stage.values(ref)
