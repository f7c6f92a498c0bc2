"""A step that is done for each item of a list: on real servers, over lost boards, cancels and retries."""

from __future__ import annotations

from typing import Any

import pytest

from convergio.graphflow.engine.fork import Fork
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.journal.rows import ForkKind
from convergio.graphflow.model import instance
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from tests.integration.engine_rig import QUIET, Stage
from tests.waiting import wait_until

pytestmark = QUIET


def mapped(*, retry: int = 0, over: str = "load.value", on_failure: str = "fail", **details: Any) -> Workflow:
    """load -> each (a map over what it loaded) -> tell."""
    made = WorkflowBuilder("mapped", version=1, output={"told": "tell.value"})
    load = made.task("load", "probe.echo", value="input")
    each = made.map("each", over=over, after=load, on_failure=on_failure, **details).task(
        "probe.picky", value="item", index="index", retry=retry
    )
    made.task("tell", "probe.echo", after=each, value="each")
    return made.build()


def member(index: int) -> str:
    return instance.member("each", index)


def at_work(stage: Stage, ref: RunRef) -> dict[str, str]:
    """The members that are not terminal."""
    states = stage.states(ref)
    live = {StepState.READY.value, StepState.RUNNING.value, StepState.BLOCKED.value}
    return {name: state for name, state in states.items() if "#" in name and state in live}


def test_a_map_gives_the_results_in_the_order_of_the_items(stage: Stage) -> None:
    ref = stage.submit(mapped(), ["a", "b", "c"])
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == {"told": [[0, "a"], [1, "b"], [2, "c"]]}
    rows = stage.outcomes(ref)
    assert rows["each"].output == [[0, "a"], [1, "b"], [2, "c"]]
    assert rows[member(2)].output == [2, "c"]
    assert (rows[member(2)].step, rows[member(2)].iteration) == ("each", 3000)


def test_a_message_names_the_item_for_people(stage: Stage) -> None:
    ref = stage.submit(mapped(), ["a"])
    bell = stage.take()
    assert bell is not None
    stage.worker.answer(bell)
    bell = stage.take()
    assert bell is not None
    assert (bell.headers["shadow"], bell.headers["id"]) == ("mapped/each[0]", f"{ref.run}.each~1000.1.1")


def test_an_empty_list_is_done_at_once(stage: Stage) -> None:
    ref = stage.submit(mapped(), [])
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == {"told": []}


def test_what_is_no_list_fails_the_map_with_a_hint(stage: Stage) -> None:
    ref = stage.submit(mapped(), {"a": 1})
    stage.answer_all()
    stage.journal()
    row = stage.outcomes(ref)["each"]
    assert row.state is StepState.FAILED
    assert row.error is not None
    assert (row.error["code"], "gives a list" in row.error["hint"]) == ("BAD_LIST", True)
    assert stage.row(ref).state is RunState.FAILED


def test_only_as_many_items_are_rung_as_may_run(stage: Stage) -> None:
    ref = stage.submit(mapped(max_concurrency=2), list(range(5)))
    bell = stage.take()
    assert bell is not None
    stage.worker.answer(bell)
    most = 0
    while (bell := stage.take()) is not None:
        if bell.step != "tell":
            most = max(most, len(at_work(stage, ref)))
            assert len(at_work(stage, ref)) == min(2, 5 - int(stage.values(ref)["p:each"].split("|")[2]))
        stage.worker.answer(bell)
    stage.journal()
    assert most == 2
    assert stage.row(ref).output == {"told": [[index, index] for index in range(5)]}


@pytest.mark.parametrize(
    ("join", "state", "results"),
    [
        ("all", "FAILED", None),
        ({"tolerate": 1}, "SUCCEEDED", [[0, "a"], None, [2, "c"]]),
        ({"tolerate": 0}, "FAILED", None),
        ({"quorum": 2}, "SUCCEEDED", [[0, "a"], None, [2, "c"]]),
        ({"quorum": 3}, "FAILED", None),
        ("any", "SUCCEEDED", [[0, "a"], None, None]),
    ],
)
def test_the_join_says_how_many_items_must_succeed(stage: Stage, join: Any, state: str, results: Any) -> None:
    ref = stage.submit(mapped(items=join), ["a", "bad", "c"])
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).state == state
    assert stage.outcomes(ref)["each"].output == results
    if state == "FAILED":
        error = stage.row(ref).error
        assert error is not None
        assert error["code"] == "ITEMS_FAILED"
        assert "each[1]" in error["message"]
        assert "item 1 is bad" in error["message"]
    assert at_work(stage, ref) == {}


def test_items_that_still_run_are_withdrawn_when_the_map_has_its_verdict(stage: Stage) -> None:
    ref = stage.submit(mapped(items="any"), ["a", "b", "c"])
    bell = stage.take()
    assert bell is not None
    stage.worker.answer(bell)
    held = stage.claim(ref, member(1))
    claim = stage.claim(ref, member(0))
    stage.worker.steps.succeed(claim, "first")
    assert at_work(stage, ref) == {}
    stage.worker.pulse()
    assert held.lost.is_set()
    stage.answer_all()
    stage.journal()
    rows = stage.outcomes(ref)
    assert rows["each"].output == ["first", None, None]
    assert {rows[member(index)].state for index in (1, 2)} == {StepState.CANCELLED}
    assert stage.row(ref).output == {"told": ["first", None, None]}


def test_a_failed_map_may_let_the_run_go_on(stage: Stage) -> None:
    ref = stage.submit(mapped(on_failure="continue"), ["a", "bad"])
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == {"told": None}


# --- lost boards ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answered", range(7))
def test_a_map_goes_on_after_the_board_was_wiped_at_any_point(stage: Stage, answered: int) -> None:
    ref = stage.submit(mapped(max_concurrency=2, items={"tolerate": 1}), ["a", "bad", "c", "d"])
    for _ in range(answered):
        bell = stage.take()
        if bell is not None:
            stage.worker.answer(bell)
    stage.journal()
    before = stage.outcomes(ref)
    stage.wipe()
    stage.rebuild()
    assert len(at_work(stage, ref)) <= 2
    stage.pass_time(7)
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == {"told": [[0, "a"], None, [2, "c"], [3, "d"]]}
    after = stage.outcomes(ref)
    assert {name: after[name] for name in before} == before


def test_a_process_that_runs_an_item_keeps_it_over_a_wiped_board(stage: Stage) -> None:
    ref = stage.submit(mapped(), ["a", "b"])
    bell = stage.take()
    assert bell is not None
    stage.worker.answer(bell)
    stage.journal()
    claim = stage.claim(ref, member(1))
    stage.wipe()
    stage.rebuild()
    stage.worker.meet_new_board()
    assert stage.word(ref, member(1)).state is StepState.RUNNING
    stage.worker.steps.succeed(claim, "mine")
    stage.pass_time(7)
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == {"told": [[0, "a"], "mine"]}


# --- cancel, pause, retry ---------------------------------------------------------------------------------------------


def test_a_cancelled_run_leaves_no_item_behind(stage: Stage) -> None:
    ref = stage.submit(mapped(max_concurrency=2), list(range(4)))
    bell = stage.take()
    assert bell is not None
    stage.worker.answer(bell)
    stage.claim(ref, member(0))
    stage.worker.process.entrance.cancel(ref, by="ann")
    assert at_work(stage, ref) == {}
    stage.journal()
    assert stage.row(ref).state is RunState.CANCELLED
    assert stage.outcomes(ref)["each"].state is StepState.CANCELLED


def test_a_paused_run_rings_no_item_until_it_goes_on(stage: Stage) -> None:
    ref = stage.submit(mapped(max_concurrency=1), ["a", "b"])
    bell = stage.take()
    assert bell is not None
    stage.worker.answer(bell)
    claim = stage.claim(ref, member(0))
    stage.client.delete(*stage.queue_lists())
    stage.worker.process.entrance.pause(ref, by="ann")
    stage.worker.steps.succeed(claim, "a")
    assert stage.bells() == []
    assert stage.word(ref, member(1)).state is StepState.READY
    stage.worker.process.entrance.resume(ref, by="ann")
    assert [step for step, _ in stage.bells()] == [member(1)]
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == {"told": ["a", [1, "b"]]}


def test_a_retry_runs_only_the_items_that_failed(stage: Stage) -> None:
    ref = stage.submit(mapped(max_concurrency=1, items={"tolerate": 1}), ["a", "bad", "c", "bad", "e"])
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).state is RunState.FAILED
    again = stage.worker.process.entrance.fork(Fork(ref=ref, kind=ForkKind.RETRY))
    new = RunRef(tenant=ref.tenant, run=again.run.run_id)
    assert at_work(stage, new) == {member(1): "READY"}
    for index in (1, 3):
        assert at_work(stage, new) == {member(index): "READY"}
        stage.worker.steps.succeed(stage.claim(new, member(index)), f"mended {index}")
    stage.answer_all()
    stage.journal()
    assert stage.row(new).output == {"told": [[0, "a"], "mended 1", [2, "c"], "mended 3", [4, "e"]]}
    rows = stage.outcomes(new)
    assert [rows[member(index)].reused_from for index in range(5)] == [ref.run, None, ref.run, None, None]


def test_a_fork_that_keeps_a_map_keeps_its_items(stage: Stage) -> None:
    ref = stage.submit(mapped(items={"tolerate": 1}), ["a", "bad"])
    stage.answer_all()
    stage.journal()
    again = stage.worker.process.entrance.fork(Fork(ref=ref, step="tell"))
    new = RunRef(tenant=ref.tenant, run=again.run.run_id)
    assert (again.reused, again.steps) == (2, 3)
    stage.answer_all()
    stage.journal()
    assert stage.row(new).output == {"told": [[0, "a"], None]}
    assert {row.reused_from for name, row in stage.outcomes(new).items() if name != "tell"} == {ref.run}


# --- what is large ----------------------------------------------------------------------------------------------------


def test_a_list_too_large_to_travel_is_mapped_and_so_is_its_result(stage: Stage) -> None:
    made = WorkflowBuilder("large", version=1)
    each = made.map("each", over="input").task("probe.picky", value="item", index="index")
    made.task("tell", "probe.echo", after=each, value="size(each)")
    items = [f"{index:04}" + "x" * 100 for index in range(600)]
    ref = stage.submit(made.build(), items)
    stage.answer_all()
    stage.journal()
    assert stage.outcomes(ref)["each"].output["bytes"] > 60_000
    assert stage.row(ref).output == {"value": 600}
    assert max(map(len, stage.values(ref).values())) < 40_000


def large() -> Workflow:
    """load -> each -> tell: the list and its results are too large to travel."""
    made = WorkflowBuilder("large", version=1)
    load = made.task("load", "probe.echo", value="input")
    each = made.map("each", over="load.value", after=load).task("probe.picky", value="item", index="index")
    made.task("tell", "probe.echo", after=each, value="size(each)")
    return made.build()


ROWS = ["x" * 400] * 100


@pytest.mark.parametrize("answered", [1, 50, 101])
def test_a_map_over_a_large_list_goes_on_after_the_board_was_wiped(stage: Stage, answered: int) -> None:
    ref = stage.submit(large(), ROWS)
    for _ in range(answered):
        bell = stage.take()
        assert bell is not None
        stage.worker.answer(bell)
    stage.journal()
    stage.wipe()
    stage.rebuild()
    stage.pass_time(7)
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == {"value": 100}


def _swept(stage: Stage, ref: RunRef) -> bool:
    stage.pass_time(1)
    return stage.word(ref, "each").blocked_on is BlockedOn.ITEMS


def test_a_map_over_a_large_list_waits_while_sql_is_away(stage: Stage) -> None:
    ref = stage.submit(large(), ROWS)
    claim = stage.claim(ref, "load")
    stage.client.delete(*stage.queue_lists())
    text = '{"value":' + str(ROWS).replace("'", '"') + "}"
    kept = stage.service.sweeper.drain.blobs
    assert kept is not None
    reference = kept.kept(ref.tenant, text)
    with stage.sql_away():
        assert stage.worker.steps._arrive(
            claim, stage.worker.steps._outcome(claim, StepState.SUCCEEDED, output=reference)
        )
        assert stage.states(ref) == {"load": "SUCCEEDED"}
    wait_until(lambda: _swept(stage, ref), timeout=10)  # the lock that was taken in vain is over in two seconds
    stage.answer_all()
    stage.journal()
    assert stage.row(ref).output == {"value": 100}


def test_a_map_waits_on_its_items(stage: Stage) -> None:
    ref = stage.submit(mapped(), ["a", "b"])
    bell = stage.take()
    assert bell is not None
    stage.worker.answer(bell)
    assert stage.word(ref, "each").blocked_on is BlockedOn.ITEMS


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_map_ten_thousand_wide_comes_to_its_result(stage: Stage) -> None:
    made = WorkflowBuilder("wide", version=1)
    each = made.map("each", over="input", max_concurrency=500).task("probe.picky", value="item", index="index")
    made.task("tell", "probe.echo", after=each, value="size(each)")
    ref = stage.submit(made.build(), list(range(10_000)))
    most = 0
    while (bell := stage.take()) is not None:
        if (instance.index_of(bell.step) or 0) % 500 == 0:
            most = max(most, len(stage.bells()) + 1)
            stage.journal()
        stage.worker.answer(bell)
    stage.journal()
    assert 0 < most <= 500
    assert stage.row(ref).output == {"value": 10_000}
    assert len(stage.outcomes(ref)) == 10_002
