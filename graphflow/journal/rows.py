"""The values that go into the journal and come out of it. JSON is decoded here, times are milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from convergio.graphflow.journal import payload
from convergio.graphflow.model import instance
from convergio.graphflow.model.ids import DEFAULT_TENANT, RunRef
from convergio.graphflow.model.states import TERMINAL_RUN, RunState, StepState
from convergio.graphflow.model.workflow import Workflow

StepKey = tuple[str, str, int]
"""(run, step, iteration): the identity of an outcome."""


def _decoded(row: sa.Row[Any], *names: str, **kinds: Callable[[str], Any]) -> dict[str, Any]:
    """The row by column name: `names` are JSON, `kinds` have a type of their own."""
    columns = row._asdict()
    columns |= {name: payload.from_text(columns[name]) for name in names}
    return columns | {name: kind(columns[name]) for name, kind in kinds.items()}


# --- in -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run to be accepted. `not_after_ms`: board time after which the sweeper starts it, if nobody did before."""

    run_id: str
    submitter: str
    workflow: Workflow
    input_json: str
    not_after_ms: int
    created_ms: int
    tenant: str = DEFAULT_TENANT
    start_key: str | None = None
    priority: str = "medium"
    trace: str | None = None
    pins: Mapping[str, str] = field(default_factory=dict[str, str])
    """digests of the definitions that its children have, by the workflows' names"""
    pinned: tuple[Workflow, ...] = ()
    """those of them that the journal may not know yet"""
    parent: Parent | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The step that a run is for. `depth`: how many runs are above it."""

    run_id: str
    step: str
    depth: int


class ForkKind(StrEnum):
    """Why a run was made from another one."""

    RETRY = "retry"
    REDRIVE = "redrive"
    FORK = "fork"


RETRIES: Final = (ForkKind.RETRY, ForkKind.REDRIVE)
"""A run that was forked so has had its second try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which run of the same tenant a new one is made from.

    `step`: the step that somebody named to begin with. `reused`: instances of steps whose outcomes are copied.
    `resumed`: instances that run again, and find the facts that they recorded before.
    """

    run_id: str
    kind: ForkKind
    step: str | None = None
    reused: tuple[str, ...] = ()
    resumed: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Of how many steps it copies outcomes."""
        return len({instance.step_of(one) for one in self.reused if instance.index_of(one) is None})


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSignal:
    """A signal for a run; `signal_id` makes sending it again harmless."""

    signal_id: str
    tenant: str
    submitter: str
    run_id: str
    name: str
    data: Any
    created_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvent:
    """One event of the board's stream: `seq` counts in the stream, `run_seq` in the run. `data` is JSON."""

    seq: int
    type: str
    tenant: str
    submitter: str
    run_id: str
    step: str | None = None
    iteration: int = 0
    run_seq: int
    at_ms: int
    data: Mapping[str, Any]


# --- out ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run as the journal knows it; the board may be ahead.

    `forked_from`, `fork_kind` and `fork_step`: the run it was made from, why, and the step that was named. `paused_ms`,
    `paused_by`: since when it is to be paused, and by whose wish; `state` says whether it is. `pins`: digests of the
    definitions that its children have, by the workflows' names. `parent_run`, `parent_step`, `depth`: the step that it
    is for, and how many runs are above it.
    """

    run_id: str
    tenant: str
    submitter: str
    workflow: str
    version: int
    digest: str
    start_key: str | None
    input: Any
    state: RunState
    control_version: int
    priority: str
    not_after_ms: int
    created_ms: int
    started_ms: int | None
    finished_ms: int | None
    output: Any
    error: Mapping[str, Any] | None
    cancel_requested_ms: int | None
    cancel_reason: str | None
    cancel_by: str | None
    trace: str | None
    forked_from: str | None = None
    fork_kind: ForkKind | None = None
    fork_step: str | None = None
    paused_ms: int | None = None
    paused_by: str | None = None
    pins: Mapping[str, str] | None = None
    parent_run: str | None = None
    parent_step: str | None = None
    depth: int | None = None

    @classmethod
    def of(cls, row: sa.Row[Any]) -> RunRow:
        """From a row of the table."""
        return cls(**_decoded(row, "input", "output", "error", "pins", state=RunState, fork_kind=_fork_kind))

    @property
    def terminal(self) -> bool:
        """Whether the run has ended."""
        return self.state in TERMINAL_RUN

    @property
    def cursor(self) -> tuple[int, str]:
        """Where the next page of a listing goes on."""
        return self.created_ms, self.run_id


def _fork_kind(text: str | None) -> ForkKind | None:
    return None if text is None else ForkKind(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """What `Doors.accept` did: made the run, or found the one that was accepted before."""

    run: RunRow
    created: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeRow:
    """How a step ended. `seq` counts in its run, `stream_seq` in the stream of `epoch`.

    `reused_from`: the run in which it ended so, if this one only has a copy; that run has its tokens. `cache_digest`:
    what was called with what, if others may use the outcome; `cached_from`: run/step whose outcome was used.
    """

    run_id: str
    step: str
    iteration: int
    tenant: str
    submitter: str
    state: StepState
    attempt: int
    output: Any
    error: Mapping[str, Any] | None
    started_ms: int | None
    finished_ms: int | None
    worker: str | None
    tokens: int
    epoch: int
    seq: int
    stream_seq: int
    reused_from: str | None = None
    cache_digest: str | None = None
    cached_from: str | None = None

    @classmethod
    def of(cls, row: sa.Row[Any]) -> OutcomeRow:
        """From a row of the table."""
        return cls(**_decoded(row, "output", "error", state=StepState))

    @property
    def instance(self) -> str:
        """Which instance of the step it is, as the board names it."""
        return instance.named(self.step, self.iteration)

    @property
    def type(self) -> str:
        """The event type it came from."""
        return f"step.{self.state.value.lower()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """Something that happened to a run and is no outcome."""

    run_id: str
    epoch: int
    seq: int
    tenant: str
    submitter: str
    type: str
    step: str | None
    iteration: int
    data: Mapping[str, Any]
    at_ms: int
    stream_seq: int

    @classmethod
    def of(cls, row: sa.Row[Any]) -> EventRow:
        """From a row of the table."""
        return cls(**_decoded(row, "data"))

    @property
    def instance(self) -> str:
        """Which instance of a step it is about, as the board names it; "" for the run itself."""
        return instance.named(self.step or "", self.iteration)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordRow:
    """A fact recorded in the middle of a step, not to be bought twice."""

    run_id: str
    step: str
    iteration: int
    key: str
    tenant: str
    submitter: str
    value: Any
    epoch: int
    at_ms: int

    @classmethod
    def of(cls, row: sa.Row[Any]) -> RecordRow:
        """From a row of the table."""
        return cls(**_decoded(row, "value"))

    @property
    def instance(self) -> str:
        """Which instance of the step it is of, as the board names it."""
        return instance.named(self.step, self.iteration)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalRow:
    """A signal: applied, still open, or dropped because the run ended first."""

    signal_id: str
    tenant: str
    submitter: str
    run_id: str
    name: str
    data: Any
    created_ms: int
    applied_ms: int | None
    dropped_ms: int | None

    @classmethod
    def of(cls, row: sa.Row[Any]) -> SignalRow:
        """From a row of the table."""
        return cls(**_decoded(row, "data"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRow:
    """A child that a step wants or wanted, of which something is to do. `left`: nobody waits for it any more.

    `step`: the instance of it, as the board names it.
    `state`, `output`, `error`: what the child's own run came to, None while there is none.
    """

    ref: RunRef
    parent: RunRef
    submitter: str
    step: str
    attempt: int
    workflow: str
    left: bool
    state: RunState | None
    output: Any
    error: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardRow:
    """Which board the journal follows: `server` is its INFO run_id, `high_water` the last journaled stream number."""

    epoch: int
    high_water: int
    schema: int
    server: str
    updated_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadEventRow:
    """An event that SQL refused, kept for a person to look at. `body` is JSON."""

    epoch: int
    stream_seq: int
    run_id: str
    step: str | None
    tenant: str
    submitter: str
    reason: str
    body: Mapping[str, Any]
    at_ms: int

    @classmethod
    def of(cls, row: sa.Row[Any]) -> DeadEventRow:
        """From a row of the table."""
        return cls(**_decoded(row, "body"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What one group commit did. `refused` events are dead now: they are kept for a person to look at."""

    new_outcomes: frozenset[StepKey] = frozenset()
    refused: tuple[StreamEvent, ...] = ()
    finished_runs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Everything that is known of a run: enough to put it on an empty board. Rows are in the order of their streams."""

    run: RunRow
    document: Mapping[str, Any]
    outcomes: tuple[OutcomeRow, ...]
    events: tuple[EventRow, ...]
    records: tuple[RecordRow, ...]
    signals: tuple[SignalRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What is asked of a run before another is made from it. `ends`: the state of each step's last outcome."""

    run: RunRow
    document: Mapping[str, Any]
    ends: Mapping[str, StepState]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Vital signs of the journal, over all tenants."""

    live_runs: Mapping[RunState, int] = field(default_factory=dict[RunState, int])
    open_signals: int = 0
    dead_events: int = 0
