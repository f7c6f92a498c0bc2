"""What the rows of children, of their parents and of their own runs say is to be done, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from convergio.graphflow.journal.boards import Boards
from convergio.graphflow.journal.children import Children
from convergio.graphflow.journal.database import Database
from convergio.graphflow.journal.doors import Doors
from convergio.graphflow.journal.history import History
from convergio.graphflow.journal.rows import Parent, StreamEvent
from convergio.graphflow.journal.writer import Writer
from convergio.graphflow.model.ids import RunRef, child_of
from convergio.graphflow.model.states import RunState
from tests.integration import journal_samples as samples

PARENT = RunRef(tenant="default", run="run1")
CHILD = child_of(PARENT, "call", 1)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared_journal(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from samples.shared(request, tmp_path_factory)


@pytest.fixture
def journal(shared_journal: Database) -> Database:
    return samples.emptied(shared_journal)


class Books:
    """A journal, and the events that come to it."""

    def __init__(self, journal: Database) -> None:
        self.doors, self.writer, self.history = Doors(journal), Writer(journal), History(journal)
        self.children = Children(journal)
        Boards(journal).raise_epoch(None, "server", 1)
        self.seq = 0
        self.doors.accept(samples.new_run("run1"))
        self.tell("run.started")

    def tell(self, kind: str, step: str | None = None, run: str = "run1", **data: Any) -> None:
        """One event, in SQL."""
        self.seq += 1
        facts: dict[str, Any] = {"seq": self.seq, "run_seq": self.seq, "at_ms": self.seq, "tenant": "default"}
        event = StreamEvent(type=kind, run_id=run, step=step, data=data, submitter="amy", **facts)
        assert self.writer.commit([event], epoch=1, high_water=self.seq - 1, new_high_water=self.seq).refused == ()

    def want(self, attempt: int = 1) -> None:
        self.tell("child.wanted", "call", workflow="refund", attempt=attempt, due_ms=None)

    def accept(self) -> None:
        self.doors.accept(samples.new_run(CHILD.run, parent=Parent(run_id="run1", step="call", depth=1)))

    def due(self) -> list[tuple[str, bool, RunState | None]]:
        return [(row.ref.run, row.left, row.state) for row in self.children.open_business(10)]


def test_a_child_that_is_wanted_is_to_be_started_once(journal: Database) -> None:
    books = Books(journal)
    assert books.due() == []
    books.want()
    assert books.due() == [(CHILD.run, False, None)]
    books.accept()
    assert books.due() == []


def test_the_same_wish_twice_is_one_row(journal: Database) -> None:
    books = Books(journal)
    books.want()
    books.want()
    assert len(books.due()) == 1


def test_an_ended_child_is_told_of_until_its_step_has_an_outcome_then_settled(journal: Database) -> None:
    books = Books(journal)
    books.want()
    books.accept()
    books.tell("run.succeeded", run=CHILD.run, state="SUCCEEDED", output={"n": 1}, error=None)
    (row,) = books.children.open_business(10)
    assert (row.left, row.state, row.output, row.parent, row.attempt) == (
        False,
        RunState.SUCCEEDED,
        {"n": 1},
        PARENT,
        1,
    )
    outcome: dict[str, Any] = {"state": "SUCCEEDED", "output": {"n": 1}, "error": None, "attempt": 1, "tokens": 0}
    books.tell("step.succeeded", "call", **outcome, started_ms=None, finished_ms=None, worker=None, rows={})
    assert books.due() == [(CHILD.run, True, RunState.SUCCEEDED)]
    books.children.settle([CHILD.run])
    assert books.due() == []


def test_a_child_that_nobody_waits_for_is_to_be_cancelled_once(journal: Database) -> None:
    books = Books(journal)
    books.want()
    books.accept()
    books.want(attempt=2)
    assert books.due() == [(CHILD.run, True, RunState.ACCEPTED), (child_of(PARENT, "call", 2).run, False, None)]
    books.doors.request_cancel(CHILD.run, "default", "run run1", None, 5)
    assert [run for run, *_ in books.due()] == [child_of(PARENT, "call", 2).run]


def test_a_paused_run_has_its_children_started_when_it_goes_on(journal: Database) -> None:
    books = Books(journal)
    books.want()
    books.tell("run.paused")
    assert books.due() == []
    books.tell("run.resumed")
    assert books.due() == [(CHILD.run, False, None)]


def test_a_run_keeps_whose_child_it_is_and_what_its_children_are(journal: Database) -> None:
    books = Books(journal)
    other = samples.workflow("other")
    pins = {"other": other.digest}
    parent = Parent(run_id="run1", step="call", depth=3)
    books.doors.accept(samples.new_run("run2", pins=pins, pinned=(other,), parent=parent))
    row = books.history.run("default", "run2")
    assert (row.pins, row.parent_run, row.parent_step, row.depth) == (pins, "run1", "call", 3)
    assert books.history.definition(other.digest) == other.document
