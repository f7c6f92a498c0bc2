"""THE transition table. The SQL CHECK constraints, the diagram in the docs and the tests are made from it."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Final


class RunState(StrEnum):
    """Where a run is; the last three are terminal."""

    ACCEPTED = "ACCEPTED"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    COMPENSATING = "COMPENSATING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class StepState(StrEnum):
    """Where a step is; the last five are terminal. BLOCKED always says on what and since when."""

    WAITING = "WAITING"
    READY = "READY"
    RUNNING = "RUNNING"
    BLOCKED = "BLOCKED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"
    CANCELLED = "CANCELLED"
    QUARANTINED = "QUARANTINED"


class BlockedOn(StrEnum):
    """What a BLOCKED step waits for."""

    RETRY = "RETRY"
    SIGNAL = "SIGNAL"
    JOURNAL = "JOURNAL"
    HOOK = "HOOK"
    TIMER = "TIMER"
    LIMIT = "LIMIT"
    CHILD = "CHILD"
    ITEMS = "ITEMS"


TERMINAL_RUN: Final = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})
TERMINAL_STEP: Final = frozenset(
    {StepState.SUCCEEDED, StepState.FAILED, StepState.SKIPPED, StepState.CANCELLED, StepState.QUARANTINED}
)

RUN_TRANSITIONS: Final = MappingProxyType(
    {
        (RunState.ACCEPTED, "start"): RunState.RUNNING,
        (RunState.ACCEPTED, "cancel"): RunState.CANCELLED,
        (RunState.RUNNING, "succeed"): RunState.SUCCEEDED,
        (RunState.RUNNING, "fail"): RunState.FAILED,
        (RunState.RUNNING, "cancel"): RunState.CANCELLED,
        (RunState.RUNNING, "pause"): RunState.PAUSED,
        (RunState.RUNNING, "compensate"): RunState.COMPENSATING,
        (RunState.PAUSED, "resume"): RunState.RUNNING,
        (RunState.PAUSED, "succeed"): RunState.SUCCEEDED,
        (RunState.PAUSED, "fail"): RunState.FAILED,
        (RunState.PAUSED, "cancel"): RunState.CANCELLED,
        (RunState.PAUSED, "compensate"): RunState.COMPENSATING,
        (RunState.COMPENSATING, "fail"): RunState.FAILED,
        (RunState.COMPENSATING, "cancel"): RunState.CANCELLED,
    }
)

STEP_TRANSITIONS: Final = MappingProxyType(
    {
        (StepState.WAITING, "fire"): StepState.READY,
        (StepState.WAITING, "skip"): StepState.SKIPPED,
        (StepState.WAITING, "fail"): StepState.FAILED,
        (StepState.WAITING, "succeed"): StepState.SUCCEEDED,
        (StepState.WAITING, "block"): StepState.BLOCKED,
        (StepState.READY, "claim"): StepState.RUNNING,
        (StepState.READY, "ring"): StepState.READY,
        (StepState.READY, "block"): StepState.BLOCKED,
        (StepState.READY, "fail"): StepState.FAILED,
        (StepState.READY, "cancel"): StepState.CANCELLED,
        (StepState.READY, "quarantine"): StepState.QUARANTINED,
        (StepState.RUNNING, "succeed"): StepState.SUCCEEDED,
        (StepState.RUNNING, "fail"): StepState.FAILED,
        (StepState.RUNNING, "block"): StepState.BLOCKED,
        (StepState.RUNNING, "ring"): StepState.READY,
        (StepState.RUNNING, "cancel"): StepState.CANCELLED,
        (StepState.RUNNING, "quarantine"): StepState.QUARANTINED,
        (StepState.BLOCKED, "ring"): StepState.READY,
        (StepState.BLOCKED, "claim"): StepState.RUNNING,
        (StepState.BLOCKED, "block"): StepState.BLOCKED,
        (StepState.BLOCKED, "succeed"): StepState.SUCCEEDED,
        (StepState.BLOCKED, "fail"): StepState.FAILED,
        (StepState.BLOCKED, "cancel"): StepState.CANCELLED,
    }
)


def next_run(state: RunState, event: str) -> RunState:
    """The run state after `event`; KeyError if the table does not allow it."""
    return RUN_TRANSITIONS[state, event]


def next_step(state: StepState, event: str) -> StepState:
    """The step state after `event`; KeyError if the table does not allow it."""
    return STEP_TRANSITIONS[state, event]


def _diagram(title: str, rows: list[tuple[str, str, str]], start: str, final: list[str]) -> str:
    lines = ["```mermaid", "stateDiagram-v2", f"    %% {title}", f"    [*] --> {start}"]
    lines += [f"    {source} --> {target}: {event}" for source, event, target in rows]
    lines += [f"    {state} --> [*]" for state in final]
    return "\n".join([*lines, "```"])


def run_diagram() -> str:
    """The run states as a Mermaid diagram, made from the table."""
    rows = [(source.value, event, target.value) for (source, event), target in RUN_TRANSITIONS.items()]
    return _diagram("run states", rows, RunState.ACCEPTED.value, sorted(state.value for state in TERMINAL_RUN))


def step_diagram() -> str:
    """The step states as a Mermaid diagram, made from the table."""
    rows = [(source.value, event, target.value) for (source, event), target in STEP_TRANSITIONS.items()]
    return _diagram("step states", rows, StepState.WAITING.value, sorted(state.value for state in TERMINAL_STEP))
