"""Priorities: which of kombu's lists a doorbell goes to, that canaries watch it, and that a rebuild remembers."""

from __future__ import annotations

import pytest

from convergio.graphflow.engine.bell import LADDER
from convergio.graphflow.engine.fork import Fork
from convergio.graphflow.engine.inquiry import Inquiry
from convergio.graphflow.engine.reason import of_step
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.journal.rows import ForkKind
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.workflow import PRIORITIES, Workflow
from tests.integration.engine_rig import QUIET, Stage

pytestmark = QUIET

SEPARATOR = "\x06\x16"


def chain(priority: str = "medium", *, second: str | None = None) -> Workflow:
    """first -> second; the second may have a priority of its own."""
    made = WorkflowBuilder("chain", version=1, priority=priority)
    first = made.task("first", "probe.echo", value="1")
    made.task("second", "probe.echo", after=first, value="2", priority=second)
    return made.build()


def number_of(queue_list: str) -> int:
    """Which of kombu's lists it is."""
    return int(queue_list.partition(SEPARATOR)[2] or 0)


def lists_of(stage: Stage) -> list[int]:
    """The lists by which the doorbells of all steps come that are rung from now on, in their order."""
    found: list[int] = []
    while (bell := stage.take()) is not None:
        found.append(number_of(bell.queue_list))
        stage.worker.answer(bell)
    return found


@pytest.mark.parametrize("priority", PRIORITIES)
def test_a_workflows_priority_picks_the_lists_of_its_doorbells(stage: Stage, priority: str) -> None:
    stage.submit(chain(priority))
    continuation, fresh = LADDER[priority]
    assert lists_of(stage) == [fresh, continuation]


def test_who_submits_may_choose_another_priority(stage: Stage) -> None:
    ref = stage.submit(chain("low"), priority="high")
    assert stage.row(ref).priority == "high"
    assert lists_of(stage) == [3, 0]


def test_a_steps_own_priority_counts_whatever_its_run_has(stage: Stage) -> None:
    stage.submit(chain(second="low"), priority="critical")
    assert lists_of(stage) == [0, 6]


def test_urgent_steps_are_taken_first_and_continuations_before_new_runs(stage: Stage) -> None:
    refs = {priority: stage.submit(chain(priority)) for priority in PRIORITIES}
    names = {ref.run: priority for priority, ref in refs.items()}
    order: list[tuple[str, str]] = []
    while (bell := stage.take()) is not None:
        order.append((names[bell.headers["root_id"]], bell.step))
        stage.worker.answer(bell)
    assert order == [(priority, step) for priority in reversed(PRIORITIES) for step in ("first", "second")]


def test_a_priority_that_does_not_exist_is_refused_before_anything_is_accepted(stage: Stage) -> None:
    with pytest.raises(errors.InvalidInput, match="'urgent' is no priority"):
        stage.submit(chain(), priority="urgent")
    assert stage.history.accepted_before(2**50, 10) == []


def test_a_rebuilt_board_rings_by_the_priority_of_the_run(stage: Stage) -> None:
    stage.submit(chain(), priority="low")
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.pass_time(7)
    assert lists_of(stage) == [6, 6]


def test_a_lost_doorbell_of_any_priority_is_proven_lost_and_rung_again(stage: Stage) -> None:
    refs = {priority: stage.submit(chain(priority)) for priority in PRIORITIES}
    while stage.take():
        pass
    stage.service.canaries.watch()
    stage.answer_all()
    stage.age(3)
    stage.service.canaries.watch()
    rung = [bell.args[0] for bell in iter(stage.take, None) if bell.step == "first"]
    assert sorted(rung) == sorted(ref.run for ref in refs.values())


def test_a_retried_run_has_the_priority_of_the_one_it_was_made_from(stage: Stage) -> None:
    ref = stage.submit(chain(), priority="high")
    stage.worker.steps.fail(stage.claim(ref, "first"), errors.StepFailed("no"))
    stage.journal()
    fork = Fork(ref=ref, submitter="ann", kind=ForkKind.RETRY)
    assert stage.worker.process.entrance.fork(fork).run.priority == "high"


def test_why_says_the_priority_and_counts_only_what_comes_before(stage: Stage) -> None:
    stage.submit(chain("low"))
    urgent = stage.submit(chain("high"))
    assert why(stage, urgent, "first").endswith("in 'steps' at priority high with 1 messages")


def why(stage: Stage, ref: RunRef, step: str) -> str:
    """What people are told."""
    view = Inquiry(stage.service.link, stage.history, stage.service.canaries.bell.list_of).view(ref)
    return of_step(view, view.steps[step])
