"""The agents' own table: one row per model call. Rows travel as JSON in the step's outcome.

The journaler writes them in the outcome's transaction; `migrations/` makes the same table step by step, and a test
holds the two equal. Times are milliseconds of Unix time, as everywhere in SQL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from convergio.graphflow.journal.database import Database
from convergio.tasks.agents.spec import ModelUsage

MODEL_CALLS: Final = "model_calls"

metadata: Final = sa.MetaData()

# Types that SQLite's STRICT tables know: text in a column of numbers is refused there as on PostgreSQL.
_Integer: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_Boolean: Final = sa.Boolean().with_variant(sa.Integer(), "sqlite")

model_calls: Final = sa.Table(
    MODEL_CALLS,
    metadata,
    sa.Column("call_id", sa.Text(), nullable=False),
    sa.Column("tenant", sa.Text(), nullable=False),
    sa.Column("submitter", sa.Text(), nullable=False),
    sa.Column("run_id", sa.Text(), nullable=False),
    sa.Column("step", sa.Text(), nullable=False),
    sa.Column("iteration", _Integer, nullable=False),
    sa.Column("attempt", _Integer, nullable=False),
    sa.Column("model", sa.Text(), nullable=False),
    sa.Column("agent", sa.Text(), nullable=False),
    sa.Column("input_tokens", _Integer, nullable=False),
    sa.Column("output_tokens", _Integer, nullable=False),
    sa.Column("estimated", _Boolean, nullable=False),
    sa.Column("latency_ms", _Integer, nullable=False),
    sa.Column("started_ms", _Integer, nullable=False),
    sa.PrimaryKeyConstraint("call_id", name="pk_model_calls"),
    sa.Index("ix_model_calls_run_id", "run_id"),
    sqlite_strict=True,
)


def book(database: Database, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows that no outcome takes along any more: of attempts that were cancelled, or are another's by now. A row that
    is there already stays as it is. Raises JournalUnavailable."""
    with database.write() as connection:
        connection.execute(database.insert_once(model_calls), [dict(row) for row in rows])


def usage_row(
    usage: ModelUsage,
    *,
    call_id: str,
    tenant: str,
    submitter: str,
    run_id: str,
    step: str,
    iteration: int,
    attempt: int,
    agent: str,
) -> dict[str, Any]:
    """A row of `model_calls` as JSON. `call_id` is new for every call: a claim that died may have made calls too."""
    return {
        "call_id": call_id,
        "tenant": tenant,
        "submitter": submitter,
        "run_id": run_id,
        "step": step,
        "iteration": iteration,
        "attempt": attempt,
        "agent": agent,
        "latency_ms": usage.latency_ms,
        "started_ms": usage.started_ms,
        **usage.as_dict(),
    }
