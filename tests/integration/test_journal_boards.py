"""The epoch: one rebuilder wins, and nothing of an old epoch is written afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from convergio.graphflow.journal import tables
from convergio.graphflow.journal.boards import Boards
from convergio.graphflow.journal.database import Database
from convergio.graphflow.model import errors
from tests.integration import journal_samples as samples


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    yield from samples.shared(request, tmp_path_factory)


@pytest.fixture
def journal(shared: Database) -> Database:
    return samples.emptied(shared)


def test_there_is_no_board_before_the_first_epoch(journal: Database) -> None:
    assert Boards(journal).current() is None


def test_the_first_epoch_is_begun_once(journal: Database) -> None:
    boards = Boards(journal)

    assert boards.raise_epoch(None, "server-a", 3) == 1
    assert boards.raise_epoch(None, "server-b", 3) is None
    board = boards.current()
    assert board is not None
    assert (board.epoch, board.high_water, board.schema, board.server) == (1, 0, 3, "server-a")


def test_the_epoch_is_raised_only_from_the_one_that_was_expected(journal: Database) -> None:
    boards = Boards(journal)
    boards.raise_epoch(None, "server-a", 3)

    assert boards.raise_epoch(1, "server-b", 4) == 2
    assert boards.raise_epoch(1, "server-c", 4) is None
    assert boards.raise_epoch(7, "server-c", 4) is None
    board = boards.current()
    assert board is not None
    assert (board.epoch, board.schema, board.server) == (2, 4, "server-b")


def test_raising_the_epoch_begins_a_stream_anew(journal: Database) -> None:
    stream = samples.Stream(journal)
    stream.write(samples.outcome(5))

    Boards(journal).raise_epoch(1, "server-b", 1)
    board = Boards(journal).current()
    assert board is not None
    assert (board.epoch, board.high_water) == (2, 0)


def test_of_those_who_raise_the_epoch_at_the_same_moment_one_wins(journal: Database) -> None:
    callers, rounds = 4, 10
    barrier = Barrier(callers)

    def race(caller: int) -> list[int | None]:
        answers: list[int | None] = []
        for number in range(rounds):
            barrier.wait()
            answers.append(Boards(journal).raise_epoch(number or None, f"server-{caller}", 1))
        return answers

    with ThreadPoolExecutor(callers) as pool:
        won = list(pool.map(race, range(callers)))
    for number in range(rounds):
        assert sorted(answers[number] or 0 for answers in won) == [0] * (callers - 1) + [number + 1]


def test_a_journal_has_one_id_whoever_asks_first(journal: Database) -> None:
    callers = 4
    barrier = Barrier(callers)

    def ask(_: int) -> str:
        barrier.wait()
        return Boards(journal).identity()

    with ThreadPoolExecutor(callers) as pool:
        answers = set(pool.map(ask, range(callers)))
    assert answers == {Boards(journal).identity()}
    assert len(answers.pop()) == 32


def test_an_epoch_may_be_raised_above_a_strangers(journal: Database) -> None:
    assert Boards(journal).raise_epoch(None, "server-a", 3, above=8) == 9
    assert Boards(journal).raise_epoch(9, "server-a", 3, above=4) == 10
    assert Boards(journal).raise_epoch(10, "server-a", 3, above=20) == 21


def test_a_commit_of_an_old_epoch_writes_nothing(journal: Database) -> None:
    stream = samples.Stream(journal)
    Boards(journal).raise_epoch(1, "server-b", 1)

    with pytest.raises(errors.EpochLost):
        stream.write(samples.outcome(1))
    assert samples.rows_of(journal, tables.outcomes) == []


def test_what_a_raised_epoch_reads_is_all_that_the_old_one_will_ever_hold(journal: Database) -> None:
    """A journaler that commits as fast as it can against a rebuilder: nothing appears after the epoch was raised."""
    stream = samples.Stream(journal)
    barrier = Barrier(2)

    def journaler() -> int:
        barrier.wait()
        for seq in range(1, 2_000):
            try:
                stream.write(samples.outcome(seq, f"step{seq}"))
            except errors.EpochLost:
                return seq - 1
        raise AssertionError("the journaler never lost its epoch")

    with ThreadPoolExecutor(1) as pool:
        committing = pool.submit(journaler)
        barrier.wait()
        while (board := Boards(journal).current()) is None or board.high_water < 5:
            pass
        assert Boards(journal).raise_epoch(1, "server-b", 1) == 2
        seen = len(samples.rows_of(journal, tables.outcomes))
        committed = committing.result(timeout=30)
    assert committed == seen == len(samples.rows_of(journal, tables.outcomes))
