"""Reads: what people see, what the sweeper looks for, what the rebuilder needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from convergio.graphflow.journal.boards import Boards
from convergio.graphflow.journal.database import Database
from convergio.graphflow.journal.doors import Doors
from convergio.graphflow.journal.history import History
from convergio.graphflow.journal.rows import EventRow, OutcomeRow, RunRow
from convergio.graphflow.model import errors
from convergio.graphflow.model.states import RunState
from tests.integration import journal_samples as samples


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from samples.shared(request, tmp_path_factory)


@pytest.fixture
def journal(shared: Database) -> Database:
    return samples.emptied(shared)


@pytest.fixture
def history(journal: Database) -> History:
    return History(journal)


def ids(runs: list[RunRow]) -> list[str]:
    return [run.run_id for run in runs]


# --- for people -------------------------------------------------------------------------------------------------------


def test_runs_are_listed_newest_first_and_page_by_page(journal: Database, history: History) -> None:
    doors = Doors(journal)
    for run_id, created_ms in (("a", 1), ("b", 2), ("c", 2), ("d", 2), ("e", 3)):
        doors.accept(samples.new_run(run_id, created_ms=created_ms))

    pages: list[list[str]] = []
    before = None
    while page := history.runs("default", before=before, limit=2):
        pages.append(ids(page))
        before = page[-1].cursor
    assert pages == [["e", "d"], ["c", "b"], ["a"]]


def test_a_tenant_sees_its_own_runs_alone(journal: Database, history: History) -> None:
    doors = Doors(journal)
    doors.accept(samples.new_run("mine", tenant="one"))
    doors.accept(samples.new_run("theirs", tenant="two"))

    assert ids(history.runs("one")) == ["mine"]
    assert history.run("one", "mine").tenant == "one"
    for read in (history.run, history.timeline):
        with pytest.raises(errors.UnknownRun):
            read("one", "theirs")


def test_runs_are_found_by_the_beginning_of_their_id(journal: Database, history: History) -> None:
    doors = Doors(journal)
    for run_id, tenant in (("ab_1", "one"), ("ab_2", "one"), ("abc1", "one"), ("AB_3", "one"), ("ab_9", "two")):
        doors.accept(samples.new_run(run_id, tenant=tenant))

    assert history.like("one", "ab_") == ["ab_2", "ab_1"]
    assert history.like("one", "ab", limit=2) == ["abc1", "ab_2"]
    assert history.like("one", "%") == []


def test_runs_are_listed_by_workflow_and_by_state(journal: Database, history: History) -> None:
    doors = Doors(journal)
    doors.accept(samples.new_run("a"))
    doors.accept(samples.new_run("b", workflow=samples.workflow("payout")))
    samples.Stream(journal).write(samples.event(1, "run.started", "a"))

    assert ids(history.runs("default", workflow="payout")) == ["b"]
    assert ids(history.runs("default", state=RunState.RUNNING)) == ["a"]
    assert ids(history.runs("default", workflow="payout", state=RunState.RUNNING)) == []


def test_the_timeline_tells_outcomes_and_events_in_the_order_of_their_streams(
    journal: Database, history: History
) -> None:
    samples.accepted(journal, "run1", "run2")
    stream = samples.Stream(journal)
    stream.write(
        samples.event(1, "run.started"),
        samples.event(2, "run.started", "run2"),
        samples.outcome(3, "load"),
        samples.event(4, "step.retry", step="pay", run_seq=3),
    )
    Boards(journal).raise_epoch(1, "server-b", 1)
    stream.epoch, stream.high_water = 2, 0
    stream.write(samples.outcome(1, "pay", run_seq=1), samples.event(2, "run.succeeded"))

    told = history.timeline("default", "run1")
    assert [(row.epoch, row.stream_seq, row.type) for row in told] == [
        (1, 1, "run.started"),
        (1, 3, "step.succeeded"),
        (1, 4, "step.retry"),
        (2, 1, "step.succeeded"),
        (2, 2, "run.succeeded"),
    ]
    assert [type(row) for row in told[:2]] == [EventRow, OutcomeRow]


def test_an_unknown_definition_is_none(history: History) -> None:
    assert history.definition("0" * 32) is None


# --- for the sweeper --------------------------------------------------------------------------------------------------


def test_runs_that_nobody_started_in_time_are_found(journal: Database, history: History) -> None:
    doors = Doors(journal)
    for run_id, not_after_ms in (("late", 20), ("later", 10), ("due", 30), ("started", 5)):
        doors.accept(samples.new_run(run_id, not_after_ms=not_after_ms))
    samples.Stream(journal).write(samples.event(1, "run.started", "started"))

    assert ids(history.accepted_before(30, limit=10)) == ["later", "late"]
    assert ids(history.accepted_before(30, limit=1)) == ["later"]


def test_signals_that_wait_for_their_live_run_are_found(journal: Database, history: History) -> None:
    doors = samples.accepted(journal, "run1", "run2")
    for signal_id, run_id, created_ms in (
        ("second", "run1", 20),
        ("first", "run1", 10),
        ("young", "run1", 50),
        ("applied", "run1", 5),
        ("ended", "run2", 5),
    ):
        doors.signal(samples.new_signal(signal_id, run_id, created_ms=created_ms))
    stream = samples.Stream(journal)
    stream.write(samples.event(1, "signal.applied", data={"id": "applied"}), samples.event(2, "run.failed", "run2"))

    found = history.unapplied_signals(50, limit=10)
    assert [signal.signal_id for signal in found] == ["first", "second"]
    assert found[0].data == {"approve": True}
    assert len(history.unapplied_signals(50, limit=1)) == 1


def test_live_runs_that_somebody_cancelled_are_found(journal: Database, history: History) -> None:
    doors = samples.accepted(journal, "running", "ended", "asked first", "never asked")
    for run_id, at_ms in (("running", 20), ("ended", 5), ("asked first", 10)):
        doors.request_cancel(run_id, "default", by="bob", reason=None, at_ms=at_ms)
    samples.Stream(journal).write(samples.event(1, "run.cancelled", "ended"))

    assert ids(history.cancels_pending(limit=10)) == ["asked first", "running"]
    assert ids(history.cancels_pending(limit=1)) == ["asked first"]


def test_the_vital_signs_are_counted(journal: Database, history: History) -> None:
    doors = samples.accepted(journal, "a", "b", "c", "d")
    doors.signal(samples.new_signal("open", "a"))
    doors.signal(samples.new_signal("dropped", "c"))
    stream = samples.Stream(journal)
    stream.write(samples.event(1, "run.started", "a"), samples.event(2, "run.failed", "c"))
    stream.write(samples.outcome(3, "bad", "a", data={"state": "NONE"}))

    counts = history.counts()
    assert counts.live_runs == {RunState.ACCEPTED: 2, RunState.RUNNING: 1}
    assert (counts.open_signals, counts.dead_events) == (1, 1)
    (dead,) = history.dead_events()
    assert (dead.run_id, dead.step, dead.body["data"]["state"]) == ("a", "bad", "NONE")
    assert "ck_outcomes_state" in dead.reason


def test_the_sweepers_questions_are_answered_from_partial_indexes(tmp_path: Path) -> None:
    """A sweep's cost follows what is open, not what ever ran. (PostgreSQL scans small tables whatever we do.)"""
    questions: dict[str, Callable[[History], Any]] = {
        "ix_runs_live": lambda history: history.live_runs("", 10),
        "ix_runs_accepted": lambda history: history.accepted_before(10, 10),
        "ix_runs_cancelling": lambda history: history.cancels_pending(10),
        "ix_signals_open": lambda history: history.unapplied_signals(10, 10),
        "ix_runs_tenant_created_ms": lambda history: history.runs("default"),
    }
    asked: list[tuple[str, Any]] = []

    def listen(_connection: Any, _cursor: Any, sql: str, given: Any, *_rest: Any) -> None:
        asked.append((sql, given))

    with samples.migrated(f"sqlite:///{tmp_path / 'journal.sqlite'}") as opened:
        event.listen(opened._engine, "before_cursor_execute", listen)
        for index, question in questions.items():
            asked.clear()
            question(History(opened))
            (sql, given) = next(call for call in asked if call[0].startswith("SELECT"))
            with opened.read() as connection:
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", given).all()
            assert index in str(plan), plan


# --- for the rebuilder ------------------------------------------------------------------------------------------------


def test_live_runs_come_page_by_page_without_those_that_ended(journal: Database, history: History) -> None:
    samples.accepted(journal, "a", "b", "c", "d")
    samples.Stream(journal).write(samples.event(1, "run.started", "a"), samples.event(2, "run.failed", "b"))

    assert ids(history.live_runs("", 2)) == ["a", "c"]
    assert ids(history.live_runs("c", 2)) == ["d"]
    assert ids(history.live_runs("d", 2)) == []


def test_the_facts_of_a_run_are_all_that_is_known_of_it_in_order(journal: Database, history: History) -> None:
    doors = samples.accepted(journal, "run1", "run2")
    doors.signal(samples.new_signal())
    stream = samples.Stream(journal)
    stream.write(
        samples.event(1, "run.started"),
        samples.event(2, "step.recorded", step="pay", data={"key": "k2", "value": None}),
        samples.event(3, "step.recorded", step="pay", data={"key": "k1", "value": [1, {"a": 2}]}),
        samples.event(4, "step.retry", step="pay", data={"wait": 1}),
        samples.outcome(5, "zeta"),
        samples.outcome(6, "alpha", data={"output": None, "error": {"code": "X"}}),
        samples.outcome(7, "other", "run2"),
    )
    Boards(journal).raise_epoch(1, "server-b", 1)
    stream.epoch, stream.high_water = 2, 0
    stream.write(samples.outcome(1, "beta"))

    facts = history.facts("run1")
    assert facts.run.state is RunState.RUNNING
    assert facts.document == samples.workflow().document
    assert [row.step for row in facts.outcomes] == ["zeta", "alpha", "beta"]
    assert [(row.output, row.error) for row in facts.outcomes[:2]] == [({"paid": True}, None), (None, {"code": "X"})]
    assert [(row.type, row.data) for row in facts.events] == [("run.started", {}), ("step.retry", {"wait": 1})]
    assert [(row.key, row.value) for row in facts.records] == [("k2", None), ("k1", [1, {"a": 2}])]
    assert [row.signal_id for row in facts.signals] == ["signal1"]


def test_the_facts_of_many_runs_do_not_mix(journal: Database, history: History) -> None:
    samples.accepted(journal, "run1", "run2", "run3")
    samples.Stream(journal).write(samples.outcome(1, "one", "run1"), samples.outcome(2, "two", "run2"))

    facts = {found.run.run_id: found for found in history.facts_of(["run1", "run2", "nobody"])}
    assert {run_id: [row.step for row in found.outcomes] for run_id, found in facts.items()} == {
        "run1": ["one"],
        "run2": ["two"],
    }


def test_an_unknown_run_has_no_facts(history: History) -> None:
    with pytest.raises(errors.UnknownRun):
        history.facts("nobody")
    assert history.facts_of([]) == []
