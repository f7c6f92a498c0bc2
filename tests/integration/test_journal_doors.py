"""What callers write: runs, signals, cancels. Every promise on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import sqlalchemy as sa

from convergio.graphflow.journal import tables
from convergio.graphflow.journal.database import Database
from convergio.graphflow.journal.doors import Doors
from convergio.graphflow.journal.history import History
from convergio.graphflow.model import errors
from convergio.graphflow.model.states import RunState
from tests.integration import journal_samples as samples
from tests.waiting import wait_until

WAITING = sa.text("SELECT 1 FROM pg_locks WHERE NOT granted")
"""PostgreSQL: somebody waits for a lock."""


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from samples.shared(request, tmp_path_factory)


@pytest.fixture
def journal(shared: Database) -> Database:
    return samples.emptied(shared)


@pytest.fixture
def doors(journal: Database) -> Doors:
    return Doors(journal)


# --- accept ---------------------------------------------------------------------------------------------------------


def test_an_accepted_run_is_kept_with_its_pinned_definition(journal: Database, doors: Doors) -> None:
    made = doors.accept(samples.new_run(start_key="refund:F-17", trace="00-aa-bb-01", priority="high"))

    assert made.created
    run = doors.run("default", "run1")
    assert run == made.run
    assert (run.state, run.control_version, run.submitter) == (RunState.ACCEPTED, 0, "amy")
    assert run.input == {"invoice": "F-17", "amount": 12}
    assert (run.start_key, run.trace, run.priority) == ("refund:F-17", "00-aa-bb-01", "high")
    assert (run.not_after_ms, run.created_ms, run.started_ms, run.finished_ms) == (11_000, 1_000, None, None)
    assert History(journal).definition(run.digest) == samples.workflow().document


def test_accepting_the_same_run_again_answers_the_first_one(journal: Database, doors: Doors) -> None:
    first = doors.accept(samples.new_run()).run
    again = doors.accept(samples.new_run(input_json='{"amount":12,   "invoice":"F-17"}', created_ms=5_000))

    assert not again.created
    assert again.run == first
    assert len(samples.rows_of(journal, tables.runs)) == 1


def test_the_same_key_answers_the_run_it_was_used_for(doors: Doors) -> None:
    first = doors.accept(samples.new_run("run1", start_key="k")).run
    again = doors.accept(samples.new_run("run2", start_key="k"))

    assert (again.created, again.run) == (False, first)
    with pytest.raises(errors.UnknownRun):
        doors.run("default", "run2")


def test_a_key_still_answers_its_run_after_the_workflow_got_a_new_version(doors: Doors) -> None:
    doors.accept(samples.new_run("run1", start_key="k"))
    again = doors.accept(samples.new_run("run2", start_key="k", workflow=samples.workflow(version=2)))

    assert (again.created, again.run.run_id, again.run.version) == (False, "run1", 1)


@pytest.mark.parametrize(
    "other",
    [
        {"run_id": "run2", "start_key": "k", "input_json": "{}"},
        {"run_id": "run2", "start_key": "k", "workflow": samples.workflow("payout")},
        {"run_id": "run1", "start_key": "k", "input_json": "{}"},
        {"run_id": "run1", "start_key": "another"},
        {"run_id": "run1", "start_key": None},
        {"run_id": "run1", "start_key": "k", "tenant": "other"},
    ],
)
def test_a_key_or_run_id_used_for_something_else_is_a_conflict(doors: Doors, other: dict[str, Any]) -> None:
    first = doors.accept(samples.new_run("run1", start_key="k")).run

    with pytest.raises(errors.KeyConflict):
        doors.accept(samples.new_run(**other))
    assert doors.run("default", "run1") == first


def test_a_run_id_and_a_key_of_two_different_runs_are_a_conflict(doors: Doors) -> None:
    doors.accept(samples.new_run("run1", start_key="k1"))
    doors.accept(samples.new_run("run2", start_key="k2"))

    with pytest.raises(errors.KeyConflict):
        doors.accept(samples.new_run("run1", start_key="k2"))


def test_the_keys_of_two_tenants_do_not_meet(doors: Doors) -> None:
    assert doors.accept(samples.new_run("run1", start_key="k", tenant="one")).created
    assert doors.accept(samples.new_run("run2", start_key="k", tenant="two")).created


def test_runs_without_a_key_do_not_meet(doors: Doors) -> None:
    assert doors.accept(samples.new_run("run1")).created
    assert doors.accept(samples.new_run("run2")).created


@pytest.mark.parametrize("same", ["run id", "key"])
def test_submits_at_the_same_moment_make_one_run(journal: Database, same: str) -> None:
    callers = 8
    barrier = Barrier(callers)

    def submit(number: int) -> tuple[bool, str]:
        doors = Doors(journal)
        run_id = "run" if same == "run id" else f"run{number}"
        barrier.wait()
        done = doors.accept(samples.new_run(run_id, start_key="k"))
        return done.created, done.run.run_id

    with ThreadPoolExecutor(callers) as pool:
        answers = list(pool.map(submit, range(callers)))
    assert sum(created for created, _ in answers) == 1
    assert len({run_id for _, run_id in answers}) == 1
    assert len(samples.rows_of(journal, tables.runs)) == 1


@pytest.mark.parametrize(
    "broken",
    [
        {"input_json": '{"text": "a\\u0000b"}'},
        {"input_json": '{"text": "\\ud800"}'},
        {"input_json": '{"text": NaN}'},
        {"input_json": "{"},
        {"submitter": "a\x00b"},
        {"submitter": "\ud800"},
        {"start_key": "a\x00b"},
        {"created_ms": 2**70},
    ],
)
def test_what_one_database_cannot_keep_both_refuse(journal: Database, doors: Doors, broken: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidPayload):
        doors.accept(samples.new_run(**broken))
    assert samples.rows_of(journal, tables.runs) == []
    assert samples.rows_of(journal, tables.definitions) == []


def test_text_that_only_looks_like_a_nul_character_is_kept(doors: Doors) -> None:
    text = '{"text": "a\\\\u0000b"}'  # a backslash, then u0000

    assert doors.accept(samples.new_run(input_json=text)).run.input == {"text": "a\\u0000b"}


def test_the_longest_key_is_indexed_and_a_longer_one_is_refused(doors: Doors) -> None:
    longest = "ü" * tables.KEY_LIMIT
    assert doors.accept(samples.new_run("run1", start_key=longest)).created
    with pytest.raises(errors.InvalidInput, match="longer than"):
        doors.accept(samples.new_run("run2", start_key=longest + "ü"))


def test_another_tenants_run_is_unknown(doors: Doors) -> None:
    doors.accept(samples.new_run())

    with pytest.raises(errors.UnknownRun):
        doors.run("other", "run1")


# --- signal ---------------------------------------------------------------------------------------------------------


def test_a_signal_is_kept_once_however_often_it_is_sent(journal: Database, doors: Doors) -> None:
    doors.accept(samples.new_run())

    assert doors.signal(samples.new_signal())
    assert not doors.signal(samples.new_signal(created_ms=9_000))
    (kept,) = samples.rows_of(journal, tables.signals)
    assert (kept["created_ms"], kept["data"], kept["applied_ms"]) == (2_000, '{"approve":true}', None)


@pytest.mark.parametrize("wrong", [{"run_id": "nobody"}, {"tenant": "other"}])
def test_a_signal_for_a_run_that_the_tenant_lacks_is_refused(
    journal: Database, doors: Doors, wrong: dict[str, Any]
) -> None:
    doors.accept(samples.new_run())

    with pytest.raises(errors.UnknownRun):
        doors.signal(samples.new_signal(**wrong))
    assert samples.rows_of(journal, tables.signals) == []


def test_a_signal_id_used_for_another_signal_is_a_conflict(doors: Doors) -> None:
    doors.accept(samples.new_run())
    doors.signal(samples.new_signal())

    with pytest.raises(errors.KeyConflict):
        doors.signal(samples.new_signal(data={"approve": False}))


def test_a_signal_for_an_ended_run_is_kept_as_dropped(journal: Database, doors: Doors) -> None:
    doors.accept(samples.new_run())
    samples.Stream(journal).write(samples.event(1, "run.succeeded"))

    assert doors.signal(samples.new_signal())
    (kept,) = samples.rows_of(journal, tables.signals)
    assert kept["dropped_ms"] == 2_000


def test_a_signal_that_meets_the_end_of_its_run_is_never_left_open(postgres_url: str) -> None:
    """The door reads the run while the journaler ends it: it must wait for the end, not go by what was before."""
    with samples.migrated(postgres_url) as opened, ThreadPoolExecutor(1) as pool:
        doors = samples.accepted(opened, "run1")
        with opened.write() as connection:
            connection.execute(sa.update(tables.runs).values(state="SUCCEEDED"))
            answer = pool.submit(doors.signal, samples.new_signal())
            wait_until(lambda: connection.execute(WAITING).first() or answer.done(), timeout=20)
        assert answer.result(timeout=30)
        (kept,) = samples.rows_of(opened, tables.signals)
    assert kept["dropped_ms"] is not None


def test_a_cancel_that_meets_the_end_of_its_run_comes_too_late(postgres_url: str) -> None:
    with samples.migrated(postgres_url) as opened, ThreadPoolExecutor(1) as pool:
        doors = samples.accepted(opened, "run1")
        with opened.write() as connection:
            connection.execute(sa.update(tables.runs).values(state="SUCCEEDED"))
            answer = pool.submit(doors.request_cancel, "run1", "default", by="bob", reason=None, at_ms=3_000)
            wait_until(lambda: connection.execute(WAITING).first() or answer.done(), timeout=20)
        run = answer.result(timeout=30)
    assert (run.state, run.cancel_requested_ms, run.control_version) == (RunState.SUCCEEDED, None, 0)


# --- cancel ---------------------------------------------------------------------------------------------------------


def test_a_cancel_raises_the_control_version_once(doors: Doors) -> None:
    doors.accept(samples.new_run())

    first = doors.request_cancel("run1", "default", by="bob", reason="a mistake", at_ms=3_000)
    again = doors.request_cancel("run1", "default", by="eve", reason="me too", at_ms=4_000)

    assert (first.cancel_requested_ms, first.cancel_by, first.cancel_reason) == (3_000, "bob", "a mistake")
    assert (first.control_version, first.state) == (1, RunState.ACCEPTED)
    assert again == first


def test_cancelling_an_ended_run_changes_nothing(journal: Database, doors: Doors) -> None:
    doors.accept(samples.new_run())
    samples.Stream(journal).write(samples.event(1, "run.succeeded"))
    before = doors.run("default", "run1")

    assert doors.request_cancel("run1", "default", by="bob", reason=None, at_ms=3_000) == before
    assert before.state is RunState.SUCCEEDED


def test_cancelling_a_run_that_the_tenant_lacks_is_refused(doors: Doors) -> None:
    doors.accept(samples.new_run())

    with pytest.raises(errors.UnknownRun):
        doors.request_cancel("run1", "other", by="bob", reason=None, at_ms=3_000)
    assert doors.run("default", "run1").cancel_requested_ms is None
