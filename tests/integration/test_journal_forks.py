"""Runs made from runs, in SQL: row and copies are one transaction, and a copy costs nothing again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any
from unittest import mock

import pytest

from convergio.graphflow.journal import doors as doors_module
from convergio.graphflow.journal import tables
from convergio.graphflow.journal.database import Database
from convergio.graphflow.journal.doors import Doors
from convergio.graphflow.journal.history import History
from convergio.graphflow.journal.rows import Accepted, ForkKind, Origin
from convergio.graphflow.model import errors
from convergio.graphflow.model.states import RunState, StepState
from tests.integration import journal_samples as samples


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from samples.shared(request, tmp_path_factory)


@pytest.fixture
def journal(shared: Database) -> Database:
    return samples.emptied(shared)


@pytest.fixture
def doors(journal: Database) -> Doors:
    """A run that failed in its third step, and one that has nothing to do with it."""
    made = samples.accepted(journal, "run1", "other")
    stream = samples.Stream(journal)
    stream.write(
        samples.event(1, "run.started"),
        samples.outcome(2, "load"),
        samples.event(3, "step.recorded", step="pay", data={"key": "answer", "value": 42}),
        samples.event(4, "step.recorded", step="load", data={"key": "answer", "value": 1}),
        samples.outcome(5, "check", state=StepState.SKIPPED, data={"output": None, "tokens": 0}),
        samples.outcome(6, "pay", state=StepState.FAILED, data={"output": None, "error": {"code": "E"}}),
        samples.outcome(7, "load", "other"),
        samples.event(8, "run.failed", data={"error": {"code": "E"}}),
    )
    return made


def origin(reused: Sequence[str] = ("load", "check"), **more: Any) -> Origin:
    return Origin(run_id="run1", kind=ForkKind.RETRY, reused=tuple(reused), resumed=("pay",), **more)


def forked(doors: Doors, run_id: str = "run2", made_from: Origin | None = None, **changes: Any) -> Accepted:
    return doors.fork(samples.new_run(run_id, submitter="bob", **changes), made_from or origin())


def copies(journal: Database, run_id: str = "run2") -> list[dict[str, Any]]:
    return [row for row in samples.rows_of(journal, tables.outcomes) if row["run_id"] == run_id]


# --- what a forked run has --------------------------------------------------------------------------------------------


def test_a_forked_run_has_copies_that_say_whose_they_are_and_have_no_tokens(journal: Database, doors: Doors) -> None:
    made = forked(doors)
    assert made.created
    run = doors.run("default", "run2")
    assert (run.state, run.submitter) == (RunState.ACCEPTED, "bob")
    assert (run.forked_from, run.fork_kind, run.fork_step) == ("run1", ForkKind.RETRY, None)
    (load, check) = sorted(History(journal).outcomes("run2", ["load", "check", "pay"]), key=lambda row: row.stream_seq)
    assert (load.step, load.state, load.output) == ("load", StepState.SUCCEEDED, {"paid": True})
    assert (load.reused_from, load.tokens, load.submitter) == ("run1", 0, "bob")
    assert (check.step, check.state, check.reused_from) == ("check", StepState.SKIPPED, "run1")


def test_of_a_step_with_many_instances_only_the_chosen_ones_are_copied(journal: Database) -> None:
    doors = samples.accepted(journal, "run1")
    stream = samples.Stream(journal)
    for seq, iteration in enumerate((0, 1000, 2000, 3000), start=1):
        stream.write(samples.outcome(seq, "each", iteration=iteration))
    chosen = origin(["each#1000", "each#3000"])
    assert chosen.steps == 0, "the step itself is not among them"
    with mock.patch.object(doors_module, "COPIED_AT_ONCE", 1):
        forked(doors, made_from=chosen)
    assert [row["iteration"] for row in copies(journal)] == [1000, 3000]
    assert doors.basis("default", "run2").ends.keys() == {"each#1000", "each#3000"}


def test_the_run_that_was_forked_stays_as_it_was(journal: Database, doors: Doors) -> None:
    before = History(journal).facts("run1")
    forked(doors)
    assert History(journal).facts("run1") == before
    assert sum(row["tokens"] for row in copies(journal, "run1")) > 0


def test_a_step_that_runs_again_has_what_it_had_recorded_and_a_reused_one_needs_nothing(
    journal: Database, doors: Doors
) -> None:
    forked(doors)
    (kept,) = History(journal).facts("run2").records
    assert (kept.step, kept.key, kept.value, kept.submitter) == ("pay", "answer", 42, "bob")


def test_a_fork_of_a_fork_names_the_run_that_did_the_work(journal: Database, doors: Doors) -> None:
    forked(doors)
    doors.fork(samples.new_run("run3"), Origin(run_id="run2", kind=ForkKind.FORK, step="pay", reused=("load",)))
    (load,) = copies(journal, "run3")
    assert (load["reused_from"], load["tokens"]) == ("run1", 0)
    assert doors.run("default", "run3").forked_from == "run2"


def test_more_steps_than_one_statement_takes_are_all_copied(
    journal: Database, doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors_module, "COPIED_AT_ONCE", 1)
    forked(doors)
    assert {row["step"] for row in copies(journal)} == {"load", "check"}


# --- all or nothing ---------------------------------------------------------------------------------------------------


def test_a_run_whose_outcomes_are_gone_is_not_accepted_without_them(journal: Database, doors: Doors) -> None:
    with pytest.raises(errors.UnknownRun, match="are gone"):
        forked(doors, made_from=origin(["load", "never"]))
    assert [row["run_id"] for row in samples.rows_of(journal, tables.runs)] == ["other", "run1"]
    assert copies(journal) == []


def test_another_tenants_outcomes_are_not_copied(journal: Database, doors: Doors) -> None:
    with pytest.raises(errors.UnknownRun):
        forked(doors, tenant="elsewhere")
    with pytest.raises(errors.UnknownRun):
        doors.basis("elsewhere", "run1")
    assert copies(journal) == []


# --- again ------------------------------------------------------------------------------------------------------------


def test_the_same_fork_again_is_the_same_run_with_what_it_had_at_first(journal: Database, doors: Doors) -> None:
    first = forked(doors, start_key="again").run
    for run_id in ("run2", "run9"):
        again = forked(doors, run_id, origin(["load"]), start_key="again")
        assert (again.created, again.run) == (False, first)
    assert {row["step"] for row in copies(journal)} == {"load", "check"}


def test_of_several_who_fork_by_the_same_key_at_once_one_does(journal: Database, doors: Doors) -> None:
    barrier = Barrier(4)

    def fork(number: int) -> Accepted:
        barrier.wait(timeout=30)
        return forked(doors, f"try{number}", start_key="again")

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(fork, range(4)))
    assert sum(answer.created for answer in answers) == 1
    assert len({answer.run.run_id for answer in answers}) == 1
    assert len([row for row in samples.rows_of(journal, tables.outcomes) if row["reused_from"]]) == 2


def test_a_key_that_was_used_for_something_else_is_a_conflict(doors: Doors) -> None:
    forked(doors, start_key="again")
    with pytest.raises(errors.KeyConflict):
        doors.accept(samples.new_run("run5", start_key="again"))
    with pytest.raises(errors.KeyConflict):
        forked(doors, "run5", origin(step="pay"), start_key="again")
    with pytest.raises(errors.KeyConflict):
        forked(doors, "run5", start_key="again", workflow=samples.workflow(version=2))


# --- who asks ---------------------------------------------------------------------------------------------------------


def test_what_a_fork_is_made_from_is_run_definition_and_how_each_step_ended(doors: Doors) -> None:
    basis = doors.basis("default", "run1")
    assert (basis.run.state, basis.document) == (RunState.FAILED, samples.workflow().document)
    assert basis.ends == {"load": StepState.SUCCEEDED, "check": StepState.SKIPPED, "pay": StepState.FAILED}


def untried(journal: Database, **filters: Any) -> list[str]:
    return [row.run_id for row in History(journal).untried("default", state=RunState.FAILED, **filters)]


def test_failed_runs_that_nobody_retried_are_found_by_workflow_and_time(journal: Database, doors: Doors) -> None:
    assert untried(journal) == ["run1"]
    assert untried(journal, workflow="refund", since_ms=1_008) == ["run1"]
    assert untried(journal, since_ms=1_009) == []
    assert untried(journal, workflow="other") == []
    assert untried(journal, quarantined=True) == []
    assert [row.run_id for row in History(journal).untried("elsewhere", state=RunState.FAILED)] == []


def test_a_fork_is_no_second_try_and_a_retry_is_one(journal: Database, doors: Doors) -> None:
    doors.fork(samples.new_run("run2"), Origin(run_id="run1", kind=ForkKind.FORK, step="load"))
    assert untried(journal) == ["run1"]
    forked(doors, "run3")
    assert untried(journal) == []


def test_runs_with_a_step_in_quarantine_are_found(journal: Database) -> None:
    samples.accepted(journal, "ill", "well")
    samples.Stream(journal).write(
        samples.outcome(1, "load", "ill", state=StepState.QUARANTINED, data={"output": None}),
        samples.event(2, "run.failed", "ill"),
        samples.outcome(3, "load", "well", state=StepState.FAILED, data={"output": None}),
        samples.event(4, "run.failed", "well"),
    )
    assert untried(journal, quarantined=True) == ["ill"]
    assert untried(journal) == ["ill", "well"]
    assert untried(journal, limit=1) == ["ill"]
