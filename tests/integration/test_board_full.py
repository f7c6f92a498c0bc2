"""Redis without memory left: what is on the board ends, and makes room; new runs wait in SQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from convergio.graphflow.board.connection import Link
from convergio.graphflow.engine.leader import Leader
from convergio.graphflow.model.states import RunState
from tests.integration.engine_stage import EngineStage, engine_on

STEPS = {
    "first": {"task": "m.f", "durability": "step"},
    "second": {"task": "m.f", "needs": ["first"]},
}


@pytest.fixture
def stage(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[EngineStage]:
    with engine_on(valkey, sqlite_url, tmp_path) as made:
        yield made
    with redis.Redis.from_url(valkey) as client:
        client.config_set("maxmemory", 0)


def fill(link: Link) -> None:
    """From now on the server has less memory than it uses."""
    link.client.set("ballast", "x" * 2_000_000)
    link.client.config_set("maxmemory", 1_000_000)
    with pytest.raises(redis.OutOfMemoryError):
        link.client.set("more", "x")


def test_a_run_ends_on_a_server_that_became_full(stage: EngineStage) -> None:
    ref = stage.submit(STEPS)
    stage.journal()
    fill(stage.core.link)
    stage.succeed(ref, "first")
    stage.journal()
    stage.succeed(ref, "second")
    stage.journal()
    assert stage.history.run(ref.tenant, ref.run).state is RunState.SUCCEEDED


def test_a_run_whose_steps_follow_each_other_in_one_script_ends_on_a_server_that_became_full(
    stage: EngineStage,
) -> None:
    stream = {"task": "m.f", "durability": "stream"}
    ref = stage.submit(
        {"first": stream, "second": {**stream, "needs": ["first"]}, "third": {**stream, "needs": ["second"]}}
    )
    stage.journal()
    fill(stage.core.link)
    for step in ("first", "second", "third"):
        stage.succeed(ref, step)
    stage.journal()
    assert stage.history.run(ref.tenant, ref.run).state is RunState.SUCCEEDED


def test_leases_of_claims_are_prolonged_on_a_full_server(stage: EngineStage) -> None:
    claim = stage.claim(stage.submit(STEPS), "first")
    fill(stage.core.link)
    before = stage.core.link.client.zscore(stage.core.link.keys(stage.core.link.epoch()).leases, claim.member)
    stage.steps.claims.beat()
    after = stage.core.link.client.zscore(stage.core.link.keys(stage.core.link.epoch()).leases, claim.member)
    assert isinstance(before, float)
    assert isinstance(after, float)
    assert after > before
    assert not claim.lost.is_set()


def test_a_leader_leads_on_and_an_heir_leads_without_a_lease(stage: EngineStage) -> None:
    """The full server takes no new lease. Two leaders are safe, none would be the end."""
    leader = Leader(stage.core.link, "clerk", "old")
    assert leader.holds()
    fill(stage.core.link)
    assert leader.holds()
    assert not Leader(stage.core.link, "clerk", "heir").holds()
    leader.resign()
    assert Leader(stage.core.link, "clerk", "heir").holds()


def test_a_run_that_was_let_in_before_the_server_became_full_is_accepted_and_starts_when_there_is_room(
    stage: EngineStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convergio.graphflow.engine.submission.START_WITHIN_MS", -1_000)
    link = stage.core.link
    monkeypatch.setattr(stage.entrance, "pressure", None)  # there was room when it was asked
    fill(link)
    ref = stage.submit(STEPS)
    assert stage.history.run(ref.tenant, ref.run).state is RunState.ACCEPTED
    link.client.delete("ballast")
    link.client.config_set("maxmemory", 0)
    stage.service.sweeper.apply_rows()
    stage.journal()
    assert stage.history.run(ref.tenant, ref.run).state is RunState.RUNNING
