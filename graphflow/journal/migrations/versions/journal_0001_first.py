"""The first tables.

Frozen: what the tables are now is in `journal/tables.py`; what they were when this was released is here.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "journal_0001"
down_revision = None
branch_labels = ("journal",)
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

LIVE = "state IN ('ACCEPTED', 'RUNNING', 'PAUSED', 'COMPENSATING')"
RUN_STATES = "state IN ('ACCEPTED', 'RUNNING', 'PAUSED', 'COMPENSATING', 'SUCCEEDED', 'FAILED', 'CANCELLED')"
OUTCOME_STATES = "state IN ('SUCCEEDED', 'FAILED', 'SKIPPED', 'CANCELLED', 'QUARANTINED')"


def upgrade() -> None:
    _runs()
    _what_runs_did()
    _signals()
    _boards()


def _runs() -> None:
    _create(
        "definitions",
        _text("digest"),
        _text("name"),
        _int("version"),
        _text("document"),
        _int("created_ms"),
        key=["digest"],
    )
    _create(
        "runs",
        *(_text(name) for name in ("run_id", "tenant", "submitter", "workflow")),
        _int("version"),
        _text("digest"),
        _text("start_key", null=True),
        *(_text(name) for name in ("input", "state")),
        _int("control_version"),
        _text("priority"),
        *(_int(name) for name in ("not_after_ms", "created_ms")),
        *(_int(name, null=True) for name in ("started_ms", "finished_ms")),
        *(_text(name, null=True) for name in ("output", "error")),
        _int("cancel_requested_ms", null=True),
        *(_text(name, null=True) for name in ("cancel_reason", "cancel_by", "trace")),
        sa.CheckConstraint(RUN_STATES, name=op.f("ck_runs_state")),
        sa.CheckConstraint("length(start_key) <= 255", name=op.f("ck_runs_start_key")),
        sa.ForeignKeyConstraint(["digest"], ["definitions.digest"], name=op.f("fk_runs_digest")),
        key=["run_id"],
    )
    op.create_index("ix_runs_tenant_created_ms", "runs", ["tenant", "created_ms", "run_id"])
    _partial("ux_runs_start_key", "runs", ["tenant", "start_key"], "start_key IS NOT NULL", unique=True)
    _partial("ix_runs_live", "runs", ["run_id"], LIVE)
    _partial("ix_runs_accepted", "runs", ["not_after_ms"], "state = 'ACCEPTED'")
    _partial("ix_runs_cancelling", "runs", ["cancel_requested_ms"], f"cancel_requested_ms IS NOT NULL AND {LIVE}")


def _what_runs_did() -> None:
    _create(
        "outcomes",
        *(_text(name) for name in ("run_id", "step")),
        _int("iteration"),
        *(_text(name) for name in ("tenant", "submitter", "state")),
        _int("attempt"),
        *(_text(name, null=True) for name in ("output", "error")),
        *(_int(name, null=True) for name in ("started_ms", "finished_ms")),
        _text("worker", null=True),
        *(_int(name) for name in ("tokens", "epoch", "seq", "stream_seq")),
        sa.CheckConstraint(OUTCOME_STATES, name=op.f("ck_outcomes_state")),
        key=["run_id", "step", "iteration"],
    )
    _create(
        "events",
        _text("run_id"),
        *(_int(name) for name in ("epoch", "seq")),
        *(_text(name) for name in ("tenant", "submitter", "type")),
        _text("step", null=True),
        _int("iteration"),
        _text("data"),
        *(_int(name) for name in ("at_ms", "stream_seq")),
        key=["run_id", "epoch", "seq"],
    )
    _create(
        "records",
        *(_text(name) for name in ("run_id", "step")),
        _int("iteration"),
        *(_text(name) for name in ("key", "tenant", "submitter")),
        _text("value", null=True),
        *(_int(name) for name in ("epoch", "at_ms")),
        sa.CheckConstraint("length(key) <= 255", name=op.f("ck_records_key")),
        key=["run_id", "step", "iteration", "key"],
    )


def _signals() -> None:
    _create(
        "signals",
        *(_text(name) for name in ("signal_id", "tenant", "submitter", "run_id", "name")),
        _text("data", null=True),
        _int("created_ms"),
        *(_int(name, null=True) for name in ("applied_ms", "dropped_ms")),
        key=["signal_id"],
    )
    op.create_index("ix_signals_run_id", "signals", ["run_id"])
    _partial("ix_signals_open", "signals", ["created_ms"], "applied_ms IS NULL AND dropped_ms IS NULL")


def _boards() -> None:
    _create(
        "boards",
        *(_int(name) for name in ("id", "epoch", "high_water", "schema")),
        _text("server"),
        _int("updated_ms"),
        sa.CheckConstraint("id = 1", name=op.f("ck_boards_id")),
        key=["id"],
    )
    _create(
        "dead_events",
        *(_int(name) for name in ("epoch", "stream_seq")),
        _text("run_id"),
        _text("step", null=True),
        *(_text(name) for name in ("tenant", "submitter", "reason", "body")),
        _int("at_ms"),
        key=["epoch", "stream_seq"],
    )


def _text(name: str, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), nullable=null)


def _int(name: str, *, null: bool = False) -> sa.Column[Any]:
    return sa.Column(name, INTEGER, nullable=null, autoincrement=False)


def _create(name: str, *items: sa.Column[Any] | sa.Constraint, key: list[str]) -> None:
    primary = sa.PrimaryKeyConstraint(*key, name=op.f(f"pk_{name}"))
    op.create_table(name, *items, primary, sqlite_strict=True)


def _partial(name: str, table: str, columns: list[str], where: str, *, unique: bool = False) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, unique=unique, postgresql_where=condition, sqlite_where=condition)
