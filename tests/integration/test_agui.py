"""Every event that a run's readers are told, and that has a type of AG-UI's, is one for AG-UI's own validator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pydantic
import pytest
from ag_ui.core import Event as AgUiEvent
from ag_ui.core import EventType

from convergio.graphflow.client.event import Event
from convergio.graphflow.flow import document
from tests.integration.engine_rig import QUIET, Stage
from tests.integration.test_stream_readers import to_the_end
from tests.integration.test_turns import agent, looking_up, run, talking

pytestmark = QUIET

AG_UI: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(AgUiEvent)
TYPES = frozenset(kind.value for kind in EventType)


def refused(events: Sequence[Event]) -> list[str]:
    """What AG-UI's models say against them: each with all its fields, none of which may be unknown to them or wrong."""
    found: list[str] = []
    for event in events:
        if event.type in TYPES:
            try:
                AG_UI.validate_python({"type": event.type, "timestamp": event.at_ms, **event.data})
            except pydantic.ValidationError as error:
                found.append(f"{event.type} {dict(event.data)}: {error}")
    return found


def kinds(events: Sequence[Event]) -> set[str]:
    return {event.type for event in events} & TYPES


SPOKEN = {
    *("RUN_STARTED", "STEP_STARTED", "STEP_FINISHED", "RUN_FINISHED", "CUSTOM"),
    *("TEXT_MESSAGE_CHUNK", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END"),
}
CALLED = {"TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "TOOL_CALL_RESULT"}


def test_a_conversation_with_tools_is_told_in_events_of_ag_ui(stage: Stage) -> None:
    ref = stage.submit(talking(looking_up("so it is"), agent("bob", "well"), stop={"turns": 2}), {"x": "it"})
    run(stage, ref)
    events = to_the_end(stage, ref)
    assert kinds(events) == SPOKEN | CALLED
    assert refused(events) == []


def test_what_stands_in_for_a_stream_that_is_gone_is_an_event_of_ag_ui(stage: Stage) -> None:
    ref = stage.submit(talking(looking_up("so it is"), agent("bob", "well"), stop={"turns": 2}), {"x": "it"})
    run(stage, ref)
    stage.client.delete(stage.keys.feed(ref))
    events = to_the_end(stage, ref)
    assert {"RUN_STARTED", "MESSAGES_SNAPSHOT", "RUN_FINISHED"} <= kinds(events)
    assert refused(events) == []


def test_an_agents_step_and_a_run_that_fails_are_told_in_events_of_ag_ui(stage: Stage) -> None:
    wrong = {"agent": "amy", "prompt": "So, {{ input.x.y }}?", "needs": ["one"]}
    steps = {"one": {"agent": "amy", "prompt": "How?"}, "two": wrong}
    ref = stage.submit(document.parse_document({"workflow": "fails", "version": 1, "steps": steps}), {"x": 1})
    run(stage, ref)
    events = to_the_end(stage, ref)
    assert {"RUN_STARTED", "STEP_STARTED", "TEXT_MESSAGE_CONTENT", "STEP_FINISHED", "RUN_ERROR"} <= kinds(events)
    assert refused(events) == []


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("TEXT_MESSAGE_START", {"role": "assistant"}),
        ("TOOL_CALL_START", {"toolCallId": "1"}),
        ("TEXT_MESSAGE_CONTENT", {"messageId": "1", "delta": 5}),
    ],
)
def test_the_validator_refuses_what_is_no_event_of_ag_ui(kind: str, data: dict[str, Any]) -> None:
    assert len(refused([Event(id="1-1", type=kind, data=data)])) == 1
