"""A run's beginning and end as AG-UI 1.0 has them. The board keeps them under names of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from convergio.graphflow.client.event import FAILED, FINISHED, STARTED, Event
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState

BEGUN: Final = "run.started"
ENDED: Final = "run.finished"

OUTCOMES: Final = {RunState.SUCCEEDED: "success", RunState.CANCELLED: "cancelled"}


def told(event: Event, ref: RunRef) -> Event:
    """The event as readers are told it."""
    if event.type == BEGUN:
        return replace(event, type=STARTED, data=begun(ref))
    if event.type == ENDED:
        kind, data = ended(ref, event.data)
        return replace(event, type=kind, data=data)
    return event


def begun(ref: RunRef) -> dict[str, str]:
    """The data of `RUN_STARTED`. A run has one stream, which is its thread."""
    return {"threadId": ref.run, "runId": ref.run}


def ended(ref: RunRef, facts: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """`RUN_FINISHED`, or `RUN_ERROR` if it failed; beside AG-UI's fields with `state`, `output` and `error`."""
    error = facts["error"] or {}
    if facts["state"] == RunState.FAILED:
        said = {"message": str(error.get("message") or "the run failed"), "code": str(error.get("code") or "FAILED")}
        return FAILED, {**said, **facts}
    outcome = {"type": OUTCOMES[RunState(facts["state"])]}
    result = {} if facts["output"] is None else {"result": facts["output"]}
    return FINISHED, {**begun(ref), **result, "outcome": outcome, **facts}
