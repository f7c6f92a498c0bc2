"""The journaler: from the board's stream to SQL, every event once and in order, whoever journals and whatever fails."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import pytest

from convergio.graphflow.board import fields, releasing
from convergio.graphflow.engine import journaler
from convergio.graphflow.engine.leader import Leader
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState
from convergio.workers.service import Service
from tests.integration.engine_rig import QUIET, Stage, chain, fork, single

pytestmark = QUIET


def high_water(stage: Stage) -> int:
    row = stage.service.rebuilder.boards.current()
    assert row is not None
    return row.high_water


def last_in_stream(stage: Stage) -> int:
    ((entry, _),) = stage.client.xrevrange(stage.keys.journal, count=1)
    return int(entry.rsplit("-", 1)[1])


def ended(stage: Stage) -> RunRef:
    ref = stage.submit(single())
    stage.worker.steps.succeed(stage.claim(ref, "only"), {"n": 1})
    return ref


# --- groups -----------------------------------------------------------------------------------------------------------


def test_what_is_there_is_one_group(both: Stage) -> None:
    refs = [ended(both) for _ in range(5)]
    assert both.service.journaler.step(wait_ms=1) == 15, "a start, an outcome and an end of each"
    assert {both.row(ref).state for ref in refs} == {RunState.SUCCEEDED}
    assert {both.row(ref).output["n"] for ref in refs} == {1}
    assert both.service.journaler.step(wait_ms=1) == 0


@pytest.mark.parametrize(("waiting", "chunk", "looks"), [(2, 3, 1), (3, 3, 2), (5, 2, 3)])
def test_who_waited_for_sql_is_let_go_in_as_few_looks_as_can_be(
    stage: Stage, waiting: int, chunk: int, looks: int
) -> None:
    assert stage.service.journaler.step(wait_ms=1) == 0, "it knows where it is"
    refs = [ended(stage) for _ in range(waiting)]
    reach = mock.Mock(wraps=releasing.reach)
    with mock.patch.object(journaler, "RELEASE_CHUNK", chunk), mock.patch.object(releasing, "reach", reach):
        stage.service.journaler.step(wait_ms=1)
    assert reach.call_count == looks
    assert stage.client.zcard(stage.keys.parked) == 0
    assert {stage.row(ref).state for ref in refs} == {RunState.SUCCEEDED}


def test_a_group_ends_a_run_that_it_began(stage: Stage) -> None:
    """Start, outcomes and end in one transaction, and what comes after the end in the same."""
    ref, other = stage.submit(fork()), stage.submit(single())
    left, right = stage.claim(ref, "left"), stage.claim(ref, "right")
    stage.worker.steps.fail(left, errors.Permanent("broken"))
    with pytest.raises(errors.StaleFence):
        stage.worker.steps.succeed(right, {})
    stage.worker.steps.succeed(stage.claim(other, "only"), {"n": 1})
    stage.service.journaler.step(wait_ms=1)
    assert stage.row(ref).state is RunState.FAILED
    assert {name: row.state.value for name, row in stage.outcomes(ref).items()} == {
        "left": "FAILED",
        "right": "CANCELLED",
    }
    assert stage.row(other).state is RunState.SUCCEEDED


def test_more_than_a_group_is_journaled_in_order(stage: Stage) -> None:
    with mock.patch.object(journaler, "GROUP", 4):
        refs = [ended(stage) for _ in range(4)]
        sizes = [stage.service.journaler.step(wait_ms=1) for _ in range(3)]
    assert sizes == [4, 4, 4]
    assert {stage.row(ref).state for ref in refs} == {RunState.SUCCEEDED}
    assert high_water(stage) == last_in_stream(stage)


def test_the_high_water_only_rises(stage: Stage) -> None:
    seen = [high_water(stage)]
    with mock.patch.object(journaler, "GROUP", 2):
        for _ in range(4):
            ended(stage)
        while stage.service.journaler.step(wait_ms=1):
            seen.append(high_water(stage))
            assert int(stage.client.get(stage.keys.released)) == seen[-1]
    assert seen == sorted(set(seen))
    assert len(seen) == 7
    assert seen[-1] == last_in_stream(stage)


# --- rivals, and a new epoch ------------------------------------------------------------------------------------------


def test_of_two_that_journal_at_once_one_writes_and_the_other_steps_back(stage: Stage, rival: Service) -> None:
    """The leader's lease only saves work: that nothing is written twice is kept by the row in SQL."""
    ref = ended(stage)

    def overtaken(phase: str) -> None:
        if phase == "commit":
            assert rival.journaler.step(wait_ms=1) == 3

    assert stage.service.journaler.step(wait_ms=1, between=overtaken) == 0
    assert stage.row(ref).state is RunState.SUCCEEDED
    assert set(stage.outcomes(ref)) == {"only"}
    second = ended(stage)
    assert stage.service.journaler.step(wait_ms=1) == 3, "it goes on where the other stopped"
    assert stage.row(second).state is RunState.SUCCEEDED


def test_a_journaler_of_the_old_epoch_writes_nothing(stage: Stage, rival: Service) -> None:
    ref = stage.submit(chain())
    stage.journal()
    stage.worker.steps.succeed(stage.claim(ref, "first"), {"of": "epoch 1"})

    def wiped(phase: str) -> None:
        if phase == "commit":
            stage.wipe()
            assert rival.rebuilder.ensure()

    assert stage.service.journaler.step(wait_ms=1, between=wiped) == 0
    assert stage.outcomes(ref) == {}
    stage.pass_time(7)
    stage.worker.steps.succeed(stage.claim(ref, "first"), {"of": "epoch 2"})
    stage.journal()
    assert stage.outcomes(ref)["first"].output == {"of": "epoch 2"}


def test_a_journaler_waits_while_the_journal_follows_another_epoch(stage: Stage) -> None:
    ended(stage)
    boards = stage.service.rebuilder.boards
    row = boards.current()
    assert row is not None
    boards.raise_epoch(row.epoch, row.server, row.schema)
    with pytest.raises(errors.BoardRebuilding):
        stage.service.journaler.step(wait_ms=1)


def test_the_lease_of_a_leader_that_died_passes_on(stage: Stage) -> None:
    link = stage.service.link
    dead, heir = Leader(link, "clerk", "dead"), Leader(link, "clerk", "heir")
    assert dead.holds()
    assert not heir.holds()
    assert 0 < stage.client.pttl(dead.key) <= 3_000, "unbeaten it ends by itself"
    stage.client.delete(dead.key)
    assert heir.holds()
    heir.resign()
    assert dead.holds()


def test_who_resigns_takes_nobody_elses_lease(stage: Stage) -> None:
    link = stage.service.link
    old, new = Leader(link, "clerk", "old"), Leader(link, "clerk", "new")
    assert old.holds()
    stage.client.delete(old.key)
    assert new.holds()
    old.resign()
    assert not Leader(link, "clerk", "third").holds()


# --- the stream's tail ------------------------------------------------------------------------------------------------


def test_only_what_sql_has_is_trimmed(stage: Stage) -> None:
    with (
        mock.patch.object(journaler, "TRIM_EVERY", 10),
        mock.patch.object(journaler, "TAIL", 5),
        mock.patch.object(journaler, "GROUP", 200),
    ):
        for _ in range(100):
            ended(stage)
        assert stage.service.journaler.step(wait_ms=1) == 200
        left = [int(entry.rsplit("-", 1)[1]) for entry, _ in stage.client.xrange(stage.keys.journal)]
        assert left[0] <= high_water(stage) - 5, "a tail stays for who looks at it"
        assert len(left) < 300
        assert left[-100:] == list(range(high_water(stage) + 1, high_water(stage) + 101)), "what SQL lacks is all there"
        stage.journal()
    assert {row.state for row in stage.history.runs("default", limit=200)} == {RunState.SUCCEEDED}


def test_an_ended_run_leaves_the_board_after_its_grace(stage: Stage) -> None:
    ref, live = ended(stage), stage.submit(chain())
    names = [stage.keys.run(ref), stage.keys.feed(ref)]
    stage.journal()
    stage.pass_time(50)
    assert stage.client.exists(*names) == 2
    stage.pass_time(15)
    assert stage.client.exists(*names, stage.keys.inbox(ref)) == 0
    assert stage.client.zcard(stage.keys.done) == 0
    assert stage.values(live)[fields.STATE] == "RUNNING"


def test_nothing_live_has_a_time_to_live(stage: Stage) -> None:
    stage.submit(chain())
    stage.claim(stage.submit(fork()), "left")
    stage.journal()
    ours = [name for name in stage.client.scan_iter(match="convergio:*") if ":leader:" not in name]
    assert ours
    assert [name for name in ours if stage.client.pttl(name) != -1] == []


# --- who waits for an end ---------------------------------------------------------------------------------------------


def test_readers_are_told_of_the_end_only_when_it_is_in_sql(stage: Stage) -> None:
    ref = ended(stage)
    told: list[RunState] = []

    def note(refs: Sequence[RunRef]) -> None:
        told.extend(stage.row(ref).state for ref in refs)

    stage.service.journaler.finished = note
    assert told == []
    stage.journal()
    assert told == [RunState.SUCCEEDED]
    types = [entry["type"] for _, entry in stage.client.xrange(stage.keys.feed(ref))]
    assert types[-2:] == ["run.succeeded", "run.finished"]


def test_who_waits_for_an_end_is_told_again_after_a_crash_in_between(stage: Stage, rival: Service) -> None:
    ended(stage)

    class Killed(BaseException):
        pass

    def killed(refs: Sequence[RunRef]) -> None:
        raise Killed

    told: list[str] = []
    stage.service.journaler.finished = killed

    def note(refs: Sequence[RunRef]) -> None:
        told.extend(ref.run for ref in refs)

    rival.journaler.finished = note
    with pytest.raises(Killed):
        stage.service.journaler.step(wait_ms=1)
    rival.journaler.step(wait_ms=1)
    assert len(told) == 1
