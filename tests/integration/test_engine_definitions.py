"""Definitions on the board: they are there as long as a run needs them, without a TTL, and no longer."""

from __future__ import annotations

from typing import Any
from unittest import mock

from convergio.graphflow.board import departure
from convergio.graphflow.engine import definitions
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState
from tests.integration.engine_rig import QUIET, Stage, chain, single

pytestmark = QUIET


def drop(stage: Stage) -> int:
    return definitions.drop_unused(stage.service.link, stage.service.link.epoch())


def gone(stage: Stage) -> RunRef:
    """A run of `single` that ended, and left the board."""
    ref = stage.submit(single())
    stage.worker.steps.succeed(stage.claim(ref, "only"), {})
    stage.journal()
    keys = stage.keys
    assert stage.client.exists(keys.plan(single().digest)), "its readers have a minute"
    assert drop(stage) == 0
    departure.forget(stage.service.link, keys, [ref])
    return ref


def test_a_definition_goes_when_the_last_run_that_needs_it_has_left_the_board(stage: Stage) -> None:
    live = stage.submit(chain())
    gone(stage)
    assert drop(stage) == 1
    assert not stage.client.exists(stage.keys.plan(single().digest))
    assert stage.client.ttl(stage.keys.plan(chain().digest)) == -1
    again = stage.submit(single())
    other = stage.another_worker()
    other.steps.succeed(stage.claim(again, "only", other), {})
    stage.play(live, again)
    assert {stage.row(ref).state for ref in (live, again)} == {RunState.SUCCEEDED}


def test_a_run_that_starts_meanwhile_keeps_its_definition(stage: Stage) -> None:
    gone(stage)
    needed = definitions._needed
    looked: list[set[str]] = []

    def slow(*given: Any) -> set[str]:
        found = needed(*given)
        looked.append(found)
        if len(looked) == 2:
            stage.submit(single())
        return found

    with mock.patch.object(definitions, "_needed", slow):
        assert drop(stage) == 0
    assert stage.client.exists(stage.keys.plan(single().digest))


def test_a_run_that_starts_at_the_last_moment_keeps_all(stage: Stage) -> None:
    gone(stage)
    needed = definitions._needed
    looked: list[set[str]] = []

    def slow(*given: Any) -> set[str]:
        found = needed(*given)
        looked.append(found)
        if len(looked) == 3:  # between the last look and the deletion
            stage.submit(single())
        return found

    with mock.patch.object(definitions, "_needed", slow):
        assert drop(stage) == 0
    assert stage.client.exists(stage.keys.plan(single().digest))
