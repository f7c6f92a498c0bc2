"""Two journals and one board: the second is refused before it does harm, and takes the board over only if told to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from convergio.config.settings import Settings
from convergio.graphflow.engine.submission import Entrance, Submission
from convergio.graphflow.model import errors
from convergio.graphflow.model.states import RunState
from convergio.workers import boot
from convergio.workers.service import Service
from tests.integration.engine_rig import QUIET, Stage, another_service, chain, migrated, settings_for, single
from tests.waiting import wait_until

pytestmark = QUIET


@pytest.fixture
def strangers(valkey: str, tmp_path: Path) -> Settings:
    """The settings of an installation with the same Redis and a journal of its own."""
    url = f"sqlite:///{tmp_path / 'other.sqlite'}"
    migrated(url)
    return settings_for(valkey, url, tmp_path)


@pytest.fixture
def stranger(stage: Stage, strangers: Settings) -> Iterator[Service]:
    """Its service process."""
    with ExitStack() as stack:
        yield another_service(strangers, stack)


@pytest.fixture
def door(stage: Stage, strangers: Settings) -> Iterator[Entrance]:
    """Its door."""
    core = boot.core(strangers)
    made = boot.entrance(strangers, core)
    yield made
    made.doors._database.close()
    core.link.close()
    core.app.close()


def board_of(stage: Stage) -> dict[str, object]:
    """Every key of the board but the leases on roles."""
    names = sorted(name for name in stage.client.scan_iter() if ":leader:" not in name)
    return {
        name: stage.client.dump(name) if stage.client.type(name) != "string" else stage.client.get(name)
        for name in names
    }


def test_a_service_with_another_journal_leaves_the_board_alone(stage: Stage, stranger: Service) -> None:
    ref = stage.submit(chain())
    before = sorted(board_of(stage))
    for attempt in (stranger.rebuilder.ensure, stranger.rebuilder.rebuild, stranger.rebuilder.needed):
        with pytest.raises(errors.AnotherJournal, match="rebuild --adopt"):
            attempt()
    assert stranger.rebuilder.boards.current() is None, "not even its own epoch is raised"
    assert sorted(board_of(stage)) == before
    stage.play(ref)
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_a_service_with_another_journal_ends_and_keeps_no_lease(stage: Stage, stranger: Service) -> None:
    told: list[str] = []
    stranger.on_refused = lambda: told.append("refused")
    stranger.start()
    wait_until(lambda: stranger.refused, timeout=20)
    stranger.stop()
    assert isinstance(stranger.refused, errors.AnotherJournal)
    assert told == ["refused"]
    assert list(stage.client.scan_iter(match="*:leader:*")) == []


def test_a_board_that_is_being_made_is_not_a_strangers_either(stage: Stage, stranger: Service) -> None:
    """Between BEGIN and PUBLISH there is no epoch key."""
    stage.client.delete(stage.keys.epoch)
    with pytest.raises(errors.AnotherJournal):
        stranger.rebuilder.ensure()
    stage.rebuild()


def test_a_run_is_not_accepted_into_a_journal_that_the_board_does_not_belong_to(
    stage: Stage, stranger: Service, door: Entrance
) -> None:
    for _ in range(2):
        with pytest.raises(errors.AnotherJournal):
            door.submit(Submission(workflow=single(), input=None))
    assert stranger.sweeper.history.runs("default") == []


def test_a_worker_with_another_journal_is_refused_before_it_begins(stage: Stage, strangers: Settings) -> None:
    with pytest.raises(errors.AnotherJournal, match="CONVERGIO_JOURNAL_URL"):
        boot.admit(strangers)
    boot.admit(stage.settings)


def test_a_board_is_adopted_by_another_journal_only_by_name_of_it(
    stage: Stage, stranger: Service, door: Entrance
) -> None:
    ref = stage.submit(chain())
    was, old = stage.keys.number, stage.keys.run(ref)
    epoch = stranger.rebuilder.rebuild(adopt=True)
    assert epoch is not None
    assert epoch.number == was + 1, "above the other's, though it is this journal's first"
    assert not stage.client.exists(old)
    with pytest.raises(errors.AnotherJournal):
        stage.service.rebuilder.ensure()
    assert stranger.rebuilder.ensure()
    assert stranger.sweeper.history.dead_events() == [], "nothing of the other's is saved"
    assert door.submit(Submission(workflow=single(), input=None)).state is RunState.ACCEPTED


def test_adopting_ones_own_board_saves_what_the_journal_has_not_got(stage: Stage) -> None:
    ref = stage.submit(chain())
    stage.worker.steps.succeed(stage.claim(ref, "first"), {"n": 1})
    assert stage.service.rebuilder.rebuild(adopt=True) is not None
    assert set(stage.outcomes(ref)) == {"first"}


def test_time_goes_on_without_sql_for_a_service_that_was_just_begun(stage: Stage) -> None:
    with ExitStack() as stack, stage.sql_away():
        fresh = another_service(stage.settings, stack)
        fresh._sweep()
        assert fresh.sweeper_lease.holds()
        with pytest.raises(errors.JournalUnavailable):
            fresh._journal()
        fresh.sweeper_lease.resign()


def test_a_wiped_board_belongs_to_whoever_makes_the_next_one(stage: Stage, stranger: Service) -> None:
    stage.wipe()
    assert stranger.rebuilder.ensure()
    with pytest.raises(errors.AnotherJournal):
        stage.service.rebuilder.ensure()
