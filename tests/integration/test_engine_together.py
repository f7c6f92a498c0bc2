"""Concurrency keys and priorities where runs ask, are undone, or are steps of other runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from convergio.graphflow.board import fields
from convergio.graphflow.engine.pressure import Limits, Pressure
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef, child_of
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from tests.integration import families
from tests.integration.engine_rig import QUIET, Stage, stage_on

pytestmark = QUIET

KEY = "stripe"


@pytest.fixture
def stage(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Stage]:
    with stage_on(valkey, sqlite_url, tmp_path, include="tests.integration.families") as made:
        yield made


def single() -> Workflow:
    made = WorkflowBuilder("single", version=1)
    made.task("only", "probe.echo", value="1", concurrency_key=KEY)
    return made.build()


def asks(**more: Any) -> Workflow:
    """first -> pay, which reads what first said, and which asks when it fails."""
    made = WorkflowBuilder("asks", version=1, output={"paid": "pay.value"})
    first = made.task("first", "probe.echo", value="'gold'")
    given: dict[str, Any] = {"value": "first.value", "concurrency_key": KEY, "on_failure": "ask", **more}
    made.task("pay", "probe.echo", after=first, **given)
    return made.build()


def trip() -> Workflow:
    """flight -> pay, and beside it hold, of one key; when pay fails, flight is undone."""
    made = WorkflowBuilder("trip", version=1, on_failure="compensate")
    flight = made.task("flight", "probe.echo", value="'LH1'", compensate="probe.echo")
    made.task("hold", "probe.echo", after=flight, value="1", concurrency_key=KEY)
    made.task("line", "probe.echo", after=flight, value="1", concurrency_key=KEY)
    made.task("pay", "probe.echo", after=flight, value="1")
    return made.build()


def is_free(stage: Stage) -> bool:
    """Whether nobody has the key, or waits for it."""
    keys = (stage.keys.holders("default", KEY), stage.keys.waiters("default", KEY))
    return not any(stage.client.zcard(key) for key in keys)


def has_failed(stage: Stage, ref: RunRef) -> None:
    stage.worker.steps.fail(stage.claim(ref, "pay"), errors.Permanent("no"))


def is_put_in_quarantine(stage: Stage, ref: RunRef) -> None:
    for _ in range(5):
        stage.claim(ref, "pay")
        stage.worker.claims._claims.clear()  # the worker dies
        stage.pass_time(14)


def waits_too_long_for_a_worker(stage: Stage, ref: RunRef) -> None:
    stage.pass_time(31)


WAYS = [has_failed, is_put_in_quarantine, waits_too_long_for_a_worker]


def asking(stage: Stage, way: Any = has_failed) -> RunRef:
    ref = stage.submit(asks(timeout={"queue": 30}))
    stage.worker.steps.succeed(stage.claim(ref, "first"), {"value": "gold"})
    way(stage, ref)
    assert stage.word(ref, "pay").blocked_on is BlockedOn.SIGNAL
    return ref


def answer(stage: Stage, ref: RunRef, said: str) -> None:
    stage.worker.process.entrance.signal(ref, name="pay", data={"decision": said}, by="ann")


def settle(stage: Stage, ref: RunRef) -> None:
    for _ in range(6):
        stage.pass_time(7)
        stage.answer_all()
        stage.journal()
    assert stage.row(ref).terminal


@pytest.mark.parametrize("way", WAYS)
def test_who_asks_keeps_a_key_from_nobody_and_waits_for_it_again_when_told_to_retry(stage: Stage, way: Any) -> None:
    ref = asking(stage, way)
    assert is_free(stage)
    other = stage.submit(single())
    claim = stage.claim(other, "only")
    answer(stage, ref, "retry")
    assert stage.word(ref, "pay").blocked_on is BlockedOn.LIMIT
    stage.worker.steps.succeed(claim, {})
    again = stage.claim(ref, "pay")
    assert (again.held.attempt, dict(again.held.outputs)) == (2, {"first": {"value": "gold"}})
    stage.worker.steps.succeed(again, {"value": "paid"})
    stage.journal()
    assert stage.row(ref).output == {"paid": "paid"}
    assert is_free(stage)


@pytest.mark.parametrize("answered", [False, True])
def test_across_a_wipe_who_asks_has_no_key_and_who_was_answered_waits_for_it(stage: Stage, answered: bool) -> None:
    ref = asking(stage)
    other = stage.submit(single())
    claim = stage.claim(other, "only")
    if answered:
        answer(stage, ref, "retry")
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.worker.meet_new_board()
    if not answered:
        assert stage.word(ref, "pay").blocked_on is BlockedOn.SIGNAL
        answer(stage, ref, "retry")
    stage.pass_time(10, also=stage.worker.pulse)
    assert stage.word(ref, "pay").blocked_on is BlockedOn.LIMIT
    stage.worker.steps.succeed(claim, {})
    assert stage.claim(ref, "pay").held.attempt == 2


@pytest.mark.parametrize("wiped", [False, True])
def test_a_run_that_is_undone_has_no_key_and_waits_for_none(stage: Stage, wiped: bool) -> None:
    ref = stage.submit(trip())
    stage.worker.steps.succeed(stage.claim(ref, "flight"), {"value": "LH1"})
    stage.claim(ref, "hold")
    assert stage.word(ref, "line").blocked_on is BlockedOn.LIMIT
    other = stage.submit(single())
    stage.worker.steps.fail(stage.claim(ref, "pay"), errors.Permanent("no"))
    assert stage.word(other, "only").state is StepState.READY, "it is the next one, though nothing is undone yet"
    stage.journal()
    assert stage.values(ref)[fields.STATE] == RunState.COMPENSATING
    if wiped:
        stage.wipe()
        stage.rebuild()
        stage.worker.meet_new_board()
        waiting = stage.client.zrange(stage.keys.waiters("default", KEY), 0, -1)
        assert waiting == ["@", f"{other}/only/1"], "held back, for who may run still"
    settle(stage, ref)
    assert stage.outcomes(ref)["undo:flight"].state is StepState.SUCCEEDED
    assert stage.row(other).state is RunState.SUCCEEDED
    assert is_free(stage)


def test_what_is_undone_is_undone_though_the_journal_is_behind(stage: Stage) -> None:
    """An undo waits for SQL anyway: to hold it back would only keep the run from its end."""
    ref = stage.submit(trip())
    stage.worker.steps.succeed(stage.claim(ref, "flight"), {"value": "LH1"})
    stage.worker.steps.fail(stage.claim(ref, "pay"), errors.Permanent("no"))
    stage.journal()
    stage.worker.steps.pressure = Pressure(stage.worker.process.core.link, Limits(seconds=0.000_001))
    other = stage.submit(single())
    stage.answer_all()
    assert stage.word(other, "only").state is StepState.READY
    assert stage.word(ref, "undo:flight").blocked_on is BlockedOn.JOURNAL


def test_a_child_is_as_urgent_as_its_run(stage: Stage) -> None:
    ref = stage.submit(families.parent(), priority="low")
    stage.answer_all()
    stage.journal()
    stage.service.children.tend()
    assert stage.row(child_of(ref, "call", 1)).priority == "low"
    (found,) = [name for name in stage.queue_lists() if stage.client.llen(name)]
    assert found.endswith("9")
