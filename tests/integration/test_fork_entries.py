"""`convergio.retry` and `convergio.fork` as any Celery client sends them: one new run, its result, or a refusal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from convergio.graphflow.engine import reason
from convergio.graphflow.engine.inquiry import Inquiry
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.flow.registry import step
from convergio.graphflow.library import Catalog
from convergio.graphflow.model import errors
from convergio.graphflow.model.workflow import Workflow
from tests.integration.engine_rig import QUIET, Stage, stage_on
from tests.integration.test_engine_callers import answer_of, enter, ref_to

pytestmark = QUIET

EFFECTS: Final[Counter[str]] = Counter()
BROKEN: Final[set[str]] = set()


@step(name="entries.work")
def work(name: str, value: Any = None) -> Any:
    EFFECTS[name] += 1
    if name in BROKEN:
        raise errors.Permanent(f"{name} is broken")
    return value


def orders(factor: str = "1") -> Workflow:
    """load -> pay."""
    made = WorkflowBuilder("orders", version=1, output={"paid": "pay"})
    load = made.task("load", "entries.work", name="'load'", value="input.amount")
    made.task("pay", "entries.work", after=load, name="'pay'", value=f"load * {factor}")
    return made.build()


@pytest.fixture
def stage(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Stage]:
    EFFECTS.clear()
    BROKEN.clear()
    with stage_on(valkey, sqlite_url, tmp_path) as made:
        made.worker.process.catalog = Catalog(built=[orders()])
        yield made


def ended(stage: Stage) -> None:
    """Everything that waits is done, and in SQL."""
    while stage.answer_all() + stage.journal():
        stage.worker.pulse()


def submitted(stage: Stage, *, broken: str = "") -> str:
    """A run that has ended, at `broken` if it names a step."""
    BROKEN.update({broken} - {""})
    run = enter(stage, "submit", "orders", {"amount": 7})
    ended(stage)
    BROKEN.clear()
    EFFECTS.clear()
    return run


def test_the_result_of_a_retry_is_the_new_runs(stage: Stage) -> None:
    was = submitted(stage, broken="pay")
    task_id = enter(stage, "retry", was)
    assert answer_of(stage, task_id) == ("SUBMITTED", {"run": task_id})
    ended(stage)
    assert answer_of(stage, task_id) == ("SUCCESS", {"paid": 7})
    assert answer_of(stage, was)[0] == "FAILURE", "the failed run has its own answer still"
    assert EFFECTS == {"pay": 1}
    row = stage.row(ref_to(task_id))
    assert (row.forked_from, row.fork_kind, row.submitter) == (was, "retry", "me")


def test_a_retry_that_is_delivered_twice_is_one_run(stage: Stage) -> None:
    was = submitted(stage, broken="pay")
    task_id = enter(stage, "retry", was)
    enter(stage, "retry", was, task_id=task_id)
    ended(stage)
    enter(stage, "retry", was, task_id=task_id)
    assert answer_of(stage, task_id) == ("SUCCESS", {"paid": 7})
    assert EFFECTS == {"pay": 1}
    assert len(stage.history.runs("default")) == 2


def test_everyone_who_retries_by_the_same_key_gets_the_result(stage: Stage) -> None:
    was = submitted(stage, broken="pay")
    first = enter(stage, "retry", was, key="again")
    second = enter(stage, "retry", was, key="again")
    assert answer_of(stage, second) == ("SUBMITTED", {"run": first})
    ended(stage)
    assert answer_of(stage, first) == answer_of(stage, second) == ("SUCCESS", {"paid": 7})
    assert EFFECTS == {"pay": 1}


def test_a_fork_takes_a_step_another_input_or_another_definition(stage: Stage) -> None:
    was = submitted(stage)
    cases = {
        enter(stage, "fork", was, step="pay"): {"paid": 7},
        enter(stage, "fork", was, input={"amount": 8}): {"paid": 8},
        enter(stage, "fork", was, definition=dict(orders("2").document)): {"paid": 14},
    }
    ended(stage)
    for task_id, result in cases.items():
        assert answer_of(stage, task_id) == ("SUCCESS", result)
    assert EFFECTS == {"pay": 3, "load": 1}, "only another input concerns `load`"


def test_what_cannot_be_retried_or_forked_is_refused_with_its_hint(stage: Stage) -> None:
    done = submitted(stage)
    live = enter(stage, "submit", "orders", {"amount": 7})
    broken = {**orders().document, "steps": {"pay": {"task": "entries.work", "needs": ["load"]}}}
    cases = {
        enter(stage, "retry", "nobody"): ("UnknownRun", "runs list"),
        enter(stage, "retry", live): ("RunNotEnded", "cancel it first"),
        enter(stage, "retry", done): ("NothingToRetry", "--from STEP"),
        enter(stage, "fork", done): ("InvalidInput", "name a step"),
        enter(stage, "fork", done, step="pray"): ("UnknownStep", "pay"),
        enter(stage, "fork", done, definition=broken): ("InvalidWorkflow", "load"),
        enter(stage, "fork", done, definition={"workflow": "orders"}): ("InvalidWorkflow", "version"),
    }
    for task_id, (kind, hint) in cases.items():
        state, error = answer_of(stage, task_id)
        assert (state, type(error).__name__) == ("FAILURE", kind)
        assert hint in str(error), str(error)
    assert len(stage.history.runs("default")) == 2


def test_another_tenants_run_is_not_retried(stage: Stage) -> None:
    was = submitted(stage, broken="pay")
    state, error = answer_of(stage, enter(stage, "retry", was, tenant="elsewhere"))
    assert (state, type(error).__name__) == ("FAILURE", "UnknownRun")


def test_without_sql_a_retry_is_tried_again(stage: Stage) -> None:
    was = submitted(stage, broken="pay")
    with stage.sql_away():
        state, error = answer_of(stage, enter(stage, "retry", was))
    assert state == "RETRY"
    assert errors.JournalUnavailable.code in str(error)
    assert len(stage.history.runs("default")) == 1


def test_looking_at_a_retry_shows_whose_outcomes_it_has_while_it_goes_on_and_after_it(stage: Stage) -> None:
    was = submitted(stage, broken="pay")
    ref = ref_to(enter(stage, "retry", was))
    inquiry = Inquiry(stage.service.link, stage.history)
    for state in ("RUNNING", "SUCCEEDED"):
        view = inquiry.view(ref)
        assert view.state == state
        assert reason.of_origin(view) == f"retry of {was}: 1 of 2 steps reused"
        assert (view.steps["load"].reused_from, view.steps["load"].state) == (was, "SUCCEEDED")
        assert view.steps["pay"].reused_from is None
        ended(stage)
