"""Doorbells of a run wait in the order of the longest way, where its steps say how long they take."""

from __future__ import annotations

import json
from typing import Any

import pytest

from convergio.graphflow.board import scripts
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.model.workflow import Workflow
from tests.integration.engine_rig import QUIET, Stage

pytestmark = QUIET


def late(*, known: bool = True) -> Workflow:
    """When `one` ends, short steps are rung; when `two` does, a join that has the longest way before it."""
    seconds = {"one": 40.0, "two": 41.0, "s1": 2.0, "s2": 3.0, "urgent": 30.0, "last": 10.0}
    made = WorkflowBuilder("late", version=1)

    def task(name: str, *after: str) -> None:
        made.task(name, "probe.echo", after=after, expected=seconds[name] if known else None)

    task("one")
    task("two")
    task("s1", "one")
    task("s2", "one")
    task("urgent", "one", "two")
    task("last", "urgent")
    return made.build()


def waiting(stage: Stage) -> list[str]:
    """The steps that are rung, the one that is popped next first."""
    return [step for _, step, *_ in ids(stage)]


def ids(stage: Stage) -> list[list[str]]:
    """Run, step and ring of the doorbells, the one that is popped next first."""
    texts = [text for name in stage.queue_lists() for text in reversed(stage.client.lrange(name, 0, -1))]
    return [json.loads(text)["headers"]["id"].split(".") for text in texts]


def test_what_has_the_longest_way_before_it_goes_before_its_run_s_others(stage: Stage) -> None:
    ref = stage.submit(late())
    assert waiting(stage) == ["two", "one"]
    bells = [stage.take(), stage.take()]
    for bell in reversed(bells):
        assert bell is not None
        stage.worker.answer(bell)
    assert waiting(stage) == ["urgent", "s2", "s1"]
    stage.play(ref)


def test_without_expected_times_doorbells_wait_in_the_order_in_which_they_were_rung(stage: Stage) -> None:
    stage.submit(late(known=False))
    for bell in [stage.take(), stage.take()]:
        assert bell is not None
        stage.worker.answer(bell)
    assert waiting(stage) == ["s1", "s2", "urgent"]


def test_a_step_waits_behind_more_urgent_first_steps_of_its_run(stage: Stage) -> None:
    """Continuations go before first steps of other runs, not before those of their own that have a longer way."""
    made = WorkflowBuilder("roots", version=1)
    made.task("short", "probe.echo", expected=9.0)
    made.task("after", "probe.echo", after="short", expected=1.0)
    made.task("first", "probe.echo", expected=20.0)
    made.task("long", "probe.echo", expected=5.0)
    made.task("little", "probe.echo", expected=0.5)
    stage.submit(made.build())
    assert waiting(stage) == ["first", "short", "long", "little"]
    answered(stage, 2)
    assert waiting(stage) == ["long", "after", "little"]
    answered(stage, 3)
    stage.journal()


def test_other_runs_keep_their_places(stage: Stage) -> None:
    """What a workflow says of its own steps moves it before none but its own."""
    other = stage.submit(late(known=False), run_id="other")
    mine = stage.submit(late(), run_id="mine")
    bells = {(bell.args[0], bell.step): bell for bell in [stage.take() for _ in range(4)] if bell is not None}
    for run, step in [("mine", "one"), ("other", "one"), ("mine", "two"), ("other", "two")]:
        stage.worker.answer(bells[run, step])
    runs = [(run, step) for run, step, *_ in ids(stage)]
    assert [step for run, step in runs if run == "mine"] == ["urgent", "s2", "s1"]
    assert [step for run, step in runs if run == "other"] == ["s1", "s2", "urgent"]
    assert runs.index(("mine", "urgent")) == 0
    stage.play(mine, other)


def test_a_doorbell_whose_neighbour_was_popped_meanwhile_goes_to_the_consuming_end(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.submit(late())
    two, one = stage.take(), stage.take()
    assert one is not None
    assert two is not None
    stage.worker.answer(one)
    commit = scripts.commit

    def slow(*args: Any, **more: Any) -> Any:
        if waiting(stage) == ["s2", "s1"]:
            assert stage.take() is not None
        return commit(*args, **more)

    monkeypatch.setattr(scripts, "commit", slow)
    stage.worker.answer(two)
    assert waiting(stage) == ["urgent", "s1"]


def answered(stage: Stage, count: int) -> None:
    for _ in range(count):
        stage.answer_one()
