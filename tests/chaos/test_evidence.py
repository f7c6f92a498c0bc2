"""The witness reads from the journal's tables what the journal wrote, on both databases, in plain SQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from convergio.benchmarks.evidence import Journal, Run, Signal
from convergio.graphflow.journal.database import Database
from tests.integration.journal_samples import Stream, accepted, event, migrated, new_signal, outcome


@pytest.fixture
def opened(journal_url: str) -> Iterator[Database]:
    with migrated(journal_url) as database:
        yield database


def test_a_history_is_what_was_journaled(opened: Database, journal_url: str) -> None:
    doors = accepted(opened, "c1-a", "c1-b", "c2-a")
    doors.signal(new_signal("s1", "c1-a", name="sign"))
    stream = Stream(opened)
    stream.write(
        event(1, "run.started", "c1-a"),
        outcome(2, "load", "c1-a", data={"output": {"by": "n1"}, "attempt": 2}),
        event(3, "step.blocked", "c1-a", step="sign"),
        event(4, "run.succeeded", "c1-a", data={"state": "SUCCEEDED", "output": None, "error": None}),
        event(5, "run.started", "c2-a"),
    )
    history = Journal(journal_url).history("c1-")
    assert sorted(history.runs, key=lambda run: run.run) == [
        Run(run="c1-a", state="SUCCEEDED", created_ms=1_000, started_ms=1_001, finished_ms=1_004),
        Run(run="c1-b", state="ACCEPTED", created_ms=1_000, started_ms=None, finished_ms=None),
    ]
    (row,) = history.outcomes
    assert (row.run, row.step, row.state, row.attempt, row.output) == ("c1-a", "load", "SUCCEEDED", 2, {"by": "n1"})
    assert (row.order, row.started_ms, row.finished_ms) == ((1, 2), 1_000, 1_100)
    assert [(one.type, one.step) for one in history.events] == [
        ("run.started", ""),
        ("step.blocked", "sign"),
        ("run.succeeded", ""),
    ]
    assert history.signals == [Signal(run="c1-a", step="sign", created_ms=2_000, settled=True)]
    assert history.dead == 0


def test_only_runs_that_ended_are_finished(opened: Database, journal_url: str) -> None:
    accepted(opened, "c1-a", "c1-b")
    Stream(opened).write(event(1, "run.started", "c1-a"), event(2, "run.failed", "c1-a", data={"error": None}))
    assert Journal(journal_url).unfinished(["c1-a", "c1-b", "c1-c"]) == ["c1-b", "c1-c"]


def test_an_outcome_is_there_once_it_is_journaled(opened: Database, journal_url: str) -> None:
    accepted(opened, "c1-a")
    journal = Journal(journal_url)
    assert not journal.has_outcome("c1-a", "load")
    Stream(opened).write(outcome(1, "load", "c1-a"))
    assert journal.has_outcome("c1-a", "load")
    assert not journal.has_outcome("c1-a", "other")


def test_approvals_that_wait_and_the_epoch_are_known(opened: Database, journal_url: str) -> None:
    journal = Journal(journal_url)
    assert journal.epoch() == 0
    accepted(opened, "c1-a")
    Stream(opened).write(event(1, "step.blocked", "c1-a", step="sign"))
    assert journal.blocked("c1-") == {("c1-a", "sign")}
    assert journal.blocked("c2-") == set()
    assert journal.epoch() == 1


def test_an_event_that_the_journal_refused_is_counted(opened: Database, journal_url: str) -> None:
    accepted(opened, "c1-a")
    Stream(opened).write(event(1, "step.retry", "c1-a", step="load", data={"why": "a\x00b"}))
    assert Journal(journal_url).history("c1-").dead == 1
