"""The journal as a witness: its tables read with plain SQL, by nothing of the engine's."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import psycopg

TERMINAL = ("SUCCEEDED", "FAILED", "CANCELLED")

_BELOW: Final = "substr(coalesce(parent_run, ''), 1, ?) = ?"
"""SQL: the children of the runs whose ids begin so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an instance of a step ended, by the journal. `output` is what its body returned (of a map: a list), `order`
    its place in the streams."""

    run: str
    step: str
    state: str
    attempt: int
    output: Any
    order: tuple[int, int]
    started_ms: int | None
    finished_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something else that happened, by the journal."""

    run: str
    step: str
    type: str
    at_ms: int
    data: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run, by the journal. `parent`, `parent_step`: whose child it is, or ""."""

    run: str
    state: str
    created_ms: int
    started_ms: int | None
    finished_ms: int | None
    parent: str = ""
    parent_step: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A signal, by the journal: when it came, and whether it was applied or dropped."""

    run: str
    step: str
    created_ms: int
    settled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A message of a thread, by the journal: the `seq`-th of its turn."""

    run: str
    step: str
    seq: int
    kind: str
    source: str
    body: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A turn of a conversation, by the journal, and how many model calls it says that it took."""

    run: str
    step: str
    speaker: str
    calls: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Paid:
    """A model call on the ledger."""

    run: str
    step: str
    call: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A fact that a claim recorded."""

    run: str
    step: str
    key: str
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Talked:
    """All that the journal says about conversations. Steps are named by instance, turn by turn."""

    said: Sequence[Said] = ()
    taken: Sequence[Taken] = ()
    paid: Sequence[Paid] = ()
    kept: Sequence[Kept] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All that the journal says about some runs, and the events it could not keep."""

    runs: Sequence[Run]
    outcomes: Sequence[Outcome] = ()
    events: Sequence[Event] = ()
    signals: Sequence[Signal] = ()
    talked: Talked = Talked()
    dead: int = 0


class Journal:
    """Reads one database. Each call opens a connection of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.path = unquote(urlsplit(url).path)[1:] if url.startswith("sqlite") else ""

    def history(self, prefix: str) -> History:
        """Everything about the runs whose ids begin with `prefix`, and about their children."""
        mine = "substr(run_id, 1, ?) = ?"
        these = (len(prefix), prefix, len(prefix), prefix)
        runs = self._ask(
            "SELECT run_id, state, created_ms, started_ms, finished_ms, coalesce(parent_run, ''), "
            f"coalesce(parent_step, '') FROM runs WHERE {mine} OR {_BELOW}",
            these,
        )
        among = f"({mine} OR run_id IN (SELECT run_id FROM runs WHERE {_BELOW}))"
        outcomes = self._ask(
            "SELECT run_id, step, iteration, state, attempt, output, epoch, stream_seq, started_ms, finished_ms "
            f"FROM outcomes WHERE {among} ORDER BY epoch, stream_seq",
            these,
        )
        events = self._ask(
            f"SELECT run_id, step, iteration, type, at_ms, data FROM events WHERE {among} ORDER BY epoch, stream_seq",
            these,
        )
        signals = self._ask(
            f"SELECT run_id, name, created_ms, applied_ms, dropped_ms FROM signals WHERE {among}", these
        )
        return History(
            runs=[
                Run(run=a, state=b, created_ms=c, started_ms=d, finished_ms=e, parent=f, parent_step=g)
                for a, b, c, d, e, f, g in runs
            ],
            outcomes=[_outcome(row) for row in outcomes],
            events=[_event(row) for row in events],
            signals=[Signal(run=a, step=b, created_ms=c, settled=bool(d or e)) for a, b, c, d, e in signals],
            talked=self._talked(among, these),
            dead=self._ask(f"SELECT count(*) FROM dead_events WHERE {among}", these)[0][0],
        )

    def _talked(self, among: str, these: Sequence[Any]) -> Talked:
        def rows(columns: str, table: str, order: str = "1") -> list[tuple[Any, ...]]:
            asked = f"SELECT run_id, step, iteration, {columns} FROM {table} WHERE {among} ORDER BY {order}"
            return [(run, _instance(step, turn), *rest) for run, step, turn, *rest in self._ask(asked, these)]

        said = rows("seq, kind, source, body", "conversation_messages", "run_id, step, iteration, seq")
        return Talked(
            said=[Said(run=a, step=b, seq=c, kind=d, source=e, body=json.loads(f)) for a, b, c, d, e, f in said],
            taken=[
                Taken(run=a, step=b, speaker=c, calls=d) for a, b, c, d in rows("speaker, calls", "conversation_turns")
            ],
            paid=[Paid(run=a, step=b, call=c) for a, b, c in rows("call_id", "model_calls")],
            kept=[
                Kept(run=a, step=b, key=c, value=json.loads(d or "null"))
                for a, b, c, d in rows("key, value", "records")
            ],
        )

    def unfinished(self, runs: Iterable[str]) -> list[str]:
        """Those of `runs`, and of their children, that have not ended."""
        rows = self._ask("SELECT run_id, coalesce(parent_run, ''), state FROM runs", ())
        wanted, ended = set(runs), {run for run, _, state in rows if state in TERMINAL}
        below = {run for run, parent, _ in rows if parent in wanted}
        return sorted((wanted | below) - ended)

    def questions(self, prefix: str) -> dict[tuple[str, str], int]:
        """(run, step) of steps that ask what to do, as far as the journal knows, and how often each has asked."""
        rows = self._ask(
            "SELECT run_id, step, type FROM events WHERE type IN ('step.asked', 'step.answered') "
            "AND substr(run_id, 1, ?) = ? ORDER BY epoch, stream_seq",
            (len(prefix), prefix),
        )
        asked = Counter((run, step) for run, step, kind in rows if kind == "step.asked")
        last = {(run, step): kind for run, step, kind in rows}
        return {one: asked[one] for one, kind in last.items() if kind == "step.asked" and not self.has_outcome(*one)}

    def has_outcome(self, run: str, step: str) -> bool:
        """Whether the journal has an outcome of this step: of any of its instances, or of the one that is named."""
        name, _, number = step.partition("#")
        asked = "SELECT 1 FROM outcomes WHERE run_id = ? AND step = ? AND iteration >= ?"
        return bool(self._ask(asked, (run, name, int(number or 0))))

    def epoch(self) -> int:
        """The number of the board that the journal follows; 0 before the first."""
        rows = self._ask("SELECT epoch FROM boards", ())
        return int(rows[0][0]) if rows else 0

    def blocked(self, prefix: str) -> set[tuple[str, str]]:
        """(run, step) of approvals that the journal knows to wait, or to have waited, for a signal."""
        query = "SELECT run_id, step FROM events WHERE type = 'step.blocked' AND substr(run_id, 1, ?) = ?"
        return {(run, step) for run, step in self._ask(query, (len(prefix), prefix))}

    def _ask(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        if self.path:
            connection = sqlite3.connect(self.path, timeout=10)
            try:
                return connection.execute(query, values).fetchall()
            finally:
                connection.close()
        address = self.url.replace("postgresql+psycopg", "postgresql", 1)
        with psycopg.connect(address, connect_timeout=5) as session:
            return session.execute(query.replace("?", "%s").encode(), values).fetchall()


def _outcome(row: Sequence[Any]) -> Outcome:
    run, step, iteration, state, attempt, output, epoch, stream_seq, started_ms, finished_ms = row
    return Outcome(
        run=run,
        step=_instance(step, iteration),
        state=state,
        attempt=attempt,
        output=json.loads(output) if output else {},
        order=(epoch, stream_seq),
        started_ms=started_ms,
        finished_ms=finished_ms,
    )


def _event(row: Sequence[Any]) -> Event:
    run, step, iteration, kind, at_ms, data = row
    return Event(run=run, step=_instance(step or "", iteration), type=kind, at_ms=at_ms, data=json.loads(data))


def _instance(step: str, iteration: int) -> str:
    """As `reference.instance` names it."""
    return f"{step}#{iteration}" if iteration else step
