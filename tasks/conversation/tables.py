"""The conversations' own tables: one row per turn, one per message of the thread, and one for how fast each turn that
an agent took was. They only ever grow.

Rows travel as JSON in the turn's outcome; the journaler writes them in the outcome's transaction. A turn is an
iteration of its step: 0 is the first. Of a turn that another run made, and this one reuses, the rows are that run's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from convergio.graphflow.journal.database import Database
from convergio.graphflow.journal.tables import definitions, events, outcomes, runs
from convergio.graphflow.model.states import TERMINAL_RUN, RunState, StepState
from convergio.tasks.agents.tables import model_calls
from convergio.tasks.conversation.thread import Kind, Message

TURNS: Final = "conversation_turns"
MESSAGES: Final = "conversation_messages"
PACES: Final = "conversation_paces"

metadata: Final = sa.MetaData()

_Integer: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(name: str, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), nullable=null)


def _int(name: str, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, _Integer, nullable=null)


turns: Final = sa.Table(
    TURNS,
    metadata,
    _text("run_id"),
    _text("step"),
    _int("iteration"),
    _text("tenant"),
    _text("submitter"),
    _text("speaker"),
    _text("chosen", null=True),
    _text("next_speaker", null=True),
    _text("next_chosen", null=True),
    _text("stop", null=True),
    _text("continues", null=True),
    _int("calls"),
    _int("input_tokens"),
    _int("output_tokens"),
    _text("type", null=True),
    sa.PrimaryKeyConstraint("run_id", "step", "iteration", name="pk_conversation_turns"),
    sqlite_strict=True,
)

messages: Final = sa.Table(
    MESSAGES,
    metadata,
    _text("run_id"),
    _text("step"),
    _int("iteration"),
    _int("seq"),
    _text("tenant"),
    _text("submitter"),
    _text("kind"),
    _text("source"),
    _text("body"),
    _int("at_ms"),
    sa.PrimaryKeyConstraint("run_id", "step", "iteration", "seq", name="pk_conversation_messages"),
    sqlite_strict=True,
)

paces: Final = sa.Table(
    PACES,
    metadata,
    _text("run_id"),
    _text("step"),
    _int("iteration"),
    _text("tenant"),
    _text("submitter"),
    _int("attempt"),
    _text("speaker"),
    _text("model"),
    _int("at_ms"),
    *(_int(name, null=True) for name in ("first_token_us", "first_told_us", "gap_p50_us", "gap_max_us")),
    *(_int(name) for name in ("chunks", "output_tokens", "streamed_us")),
    *(_int(name) for name in ("wall_us", "model_us", "tools_us", "overhead_us")),
    sa.PrimaryKeyConstraint("run_id", "step", "iteration", name="pk_conversation_paces"),
    sqlite_strict=True,
)

TABLES: Final = {TURNS: turns, MESSAGES: messages, PACES: paces}


def said(database: Database, tenant: str, run: str, step: str, first: int, end: int) -> list[Message]:
    """The messages of the turns from `first` to before `end`, in order. Raises JournalUnavailable.

    Bodies may be references to blobs.
    """
    with database.read() as connection:
        given = {"tenant": tenant, "run": run, "step": step, "first": first, "end": end}
        rows: Sequence[Any] = connection.execute(_SAID, given).all()
    return [
        Message(iteration=row[0], seq=row[1], kind=Kind(row[2]), source=row[3], body=json.loads(row[4]), at_ms=row[5])
        for row in rows
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A message with its place in the run. `at`: epoch and number of the event that ended its turn, (0, 0) if the turn
    was another run's."""

    step: str
    iteration: int
    at: tuple[int, int]
    kind: Kind
    source: str
    body: Any


def lines(database: Database, tenant: str, run: str) -> list[Line]:
    """The messages of all turns of a run that are in SQL, turn by turn. Raises JournalUnavailable.

    Bodies may be references to blobs.
    """
    ours, ended = messages.c, outcomes.c
    with database.read() as connection:
        here = sa.case((ended.reused_from.is_(None), 1), else_=0)
        at = (ended.epoch * here, ended.seq * here)
        select = sa.select(ended.step, ended.iteration, *at, ours.kind, ours.source, ours.body)
        rows = connection.execute(
            select.select_from(outcomes.join(messages, _made(ours)))
            .where(ended.run_id == run, ended.tenant == tenant, ended.state == StepState.SUCCEEDED.value)
            .order_by(ended.step, ended.iteration, ours.seq)
        ).all()
    return [
        Line(
            step=row[0],
            iteration=row[1],
            at=(row[2], row[3]),
            kind=Kind(row[4]),
            source=row[5],
            body=json.loads(row[6]),
        )
        for row in rows
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an agent's step ended with; `output` may be a reference to a blob. `at`: as a line's."""

    step: str
    iteration: int
    at: tuple[int, int]
    agent: str
    output: Any


def answers(database: Database, tenant: str, run: str) -> list[Answer]:
    """The agents' steps of a run that have succeeded and are in SQL. Raises JournalUnavailable."""
    ended = outcomes.c
    with database.read() as connection:
        pinned = definitions.join(runs, runs.c.digest == definitions.c.digest)
        document = sa.select(definitions.c.document).select_from(pinned).where(runs.c.run_id == run)
        text = connection.execute(document.where(runs.c.tenant == tenant)).scalar()
        steps: Mapping[str, Any] = {} if text is None else json.loads(text)["steps"]
        agents = {name: step["agent"] for name, step in steps.items() if "agent" in step}
        if not agents:
            return []
        here = sa.case((ended.reused_from.is_(None), 1), else_=0)
        select = sa.select(ended.step, ended.iteration, ended.epoch * here, ended.seq * here, ended.output)
        wanted = select.where(ended.run_id == run, ended.tenant == tenant, ended.state == StepState.SUCCEEDED.value)
        rows = connection.execute(wanted.order_by(ended.step, ended.iteration)).all()
    return [
        Answer(
            step=row[0],
            iteration=row[1],
            at=(row[2], row[3]),
            agent=agents[row[0]],
            output=json.loads(row[4] or "null"),
        )
        for row in rows
        if row[0] in agents
    ]


def last(database: Database, tenant: str, run: str) -> tuple[int, int] | None:
    """Epoch and number of the last event that SQL has of a run that has ended. Raises JournalUnavailable."""
    found: list[tuple[int, int]] = []
    with database.read() as connection:
        of_run = sa.select(runs.c.state).where(runs.c.run_id == run, runs.c.tenant == tenant)
        state = connection.execute(of_run).scalar()
        if state is None or RunState(state) not in TERMINAL_RUN:
            return None
        for table in (events, outcomes):
            latest = sa.select(table.c.epoch, table.c.seq).where(table.c.run_id == run)
            row = connection.execute(latest.order_by(table.c.epoch.desc(), table.c.seq.desc()).limit(1)).first()
            found += [] if row is None else [(int(row[0]), int(row[1]))]
    return max(found, default=(0, 0))


def taken(database: Database, tenant: str, run: str, step: str) -> list[dict[str, Any]]:
    """The turns that are in SQL, in order: the columns of `turns`. Raises JournalUnavailable."""
    with database.read() as connection:
        select = sa.select(turns).select_from(outcomes.join(turns, _made(turns.c)))
        wanted = select.where(*_turns_of(tenant, run, step)).order_by(turns.c.iteration)
        return [dict(row) for row in connection.execute(wanted).mappings()]


def paced(database: Database, tenant: str, run: str) -> list[dict[str, Any]]:
    """How fast the turns of a run were that it took itself, in order: the columns of `paces`. Raises
    JournalUnavailable."""
    with database.read() as connection:
        ours = sa.select(paces).where(paces.c.run_id == run, paces.c.tenant == tenant)
        rows = connection.execute(ours.order_by(paces.c.step, paces.c.iteration)).mappings()
        return [dict(row) for row in rows]


def ended(database: Database, tenant: str, run: str | None = None) -> list[dict[str, Any]]:
    """The conversations that have ended, of one run or of all: `run_id`, `step`, `type`, `turns`, and `first`, how its
    first speaker was chosen. Raises JournalUnavailable."""
    end, first = turns.alias("ended"), turns.alias("first")
    same = sa.and_(first.c.run_id == end.c.run_id, first.c.step == end.c.step, first.c.iteration == 0)
    columns = (
        end.c.run_id,
        end.c.step,
        end.c.type,
        (end.c.iteration + 1).label("turns"),
        first.c.chosen.label("first"),
    )
    wanted = sa.select(*columns).select_from(end.outerjoin(first, same))
    wanted = wanted.where(end.c.tenant == tenant, end.c.stop.is_not(None), end.c.type.is_not(None))
    with database.read() as connection:
        rows = connection.execute(wanted if run is None else wanted.where(end.c.run_id == run)).mappings()
        return [dict(row) for row in rows]


def costs(database: Database, tenant: str, run: str, step: str) -> dict[int, tuple[int, int]]:
    """What each turn that is in SQL has cost, failed attempts and choices of speakers included: tokens in and out.
    Raises JournalUnavailable."""
    paid, turn = model_calls.c, outcomes.c.iteration
    with database.read() as connection:
        select = sa.select(turn, sa.func.sum(paid.input_tokens), sa.func.sum(paid.output_tokens))
        wanted = select.select_from(outcomes.join(model_calls, _made(paid))).where(*_turns_of(tenant, run, step))
        return {row[0]: (int(row[1]), int(row[2])) for row in connection.execute(wanted.group_by(turn))}


def _turns_of(tenant: Any, run: Any, step: Any) -> list[sa.ColumnElement[bool]]:
    ended = outcomes.c
    here = [ended.run_id == run, ended.step == step, ended.tenant == tenant]
    return [*here, ended.state == StepState.SUCCEEDED.value]


def _made(made: Any) -> sa.ColumnElement[bool]:
    """The rows of the run in which the turn was made."""
    ended = outcomes.c
    origin = sa.func.coalesce(ended.reused_from, ended.run_id)
    return sa.and_(made.run_id == origin, made.step == ended.step, made.iteration == ended.iteration)


_SAID: Final = (
    sa.select(
        outcomes.c.iteration, messages.c.seq, messages.c.kind, messages.c.source, messages.c.body, messages.c.at_ms
    )
    .select_from(outcomes.join(messages, _made(messages.c)))
    .where(
        *_turns_of(sa.bindparam("tenant"), sa.bindparam("run"), sa.bindparam("step")),
        outcomes.c.iteration >= sa.bindparam("first"),
        outcomes.c.iteration < sa.bindparam("end"),
    )
    .order_by(outcomes.c.iteration, messages.c.seq)
)
"""The statement of `said`, made once: every turn reads its thread by it, and making it costs five times as much."""
