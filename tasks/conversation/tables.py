"""The conversations' own tables: one row per turn, and one per message of the thread. Both only ever grow.

Rows travel as JSON in the turn's outcome; the journaler writes them in the outcome's transaction. A turn is an
iteration of its step: 0 is the first. Of a turn that another run made, and this one reuses, the rows are that run's.
"""

from __future__ import annotations

import json
from typing import Any, Final

import sqlalchemy as sa

from convergio.graphflow.journal.database import Database
from convergio.graphflow.journal.tables import outcomes
from convergio.graphflow.model.states import StepState
from convergio.tasks.agents.tables import model_calls
from convergio.tasks.conversation.thread import Kind, Message

TURNS: Final = "conversation_turns"
MESSAGES: Final = "conversation_messages"

metadata: Final = sa.MetaData()

_Integer: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _text(name: str, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), nullable=null)


def _int(name: str) -> sa.Column[Any]:
    return sa.Column(name, _Integer, nullable=False)


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

TABLES: Final = {TURNS: turns, MESSAGES: messages}


def said(database: Database, tenant: str, run: str, step: str, first: int, end: int) -> list[Message]:
    """The messages of the turns from `first` to before `end`, in order. Raises JournalUnavailable.

    Bodies may be references to blobs.
    """
    with database.read() as connection:
        rows = connection.execute(_SAID, {"tenant": tenant, "run": run, "step": step, "first": first, "end": end}).all()
    return [
        Message(iteration=row[0], seq=row[1], kind=Kind(row[2]), source=row[3], body=json.loads(row[4]), at_ms=row[5])
        for row in rows
    ]


def taken(database: Database, tenant: str, run: str, step: str) -> list[dict[str, Any]]:
    """The turns that are in SQL, in order: the columns of `turns`. Raises JournalUnavailable."""
    with database.read() as connection:
        select = sa.select(turns).select_from(outcomes.join(turns, _made(turns.c)))
        wanted = select.where(*_turns_of(tenant, run, step)).order_by(turns.c.iteration)
        return [dict(row) for row in connection.execute(wanted).mappings()]


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
    sa.select(outcomes.c.iteration, *(messages.c[name] for name in ("seq", "kind", "source", "body", "at_ms")))
    .select_from(outcomes.join(messages, _made(messages.c)))
    .where(
        *_turns_of(sa.bindparam("tenant"), sa.bindparam("run"), sa.bindparam("step")),
        outcomes.c.iteration >= sa.bindparam("first"),
        outcomes.c.iteration < sa.bindparam("end"),
    )
    .order_by(outcomes.c.iteration, messages.c.seq)
)
"""The statement of `said`, made once: every turn reads its thread by it, and making it costs five times as much."""
