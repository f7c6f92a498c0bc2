"""The witness reads from the journal's tables what the journal wrote, on both databases, in plain SQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from convergio.benchmarks.evidence import Journal, Kept, Paid, Run, Said, Signal, Taken
from convergio.graphflow.journal.database import Database
from convergio.tasks.agents import tables as agent_tables
from convergio.tasks.conversation import tables as conversation_tables
from tests.integration.journal_samples import Stream, accepted, event, migrated, new_signal, outcome


@pytest.fixture
def opened(journal_url: str) -> Iterator[Database]:
    with migrated(journal_url) as database:
        with database.write() as connection:
            for domain in (agent_tables, conversation_tables):
                domain.metadata.create_all(connection)
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


def test_a_conversation_is_read_turn_by_turn(opened: Database, journal_url: str) -> None:
    accepted(opened, "c1-a")
    turn = {"run_id": "c1-a", "tenant": "default", "submitter": "me", "step": "talk", "iteration": 1}
    message = {**turn, "seq": 0, "kind": "text", "source": "ann", "body": '{"text": "hello"}', "at_ms": 1}
    spent = {"model": "m", "agent": "ann", "input_tokens": 1, "output_tokens": 1, "estimated": False, "attempt": 1}
    call = {**turn, **spent, "call_id": "k", "latency_ms": 1, "started_ms": 1}
    taken = {**turn, "speaker": "ann", "calls": 1, "input_tokens": 1, "output_tokens": 1}
    with opened.write() as connection:
        connection.execute(conversation_tables.messages.insert(), message)
        connection.execute(conversation_tables.turns.insert(), taken)
        connection.execute(agent_tables.model_calls.insert(), call)
    key, value = "model.1", {"row": {"call_id": "k"}}
    recorded = event(1, "step.recorded", "c1-a", step="talk", iteration=1, data={"key": key, "value": value})
    Stream(opened).write(recorded)
    found = Journal(journal_url).history("c1-").talked
    assert found.said == [Said(run="c1-a", step="talk#1", seq=0, kind="text", source="ann", body={"text": "hello"})]
    assert found.taken == [Taken(run="c1-a", step="talk#1", speaker="ann", calls=1)]
    assert found.paid == [Paid(run="c1-a", step="talk#1", call="k")]
    assert found.kept == [Kept(run="c1-a", step="talk#1", key=key, value=value)]
