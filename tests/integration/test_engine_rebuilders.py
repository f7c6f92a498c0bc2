"""P4: who makes the new board. Rivals, a rebuilder that dies, a board that is wiped while it is made, what is saved."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import pytest

from convergio.graphflow.board import scripts
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.engine import rebuild
from convergio.graphflow.engine import restore as restoring
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState
from convergio.workers.service import Service
from tests.integration.engine_rig import QUIET, Stage, another_service, chain, single

pytestmark = QUIET

PHASES = ["rebuild", "raised", "salvaged", "written"]


class Killed(BaseException):
    """The service process ends here, without another word."""


def when(phase: str, do: Callable[[], object]) -> Callable[[str], None]:
    """A phase callback."""

    def called(name: str) -> None:
        if name == phase:
            do()

    return called


def killed() -> None:
    raise Killed


def lost_epoch(stage: Stage) -> None:
    """The epoch key is gone, all else is there: as after a failover to a server that has most of it."""
    stage.client.delete(stage.keys.epoch)


def half_done(stage: Stage) -> RunRef:
    ref = stage.submit(chain())
    stage.worker.steps.succeed(stage.claim(ref, "first"), {"n": 1})
    return ref


def epoch_in_sql(stage: Stage) -> int:
    row = stage.service.rebuilder.boards.current()
    assert row is not None
    return row.epoch


# --- rivals -----------------------------------------------------------------------------------------------------------


def test_of_two_that_miss_the_same_board_sql_elects_one(both: Stage) -> None:
    ref = half_done(both)
    both.journal()
    both.wipe()
    with ExitStack() as stack:
        rival = another_service(both.settings, stack)
        elect, boards = both.service.rebuilder.boards.raise_epoch, type(both.service.rebuilder.boards)
        elected: list[int | None] = []

        def beaten(self: Any, *args: Any, **more: Any) -> Any:
            """Between its look and its election, the other makes the board; the lease elects nobody."""
            with mock.patch.object(boards, "raise_epoch", side_effect=elect):
                both.wipe()
                assert rival.rebuilder.ensure()
            elected.append(elect(*args, **more))
            return elected[-1]

        with mock.patch.object(boards, "raise_epoch", beaten):
            assert not both.service.rebuilder.ensure()
    assert elected == [None], "SQL compares: the epoch is another one by now"
    assert both.keys.number == epoch_in_sql(both) == 2
    both.play(ref)
    assert both.row(ref).state is RunState.SUCCEEDED


def test_many_that_rebuild_at_once_end_with_one_board_that_the_journal_follows(stage: Stage) -> None:
    refs = [half_done(stage) for _ in range(3)]
    stage.journal()
    stage.wipe()
    with ExitStack() as stack:
        services = [another_service(stage.settings, stack) for _ in range(4)]
        start = threading.Barrier(len(services))
        answers: list[bool] = []

        def race(service: Service) -> None:
            with mock.patch.object(service.rebuilder.lease, "holds", return_value=True):  # the lease elects nobody
                start.wait()
                answers.append(service.rebuilder.ensure())

        threads = [threading.Thread(target=race, args=(service,)) for service in services]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == len(services)
    stage.rebuild()
    assert epoch_in_sql(stage) == stage.keys.number
    stage.play(*refs)
    assert {stage.row(ref).state for ref in refs} == {RunState.SUCCEEDED}


def test_the_lease_keeps_others_from_rebuilding_meanwhile(stage: Stage, rival: Service) -> None:
    stage.wipe()
    answers: list[bool] = []
    assert stage.service.rebuilder.ensure(when("raised", lambda: answers.append(rival.rebuilder.ensure())))
    assert answers == [False]
    assert stage.keys.number == 2
    assert rival.rebuilder.ensure()
    assert stage.keys.number == 2


def test_only_the_later_of_two_boards_is_published(stage: Stage, rival: Service) -> None:
    """Wiped again in the middle, the lease too: a rival makes a later board, and the first may not overwrite it."""
    ref = half_done(stage)
    stage.journal()
    stage.wipe()
    answers: list[bool] = []

    def wiped() -> None:
        stage.wipe()
        answers.append(rival.rebuilder.ensure())

    assert not stage.service.rebuilder.ensure(when("written", wiped))
    assert answers == [True]
    assert stage.keys.number == 3
    assert stage.service.rebuilder.ensure()
    assert stage.keys.number == 3
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_an_operators_rebuild_makes_a_new_board_of_a_healthy_one(stage: Stage) -> None:
    ref = half_done(stage)
    made = stage.service.rebuilder.rebuild()
    assert made is not None
    assert made.number == stage.keys.number == 2
    stage.play(ref)
    assert stage.outcomes(ref)["first"].output == {"n": 1}


# --- a rebuilder dies, or the board is wiped while it is made ---------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
def test_killed_in_any_phase_another_finishes(stage: Stage, rival: Service, phase: str) -> None:
    ref = half_done(stage)
    stage.journal()
    stage.wipe()
    with pytest.raises(Killed):
        stage.service.rebuilder.ensure(when(phase, killed))
    stage.client.delete(f"{stage.settings.key_prefix}:leader:rebuilder")
    assert rival.rebuilder.ensure()
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED


@pytest.mark.parametrize("phase", PHASES)
def test_wiped_in_any_phase_the_next_try_finishes(stage: Stage, phase: str) -> None:
    ref = half_done(stage)
    stage.journal()
    stage.wipe()
    rebuilder = stage.service.rebuilder
    whole = rebuilder.ensure(when(phase, stage.wipe))
    assert whole is (phase in ("rebuild", "raised")), "what was written before the wipe is not a board"
    assert rebuilder.ensure()
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_a_rebuild_that_died_right_after_the_election_is_noticed_though_the_old_board_is_there(stage: Stage) -> None:
    """The journal refuses what the old board goes on to say, so it must not go on for ever."""
    ref = half_done(stage)
    with pytest.raises(Killed):
        stage.service.rebuilder._rebuild(when("raised", killed))
    stage.service.journaler._at = None
    with pytest.raises(errors.BoardRebuilding):
        stage.service.journaler.step(wait_ms=1)
    assert stage.service.rebuilder.stranded()
    stage.rebuild()
    stage.play(ref)
    assert stage.outcomes(ref)["first"].output == {"n": 1}


# --- what the old board still holds -----------------------------------------------------------------------------------


def test_what_sql_does_not_have_is_salvaged_from_the_old_stream(both: Stage) -> None:
    ref = half_done(both)
    lost_epoch(both)
    both.rebuild()
    assert both.outcomes(ref)["first"].output == {"n": 1}
    assert both.states(ref) == {"first": "SUCCEEDED", "last": "READY"}
    both.play(ref)
    assert both.row(ref).state is RunState.SUCCEEDED


def test_what_was_journaled_already_is_salvaged_no_second_time(stage: Stage) -> None:
    ref = half_done(stage)
    stage.journal()
    stage.worker.steps.succeed(stage.claim(ref, "last"), {"n": 2})
    lost_epoch(stage)
    with mock.patch.object(stage.service.rebuilder, "writer", wraps=stage.service.rebuilder.writer) as writer:
        stage.rebuild()
    (call,) = writer.salvage.call_args_list
    assert [event.type for event in call.args[0]] == ["step.succeeded", "run.succeeded"]
    assert stage.row(ref).state is RunState.SUCCEEDED
    assert not stage.client.exists(stage.keys.run(ref))


@pytest.mark.parametrize("phase", ["raised", "salvaged", "written"])
def test_what_one_rebuilder_could_not_save_the_next_one_saves(stage: Stage, rival: Service, phase: str) -> None:
    """It raised the epoch and died: the journal follows an epoch now that never had a stream."""
    ref = half_done(stage)
    lost_epoch(stage)
    for _ in range(2):
        with pytest.raises(Killed):
            stage.service.rebuilder.ensure(when(phase, killed))
    assert rival.rebuilder.ensure()
    assert stage.outcomes(ref)["first"].output == {"n": 1}
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_an_old_board_takes_on_nothing_more_once_it_is_being_salvaged(stage: Stage) -> None:
    """What it would still take on could not be saved any more."""
    ref = stage.submit(chain())
    claim = stage.claim(ref, "first")
    refused: list[bool] = []

    def tell(*_: object) -> int:
        refused.append(not stage.worker.steps.succeed(claim, {"n": 1}))
        return 0

    with mock.patch.object(rebuild.Rebuilder, "_salvage", side_effect=tell):
        assert stage.service.rebuilder.rebuild() is not None
    assert refused == [True]
    stage.worker.meet_new_board()
    stage.journal()
    assert stage.outcomes(ref)["first"].output == {"n": 1}


def test_nothing_of_older_boards_stays_behind(stage: Stage, rival: Service) -> None:
    half_done(stage)
    lost_epoch(stage)
    with pytest.raises(Killed):
        stage.service.rebuilder.ensure(when("written", killed))
    assert rival.rebuilder.ensure()
    numbers = {name.split(":")[1] for name in stage.client.scan_iter(match="convergio:[0-9]*")}
    assert numbers == {"3"}


def test_another_boards_keys_are_left_alone(stage: Stage) -> None:
    for name in ("convergio-other:1:journal", "other:1:default:r1", "convergio:callers:default:r1"):
        stage.client.set(name, "mine")
    lost_epoch(stage)
    stage.rebuild()
    assert stage.client.mget("convergio-other:1:journal", "other:1:default:r1", "convergio:callers:default:r1") == [
        "mine",
        "mine",
        "mine",
    ]


# --- faults that are not the board's ----------------------------------------------------------------------------------


def test_without_sql_no_board_is_made_and_the_next_try_makes_it(stage: Stage) -> None:
    ref = half_done(stage)
    stage.journal()
    stage.wipe()
    with stage.sql_away(), pytest.raises(errors.JournalUnavailable):
        stage.service.rebuilder.ensure()
    stage.rebuild()
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_a_run_that_cannot_be_restored_does_not_keep_the_others_away(stage: Stage) -> None:
    bad, good = stage.submit(chain("bad")), stage.submit(single())
    stage.journal()
    restore = restoring.restore

    def picky(facts: Any, *args: Any, **kwargs: Any) -> Any:
        if facts.run.run_id == bad.run:
            raise ValueError("a definition that this version does not read")
        return restore(facts, *args, **kwargs)

    stage.wipe()
    with mock.patch.object(rebuild, "restore", picky):
        stage.rebuild()
    stage.play(good)
    assert stage.row(good).state is RunState.SUCCEEDED
    assert stage.row(bad).state is RunState.RUNNING, "it is in SQL, and comes back with a version that reads it"


def test_a_board_of_a_later_epoch_is_not_replaced_by_an_earlier_one(stage: Stage) -> None:
    server = stage.service.link.server()
    assert scripts.begin(stage.service.link, Epoch(number=7, server=server))
    assert scripts.publish(stage.service.link, Epoch(number=7, server=server))
    assert stage.service.rebuilder.rebuild() is None
    assert stage.keys.number == 7
