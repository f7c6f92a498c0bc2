"""P1: a run that was accepted is never lost, and executes once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from convergio.graphflow.board import scripts
from convergio.graphflow.board.connection import Link
from convergio.graphflow.engine import submission
from convergio.graphflow.engine.starter import Starter
from convergio.graphflow.engine.submission import Entrance, Submission, board_time
from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.journal.database import Database
from convergio.graphflow.journal.doors import Doors
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState, StepState
from convergio.workers import boot
from tests import servers
from tests.conftest import ValkeyFactory
from tests.integration.engine_rig import QUIET, Stage, chain, settings_for, single, stage_on

pytestmark = QUIET

LATE: float = 10.1
"""Seconds after which the submitter may not start its run any more."""


def accepted_only(stage: Stage, ref_to: str = "r1") -> RunRef:
    """Accepted, and then the submitter died: the run is in SQL and nowhere else."""
    with mock.patch.object(Starter, "start", side_effect=errors.BoardUnavailable):
        return stage.submit(chain(), run_id=ref_to)


def boarded(stage: Stage, ref: RunRef) -> bool:
    return bool(stage.client.exists(stage.keys.run(ref)))


# --- large ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_of_ten_thousand_steps_in_a_thousand_levels_is_accepted_and_comes_to_its_end(stage: Stage) -> None:
    """Nine lanes are skipped from end to end, which no decision may follow by itself; the first step of one runs."""
    made = WorkflowBuilder("deep", version=1)
    for lane in range(10):
        last = made.task(f"s0_{lane}", "probe.echo", when="input.all" if lane else None)
        for level in range(1, 1_000):
            last = made.task(f"s{level}_{lane}", "probe.echo", after=last)
    ref = stage.submit(made.build(), {"all": False})
    assert [step for step, _ in stage.bells()] == ["s0_0"]
    stage.answer_one()
    assert [step for step, _ in stage.bells()] == ["s1_0"]
    stage.worker.process.entrance.cancel(ref, by="boss")
    stage.journal()
    assert stage.row(ref).state is RunState.CANCELLED
    states = Counter(row.state for row in stage.outcomes(ref).values())
    assert (states[StepState.SUCCEEDED], states[StepState.SKIPPED]) == (1, 9_000)


# --- accepted, not started --------------------------------------------------------------------------------------------


def test_a_run_whose_submitter_died_is_started_only_after_its_not_after_time(both: Stage) -> None:
    ref = accepted_only(both)
    both.service.sweeper.apply_rows()
    assert not boarded(both, ref), "the submitter may still come"
    assert both.row(ref).state is RunState.ACCEPTED
    both.age_rows(LATE)
    both.service.sweeper.apply_rows()
    assert boarded(both, ref)
    both.play(ref)
    assert both.row(ref).state is RunState.SUCCEEDED


def test_a_submitter_that_comes_too_late_starts_nothing(stage: Stage) -> None:
    """It commits, is frozen, and goes on after the time at which the sweeper may start the run: they never both do."""
    start = Starter.start
    outcome: list[type[Exception]] = []

    def late(self: Starter, run: object, plan: object, *, not_after_ms: int | None) -> bool:
        assert not_after_ms is not None
        try:
            return start(self, run, plan, not_after_ms=board_time(self.link) - 1)  # type: ignore[arg-type]
        except errors.SubmitTooLate as error:
            outcome.append(type(error))
            raise

    with mock.patch.object(Starter, "start", late):
        ref = stage.submit(chain())
    assert outcome == [errors.SubmitTooLate]
    assert not boarded(stage, ref)
    assert not stage.bells()
    stage.age_rows(LATE)
    stage.service.sweeper.apply_rows()
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_the_not_after_time_is_taken_before_the_commit(stage: Stage) -> None:
    """Taken after it, a slow commit would give the submitter time in which the sweeper starts the run, too."""
    accept, start = Doors.accept_all, Starter.start
    before, taken = 0, 0
    told: list[int | None] = []

    def slow(self: Doors, run: object) -> object:
        nonlocal before, taken
        before = board_time(stage.service.link)
        accepted = accept(self, run)  # type: ignore[arg-type]
        taken = 60_000
        return accepted

    def clock(link: Link) -> int:
        return board_time(link) + taken

    def starting(self: Starter, run: object, plan: object, *, not_after_ms: int | None) -> bool:
        told.append(not_after_ms)
        return start(self, run, plan, not_after_ms=not_after_ms)  # type: ignore[arg-type]

    with (
        mock.patch.object(submission, "board_time", clock),
        mock.patch.object(Doors, "accept_all", slow),
        mock.patch.object(Starter, "start", starting),
    ):
        ref = stage.submit(chain())
    assert stage.row(ref).not_after_ms <= before + 10_000
    assert told == [stage.row(ref).not_after_ms], "START gets what SQL has"


def test_a_run_that_the_sweeper_started_is_not_started_again(stage: Stage) -> None:
    ref = accepted_only(stage)
    stage.age_rows(LATE)
    for _ in range(3):
        stage.service.sweeper.apply_rows()
    assert stage.service.sweeper.repairs["started"] == 1
    assert stage.bells() == [("first", "1.1")]
    stage.journal()
    stage.service.sweeper.apply_rows()
    assert stage.events(ref, "run.started") == [{}]


def test_a_run_that_is_started_by_a_rebuild_is_not_started_by_its_submitter_too(stage: Stage) -> None:
    ref = accepted_only(stage)
    stage.wipe()
    stage.rebuild()
    assert boarded(stage, ref)
    entrance = stage.worker.process.entrance
    row, plan = stage.row(ref), entrance.starter.plans.get(stage.row(ref).digest)
    entrance.link.refresh()
    assert not entrance.starter.start(row, plan, not_after_ms=row.not_after_ms)
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED
    assert stage.events(ref, "run.started") == [{}]


def test_a_run_that_was_cancelled_before_it_was_started_is_cancelled_and_runs_nothing(stage: Stage) -> None:
    ref = accepted_only(stage)
    stage.worker.process.entrance.cancel(ref, by="boss", reason="changed my mind")
    stage.age_rows(LATE)
    claimed: list[object] = []
    post = scripts.post

    def raced(*args: object, **kwargs: object) -> object:
        """A worker answers the doorbell before the sweeper comes to the cancel."""
        if boarded(stage, ref) and (bell := stage.take()) is not None:
            claimed.append(stage.ring(ref, bell.step, bell.args[2]))
        return post(*args, **kwargs)  # type: ignore[arg-type]

    with mock.patch.object(scripts, "post", raced):
        stage.service.sweeper.apply_rows()
    stage.journal()
    assert stage.row(ref).state is RunState.CANCELLED
    assert not any(claimed)


# --- the same key -----------------------------------------------------------------------------------------------------


def test_the_same_key_is_the_same_run(both: Stage) -> None:
    ref = both.submit(chain(), {"n": 1}, key="order-7")
    assert both.submit(chain(), {"n": 1}, key="order-7") == ref
    assert both.bells() == [("first", "1.1")]
    both.play(ref)
    rung = both.bells()
    assert both.submit(chain(), {"n": 1}, key="order-7") == ref, "also when it has ended"
    assert both.row(ref).state is RunState.SUCCEEDED
    assert both.bells() == rung


@pytest.mark.parametrize("other", ["input", "workflow"])
def test_a_key_that_was_used_for_something_else_is_refused(both: Stage, other: str) -> None:
    ref = both.submit(chain(), {"n": 1}, key="order-7")
    workflow = chain("another") if other == "workflow" else chain()
    with pytest.raises(errors.KeyConflict) as caught:
        both.submit(workflow, {"n": 1 if other == "workflow" else 2}, key="order-7")
    assert caught.value.hint
    assert [row.run_id for row in both.history.runs("default")] == [ref.run]


def test_the_same_submission_sent_twice_is_one_run(stage: Stage) -> None:
    """The client sends its submission again until it is answered; the run's id is its own."""
    first = stage.submit(chain(), run_id="mine")
    assert stage.submit(chain(), run_id="mine") == first
    assert stage.bells() == [("first", "1.1")]


# --- many at once -----------------------------------------------------------------------------------------------------


def test_many_runs_are_accepted_in_one_transaction_and_all_start(both: Stage) -> None:
    many = [Submission(workflow=chain() if n % 2 else single(), input={"n": n}, key=f"order-{n}") for n in range(5)]
    many.append(Submission(workflow=single(), input={"n": 0}, key="order-0"))
    with mock.patch.object(Database, "write", autospec=True, side_effect=Database.write) as written:
        rows = both.worker.process.entrance.submit_many(many)
    assert written.call_count == 1
    assert [row.input for row in rows] == [{"n": n} for n in (0, 1, 2, 3, 4, 0)]
    assert rows[5].run_id == rows[0].run_id, "a key that was given twice is one run, and starts once"
    for row in rows[:5]:
        both.play(ref := RunRef(tenant=row.tenant, run=row.run_id))
        assert both.row(ref).state is RunState.SUCCEEDED
    assert not both.worker.process.entrance.submit_many([])


def test_of_many_runs_none_is_accepted_if_one_cannot_be(stage: Stage) -> None:
    kept, entrance = stage.submit(single(), {"n": 1}, key="order-1"), stage.worker.process.entrance
    new = Submission(workflow=single(), input={"n": 0})
    with pytest.raises(errors.KeyConflict):
        entrance.submit_many([new, Submission(workflow=single(), input={"n": 2}, key="order-1")])
    with pytest.raises(errors.InvalidInput) as caught:
        entrance.submit_many([new] * (submission.MANY + 1))
    assert str(submission.MANY) in str(caught.value.hint)
    assert [row.run_id for row in stage.history.runs("default")] == [kept.run]


# --- a store is away --------------------------------------------------------------------------------------------------


def test_without_redis_nothing_is_accepted(valkey_server: ValkeyFactory, sqlite_url: str, tmp_path: Path) -> None:
    server = valkey_server(aof=False)
    with stage_on(server.url, sqlite_url, tmp_path) as stage:
        server.kill()
        with pytest.raises(errors.BoardUnavailable) as caught:
            stage.submit(chain())
        assert caught.value.code == "BOARD_UNAVAILABLE"
        assert caught.value.retryable
        assert stage.history.runs("default") == []


def nowhere_sqlite() -> str:
    return "sqlite:////nonexistent/convergio/journal.sqlite"


def nowhere_postgres() -> str:
    return f"postgresql+psycopg://postgres@127.0.0.1:{servers.free_port()}/none"


@pytest.mark.parametrize("url", [nowhere_sqlite, nowhere_postgres])
def test_without_sql_nothing_is_accepted_and_nothing_boarded(
    valkey: str, sqlite_url: str, tmp_path: Path, url: Callable[[], str]
) -> None:
    with stage_on(valkey, sqlite_url, tmp_path) as stage:
        before = stage.client.dbsize()
        entrance = without_sql(valkey, url(), tmp_path)
        stage.worker.process.entrance, kept = entrance, stage.worker.process.entrance
        with pytest.raises(errors.JournalUnavailable) as caught:
            stage.submit(chain())
        assert caught.value.code == "JOURNAL_UNAVAILABLE"
        assert stage.client.dbsize() == before
        entrance.link.close()
        stage.worker.process.entrance = kept


def without_sql(redis_url: str, journal_url: str, home: Path) -> Entrance:
    return boot.entrance(settings_for(redis_url, journal_url, home))


def test_without_a_board_a_run_is_accepted_and_started_when_there_is_one(stage: Stage) -> None:
    """Redis answers, but its board is gone: that is no reason to refuse."""
    stage.wipe()
    ref = stage.submit(chain())
    assert stage.row(ref).state is RunState.ACCEPTED
    stage.rebuild()
    stage.age_rows(LATE)
    stage.service.sweeper.apply_rows()
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_a_door_that_knows_only_the_old_board_starts_its_run_on_the_new_one_at_once(stage: Stage) -> None:
    stage.submit(chain())
    stage.wipe()
    stage.rebuild()
    ref = stage.submit(chain())
    assert boarded(stage, ref)
