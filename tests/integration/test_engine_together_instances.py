"""Steps of loops and items of maps that are runs, have concurrency keys, ask, are undone, or are cached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from convergio.graphflow.engine import reason
from convergio.graphflow.engine.fork import Fork
from convergio.graphflow.engine.inquiry import Inquiry
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.journal.rows import ForkKind
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.ids import RunRef, child_of
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from tests.integration.engine_rig import QUIET, Stage, stage_on

pytestmark = QUIET

KEY = "stripe"


@pytest.fixture
def stage(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Stage]:
    with stage_on(valkey, sqlite_url, tmp_path, include="tests.integration.families") as made:
        yield made


def member(index: int) -> str:
    return instance.member("each", index)


def turns(stage: Stage, count: int = 8) -> None:
    """Everybody does what is left, so many times: workers, journaler, nurse."""
    for _ in range(count):
        stage.answer_all()
        stage.journal()
        stage.service.children.tend()


def on_a_new_board(stage: Stage) -> None:
    """Redis is wiped and made anew, and what is held is rung."""
    stage.wipe()
    stage.rebuild()
    stage.worker.meet_new_board()
    stage.pass_time(11, also=stage.worker.pulse)


# --- keys of items ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_map_ten_thousand_wide_rings_only_what_its_key_grants(stage: Stage) -> None:
    made = WorkflowBuilder("wide", version=1)
    made.map("each", over="input").task("probe.echo", concurrency_key={"key": KEY, "limit": 3})
    ref = stage.submit(made.build(), list(range(10_000)))
    holders, waiters = stage.keys.holders(ref.tenant, KEY), stage.keys.waiters(ref.tenant, KEY)
    assert len(stage.bells()) == 3
    assert (stage.client.zcard(holders), stage.client.zcard(waiters)) == (3, 9_997)
    for done in range(1, 4):
        stage.answer_one()
        assert len(stage.bells()) == 3
        assert (stage.client.zcard(holders), stage.client.zcard(waiters)) == (3, 9_997 - done)


# --- children in loops ------------------------------------------------------------------------------------------------


def calls(rounds: int = 3) -> Workflow:
    """first -> call (a child), so many times; a child is given the round, and what the one before gave."""
    made = WorkflowBuilder("calls", version=1, output={"last": "call.value", "seen": "first.value"})
    first = made.task("first", "probe.echo", value="[iteration, call]")
    loop: dict[str, Any] = {"back_to": "first", "until": f"call.value == {rounds - 1}", "max": 5}
    made.workflow("call", "leaf", after=first, n="first.value[0]", loop=loop)
    return made.build()


def test_every_round_has_a_child_of_its_own(stage: Stage) -> None:
    ref = stage.submit(calls())
    turns(stage)
    children = [stage.row(child_of(ref, name, 1)) for name in ("call", "call#1", "call#2")]
    assert [(row.input, row.parent_step) for row in children] == [
        ({"n": 0}, "call"),
        ({"n": 1}, "call#1"),
        ({"n": 2}, "call#2"),
    ]
    assert stage.row(ref).output == {"last": 2, "seen": [2, {"value": 1}]}
    assert stage.service.children.tend() == 0, "nothing is left to do about any of them"
    view = Inquiry(stage.worker.process.core.link, stage.history).view(ref)
    assert (view.steps["call"].iteration, view.steps["call"].child) == (2, children[2].run_id)


@pytest.mark.parametrize("turned", range(6))
def test_a_loop_of_children_goes_on_after_the_board_was_wiped_at_any_point(stage: Stage, turned: int) -> None:
    ref = stage.submit(calls())
    turns(stage, turned)
    stage.journal()
    on_a_new_board(stage)
    turns(stage)
    assert stage.row(ref).output == {"last": 2, "seen": [2, {"value": 1}]}
    assert len(stage.history.runs("default", workflow="leaf")) == 3


def test_a_child_of_a_later_round_is_cancelled_with_its_run(stage: Stage) -> None:
    made = WorkflowBuilder("calls", version=1)
    first = made.task("first", "probe.echo", value="iteration")
    pick = made.workflow("pick", "leaf", after=first.when("iteration == 0"), n="1")
    hold = made.workflow("hold", "held", after=first.when("iteration == 1"), name="'x'")
    made.task("last", "probe.echo", after=[pick, hold], loop={"back_to": "first", "max": 2})
    ref = stage.submit(made.build())
    turns(stage, 3)
    child = child_of(ref, "hold#1", 1)
    while stage.take() is not None:  # nobody runs it: it would hold
        pass
    assert not stage.row(child).terminal
    stage.worker.process.entrance.cancel(ref, by="ann")
    turns(stage, 3)
    assert (stage.row(ref).state, stage.row(child).state) == (RunState.CANCELLED, RunState.CANCELLED)


# --- concurrency keys -------------------------------------------------------------------------------------------------


def mapped(**each: Any) -> Workflow:
    made = WorkflowBuilder("mapped", version=1)
    made.map("each", over="input").task("probe.picky", value="item", index="index", **each)
    return made.build()


def test_items_with_a_key_of_their_own_wait_for_their_turn(stage: Stage) -> None:
    ref = stage.submit(mapped(concurrency_key="of-{{ item }}"), ["a", "b", "a"])
    states = {name: stage.word(ref, name) for name in (member(0), member(1), member(2))}
    assert [word.state for word in states.values()] == [StepState.READY, StepState.READY, StepState.BLOCKED]
    assert states[member(2)].blocked_on is BlockedOn.LIMIT
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == [[0, "a"], [1, "b"], [2, "a"]]
    assert [key for key in stage.client.keys("*") if ":holders:" in key or ":waiters:" in key] == []


@pytest.mark.parametrize("answered", range(4))
def test_items_with_a_key_go_on_after_the_board_was_wiped(stage: Stage, answered: int) -> None:
    ref = stage.submit(mapped(concurrency_key=KEY), ["a", "b", "c"])
    for _ in range(answered):
        stage.answer_one()
    stage.journal()
    on_a_new_board(stage)
    for _ in range(4):
        running = [name for name, state in stage.states(ref).items() if state in ("READY", "RUNNING")]
        assert len(running) <= 1
        stage.answer_all()
        stage.pass_time(2, also=stage.worker.pulse)
    stage.journal()
    assert stage.row(ref).output == [[0, "a"], [1, "b"], [2, "c"]]


def test_an_item_that_runs_keeps_its_key_on_a_new_board(stage: Stage) -> None:
    ref = stage.submit(mapped(concurrency_key=KEY), ["a", "b"])
    claim = stage.claim(ref, member(0))
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.worker.meet_new_board()
    assert stage.client.zrange(stage.keys.holders("default", KEY), 0, -1) == [f"{ref}/{member(0)}"]
    stage.pass_time(11, also=stage.worker.pulse)
    assert stage.word(ref, member(1)).blocked_on is BlockedOn.LIMIT
    stage.worker.steps.succeed(claim, [0, "a"])
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == [[0, "a"], [1, "b"]]


def test_a_map_that_has_failed_leaves_no_key(stage: Stage) -> None:
    ref = stage.submit(mapped(concurrency_key=KEY), ["bad", "b", "c"])
    stage.answer_all()
    stage.pass_time(2)
    stage.journal()
    assert stage.row(ref).state is RunState.FAILED
    assert [key for key in stage.client.keys("*") if ":holders:" in key or ":waiters:" in key] == []


def test_an_item_is_as_urgent_as_its_map_says(stage: Stage) -> None:
    stage.submit(mapped(priority="low"), ["a"])
    (found,) = [name for name in stage.queue_lists() if stage.client.llen(name)]
    assert found.endswith("6"), "its run has begun"


def test_who_holds_a_key_is_named_with_its_item_and_its_round(stage: Stage) -> None:
    held = stage.submit(mapped(concurrency_key=KEY), ["a"])
    made = WorkflowBuilder("rounds", version=1)
    first = made.task("first", "probe.echo", value="iteration")
    made.task("pay", "probe.echo", after=first, concurrency_key=f"{KEY}-{{{{ iteration }}}}", loop=_twice())
    ref = stage.submit(made.build())
    stage.claim(held, member(0))
    other = stage.submit(mapped(concurrency_key=f"{KEY}-1"), ["a"])
    stage.claim(other, member(0))
    stage.answer_all()
    view = Inquiry(stage.worker.process.core.link, stage.history).view(ref)
    assert view.steps["pay"].label == "pay#1"
    assert f"key '{KEY}-1'; held by {other.run}/each[0]" in reason.of_step(view, view.steps["pay"])


def _twice() -> dict[str, Any]:
    return {"back_to": "first", "max": 2}


# --- asking, undoing, caching -----------------------------------------------------------------------------------------


def test_a_step_asks_in_the_round_it_failed_in(stage: Stage) -> None:
    made = WorkflowBuilder("asks", version=1)
    first = made.task("first", "probe.echo", value="iteration")
    made.task("pay", "probe.echo", after=first, value="first.value", on_failure="ask", loop=_twice())
    ref = stage.submit(made.build())
    stage.worker.steps.succeed(stage.claim(ref, "first"), {"value": 0})
    stage.worker.steps.succeed(stage.claim(ref, "pay"), {"value": 0})
    stage.worker.steps.succeed(stage.claim(ref, "first#1"), {"value": 1})
    stage.worker.steps.fail(stage.claim(ref, "pay#1"), errors.Permanent("no"))
    assert stage.word(ref, "pay#1").blocked_on is BlockedOn.SIGNAL
    stage.journal()
    on_a_new_board(stage)
    assert stage.word(ref, "pay#1").blocked_on is BlockedOn.SIGNAL
    stage.worker.process.entrance.signal(ref, name="pay", data={"decision": "retry"}, by="ann")
    again = stage.claim(ref, "pay#1")
    assert (again.held.attempt, dict(again.held.outputs)) == (2, {"first#1": {"value": 1}})
    stage.worker.steps.succeed(again, {"value": 1})
    stage.journal()
    assert stage.row(ref).state is RunState.SUCCEEDED


def trip(pay: str = "probe.raises") -> Workflow:
    """quote, three times -> book -> pay, which fails; book is undone with what the last quote was."""
    made = WorkflowBuilder("trip", version=1)
    loop: dict[str, Any] = {"back_to": "quote", "max": 3}
    quote = made.task("quote", "probe.echo", value="iteration", loop=loop)
    back = {"task": "probe.echo", "with": {"value": "[quote.value, book.value]"}}
    book = made.task("book", "probe.echo", after=quote, value="quote.value", compensate=back)
    given = {"kind": "'permanent of an exception'"} if pay == "probe.raises" else {}
    made.task("pay", pay, after=book, on_failure="compensate", with_=given)
    return made.build()


@pytest.mark.parametrize("wiped", [False, True])
def test_an_undo_sees_the_last_round_of_a_loop(stage: Stage, wiped: bool) -> None:
    ref = stage.submit(trip())
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).state is RunState.COMPENSATING
    if wiped:
        on_a_new_board(stage)
    turns(stage, 3)
    assert stage.outcomes(ref)["undo:book"].output == {"value": [2, 2]}
    assert (stage.row(ref).error or {})["compensated"] == ["book"]


def test_what_was_undone_after_a_loop_is_done_again_by_a_retry_and_the_loop_is_not(stage: Stage) -> None:
    ref = stage.submit(trip())
    turns(stage, 4)
    made = stage.worker.process.entrance.fork(Fork(ref=ref, kind=ForkKind.RETRY))
    again = RunRef(tenant=ref.tenant, run=made.run.run_id)
    turns(stage, 4)
    rows = stage.outcomes(again)
    kept = {name for name, row in rows.items() if row.reused_from == ref.run}
    assert kept == {"quote", "quote#1", "quote#2"}
    assert rows["undo:book"].output == {"value": [2, 2]}, "the retry failed too, and was undone"


def test_a_loop_that_was_exhausted_is_tried_again_when_what_it_stands_on_was_undone(stage: Stage) -> None:
    made = WorkflowBuilder("trip", version=1, on_failure="compensate")
    book = made.task("book", "probe.echo", value="1", compensate="probe.echo")
    loop: dict[str, Any] = {"back_to": "ask", "max": 2, "until": "ask.value == 3"}
    made.task("ask", "probe.echo", after=book, value="book.value", loop=loop)
    ref = stage.submit(made.build())
    turns(stage, 4)
    error = stage.row(ref).error or {}
    assert (error["code"], error["compensated"]) == ("LOOP_EXHAUSTED", ["book"])
    again = stage.worker.process.entrance.fork(Fork(ref=ref, kind=ForkKind.RETRY))
    assert again.reused == 0


def test_what_a_loop_stands_on_is_kept_and_a_retry_of_it_alone_is_refused(stage: Stage) -> None:
    made = WorkflowBuilder("ask", version=1)
    made.task("ask", "probe.echo", value="1", loop={"back_to": "ask", "max": 2, "until": "ask.value == 3"})
    ref = stage.submit(made.build())
    turns(stage, 2)
    with pytest.raises(errors.NothingToRetry):
        stage.worker.process.entrance.fork(Fork(ref=ref, kind=ForkKind.RETRY))


def test_a_call_that_was_made_for_an_item_or_in_a_round_is_not_made_again(stage: Stage) -> None:
    first = stage.submit(mapped(cache="1h"), ["a", "b"])
    turns(stage, 2)
    ref = stage.submit(mapped(cache="1h"), ["a", "c"])
    turns(stage, 2)
    rows = stage.outcomes(ref)
    assert [rows[member(index)].cached_from for index in range(2)] == [f"{first.run}/each[0]", None]
    assert stage.row(ref).output == [[0, "a"], [1, "c"]]
