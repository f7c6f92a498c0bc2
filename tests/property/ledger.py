"""What SQL knows of one run in a played history: the journal's first-one-wins rules on plain lists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from convergio.graphflow.journal.rows import EventRow, OutcomeRow, RecordRow, RunFacts, RunRow, SignalRow
from convergio.graphflow.model import instance
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import TERMINAL_RUN, TERMINAL_STEP, RunState, StepState

OUTCOMES: Final = frozenset(f"step.{state.lower()}" for state in TERMINAL_STEP)
ENDS: Final = frozenset(f"run.{state.lower()}" for state in TERMINAL_RUN)
CONTROLS: Final = {
    "run.paused": RunState.PAUSED,
    "run.resumed": RunState.RUNNING,
    "run.compensating": RunState.COMPENSATING,
}


@dataclass(slots=True)
class Ledger:
    """One run's rows. `told` is everything in its order, for who checks it."""

    ref: RunRef
    document: Mapping[str, Any]
    digest: str
    given: Any
    state: RunState = RunState.ACCEPTED
    cancel_requested: bool = False
    pause_wanted: bool = False
    control_version: int = 0
    output: Any = None
    error: Mapping[str, Any] | None = None
    outcomes: dict[str, OutcomeRow] = field(default_factory=dict[str, OutcomeRow])
    events: list[EventRow] = field(default_factory=list[EventRow])
    records: dict[tuple[str, str], RecordRow] = field(default_factory=dict[tuple[str, str], RecordRow])
    signals: dict[str, SignalRow] = field(default_factory=dict[str, SignalRow])
    applied: set[str] = field(default_factory=set[str])
    told: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    refused: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """outcomes and ends that came a second time"""

    def take(self, entry: Mapping[str, str], epoch: int, sequence: int) -> None:
        """One entry of the board's stream."""
        kind, step, data = entry["t"], entry["s"], json.loads(entry["d"])
        self.told.append((kind, step))
        if kind in OUTCOMES:
            self._outcome(kind, step, data, entry, epoch, sequence)
        elif kind == "step.recorded":
            self._record(step, data, entry, epoch)
        else:
            self._event(kind, step, data, entry, epoch, sequence)

    def _outcome(self, kind: str, step: str, data: Any, entry: Mapping[str, str], epoch: int, sequence: int) -> None:
        if step in self.outcomes:
            self.refused.append((kind, step))
            return
        self.outcomes[step] = OutcomeRow(
            run_id=self.ref.run,
            step=instance.step_of(step),
            iteration=instance.split(step)[1],
            tenant=self.ref.tenant,
            submitter="ann",
            state=StepState(data["state"]),
            attempt=data["attempt"],
            output=data["output"],
            error=data["error"],
            started_ms=data["started_ms"],
            finished_ms=int(entry["a"]),
            worker=None,
            tokens=0,
            epoch=epoch,
            seq=int(entry["q"]),
            stream_seq=sequence,
        )

    def _record(self, step: str, data: Any, entry: Mapping[str, str], epoch: int) -> None:
        row = RecordRow(
            run_id=self.ref.run,
            step=instance.step_of(step),
            iteration=instance.split(step)[1],
            key=data["key"],
            tenant=self.ref.tenant,
            submitter="ann",
            value=data["value"],
            epoch=epoch,
            at_ms=int(entry["a"]),
        )
        self.records.setdefault((step, row.key), row)

    def _event(self, kind: str, step: str, data: Any, entry: Mapping[str, str], epoch: int, sequence: int) -> None:
        if kind == "run.started" and self.state is RunState.ACCEPTED:
            self.state = RunState.RUNNING
        elif kind in CONTROLS and self.state in (RunState.RUNNING, RunState.PAUSED):
            self.state = CONTROLS[kind]
        elif kind in ENDS and self.state in TERMINAL_RUN:
            self.refused.append((kind, step))
        elif kind in ENDS:
            self.state = RunState(data["state"])
            self.output, self.error = data["output"], data["error"]
        elif kind == "signal.applied":
            self.applied.add(data["id"])
        row = EventRow(
            run_id=self.ref.run,
            epoch=epoch,
            seq=int(entry["q"]),
            tenant=self.ref.tenant,
            submitter="ann",
            type=kind,
            step=instance.step_of(step) or None,
            iteration=instance.split(step)[1],
            data=data,
            at_ms=int(entry["a"]),
            stream_seq=sequence,
        )
        self.events.append(row)

    def cancel(self) -> None:
        """Somebody asks for the run's end."""
        if not self.cancel_requested and self.state not in TERMINAL_RUN:
            self.cancel_requested = True
            self.control_version += 1

    def control(self, *, pause: bool) -> None:
        """Somebody asks that the run be paused, or go on."""
        if pause != self.pause_wanted and self.state not in TERMINAL_RUN:
            self.pause_wanted = pause
            self.control_version += 1

    @property
    def unsettled(self) -> bool:
        """Whether the run is to be paused or to go on, and has not done it yet, for all that SQL knows."""
        return self.state is (RunState.RUNNING if self.pause_wanted else RunState.PAUSED)

    def signal(self, name: str, data: Mapping[str, Any], at_ms: int, *, id: str = "") -> SignalRow:
        """The row that is written before the board hears of the signal. The same id means the same row."""
        row = SignalRow(
            signal_id=id or f"signal-{name}",
            tenant=self.ref.tenant,
            submitter="ann",
            run_id=self.ref.run,
            name=name,
            data=data,
            created_ms=at_ms,
            applied_ms=None,
            dropped_ms=None,
        )
        return self.signals.setdefault(row.signal_id, row)

    def run(self) -> RunRow:
        """The run's row."""
        return RunRow(
            run_id=self.ref.run,
            tenant=self.ref.tenant,
            submitter="ann",
            workflow="play",
            version=1,
            digest=self.digest,
            start_key=None,
            input=self.given,
            state=self.state,
            control_version=self.control_version,
            priority="medium",
            not_after_ms=0,
            created_ms=0,
            started_ms=None,
            finished_ms=None,
            output=None,
            error=None,
            cancel_requested_ms=0 if self.cancel_requested else None,
            cancel_reason="enough",
            cancel_by="ann",
            trace=None,
            paused_ms=0 if self.pause_wanted else None,
            paused_by="ann" if self.pause_wanted else None,
        )

    def facts(self) -> RunFacts:
        """What a rebuild reads."""
        return RunFacts(
            run=self.run(),
            document=self.document,
            outcomes=tuple(self.outcomes.values()),
            events=tuple(self.events),
            records=tuple(self.records.values()),
            signals=tuple(self.signals.values()),
        )
