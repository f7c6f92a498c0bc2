"""The table of model calls."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "agents_0001"
down_revision = None
branch_labels = ("agents",)
depends_on = None


def upgrade() -> None:
    """Makes the table as it was in the first version; later changes are revisions of their own."""
    integer = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    boolean = sa.Boolean().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "model_calls",
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("submitter", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("iteration", integer, nullable=False),
        sa.Column("attempt", integer, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("input_tokens", integer, nullable=False),
        sa.Column("output_tokens", integer, nullable=False),
        sa.Column("estimated", boolean, nullable=False),
        sa.Column("latency_ms", integer, nullable=False),
        sa.Column("started_ms", integer, nullable=False),
        sa.PrimaryKeyConstraint("call_id", name="pk_model_calls"),
        sqlite_strict=True,
    )
    op.create_index("ix_model_calls_run_id", "model_calls", ["run_id"])


def downgrade() -> None:
    """Drops the table and what it knows about past calls."""
    op.drop_index("ix_model_calls_run_id", table_name="model_calls")
    op.drop_table("model_calls")
