"""Concurrency keys: never more steps than the limit, everybody's turn comes, and nothing is lost with a store."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from convergio.graphflow.board import fields, turns
from convergio.graphflow.engine.fork import Fork
from convergio.graphflow.engine.inquiry import Inquiry
from convergio.graphflow.engine.limits import Limits
from convergio.graphflow.engine.reason import of_step
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.journal.rows import ForkKind
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from tests.integration.engine_rig import QUIET, Stage

pytestmark = QUIET

KEY = "stripe"


def single(key: str = KEY, limit: int = 1, **more: Any) -> Workflow:
    """One step with a concurrency key."""
    made = WorkflowBuilder("single", version=1)
    made.task("only", "probe.echo", value="1", concurrency_key={"key": key, "limit": limit}, **more)
    return made.build()


def wide(count: int, limit: int) -> Workflow:
    """So many steps of one key at once."""
    made = WorkflowBuilder("wide", version=1)
    for number in range(count):
        made.task(f"s{number}", "probe.echo", value="1", concurrency_key={"key": KEY, "limit": limit})
    return made.build()


def holders(stage: Stage, key: str = KEY, tenant: str = "default") -> int:
    return int(stage.client.zcard(stage.keys.holders(tenant, key)))


def waiters(stage: Stage, key: str = KEY) -> int:
    return int(stage.client.zcard(stage.keys.waiters("default", key)))


def active(stage: Stage, *refs: RunRef) -> list[str]:
    """The runs that have a step that is rung or runs."""
    states = ("READY", "RUNNING")
    return [ref.run for ref in refs if any(state in states for state in stage.states(ref).values())]


def refs_of(stage: Stage, count: int, **more: Any) -> list[RunRef]:
    return [stage.submit(single(**more)) for _ in range(count)]


# --- turns ------------------------------------------------------------------------------------------------------------


def test_of_the_steps_of_one_key_only_the_limit_is_rung_and_the_others_wait_without_a_message(stage: Stage) -> None:
    refs = refs_of(stage, 5, limit=2)
    assert active(stage, *refs) == [ref.run for ref in refs[:2]]
    assert len(stage.bells()) == 2
    assert [stage.word(ref, "only").blocked_on for ref in refs[2:]] == [BlockedOn.LIMIT] * 3
    assert (holders(stage), waiters(stage), stage.client.zcard(stage.keys.leases)) == (2, 3, 0)


def test_who_came_first_is_next(stage: Stage) -> None:
    refs = refs_of(stage, 4)
    order: list[str] = []
    for _ in refs:
        (run,) = active(stage, *refs)
        order.append(run)
        stage.answer_one()
    assert order == [ref.run for ref in refs]
    assert (holders(stage), waiters(stage)) == (0, 0)


def test_ten_thousand_waiting_steps_ring_only_what_their_key_grants(stage: Stage) -> None:
    ref = stage.submit(wide(10_000, limit=3))
    assert len(stage.bells()) == 3
    assert (holders(stage), waiters(stage)) == (3, 9_997)
    for done in range(1, 6):
        bell = stage.take()
        assert bell is not None
        stage.worker.answer(bell)
        assert len(stage.bells()) == 3
        assert (holders(stage), waiters(stage)) == (3, 9_997 - done)
    stage.worker.process.entrance.cancel(ref, by="boss")
    assert (holders(stage), waiters(stage)) == (0, 0)


def test_a_key_may_come_from_the_input_and_from_earlier_results(stage: Stage) -> None:
    made = WorkflowBuilder("accounts", version=1)
    first = made.task("first", "probe.echo", value="input.account")
    made.task("second", "probe.echo", after=first, value="1", concurrency_key="a-{{ first.value }}-{{ input.account }}")
    refs = [stage.submit(made.build(), {"account": account}) for account in ("x", "x", "y")]
    for ref, account in zip(refs, "xxy", strict=True):
        stage.worker.steps.succeed(stage.claim(ref, "first"), {"value": account})
    assert [stage.word(ref, "second").state for ref in refs] == [StepState.READY, StepState.BLOCKED, StepState.READY]
    assert stage.values(refs[0])[fields.key("second")] == "a-x-x"


def test_tenants_do_not_share_a_key(stage: Stage) -> None:
    refs = [stage.submit(single(), tenant=tenant) for tenant in ("default", "other")]
    assert len(active(stage, *refs)) == 2
    assert holders(stage, tenant="other") == 1


@pytest.mark.parametrize("key", ["{{ input.nothing }}", "{{ input.long }}", "{{ input.empty }}"])
def test_a_key_that_cannot_be_made_fails_the_step(stage: Stage, key: str) -> None:
    ref = stage.submit(single(key), {"long": "x" * 300, "empty": ""})
    stage.journal()
    row = stage.row(ref)
    assert row.state is RunState.FAILED
    assert (row.error or {})["code"] == "EXPRESSION_FAILED"


def test_of_different_limits_each_counts_for_its_own_step(stage: Stage) -> None:
    narrow, wider = stage.submit(single(limit=1)), stage.submit(single(limit=2))
    assert len(active(stage, narrow, wider)) == 2
    last = stage.submit(single(limit=2))
    assert active(stage, last) == []


# --- every way in which a key becomes free ----------------------------------------------------------------------------


def fails(stage: Stage, ref: RunRef) -> None:
    stage.worker.steps.fail(stage.claim(ref, "only"), errors.Permanent("no"))


def is_retried(stage: Stage, ref: RunRef) -> None:
    stage.worker.steps.fail(stage.claim(ref, "only"), errors.StepFailed("once more"))


def is_deferred(stage: Stage, ref: RunRef) -> None:
    stage.worker.steps.defer(stage.claim(ref, "only"), seconds=5, reason="later")


def is_cancelled_before_its_claim(stage: Stage, ref: RunRef) -> None:
    stage.worker.process.entrance.cancel(ref, by="boss")


def is_cancelled_while_it_runs(stage: Stage, ref: RunRef) -> None:
    stage.claim(ref, "only")
    stage.worker.process.entrance.cancel(ref, by="boss")


def is_put_in_quarantine(stage: Stage, ref: RunRef) -> None:
    for _ in range(5):
        stage.claim(ref, "only")
        stage.worker.claims._claims.clear()  # the worker dies
        stage.pass_time(14)


def waits_too_long_for_a_worker(stage: Stage, ref: RunRef) -> None:
    stage.pass_time(31)


WAYS = [
    *[fails, is_retried, is_deferred, is_cancelled_before_its_claim, is_cancelled_while_it_runs],
    *[is_put_in_quarantine, waits_too_long_for_a_worker],
]


@pytest.mark.parametrize("way", WAYS)
def test_the_next_one_is_rung_when_the_one_before(stage: Stage, way: Any) -> None:
    more: dict[str, Any] = {"retry": {"max": 1, "backoff": 5}, "timeout": {"queue": 30}}
    first, second, third = refs_of(stage, 3, **more)
    way(stage, first)
    assert active(stage, first, second, third) == [second.run]


def test_a_step_that_is_given_back_or_lost_keeps_its_turn(stage: Stage) -> None:
    first, second = refs_of(stage, 2)
    stage.worker.steps.give_back(stage.claim(first, "only"))
    assert active(stage, first, second) == [first.run]
    stage.claim(first, "only")
    stage.worker.claims._claims.clear()
    stage.pass_time(14)
    assert (active(stage, first, second), stage.word(first, "only").rest) == ([first.run], "1.3")


def test_a_retry_waits_for_its_turn_again(stage: Stage) -> None:
    first, second = refs_of(stage, 2, retry={"max": 1, "backoff": 1})
    is_retried(stage, first)
    claim = stage.claim(second, "only")
    stage.pass_time(3)
    assert stage.word(first, "only").blocked_on is BlockedOn.LIMIT
    stage.worker.steps.succeed(claim, {})
    assert active(stage, first) == [first.run]
    assert stage.claim(first, "only").held.attempt == 2


def test_time_in_line_is_no_time_in_the_queue(stage: Stage) -> None:
    """The patience of a step with its queue begins when it is rung."""
    first, second = refs_of(stage, 2, timeout={"queue": 30})
    claim = stage.claim(first, "only")
    stage.pass_time(60, also=stage.worker.pulse)
    stage.worker.steps.succeed(claim, {})
    stage.pass_time(20)
    assert stage.word(second, "only").state is StepState.READY
    stage.pass_time(11)
    assert stage.word(second, "only").state is StepState.FAILED


# --- whoever dies -----------------------------------------------------------------------------------------------------


def test_what_a_dead_drainer_did_not_ask_for_is_asked_for_by_the_sweeper(stage: Stage) -> None:
    with mock.patch.object(Limits, "follow"):
        refs = refs_of(stage, 2)
    assert active(stage, *refs) == []
    stage.pass_time(1)
    assert len(active(stage, *refs)) == 1


def test_what_was_granted_and_not_rung_is_rung_by_the_sweeper(stage: Stage) -> None:
    first, second = refs_of(stage, 2)
    with mock.patch.object(Limits, "serve"):
        stage.worker.steps.succeed(stage.claim(first, "only"), {})
    assert active(stage, first, second) == []
    stage.pass_time(1)
    assert active(stage, first, second) == [second.run]


def test_what_a_dead_drainer_did_not_leave_is_left_by_the_sweeper(stage: Stage) -> None:
    first, second = refs_of(stage, 2)
    with mock.patch.object(Limits, "follow"):
        stage.worker.process.entrance.cancel(first, by="boss")
    assert active(stage, first, second) == []
    stage.pass_time(1)
    assert active(stage, first, second) == [second.run]


def test_a_step_that_asks_again_before_the_sweeper_comes_keeps_what_it_is_granted(stage: Stage) -> None:
    first, second = refs_of(stage, 2)
    door = stage.worker.process.entrance
    door.pause(first, by="boss")
    with mock.patch.object(Limits, "follow"):
        stage.answer_one()  # its doorbell is refused; who was to leave the key for it has died
    door.resume(first, by="boss")
    assert active(stage, first, second) == [first.run]
    stage.pass_time(1)
    assert (active(stage, first, second), holders(stage)) == ([first.run], 1)
    stage.answer_all()
    assert (holders(stage), waiters(stage)) == (0, 0)


def test_to_leave_what_was_left_takes_it_from_nobody(stage: Stage) -> None:
    (ref,) = refs_of(stage, 1)
    epoch = stage.service.link.epoch()
    turns.leave(stage.service.link, epoch, ref, key=KEY, leaving=[("only", 1)])  # late: it was granted since
    assert holders(stage) == 1
    stage.client.zadd(stage.keys.timers, {f"{ref}/only/LEAVE": 1})
    turns.leave(stage.service.link, epoch, ref, key=KEY, leaving=[("only", 1)])
    assert holders(stage) == 0


# --- pause ------------------------------------------------------------------------------------------------------------


def test_a_paused_run_keeps_its_key_from_nobody_and_gets_in_line_when_it_goes_on(stage: Stage) -> None:
    first, second, third = refs_of(stage, 3)
    door = stage.worker.process.entrance
    for ref in (first, second):
        door.pause(ref, by="boss")
    stage.answer_one()  # the first one's doorbell is refused, and so is the second's, which is rung then
    stage.answer_one()
    assert active(stage, first, second, third) == [third.run]
    door.resume(first, by="boss")
    assert active(stage, first, second, third) == [third.run]
    stage.answer_all()
    stage.journal()
    assert [stage.row(ref).state for ref in (first, second, third)] == ["SUCCEEDED", "PAUSED", "SUCCEEDED"]
    door.resume(second, by="boss")
    stage.answer_all()
    stage.journal()
    assert stage.row(second).state is RunState.SUCCEEDED


# --- the board is gone ------------------------------------------------------------------------------------------------


def test_across_a_wipe_who_runs_keeps_the_key_and_the_others_their_turns(stage: Stage) -> None:
    refs = refs_of(stage, 4)
    claim = stage.claim(refs[0], "only")
    stage.journal()
    stage.wipe()
    stage.rebuild()
    assert (holders(stage), stage.bells()) == (0, []), "whoever runs has a lease's time to say so"
    newcomer = stage.submit(single())
    stage.worker.meet_new_board()
    assert (holders(stage), stage.word(refs[0], "only").state) == (1, StepState.RUNNING)
    stage.pass_time(10, also=stage.worker.pulse)
    assert active(stage, *refs, newcomer) == [refs[0].run]
    stage.worker.steps.succeed(claim, {})
    order: list[str] = []
    while running := active(stage, *refs, newcomer):
        order += running
        stage.answer_one()
    assert order == [ref.run for ref in (*refs[1:], newcomer)]
    stage.journal()
    assert {stage.row(ref).state for ref in refs} == {RunState.SUCCEEDED}


def test_across_a_wipe_that_kills_the_workers_the_keys_are_granted_anew(stage: Stage) -> None:
    refs = refs_of(stage, 5, limit=2)
    stage.claim(refs[0], "only")
    stage.worker.claims._claims.clear()
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.pass_time(5)
    assert active(stage, *refs) == []
    stage.pass_time(3)
    assert active(stage, *refs) == [ref.run for ref in refs[:2]]
    stage.play(*refs)


def test_who_comes_back_after_the_keys_were_granted_anew_is_refused(stage: Stage) -> None:
    first, second = refs_of(stage, 2)
    claim = stage.claim(first, "only")
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.age(20)  # nobody has swept yet: the steps are still held, but the time of who ran is over
    stage.client.zadd(stage.keys.waiters("default", KEY), {"@": -1})
    stage.worker.meet_new_board()
    assert claim.lost.is_set()
    stage.play(first, second)


def test_a_retried_run_waits_for_its_turn(stage: Stage) -> None:
    made = WorkflowBuilder("two", version=1)
    first = made.task("first", "probe.echo", value="1")
    made.task("only", "probe.echo", after=first, value="1", concurrency_key=KEY)
    failed = stage.submit(made.build())
    stage.worker.steps.succeed(stage.claim(failed, "first"), {})
    fails(stage, failed)
    stage.journal()
    holder = stage.submit(single())
    fork = stage.worker.process.entrance.fork(Fork(ref=failed, submitter="ann", kind=ForkKind.RETRY))
    again = RunRef(tenant="default", run=fork.run.run_id)
    assert active(stage, holder, again) == [holder.run]
    stage.worker.steps.succeed(stage.claim(holder, "only"), {})
    assert active(stage, again) == [again.run]


# --- why --------------------------------------------------------------------------------------------------------------


def test_why_names_the_key_who_holds_it_and_how_many_come_first(stage: Stage) -> None:
    refs = refs_of(stage, 3)
    view = Inquiry(stage.service.link, stage.history).view(refs[2])
    said = of_step(view, view.steps["only"])
    assert "LIMIT, 1 at once may have concurrency key 'stripe'" in said
    assert f"held by {refs[0].run}/only; 1 are before it" in said
