"""What waits on the board, without a slot or a message: retries, hooks, signals, outcomes that SQL has not got yet."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest

from convergio.graphflow.board import departure, fields, releasing, scripts
from convergio.graphflow.board.fields import Word
from convergio.graphflow.model import errors
from convergio.graphflow.model.states import BlockedOn, StepState
from tests.integration.board_calls import ended, held_step
from tests.integration.board_stage import LIST, Stage, doorbell, ringing, run_ref, stage_on


@pytest.fixture
def stage(board_url: str) -> Iterator[Stage]:
    with stage_on(board_url) as made:
        yield made


def ring_timer(stage: Stage, held: scripts.Claimed, on: str, *, was: str = "") -> bool:
    """RING as the sweeper does it for a timer that is due."""
    bell = doorbell(held.step, "1.2")
    word = was or stage.word(held.ref, held.step)
    call = scripts.Ringing(was=word, bell=bell, count=2, kind="step.rung", timer=on)
    return scripts.ring(stage.link, held.epoch, held.ref, submitter="ann", ringing=call)


# --- PARK -------------------------------------------------------------------------------------------------------------


def test_a_parked_step_says_on_what_and_since_when_and_holds_no_lease(stage: Stage) -> None:
    held = stage.running(stage.begun())
    before = stage.now_ms()
    assert not stage.park(held, on="RETRY")
    word = Word.parse(stage.word(held.ref, "a"))
    assert (word.state, word.blocked_on) == (StepState.BLOCKED, BlockedOn.RETRY)
    assert word.since_ms is not None
    assert before <= word.since_ms <= stage.now_ms()
    assert stage.leases() == {}
    assert stage.values(held.ref)[fields.attempt("a")] == "2"


def test_a_timer_is_due_by_the_boards_clock_after_the_delay(stage: Stage) -> None:
    held = stage.running(stage.begun())
    before = stage.now_ms()
    stage.park(held, on="HOOK", delay_ms=5_000)
    timers = stage.scores(stage.link.keys(stage.epoch).timers)
    assert list(timers) == [f"{held.ref}/a/HOOK"]
    assert before + 5_000 <= timers[f"{held.ref}/a/HOOK"] <= stage.now_ms() + 5_000


def test_a_parked_step_starts_with_a_clean_count_of_lost_workers(stage: Stage) -> None:
    ref = stage.begun()
    stage.client.hset(stage.key(ref), fields.deliveries("a"), "3")
    held = stage.running(ref)
    assert held.deliveries == 3
    stage.park(held)
    assert fields.deliveries("a") not in stage.values(ref)


def test_a_due_timer_rings_once_with_the_attempt_that_was_parked(stage: Stage) -> None:
    held = stage.running(stage.begun())
    stage.park(held)
    word = stage.word(held.ref, "a")
    assert ring_timer(stage, held, "RETRY")
    assert stage.scores(stage.link.keys(stage.epoch).timers) == {}
    before = stage.dump()
    assert not ring_timer(stage, held, "RETRY", was=word)
    assert stage.dump() == before
    again = stage.claim(held.ref, "a", "1.2")
    assert isinstance(again, scripts.Claimed)
    assert again.attempt == 2


def test_a_timer_that_was_dropped_rings_nothing(stage: Stage) -> None:
    held = stage.running(stage.begun())
    stage.park(held)
    stage.client.delete(stage.link.keys(stage.epoch).timers)
    before = stage.dump()
    assert not ring_timer(stage, held, "RETRY")
    assert stage.dump() == before


def test_parked_twice_by_the_same_owner_is_parked_once(stage: Stage) -> None:
    held = stage.running(stage.begun())
    stage.park(held)
    before = stage.dump()
    assert not stage.park(held)
    assert stage.dump() == before


def test_an_owner_that_parked_its_step_has_no_say_any_more(stage: Stage) -> None:
    held = stage.running(stage.begun())
    stage.park(held, on="RETRY")
    before = stage.dump()
    for say in (
        lambda: stage.arrive(held),
        lambda: stage.arrive(held, durable=True),
        lambda: stage.park(held, on="SIGNAL", delay_ms=None),
        lambda: scripts.record(stage.link, held, key="k", value="1"),
    ):
        with pytest.raises(errors.StaleFence):
            say()
    assert stage.dump() == before


# --- signals ----------------------------------------------------------------------------------------------------------


def early(stage: Stage, held: scripts.Claimed) -> str:
    """A signal that came before its step waited for it, as `decide` keeps it."""
    entry = json.dumps({"t": "signal", "id": "1", "name": "a", "data": {"decision": "approve"}})
    stage.decided(held.ref, writes=[(fields.early("a"), "", entry)])
    return entry


def test_a_step_that_parks_for_a_signal_finds_the_one_that_came_early(stage: Stage) -> None:
    held = stage.running(stage.begun())
    entry = early(stage, held)
    assert stage.park(held, on="SIGNAL", delay_ms=None, look_back="a")
    assert stage.inbox(held.ref) == [entry]
    assert list(stage.scores(stage.link.keys(stage.epoch).inboxes)) == [str(held.ref)]
    assert Word.parse(stage.word(held.ref, "a")).blocked_on is BlockedOn.SIGNAL


def test_an_early_signal_is_looked_for_only_by_who_waits_for_it(stage: Stage) -> None:
    held = stage.running(stage.begun())
    early(stage, held)
    assert not stage.park(held, on="RETRY")
    assert stage.inbox(held.ref) == []


def test_parked_twice_for_a_signal_that_came_early_it_is_answered_once(stage: Stage) -> None:
    held = stage.running(stage.begun())
    entry = early(stage, held)
    stage.park(held, on="SIGNAL", delay_ms=None, look_back="a")
    stage.park(held, on="SIGNAL", delay_ms=None, look_back="a")
    assert stage.inbox(held.ref) == [entry]


def test_a_step_that_parks_while_its_signal_is_decided_overtakes_that_decision(stage: Stage) -> None:
    """The holder read RUNNING and decides to keep the signal; the PARK in between must not miss it."""
    held = stage.running(stage.begun())
    locked = stage.lock(held.ref, wanted=[fields.state("a")])
    running = locked.values[fields.state("a")]
    assert not stage.park(held, on="SIGNAL", delay_ms=None, look_back="a")
    keep = scripts.Batch(consumed=1, writes=[(fields.state("a"), running, running), (fields.early("a"), "", "{}")])
    assert scripts.commit(stage.link, locked, submitter="ann", batch=keep) is None
    assert fields.early("a") not in stage.values(held.ref)


# --- outcomes that SQL does not have yet ------------------------------------------------------------------------------


def test_a_parked_outcome_is_invisible_to_the_drain_until_it_is_released(stage: Stage) -> None:
    ref = stage.begun()
    sequence = stage.parked(ref)
    word = Word.parse(stage.word(ref, "a"))
    assert (word.state, word.blocked_on) == (StepState.BLOCKED, BlockedOn.JOURNAL)
    assert word.parked is not None
    assert word.parked.state is StepState.SUCCEEDED
    assert stage.inbox(ref) == []
    assert scripts.post(stage.link, ref, entry="", token="t1") is None

    assert stage.release(ref, "a", up_to=sequence) == (1, "")
    assert stage.word(ref, "a").startswith("SUCCEEDED|1.1.")
    assert [json.loads(text) for text in stage.inbox(ref)] == [{"t": "arrived", "step": "a"}]


def test_a_stream_outcome_is_visible_at_once_and_a_step_outcome_waits(stage: Stage) -> None:
    ref = stage.begun()
    streams, waits = stage.running(ref, "a"), stage.running(ref, "b")
    first = stage.arrive(streams)
    assert isinstance(first, scripts.Locked)
    assert first.entries == [{"t": "arrived", "step": "a"}]
    assert first.values == {"s:a": stage.word(ref, "a"), "@open": "3", "absent": ""}
    assert isinstance(stage.arrive(waits, durable=True), scripts.Parked)
    assert len(stage.inbox(ref)) == 1


def test_release_lets_go_only_what_sql_has(stage: Stage) -> None:
    ref = stage.begun()
    first, second = stage.parked(ref, "a"), stage.parked(ref, "b")
    assert first < second
    assert stage.release(ref, "a", "b", up_to=first - 1) == (0, "")
    assert stage.release(ref, "a", "b", up_to=first) == (1, "")
    assert stage.word(ref, "a").startswith("SUCCEEDED|")
    assert stage.word(ref, "b").startswith("BLOCKED|JOURNAL|")
    assert list(stage.scores(stage.link.keys(stage.epoch).parked)) == [f"{ref}/b"]
    assert stage.release(ref, "a", "b", up_to=second) == (1, "")
    assert len(stage.inbox(ref)) == 2


def test_what_sql_has_is_named_for_release_and_told_with_the_next_beat(stage: Stage) -> None:
    ref = stage.begun()
    first, second, third = (stage.parked(ref, step) for step in "abc")
    assert releasing.reach(stage.link, stage.epoch, high_water=first - 1, limit=10) == ([], 3)
    assert releasing.reach(stage.link, stage.epoch, high_water=second, limit=10) == ([f"{ref}/a", f"{ref}/b"], 3)
    assert releasing.reach(stage.link, stage.epoch, high_water=third, limit=1) == ([f"{ref}/a"], 3)
    assert scripts.beat(stage.link, stage.epoch, []).released == third


def test_released_twice_it_goes_on_once(stage: Stage) -> None:
    ref = stage.begun()
    sequence = stage.parked(ref)
    stage.release(ref, "a", up_to=sequence)
    before = stage.dump()
    assert stage.release(ref, "a", up_to=sequence) == (0, "")
    assert stage.dump() == before


def test_an_outcome_that_is_told_again_waits_for_the_same_place_in_the_stream(stage: Stage) -> None:
    held = stage.running(stage.begun())
    first = stage.arrive(held, durable=True)
    before = stage.dump()
    assert stage.arrive(held, durable=True) == first
    assert stage.dump() == before
    assert isinstance(first, scripts.Parked)
    stage.release(held.ref, "a", up_to=first.sequence)
    after = stage.dump()
    stage.lock(held.ref)  # somebody drains
    assert stage.arrive(held, durable=True) is None, "released: nothing to wait for"
    assert [entry["t"] for _, entry in stage.journaled()].count("step.succeeded") == 1
    assert {name for name, value in stage.dump().items() if value != after.get(name)} <= {
        name for name in after if "default:r1" in name or name.endswith("inboxes")
    }


def test_a_stream_outcome_that_is_told_again_has_no_second_consequence(stage: Stage) -> None:
    held = stage.running(stage.begun())
    first = stage.arrive(held, token="t1")
    second = stage.arrive(held, token="t1")
    assert isinstance(first, scripts.Locked)
    assert isinstance(second, scripts.Locked)
    second = dataclasses.replace(second, at_ms=first.at_ms)
    assert first == second
    assert stage.arrive(held, token="other") is None
    assert len(stage.inbox(held.ref)) == 1
    assert [entry["t"] for _, entry in stage.journaled()].count("step.succeeded") == 1


def test_an_outcome_that_was_withdrawn_before_its_release_stays_withdrawn(stage: Stage) -> None:
    ref = stage.begun()
    sequence = stage.parked(ref)
    stage.decided(ref, writes=[(fields.state("a"), stage.word(ref, "a"), "CANCELLED")])
    assert stage.release(ref, "a", up_to=sequence) == (0, "")
    assert stage.word(ref, "a") == "CANCELLED"
    assert stage.inbox(ref) == []


def test_an_outcome_is_in_the_stream_with_its_place_for_readers(stage: Stage) -> None:
    ref = stage.begun()
    stage.parked(ref)
    told = stage.journaled()[-1][1]
    assert (told["t"], told["r"], told["s"], told["u"]) == ("step.succeeded", str(ref), "a", "ann")
    assert json.loads(told["d"]) == {"output": {"x": 1}}
    feed = stage.feed(ref)
    assert [entry for entry, _ in feed] == [f"1-{number}" for number in range(1, len(feed) + 1)]
    assert feed[-1][1]["type"] == "step.succeeded"
    assert told["q"] == str(len(feed)) == stage.values(ref)[fields.SEQ]


# --- a run's own end --------------------------------------------------------------------------------------------------


def test_a_runs_end_is_told_to_readers_only_when_sql_has_it(stage: Stage) -> None:
    ref = stage.begun()
    sequence = ended(stage, ref)
    keys = stage.link.keys(stage.epoch)
    assert stage.release(ref, "@", up_to=sequence - 1) == (0, "")
    assert feed_types(stage)[-1] == "run.succeeded"
    assert list(stage.scores(keys.runs)) == [str(ref)]

    assert stage.release(ref, "@", up_to=sequence) == (0, "SUCCEEDED")
    assert feed_types(stage)[-1] == "run.finished"
    assert json.loads(stage.feed(ref)[-1][1]["data"]) == {
        "state": "SUCCEEDED",
        "output": {"y": 2},
        "error": None,
    }
    assert stage.scores(keys.runs) == {}
    assert abs(stage.scores(keys.done)[str(ref)] - stage.now_ms() - 60_000) < 2_000


def feed_types(stage: Stage) -> list[str]:
    return [entry["type"] for _, entry in stage.feed(run_ref())]


def test_a_run_that_left_the_board_leaves_nothing(stage: Stage) -> None:
    ref, keys = stage.begun(), stage.link.keys(stage.epoch)
    other = stage.begun("r2")
    departure.forget(stage.link, keys, [ref])
    stage.client.zrem(keys.runs, str(ref))
    assert [name for name in stage.dump() if str(ref).replace("/", ":") in name] == []
    assert stage.values(other)


# --- RING -------------------------------------------------------------------------------------------------------------


def test_a_step_that_is_given_back_is_rung_and_keeps_what_it_recorded(stage: Stage) -> None:
    held = stage.running(stage.begun())
    scripts.record(stage.link, held, key="k", value="1")
    assert stage.rung_again(held) == "1.2"
    assert (stage.word(held.ref, "a"), stage.values(held.ref)["n:a"]) == ("READY|1.2", "2")
    assert stage.leases() == {}
    assert stage.claim(held.ref, "a", "1.2").records == {"k": 1}


def test_a_lost_doorbell_is_rung_again_under_another_number(stage: Stage) -> None:
    ref = stage.begun()
    ring = stage.ready(ref)
    call = scripts.Ringing(
        was=fields.ready(ring), bell=doorbell("a", "1.2", side="R"), count=2, kind="step.rung", sets={"u:a": "1"}
    )
    assert scripts.ring(stage.link, stage.epoch, ref, submitter="ann", ringing=call)
    assert stage.client.lrange(LIST, 0, -1) == ["ding-a-1.1", "ding-a-1.2"]
    assert list(stage.scores(stage.link.keys(stage.epoch).rung(LIST))) == [f"{ref}/a/1.2"]
    assert stage.values(ref)["u:a"] == "1"
    assert isinstance(stage.claim(ref, "a", ring), scripts.Refused)
    assert isinstance(stage.claim(ref, "a", "1.2"), scripts.Claimed)


def test_a_ring_that_resets_a_field_takes_it_away(stage: Stage) -> None:
    held = stage.running(stage.begun())
    stage.client.hset(stage.key(held.ref), fields.deliveries("a"), "2")
    call = ringing(held, "1.2", sets={fields.deliveries("a"): ""})
    assert scripts.ring(stage.link, held.epoch, held.ref, submitter="ann", ringing=call)
    assert fields.deliveries("a") not in stage.values(held.ref)


def test_a_held_step_that_is_rung_is_not_held_any_more(stage: Stage) -> None:
    ref = stage.begun()
    held_step(stage, ref)
    call = scripts.Ringing(was="READY|1.1", bell=doorbell("a", "1.2"), count=2, kind="step.rung")
    assert scripts.ring(stage.link, stage.epoch, ref, submitter="ann", ringing=call)
    assert stage.scores(stage.link.keys(stage.epoch).held) == {}
