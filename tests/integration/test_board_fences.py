"""A stale owner's word counts for nothing: whatever became of its step, every verb is refused, nothing is written. And
an owner's word counts once, also where COMPLETE does with it at once what follows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from convergio.graphflow.board import departure, fields, scripts
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from tests.integration.board_calls import FOLLOWING, ended, held_step
from tests.integration.board_stage import LIST, Stage, joined, ringing, rung_next, stage_on
from tests.waiting import wait_until


@pytest.fixture
def stage(board_url: str) -> Iterator[Stage]:
    with stage_on(board_url) as made:
        yield made


# --- what may have happened to the step of an owner that does not know yet --------------------------------------------


def _rung_again(stage: Stage, held: scripts.Claimed) -> None:
    stage.rung_again(held)


def _claimed_by_another(stage: Stage, held: scripts.Claimed) -> None:
    assert stage.claim(held.ref, held.step, stage.rung_again(held)).fence != held.fence


def _arrived_from_another(stage: Stage, held: scripts.Claimed) -> None:
    stage.arrive(stage.claim(held.ref, held.step, stage.rung_again(held)))


def _arrived_otherwise(stage: Stage, held: scripts.Claimed) -> None:
    stage.arrive(held, state="CANCELLED")


def _parked_by_another(stage: Stage, held: scripts.Claimed) -> None:
    stage.arrive(stage.claim(held.ref, held.step, stage.rung_again(held)), durable=True)


def _waits_for_another(stage: Stage, held: scripts.Claimed) -> None:
    stage.park(stage.claim(held.ref, held.step, stage.rung_again(held)))


def _withdrawn(state: str) -> Callable[[Stage, scripts.Claimed], None]:
    def withdraw(stage: Stage, held: scripts.Claimed) -> None:
        writes = [(fields.state(held.step), fields.running(held.fence), state)]
        stage.decided(held.ref, writes=writes, leases=[f"{held.step}/{held.fence}"])

    return withdraw


def _run_left(stage: Stage, held: scripts.Claimed) -> None:
    stage.release(held.ref, "@", up_to=ended(stage, held.ref))
    departure.forget(stage.link, stage.link.keys(held.epoch), [held.ref])
    stage.client.zrem(stage.link.keys(held.epoch).leases, f"{held.ref}/{held.step}/{held.fence}")


FATES = {
    "rung again": _rung_again,
    "claimed by another": _claimed_by_another,
    "arrived from another": _arrived_from_another,
    "arrived as something else": _arrived_otherwise,
    "parked by another": _parked_by_another,
    "waits for another's retry": _waits_for_another,
    "cancelled": _withdrawn("CANCELLED"),
    "quarantined": _withdrawn("QUARANTINED"),
    "its run left the board": _run_left,
}
every_fate = pytest.mark.parametrize("fate", FATES)


def stale(stage: Stage, fate: str) -> scripts.Claimed:
    """A claim that its owner still believes in."""
    held: scripts.Claimed = stage.running(stage.begun())
    FATES[fate](stage, held)
    return held


# --- what a stale owner may still say ---------------------------------------------------------------------------------


VERBS: dict[str, Callable[[Stage, scripts.Claimed], Any]] = {
    "arrive (stream)": lambda stage, held: stage.arrive(held),
    "arrive (step)": lambda stage, held: stage.arrive(held, durable=True),
    "arrive (failed)": lambda stage, held: stage.arrive(held, state="FAILED"),
    "complete": lambda stage, held: stage.complete(held, FOLLOWING),
    "park for a retry": lambda stage, held: stage.park(held),
    "park for a signal": lambda stage, held: stage.park(held, on="SIGNAL", delay_ms=None, look_back="a"),
    "record": lambda stage, held: scripts.record(stage.link, held, key="answer", value="1"),
    "reassert": lambda stage, held: scripts.reassert(
        stage.link, held.ref, step=held.step, nonce=held.fence.split(".", 2)[2]
    ),
}


@every_fate
def test_a_stale_owner_is_refused_and_nothing_is_written(stage: Stage, fate: str) -> None:
    held = stale(stage, fate)
    before = stage.dump()
    for name, verb in VERBS.items():
        with pytest.raises(errors.StaleFence):
            verb(stage, held)
        assert stage.dump() == before, name


@every_fate
def test_a_stale_owner_cannot_ring_its_step(stage: Stage, fate: str) -> None:
    held = stale(stage, fate)
    before = stage.dump()
    assert not scripts.ring(stage.link, held.epoch, held.ref, submitter="ann", ringing=ringing(held, "1.3"))
    assert stage.dump() == before


@every_fate
def test_a_stale_owner_learns_of_it_by_its_beat_and_prolongs_nothing(stage: Stage, fate: str) -> None:
    held = stale(stage, fate)
    before, member = stage.dump(), f"{held.ref}/{held.step}/{held.fence}"
    assert scripts.beat(stage.link, held.epoch, [member], lease_ms=60_000).lost == {member}
    assert stage.dump() == before


def test_a_stale_owner_is_told_what_became_of_its_step(stage: Stage) -> None:
    held = stale(stage, "cancelled")
    with pytest.raises(errors.StaleFence) as caught:
        stage.arrive(held)
    assert caught.value.where == {"run": "r1", "step": "a", "now": "CANCELLED"}


@every_fate
def test_an_old_doorbell_is_a_duplicate_and_touches_nothing(stage: Stage, fate: str) -> None:
    held = stale(stage, fate)
    before = stage.dump()
    answer = stage.claim(held.ref, held.step, held.fence.rsplit(".", 1)[0])
    assert isinstance(answer, scripts.Refused)
    assert answer.why == ("GONE" if fate == "its run left the board" else "DUPLICATE")
    assert stage.dump() == before


# --- claims -----------------------------------------------------------------------------------------------------------


def test_of_two_workers_with_the_same_doorbell_one_gets_the_step(stage: Stage) -> None:
    ref = stage.begun()
    ring = stage.ready(ref)
    assert isinstance(stage.claim(ref, "a", ring), scripts.Claimed)
    refused = stage.claim(ref, "a", ring)
    assert isinstance(refused, scripts.Refused)
    assert refused.why == "DUPLICATE"
    assert refused.state.startswith("RUNNING|")


def test_a_worker_that_asks_again_gets_the_same_claim(stage: Stage) -> None:
    ref = stage.begun()
    ring = stage.ready(ref)
    first = stage.claim(ref, "a", ring, nonce="n-1")
    second = stage.claim(ref, "a", ring, nonce="n-1")
    assert first.fence == second.fence == f"{ring}.n-1"
    assert len(stage.leases()) == 1


def test_a_doorbell_for_a_step_that_waits_is_a_duplicate(stage: Stage) -> None:
    answer = stage.claim(stage.begun(), "a", "1.1")
    assert isinstance(answer, scripts.Refused)
    assert (answer.why, answer.state) == ("DUPLICATE", "")


@pytest.mark.parametrize(("name", "value"), [("@stop", "FAILED"), ("@state", "PAUSED"), ("@state", "CANCELLED")])
def test_no_step_of_a_run_that_is_stopped_is_claimed(stage: Stage, name: str, value: str) -> None:
    ref = stage.begun()
    ring = stage.ready(ref)
    stage.client.hset(stage.key(ref), name, value)
    before = stage.dump()
    answer = stage.claim(ref, "a", ring)
    assert isinstance(answer, scripts.Refused)
    assert answer.why == "STOPPED"
    rung = stage.link.keys(stage.epoch).rung(LIST)
    assert {key: value for key, value in before.items() if key != rung} == stage.dump()


def test_a_claim_brings_input_records_and_the_outputs_it_reads(stage: Stage) -> None:
    ref = stage.begun()
    stage.client.hset(stage.key(ref), mapping={"o:x": '{"n":1}', "o:y": "", "r:a": "x y z", "a:a": "3", "d:a": "2"})
    held = stage.running(ref)
    assert (held.input, held.outputs) == ({"n": 1}, {"x": {"n": 1}, "y": None, "z": None})
    assert (held.attempt, held.deliveries, held.submitter) == (3, 2, "ann")
    assert abs(held.at_ms - stage.now_ms()) < 2_000
    scripts.record(stage.link, held, key="k", value='{"a":[1]}')
    scripts.record(stage.link, held, key="k", value="2")
    scripts.record(stage.link, held, key="l", value='"text"')
    again = stage.claim(ref, "a", stage.rung_again(held))
    assert again.records == {"k": {"a": [1]}, "l": "text"}


def test_a_claim_ends_the_count_of_lost_doorbells_and_leaves_the_list_of_those_on_their_way(stage: Stage) -> None:
    ref = stage.begun()
    ring = stage.ready(ref)
    rung = stage.link.keys(stage.epoch).rung(LIST)
    assert list(stage.scores(rung)) == [f"{ref}/a/{ring}"]
    stage.client.hset(stage.key(ref), fields.unclaimed("a"), "3")
    stage.claim(ref, "a", ring)
    assert stage.scores(rung) == {}
    assert fields.unclaimed("a") not in stage.values(ref)


# --- leases -----------------------------------------------------------------------------------------------------------


def test_a_beat_prolongs_the_leases_of_its_process_and_of_nobody_else(stage: Stage) -> None:
    ref = stage.begun()
    mine, others = stage.running(ref, "a"), stage.running(ref, "b")
    before = stage.leases()
    member, other = f"{ref}/a/{mine.fence}", f"{ref}/b/{others.fence}"
    answer = scripts.beat(stage.link, mine.epoch, [member], lease_ms=60_000)
    assert answer.lost == frozenset()
    assert abs(answer.at_ms - stage.now_ms()) < 2_000
    assert stage.leases() == {member: answer.at_ms + 60_000, other: before[other]}


def test_a_beat_tells_how_far_sql_has_everything(stage: Stage) -> None:
    epoch = stage.epoch
    assert scripts.beat(stage.link, epoch, []).released == -1
    stage.client.set(stage.link.keys(epoch).released, 41)
    assert scripts.beat(stage.link, epoch, []).released == 41


def test_a_live_lease_cannot_be_expired(stage: Stage) -> None:
    held = stage.running(stage.begun())
    before = stage.dump()
    call = ringing(held, "1.2", lease_must_be_over=True)
    assert not scripts.ring(stage.link, held.epoch, held.ref, submitter="ann", ringing=call)
    assert stage.dump() == before


def test_a_lease_that_is_over_is_expired_once_and_the_step_is_rung_at_the_consuming_end(stage: Stage) -> None:
    held = stage.running(stage.begun(), lease_ms=1)
    wait_until(lambda: stage.now_ms() > min(stage.leases().values()))
    call = ringing(held, "1.2", lease_must_be_over=True, sets={fields.deliveries("a"): "1"})
    assert scripts.ring(stage.link, held.epoch, held.ref, submitter="ann", ringing=call)
    assert stage.word(held.ref, "a") == "READY|1.2"
    assert stage.leases() == {}
    assert stage.client.lrange(LIST, 0, -1) == ["ding-a-1.1", "ding-a-1.2"]
    assert stage.claim(held.ref, "a", "1.2").deliveries == 1
    assert not scripts.ring(stage.link, held.epoch, held.ref, submitter="ann", ringing=call)


def test_a_beat_in_time_saves_a_lease_that_was_over_but_not_yet_expired(stage: Stage) -> None:
    held = stage.running(stage.begun(), lease_ms=1)
    wait_until(lambda: stage.now_ms() > min(stage.leases().values()))
    assert not scripts.beat(stage.link, held.epoch, [f"{held.ref}/a/{held.fence}"]).lost
    call = ringing(held, "1.2", lease_must_be_over=True)
    assert not scripts.ring(stage.link, held.epoch, held.ref, submitter="ann", ringing=call)


# --- reassert ---------------------------------------------------------------------------------------------------------


def test_after_a_rebuild_the_process_that_runs_the_body_gets_its_step_back(stage: Stage) -> None:
    ref = stage.begun()
    held_step(stage, ref)
    epoch, fence = scripts.reassert(stage.link, ref, step="a", nonce="old-1")
    assert (epoch, fence) == (stage.epoch, "1.1.old-1")
    assert stage.word(ref, "a") == "RUNNING|1.1.old-1"
    assert list(stage.leases()) == [f"{ref}/a/{fence}"]
    assert stage.scores(stage.link.keys(epoch).held) == {}
    assert scripts.reassert(stage.link, ref, step="a", nonce="old-1") == (epoch, fence)


def test_of_two_processes_that_assert_the_same_step_one_gets_it(stage: Stage) -> None:
    ref = stage.begun()
    held_step(stage, ref)
    scripts.reassert(stage.link, ref, step="a", nonce="old-1")
    with pytest.raises(errors.StaleFence):
        scripts.reassert(stage.link, ref, step="a", nonce="old-2")


def test_a_step_that_was_rung_since_the_rebuild_is_not_given_back(stage: Stage) -> None:
    """Its doorbell is on its way: whoever takes it runs the step."""
    ref = stage.begun()
    stage.ready(ref)
    before = stage.dump()
    with pytest.raises(errors.StaleFence):
        scripts.reassert(stage.link, ref, step="a", nonce="old-1")
    assert stage.dump() == before


def test_a_nonce_is_compared_whole(stage: Stage) -> None:
    """`7-1` is the end of `17-1`, and a dash means something in a Lua pattern."""
    ref = stage.begun()
    held_step(stage, ref)
    scripts.reassert(stage.link, ref, step="a", nonce="17-1")
    for other in ("7-1", "17.1", "171", ""):
        with pytest.raises(errors.StaleFence):
            scripts.reassert(stage.link, ref, step="a", nonce=other)


# --- COMPLETE: a success and what follows from it in one script; where something contends, it is left to the inbox ----


ARRIVED = '{"step":"a","t":"arrived"}'
FOLLOWERS = ("b", "j")


def moved(stage: Stage, ref: RunRef) -> dict[str, str]:
    """What is written about the followers of `a`, and how far its consequences were followed."""
    values = stage.values(ref)
    about = [kind + step for step in FOLLOWERS for kind in ("s:", "n:", "r:", "j:", "k:")]
    return {name: values[name] for name in [*about, fields.cursor("a")] if name in values}


def inbox(stage: Stage, ref: RunRef) -> list[str]:
    """Its entries, each with its names in order."""
    return [json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) for text in stage.inbox(ref)]


def recorded_only(stage: Stage, held: scripts.Claimed) -> None:
    """The outcome is there, once, and nothing followed from it yet: that is in the inbox, and in its index."""
    ref, journal = held.ref, [entry["t"] for _, entry in stage.journaled()]
    assert stage.word(ref, held.step) == f"SUCCEEDED|{held.fence}"
    assert stage.values(ref)[fields.output(held.step)] == '{"x":1}'
    assert journal.count("step.succeeded") == 1
    assert inbox(stage, ref).count(ARRIVED) == 1
    assert list(stage.scores(stage.link.keys(stage.epoch).inboxes)) == [str(ref)]
    assert stage.client.lrange(LIST, 0, -1) == ["ding-a-1.1"]
    assert fields.cursor("a") not in stage.values(ref)
    assert stage.leases() == {}


def test_a_success_and_what_follows_from_it_are_one_script(stage: Stage) -> None:
    held = stage.running(stage.begun())
    assert stage.complete(held, FOLLOWING) is None
    ref, epoch = held.ref, stage.epoch
    assert stage.word(ref, "a") == f"SUCCEEDED|{held.fence}"
    ready = {"s:b": "READY|1.1", "n:b": "1", "r:b": "a"}
    assert moved(stage, ref) == {**ready, "j:j": "1", "k:j": "1", fields.cursor("a"): "x"}
    assert stage.values(ref)["@open"] == "2"
    assert stage.client.lrange(LIST, 0, -1) == ["ding-b-1.1", "ding-a-1.1"]
    assert f"{ref}/b/1.1" in stage.scores(stage.link.keys(epoch).rung(LIST))
    assert (stage.inbox(ref), stage.leases(), stage.scores(stage.link.keys(epoch).inboxes)) == ([], {}, {})
    assert [entry["type"] for _, entry in stage.feed(ref)][-2:] == ["step.succeeded", "step.ready"]
    assert [entry["t"] for _, entry in stage.journaled()].count("step.succeeded") == 1


def test_a_duplicate_complete_cannot_raise_a_join_twice(stage: Stage) -> None:
    held = stage.running(stage.begun())
    stage.complete(held, (joined("j", 3),), token="t1")
    before = stage.dump()
    for token in ("t1", "t2"):
        assert stage.complete(held, (joined("j", 3),), token=token) is None
        assert stage.dump() == before


def test_two_branches_raise_their_join_by_one_each(stage: Stage) -> None:
    ref = stage.begun()
    for held in (stage.running(ref, "a"), stage.running(ref, "b")):
        assert stage.complete(held, (joined("j", 3),)) is None
    assert {name: stage.values(ref)[name] for name in ("j:j", "k:j", "@open")} == {"j:j": "2", "k:j": "2", "@open": "1"}


def test_a_complete_under_a_foreign_lock_leaves_everything_to_the_inbox(stage: Stage) -> None:
    held = stage.running(stage.begun())
    holder = stage.lock(held.ref)
    assert stage.complete(held, FOLLOWING) is None
    recorded_only(stage, held)
    assert moved(stage, held.ref) == {}
    left = scripts.commit(stage.link, holder, submitter="ann", batch=scripts.Batch(consumed=1))
    assert left == [{"t": "arrived", "step": "a"}]


def test_a_complete_behind_an_entry_that_nobody_drains_does_not_overtake_it(stage: Stage) -> None:
    held = stage.running(stage.begun())
    stage.lock(held.ref, entry='{"t":"x"}')
    stage.client.hdel(stage.key(held.ref), fields.LOCK)
    locked = stage.complete(held, FOLLOWING)
    assert locked is not None
    assert locked.entries == [{"t": "x"}, {"t": "arrived", "step": "a"}]
    recorded_only(stage, held)
    assert moved(stage, held.ref) == {}


def test_a_complete_told_again_to_the_inbox_is_there_once(stage: Stage) -> None:
    held = stage.running(stage.begun())
    stage.lock(held.ref)
    for _ in range(3):
        assert stage.complete(held, FOLLOWING) is None
    recorded_only(stage, held)


def test_the_one_that_fires_a_join_goes_the_long_way(stage: Stage) -> None:
    """Who fires, decides: conditions, and whether any edge was taken, are not the script's business."""
    ref = stage.begun()
    held = stage.running(ref)
    stage.client.hset(stage.key(ref), mapping={"j:j": "1", "k:j": "1"})
    locked = stage.complete(held, FOLLOWING, token="mine")
    assert locked is not None
    assert (locked.token, locked.entries) == ("mine", [{"t": "arrived", "step": "a"}])
    recorded_only(stage, held)
    assert moved(stage, ref) == {"j:j": "1", "k:j": "1"}


def test_the_last_step_of_a_run_goes_the_long_way(stage: Stage) -> None:
    """The run's end is decided, and waits for SQL."""
    ref = stage.begun()
    held = stage.running(ref)
    stage.client.hset(stage.key(ref), "@open", "1")
    assert stage.complete(held) is not None
    recorded_only(stage, held)
    assert stage.values(ref)["@open"] == "1"


@pytest.mark.parametrize(("name", "value"), [("@stop", "FAILED"), ("@state", "PAUSED"), ("@state", "CANCELLED")])
def test_complete_on_a_stopped_run_moves_nothing(stage: Stage, name: str, value: str) -> None:
    held = stage.running(stage.begun())
    stage.client.hset(stage.key(held.ref), name, value)
    assert stage.complete(held, FOLLOWING) is not None
    recorded_only(stage, held)
    assert moved(stage, held.ref) == {}
    assert stage.values(held.ref)["@open"] == "3"


@pytest.mark.parametrize(("name", "value"), [("s:b", "FAILED"), ("n:b", "1"), ("s:j", "SKIPPED"), ("n:j", "1")])
def test_a_follower_that_is_not_as_the_plan_has_it_is_left_to_the_long_way(stage: Stage, name: str, value: str) -> None:
    """It failed by a condition, or was rung before: that is what `decide` knows how to read."""
    held = stage.running(stage.begun())
    stage.client.hset(stage.key(held.ref), name, value)
    assert stage.complete(held, FOLLOWING) is not None
    recorded_only(stage, held)
    assert moved(stage, held.ref) == {name: value}


def test_one_script_rings_as_many_followers_as_a_success_may_name(stage: Stage) -> None:
    held = stage.running(stage.begun())
    assert stage.complete(held, [rung_next(f"s{n}", "a") for n in range(32)]) is None
    ready = [name for name, word in stage.values(held.ref).items() if word == "READY|1.1"]
    assert len(ready) == stage.client.llen(LIST) - 1 == 32
