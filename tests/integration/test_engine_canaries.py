"""P5: lost, or only queued? A doorbell is rung again only when a canary that was pushed after it has been consumed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from convergio.graphflow.board import fields
from convergio.graphflow.engine.bell import FRESH, LISTS
from convergio.graphflow.engine.canaries import UNCLAIMED, Canary
from convergio.graphflow.engine.submission import board_time
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from tests.integration.engine_rig import QUIET, Doorbell, Stage, chain

pytestmark = QUIET


def watch(stage: Stage, queue: str = "steps", priority: int = FRESH) -> Canary:
    """One watch; the canary of a list as it was seen."""
    return one_of(stage.service.canaries.watch(), queue, priority)


def canary_of(stage: Stage, priority: int = FRESH) -> Canary:
    return one_of(stage.service.canaries.look(stage.service.link.epoch()), "steps", priority)


def one_of(seen: Sequence[Canary], queue: str, priority: int) -> Canary:
    return next(canary for canary in seen if (canary.queue, canary.priority) == (queue, priority))


def take_step(stage: Stage) -> Doorbell:
    """The next doorbell that is no canary's; canaries before it are eaten."""
    while True:
        bell = stage.take()
        assert bell is not None
        if bell.headers["task"] != "convergio.canary":
            return bell
        stage.worker.answer(bell)


def eat(stage: Stage) -> None:
    """Every canary that waits is eaten, and every doorbell before it is dropped, as by a worker that dies."""
    while (bell := stage.take()) is not None:
        if bell.headers["task"] == "convergio.canary":
            stage.worker.answer(bell)


def proven(stage: Stage) -> None:
    """A canary is pushed, eaten, and long enough ago for a popped doorbell to come to its claim."""
    stage.age(0.1)
    watch(stage)
    stage.age(0.1)
    eat(stage)
    stage.age(2.5)
    watch(stage)


def unclaimed(stage: Stage, ref: RunRef) -> int:
    return int(stage.values(ref).get(fields.unclaimed("first"), 0))


def lost(stage: Stage, ref: RunRef) -> int:
    """The step's doorbell is dropped, until that is proven; after how many canaries. One in the same millisecond needs
    a second one."""
    before = unclaimed(stage, ref), stage.word(ref, "first").text
    for count in range(1, 10):
        eat(stage)
        proven(stage)
        if (unclaimed(stage, ref), stage.word(ref, "first").text) != before:
            return count
    raise AssertionError(f"{before} is not proven lost")


def rings(stage: Stage, ref: RunRef) -> str:
    return stage.values(ref)[fields.rings("first")]


# --- lost -------------------------------------------------------------------------------------------------------------


def test_a_dropped_doorbell_is_rung_again_at_the_consuming_end(stage: Stage) -> None:
    ref = stage.submit(chain())
    stage.take()
    proven(stage)
    assert stage.word(ref, "first").rest == "1.1"
    assert stage.values(ref)[fields.unclaimed("first")] == "1"
    assert stage.service.sweeper.repairs["rerung"] == 1
    bell = take_step(stage)
    assert (bell.step, bell.args[2], bell.queue_list) == ("first", "1.1", "steps\x06\x163")
    stage.journal()
    assert stage.events(ref, "step.rung") == [{"why": "lost"}]


@pytest.mark.parametrize("slow_first", [True, False])
def test_a_doorbell_that_was_only_slow_is_as_good_as_the_one_rung_after_it(stage: Stage, slow_first: bool) -> None:
    """Whichever comes first has the claim: a machine too slow for the proof goes on, and nothing runs twice."""
    ref = stage.submit(chain())
    slow = take_step(stage)
    proven(stage)
    again = take_step(stage)
    assert again.args[2] == slow.args[2]
    first, second = (slow, again) if slow_first else (again, slow)
    assert stage.ring(ref, "first", first.args[2]) is not None
    assert stage.ring(ref, "first", second.args[2]) is None


def test_every_doorbell_that_is_lost_has_the_next_one_wait_longer_for_its_proof(stage: Stage) -> None:
    ref = stage.submit(chain())
    waited = [lost(stage, ref) for _ in range(UNCLAIMED - 1)]
    assert waited == sorted(waited)
    assert waited[-1] >= waited[0] + 2, waited


def test_a_claim_ends_the_count_of_lost_doorbells(stage: Stage) -> None:
    ref = stage.submit(chain())
    for _ in range(2):
        lost(stage, ref)
    assert unclaimed(stage, ref) == 2
    stage.claim(ref, "first")
    assert fields.unclaimed("first") not in stage.values(ref)


def test_doorbells_that_get_lost_again_and_again_put_the_step_in_quarantine(stage: Stage) -> None:
    ref = stage.submit(chain())
    for number in range(1, UNCLAIMED):
        lost(stage, ref)
        assert unclaimed(stage, ref) == number
    assert stage.word(ref, "first").state is StepState.READY
    lost(stage, ref)
    assert stage.word(ref, "first").state is StepState.QUARANTINED
    stage.journal()
    row = stage.row(ref)
    assert row.state is RunState.FAILED
    assert row.error is not None
    assert row.error["code"] == "QUARANTINED"
    assert f"{UNCLAIMED} doorbells in a row" in row.error["message"]


# --- only queued ------------------------------------------------------------------------------------------------------


def test_a_doorbell_that_waits_is_left_alone_however_old_it_is(stage: Stage) -> None:
    """No worker serves the queue for a day: nothing is proven, nothing is counted."""
    ref = stage.submit(chain())
    for _ in range(5):
        watch(stage)
        stage.age(3600)
    assert rings(stage, ref) == "1"
    assert fields.unclaimed("first") not in stage.values(ref)
    assert [step for step, _ in stage.bells()].count("first") == 1


def test_a_doorbell_behind_the_canary_is_left_alone(stage: Stage) -> None:
    """It was rung after the canary was pushed: that the canary was consumed says nothing about it."""
    stage.submit(chain())
    watch(stage)
    stage.age(0.1)
    later = stage.submit(chain())
    eat_only_canaries(stage)
    stage.age(2.5)
    watch(stage)
    assert rings(stage, later) == "1"


def eat_only_canaries(stage: Stage) -> None:
    """The canaries are eaten, and all doorbells are lost without a trace in the rung ones' order."""
    kept = []
    while (bell := stage.take()) is not None:
        if bell.headers["task"] == "convergio.canary":
            stage.worker.answer(bell)
        else:
            kept.append(bell)
    assert kept


def test_a_popped_doorbell_has_two_seconds_to_its_claim(stage: Stage) -> None:
    ref = stage.submit(chain())
    stage.take()
    stage.age(0.1)
    watch(stage)
    eat(stage)
    stage.age(1.5)
    watch(stage)
    assert unclaimed(stage, ref) == 0
    stage.age(0.7)
    watch(stage)
    assert unclaimed(stage, ref) == 1


def test_claimed_and_ended_steps_are_not_rung_again(stage: Stage) -> None:
    running, ended, cancelled = (stage.submit(chain()) for _ in range(3))
    stage.claim(running, "first")
    stage.worker.steps.succeed(stage.claim(ended, "first"), {})
    stage.worker.process.entrance.cancel(cancelled, by="boss")
    eat(stage)
    proven(stage)
    assert [rings(stage, ref) for ref in (running, ended, cancelled)] == ["1", "1", "1"]
    assert stage.client.zcard(stage.keys.rung("steps\x06\x166")) == 0, "what is proven needs no second look"


# --- the canary itself ------------------------------------------------------------------------------------------------


def test_a_canary_that_got_lost_is_pushed_anew(stage: Stage) -> None:
    stage.submit(chain())
    watch(stage)
    first = canary_of(stage)
    while stage.take():
        pass
    stage.age(1)
    watch(stage)
    assert canary_of(stage).id == first.id, "its worker may be about to report it"
    stage.age(2)
    watch(stage)
    assert canary_of(stage).id not in ("", first.id)


def test_a_canary_in_a_full_queue_is_not_pushed_twice(stage: Stage) -> None:
    stage.submit(chain())
    for _ in range(5):
        watch(stage)
        stage.age(60)
    assert stage.client.llen("steps\x06\x166") == 2, "the step and its canary"


def test_only_the_lists_own_canary_counts(stage: Stage) -> None:
    """One that was taken for lost, and comes after the next was pushed, proves nothing."""
    stage.submit(chain())
    stage.take()
    watch(stage)
    old = stage.take()
    assert old is not None
    stage.age(3)
    watch(stage)
    stage.worker.answer(old)
    assert canary_of(stage).eaten_ms is None


def test_a_canary_tells_how_long_its_queue_takes(stage: Stage) -> None:
    stage.submit(chain())
    watch(stage)
    stage.age(3)
    assert 3_000 <= watch(stage).wait_ms(board_time(stage.service.link)) <= 5_000
    eat(stage)
    assert 3_000 <= canary_of(stage).wait_ms(0) <= 5_000


def test_every_list_of_every_queue_has_its_canary(stage: Stage) -> None:
    stage.age(0)
    seen = {(canary.queue, canary.priority) for canary in stage.service.canaries.watch()}
    assert seen == {(queue, prio) for queue in ("steps", "turns", "tools", "control") for prio in LISTS}


def test_a_new_board_begins_with_new_canaries(stage: Stage) -> None:
    """The old board's canary, eaten on the new one, says nothing about the new one's doorbells."""
    ref = stage.submit(chain())
    watch(stage)
    old = next(bell for bell in iter(stage.take, None) if bell.headers["task"] == "convergio.canary")
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.pass_time(7)
    while stage.take():
        pass
    stage.worker.meet_new_board()
    stage.worker.answer(old)
    stage.age(2.5)
    watch(stage)
    assert rings(stage, ref) == "2", "the hold's ring, and no other"
