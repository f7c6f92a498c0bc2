"""A journal that is too far behind, and a Redis that is nearly full: nothing new begins, and what runs goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from convergio.graphflow.engine.inquiry import Inquiry
from convergio.graphflow.engine.pressure import Limits, Pressure
from convergio.graphflow.engine.reason import of_step
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.model import errors
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import Workflow
from tests.integration.engine_rig import QUIET, Stage, chain, single, stage_on

pytestmark = QUIET


@pytest.fixture
def stage(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Stage]:
    with stage_on(valkey, sqlite_url, tmp_path) as made:
        yield made
        made.client.config_set("maxmemory", 0)


def limited(stage: Stage, limits: Limits) -> None:
    """From now on these limits hold, and everybody looks at once."""
    process, sweeper = stage.worker.process, stage.service.sweeper
    process.steps.pressure = process.entrance.pressure = Pressure(process.core.link, limits)
    sweeper.pressure = Pressure(stage.service.link, limits)
    forget(stage)


def forget(stage: Stage) -> None:
    """The next look counts."""
    for pressure in (stage.worker.steps.pressure, stage.service.sweeper.pressure):
        assert pressure is not None
        pressure._lag, pressure._share = ((-1e9, pressure._lag[1]), (-1e9, 0.0))


def durable() -> Workflow:
    made = WorkflowBuilder("durable", version=1)
    made.task("only", "probe.echo", value="1", durability="step")
    return made.build()


def behind(stage: Stage) -> None:
    """The journal has fallen behind by more events than it may."""
    limited(stage, Limits(events=len(stage.client.xrange(stage.keys.journal)) - 2))


def test_past_the_lag_limit_no_stream_step_begins_and_all_go_on_when_sql_has_caught_up(stage: Stage) -> None:
    refs = [stage.submit(chain()) for _ in range(3)]
    behind(stage)
    stage.answer_all()
    assert [stage.word(ref, "first").state for ref in refs] == [StepState.READY] * 3
    assert (stage.bells(), stage.client.zcard(stage.keys.leases)) == ([], 0)
    stage.pass_time(5, also=lambda: forget(stage))
    assert stage.bells() == [], "they are held for as long as it takes, and nothing is told meanwhile"
    while not all(stage.row(ref).terminal for ref in refs):
        stage.journal()
        stage.pass_time(2, also=lambda: forget(stage))
        stage.journal()
        forget(stage)
        stage.answer_all()
    assert {stage.row(ref).state for ref in refs} == {RunState.SUCCEEDED}


def test_the_lag_counts_in_seconds_too(stage: Stage) -> None:
    ref = stage.submit(single())
    limited(stage, Limits(seconds=0.000_001))
    stage.answer_all()
    assert stage.word(ref, "only").state is StepState.READY


def test_what_runs_goes_on_and_so_do_steps_that_wait_for_sql_anyway(stage: Stage) -> None:
    running, waiting = stage.submit(single()), stage.submit(durable())
    claim = stage.claim(running, "only")
    behind(stage)
    stage.worker.steps.succeed(claim, {})
    assert stage.word(running, "only").state is StepState.SUCCEEDED
    stage.answer_all()
    assert stage.word(waiting, "only").blocked_on is BlockedOn.JOURNAL


def test_past_the_lag_limit_no_run_is_accepted_and_the_error_says_when_to_come_back(stage: Stage) -> None:
    first = stage.submit(chain())
    behind(stage)
    with pytest.raises(errors.JournalBehind, match=r"events and \d+ s behind") as caught:
        stage.submit(chain(), run_id="second")
    assert caught.value.retry_after == 5.0
    assert caught.value.retryable
    assert stage.submit(chain(), run_id=first.run) == first, "that one was accepted before"
    with pytest.raises(errors.UnknownRun):
        stage.history.run("default", "second")
    stage.journal()
    forget(stage)
    assert stage.submit(chain(), run_id="second").run == "second"


def test_a_nearly_full_redis_refuses_new_runs_before_their_row_and_finishes_the_others(stage: Stage) -> None:
    ref = stage.submit(chain())
    used = int(stage.client.info("memory")["used_memory"])
    stage.client.config_set("maxmemory", used * 2)
    limited(stage, Limits(memory=0.3))
    with pytest.raises(errors.BoardNearlyFull, match="of its memory") as caught:
        stage.submit(chain(), run_id="second")
    assert caught.value.retry_after == 5.0
    with pytest.raises(errors.UnknownRun):
        stage.history.run("default", "second")
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED
    stage.client.config_set("maxmemory", 0)
    forget(stage)
    stage.submit(chain(), run_id="second")


def test_without_an_answer_nothing_is_refused(stage: Stage) -> None:
    pressure = Pressure(stage.worker.process.core.link, Limits(events=1))
    stage.wipe()
    pressure.check()
    assert pressure.behind() is None


def test_why_says_how_far_the_journal_is_behind(stage: Stage) -> None:
    ref = stage.submit(chain())
    behind(stage)
    stage.answer_all()
    view = Inquiry(stage.service.link, stage.history).view(ref)
    said = of_step(view, view.steps["first"])
    assert said.startswith("is ready: JOURNAL, the journal (SQL) is ")
    assert said.endswith("it starts when that has caught up")
