"""START with the first decision: a run is put on the board, decided and rung in one move, as in two."""

from __future__ import annotations

import json
from typing import Any, cast
from unittest import mock

import pytest
import sqlalchemy as sa

from convergio.graphflow import decide
from convergio.graphflow.board import scripts
from convergio.graphflow.board.connection import Link
from convergio.graphflow.engine.drain import Drain
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.journal import tables
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from convergio.workers.answers import Answer, Answers
from tests.integration.engine_rig import QUIET, Stage, chain, fork, single

pytestmark = QUIET


def skipped() -> Workflow:
    """Nothing of it runs: the first decision is the last."""
    made = WorkflowBuilder("skipped", version=1)
    made.task("only", "probe.echo", when="input != null")
    return made.build()


def wide() -> Workflow:
    """More roots than one decision takes."""
    made = WorkflowBuilder("wide", version=1)
    for number in range(150):
        made.task(f"s{number}", "probe.echo")
    return made.build()


def timed() -> Workflow:
    """A wait: its time counts from when the run begins."""
    made = WorkflowBuilder("timed", version=1)
    made.task("first", "probe.echo")
    made.wait("pause", length="1h")
    return made.build()


def board_of(stage: Stage, ref: RunRef) -> dict[str, Any]:
    """What the board has of the run, without times and names that a process makes up."""
    keys, client = stage.keys, stage.client
    values = cast("dict[str, str]", client.hgetall(keys.run(ref)))
    meta = {**json.loads(values.pop("@meta")), "created_ms": 0}
    feed = cast("list[tuple[str, dict[str, str]]]", client.xrange(keys.feed(ref)))
    journal = cast("list[tuple[str, dict[str, str]]]", client.xrange(keys.journal))
    names = ("type", "step", "data")
    return {
        "values": {name: value for name, value in values.items() if name != "@commit"},
        "meta": meta,
        "feed": [tuple(row.get(name) for name in names) for _, row in feed],
        "journal": [(row["t"], row["s"], row["q"], row["d"]) for _, row in journal if row["r"] == str(ref)],
        "bells": stage.bells(),
        "inboxes": client.zrange(keys.inboxes, 0, -1),
        "timers": client.zcard(keys.timers),
    }


@pytest.mark.parametrize("workflow", [chain(), fork(), skipped(), wide()], ids=lambda one: one.name)
def test_a_run_that_starts_in_one_move_is_on_the_board_as_one_that_starts_in_two(
    stage: Stage, workflow: Workflow
) -> None:
    once = board_of(stage, stage.submit(workflow, run_id="r1"))
    stage.client.delete(*stage.queue_lists())
    stage.client.delete(stage.keys.timers)
    with mock.patch.object(Drain, "first", return_value=None) as decided:
        twice = board_of(stage, stage.submit(workflow, run_id="r2"))
    assert decided.called
    assert once == twice


def test_a_plain_run_starts_by_one_script(stage: Stage) -> None:
    stage.submit(chain())
    with mock.patch.object(Link, "_once", autospec=True, side_effect=Link._once) as asked:  # pyright: ignore[reportPrivateUsage]
        stage.submit(chain())
    assert asked.call_count == 1
    assert stage.bells() == [("first", "1.1")] * 2


def test_how_runs_of_a_definition_begin_is_decided_once_unless_their_input_says_how(stage: Stage) -> None:
    made = WorkflowBuilder("conditional", version=1)
    made.task("small", "probe.echo", when="input.n < 10")
    made.task("large", "probe.echo", when="input.n >= 10")
    with mock.patch.object(decide, "decide", wraps=decide.decide) as decided:
        stage.submit(chain())
        stage.submit(chain())
        assert decided.call_count == 1
        stage.wipe()
        stage.rebuild()
        stage.client.delete(*stage.queue_lists())
        stage.submit(chain())
        (rung,) = stage.bells()
        assert rung == ("first", f"{stage.service.link.epoch().number}.1"), "rings are named after the board"
    for n, step in ((1, "small"), (10, "large")):
        ref = stage.submit(made.build(), {"n": n})
        stage.play(ref)
        assert {name for name, row in stage.outcomes(ref).items() if row.state is StepState.SUCCEEDED} == {step}


def test_what_depends_on_the_time_is_decided_under_the_lock(stage: Stage) -> None:
    """The time is that of the board when the run begins, and not that of a submitter who waited for SQL since."""
    with mock.patch.object(scripts, "start", wraps=scripts.start) as start:
        stage.submit(timed())
    assert start.call_args.kwargs["first"] is None


def test_the_definition_travels_once_to_a_board(stage: Stage) -> None:
    with mock.patch.object(scripts, "start", wraps=scripts.start) as start:
        for _ in range(2):
            stage.submit(chain())
        stage.wipe()
        stage.rebuild()
        last = stage.submit(chain())
    first, second, *_, third = [call.kwargs["known"] for call in start.call_args_list]
    assert (first, second, third) == (False, True, False)
    stage.play(last)
    assert stage.row(last).state is RunState.SUCCEEDED


def test_a_board_that_has_lost_the_definition_gets_it_again(stage: Stage) -> None:
    digest = chain().digest
    stage.submit(chain())
    text = stage.client.get(stage.keys.plan(digest))
    stage.client.delete(stage.keys.plan(digest))
    ref = stage.submit(chain())
    assert stage.client.get(stage.keys.plan(digest)) == text
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_a_journal_that_has_lost_the_definition_gets_it_again(stage: Stage) -> None:
    """Somebody put an older copy of the database in its place."""
    stage.submit(single())
    with stage.store.write() as connection:
        for table in (tables.events, tables.outcomes, tables.runs, tables.definitions):
            connection.execute(sa.delete(table))
    ref = stage.submit(single())
    assert stage.row(ref).state is RunState.ACCEPTED


# --- answers ----------------------------------------------------------------------------------------------------------


def test_answers_stored_together_are_what_celery_would_have_stored(stage: Stage) -> None:
    app = stage.worker.process.core.app
    backend = cast("Any", app.backend)
    results: list[Any] = [{"value": [1, "ä", None]}, None, errors.RunFailed("it broke")]
    Answers(app).store([Answer(f"ours{number}", result) for number, result in enumerate(results)])
    for number, result in enumerate(results):
        state = "FAILURE" if isinstance(result, Exception) else "SUCCESS"
        backend.store_result(f"theirs{number}", result, state)
        metas = [json.loads(backend.get(backend.get_key_for_task(f"{whose}{number}"))) for whose in ("ours", "theirs")]
        ours, theirs = [{**meta, "task_id": "", "date_done": ""} for meta in metas]
        assert ours == theirs
        assert stage.client.ttl(backend.get_key_for_task(f"ours{number}").decode()) > 0


def test_an_answer_that_cannot_be_stored_keeps_none_of_the_others(stage: Stage) -> None:
    app = stage.worker.process.core.app
    Answers(app).store([Answer("good", 1), Answer("bad", object()), Answer("last", 2)])
    states = [app.backend.get_task_meta(name)["status"] for name in ("good", "bad", "last")]
    assert states == ["SUCCESS", "PENDING", "SUCCESS"]
