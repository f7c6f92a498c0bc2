"""One group of stream events, turned into the rows that one transaction writes. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeGuard

import sqlalchemy as sa

from convergio.graphflow.journal import payload
from convergio.graphflow.journal.rows import StepKey, StreamEvent
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.ids import RunRef, child_of
from convergio.graphflow.model.states import TERMINAL_RUN, TERMINAL_STEP, RunState

Columns = dict[str, Any]

OWNED: Final = ("tenant", "submitter", "run_id")
"""Columns of a domain's table that the journal fills itself: a body cannot write into another tenant or run."""


class Group:
    """Rows by table, in the order of the events. A key that occurs twice in the group keeps its first row."""

    def __init__(self, epoch: int, domain_tables: Mapping[str, sa.Table]) -> None:
        self.outcomes: dict[StepKey, Columns] = {}
        self.events: list[Columns] = []
        self.records: list[Columns] = []
        self.applied: list[Columns] = []
        self.started: list[Columns] = []
        self.controlled: list[Columns] = []
        self.children: list[Columns] = []
        self.finished: dict[str, Columns] = {}
        self._epoch = epoch
        self._domain_tables = domain_tables
        self._domain_rows: dict[StepKey, list[tuple[str, Columns]]] = {}

    def add(self, events: Iterable[StreamEvent]) -> Group:
        """Takes the events in; raises `InvalidPayload` for one that no table can hold."""
        for event in events:
            check_plain(event)
            _EFFECTS.get(event.type, Group._event)(self, event)
        return self

    def domain_rows(self, new: frozenset[StepKey]) -> Mapping[tuple[str, tuple[str, ...]], list[Columns]]:
        """The domains' rows that belong to new outcomes, by table and by the columns they name."""
        batches: dict[tuple[str, tuple[str, ...]], list[Columns]] = {}
        for key, rows in self._domain_rows.items():
            for table, columns in rows if key in new else ():
                batches.setdefault((table, tuple(sorted(columns))), []).append(columns)
        return batches

    def _outcome(self, event: StreamEvent) -> None:
        data, key = event.data, (event.run_id, str(event.step), event.iteration)
        if key in self.outcomes:
            return
        try:
            columns = {
                "run_id": event.run_id,
                "step": event.step,
                "iteration": event.iteration,
                "tenant": event.tenant,
                "submitter": event.submitter,
                "state": data["state"],
                "attempt": data["attempt"],
                "output": payload.to_null(data["output"], what="the output"),
                "error": payload.to_null(data["error"], what="the error"),
                "started_ms": data["started_ms"],
                # The board's clock when it took the outcome: workers know only when their claim began.
                "finished_ms": event.at_ms if data["finished_ms"] is None else data["finished_ms"],
                "worker": data["worker"],
                "tokens": data["tokens"],
                "epoch": self._epoch,
                "seq": event.run_seq,
                "stream_seq": event.seq,
                "reused_from": None,
                "cache_digest": data.get("cache"),
                "cached_from": data.get("cached_from"),
            }
        except KeyError as error:
            raise errors.InvalidPayload(f"an outcome without {error}") from error
        if data.get("rows"):
            self._domain_rows[key] = [self._owned(event, *item) for item in _flat(data["rows"])]
        self.outcomes[key] = columns

    def _owned(self, event: StreamEvent, name: str, row: Mapping[str, Any]) -> tuple[str, Columns]:
        table = self._domain_tables.get(name)
        if table is None:
            raise errors.InvalidPayload(f"an outcome with rows for {name!r}, which is no table of any domain")
        columns = table.c.keys()
        if unknown := set(row) - set(columns):
            raise errors.InvalidPayload(f"table {name!r} has no column {', '.join(sorted(unknown))}")
        for column, value in row.items():
            if isinstance(value, str):
                payload.plain(value, what=f"{name}.{column}")
        return name, {**row, **{column: getattr(event, column) for column in OWNED if column in columns}}

    def _event(self, event: StreamEvent) -> None:
        self.events.append(
            {
                "run_id": event.run_id,
                "epoch": self._epoch,
                "seq": event.run_seq,
                "tenant": event.tenant,
                "submitter": event.submitter,
                "type": event.type,
                "step": event.step,
                "iteration": event.iteration,
                "data": payload.to_text(event.data, what=event.type),
                "at_ms": event.at_ms,
                "stream_seq": event.seq,
            }
        )

    def _record(self, event: StreamEvent) -> None:
        self.records.append(
            {
                "run_id": event.run_id,
                "step": event.step,
                "iteration": event.iteration,
                "key": payload.plain(_named(event, "key"), what="a record's key"),
                "tenant": event.tenant,
                "submitter": event.submitter,
                "value": payload.to_null(event.data.get("value"), what="a record's value"),
                "epoch": self._epoch,
                "at_ms": event.at_ms,
            }
        )

    def _signal(self, event: StreamEvent) -> None:
        self.applied.append({"the_signal": _named(event, "id"), "applied_ms": event.at_ms})
        self._event(event)

    def _start(self, event: StreamEvent) -> None:
        self.started.append({"the_run": event.run_id, "started_ms": event.at_ms})
        self._event(event)

    def _control(self, event: StreamEvent) -> None:
        state = _CONTROLS[event.type]
        self.controlled.append({"the_run": event.run_id, "state": state.value})
        self._event(event)

    def _child(self, event: StreamEvent) -> None:
        """A child is started from its row, in this transaction or in a later one."""
        parent, attempt = RunRef(tenant=event.tenant, run=event.run_id), event.data.get("attempt")
        if event.step is None or not isinstance(attempt, int):
            raise errors.InvalidPayload(f"{event.type} without a step and its attempt")
        self.children.append(
            {
                "child_id": child_of(parent, instance.named(event.step, event.iteration), attempt).run,
                "tenant": event.tenant,
                "submitter": event.submitter,
                "run_id": event.run_id,
                "step": event.step,
                "iteration": event.iteration,
                "attempt": attempt,
                "workflow": _named(event, "workflow"),
                "wanted_ms": event.at_ms,
                "settled_ms": None,
            }
        )
        self._event(event)

    def _finish(self, event: StreamEvent) -> None:
        data = dict(event.data)
        columns = {
            "the_run": event.run_id,
            "state": event.type.removeprefix("run.").upper(),
            "finished_ms": event.at_ms,
            "output": payload.to_null(data.pop("output", None), what="the run's output"),
            "error": payload.to_null(data.get("error"), what="the run's error"),
        }
        self.finished.setdefault(event.run_id, columns)
        self._event(dataclasses.replace(event, data=data))  # the output is in the run's row already


def check_plain(event: StreamEvent) -> None:
    """Refuses a NUL character in the texts that name an event."""
    worker = event.data.get("worker")
    payload.plain(f"{event.run_id}{event.step}{event.tenant}{event.submitter}{event.type}{worker}", what="an event")


def _flat(rows: Any) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The rows with their table's name; what comes from a body is not trusted to have this shape."""
    if not _is_object(rows):
        raise errors.InvalidPayload("an outcome whose rows are no object")
    for table, many in rows.items():
        if not _is_list(many) or not all(map(_is_object, many)):
            raise errors.InvalidPayload(f"the rows for {table!r} are no list of objects")
        for row in many:
            yield table, row


def _is_object(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list)


def _named(event: StreamEvent, name: str) -> str:
    value = event.data.get(name)
    if not isinstance(value, str):
        raise errors.InvalidPayload(f"{event.type} without {name!r}")
    return value


_CONTROLS: Final = {
    "run.paused": RunState.PAUSED,
    "run.resumed": RunState.RUNNING,
    "run.compensating": RunState.COMPENSATING,
}

_EFFECTS: Final[Mapping[str, Callable[[Group, StreamEvent], None]]] = {
    **{f"step.{state.value.lower()}": Group._outcome for state in TERMINAL_STEP},
    **{f"run.{state.value.lower()}": Group._finish for state in TERMINAL_RUN},
    "run.started": Group._start,
    **dict.fromkeys(_CONTROLS, Group._control),
    "step.recorded": Group._record,
    "signal.applied": Group._signal,
    "child.wanted": Group._child,
}
