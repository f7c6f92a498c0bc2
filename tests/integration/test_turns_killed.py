"""Real processes: a worker that is killed in the middle of a word, and a Redis that forgets everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from convergio.graphflow.client.event import FINISHED, RESET, RESTARTED, Event
from convergio.graphflow.client.feed import Feed
from convergio.graphflow.flow import document
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks.conversation import tables
from convergio.tasks.conversation.voice import CONTENT
from tests.integration.engine_bodies import in_order
from tests.integration.engine_rig import QUIET
from tests.integration.test_engine_workers import Crew, crew

pytestmark = [QUIET, pytest.mark.slow]

assert crew  # a fixture

WORDS = "one two three four five six seven eight"
THREAD = [("user", "Count"), ("ann", WORDS), ("bob", "well")]


def counting() -> Workflow:
    """`ann` counts slowly, `bob` says a word: by a policy that the workers include."""
    ann = {"name": "ann", "role": "You count.", "script": [{"say": WORDS, "pace": 0.25}]}
    bob = {"name": "bob", "role": "You listen.", "script": ["well"]}
    policy = f"{in_order.__module__}.{in_order.__qualname__}"
    talk = {"conversation": {"agents": [ann, bob], "policy": policy, "stop": {"turns": 2}}, "prompt": "Count"}
    return document.parse_document({"workflow": "counting", "version": 1, "steps": {"talk": talk}})


def disturbed(crew: Crew, disturb: Callable[[str], object]) -> tuple[RunRef, list[Event]]:
    """A run that is disturbed once, at the first word, with the name of the worker; what its reader was told."""
    ref = crew.submit(counting())

    def ended() -> dict[str, Any] | None:
        row = crew.history.run(ref.tenant, ref.run)
        return {"state": row.state.value, "output": row.output, "error": row.error} if row.terminal else None

    told: list[Event] = []
    worker = ""
    for event in Feed(crew.entrance.link.client, ref, ended).events():
        if event is None:
            continue
        if event.type == "step.running":
            worker = str(event.data["worker"])
        if event.type == CONTENT and not any(one.type == CONTENT for one in told):
            disturb(worker)
        told.append(event)
    return ref, told


def words(events: list[Event], turn: int) -> str:
    """What a reader has of a turn at the end, who drops what was said before a reset or a new beginning."""
    text = ""
    for event in events:
        begins = event.type == "CUSTOM" and event.data["name"] == RESTARTED and event.iteration == turn
        text = "" if begins or event.type == RESET else text
        text += event.data["delta"] if event.type == CONTENT and event.iteration == turn else ""
    return text


def thread(crew: Crew, ref: RunRef) -> list[tuple[str, str]]:
    said = tables.said(crew.history.database, ref.tenant, ref.run, "talk", 0, 9)
    return [(message.source, message.text) for message in said]


def test_a_killed_worker_and_a_lost_board_cost_a_conversation_some_time_and_nothing_else(crew: Crew) -> None:
    """A run that loses its worker in the middle of a word, then one that loses its board there: one crew for both."""
    ref, told = disturbed(crew, lambda worker: crew.processes[worker].kill())
    assert thread(crew, ref) == THREAD
    restarted = [one.iteration for one in told if one.type == "CUSTOM" and one.data["name"] == RESTARTED]
    assert restarted == [0]
    assert [words(told, turn) for turn in (0, 1)] == [WORDS, "well"]
    assert [one.type for one in told].count(FINISHED) == 1

    ref, told = disturbed(crew, lambda _: crew.entrance.link.client.flushall())
    assert thread(crew, ref) == THREAD
    assert [one.type for one in told].count(RESET) == 1
    assert words(told, 0) == WORDS, "the turn is told from its beginning"
    assert [one.type for one in told].count(FINISHED) == 1
