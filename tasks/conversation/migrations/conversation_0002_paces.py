"""The table of how fast turns were."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "conversation_0002"
down_revision = "conversation_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes the table."""
    integer = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "conversation_paces",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("iteration", integer, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("submitter", sa.Text(), nullable=False),
        sa.Column("attempt", integer, nullable=False),
        sa.Column("speaker", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("at_ms", integer, nullable=False),
        sa.Column("first_token_us", integer, nullable=True),
        sa.Column("first_told_us", integer, nullable=True),
        sa.Column("gap_p50_us", integer, nullable=True),
        sa.Column("gap_max_us", integer, nullable=True),
        sa.Column("chunks", integer, nullable=False),
        sa.Column("output_tokens", integer, nullable=False),
        sa.Column("streamed_us", integer, nullable=False),
        sa.Column("wall_us", integer, nullable=False),
        sa.Column("model_us", integer, nullable=False),
        sa.Column("tools_us", integer, nullable=False),
        sa.Column("overhead_us", integer, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "step", "iteration", name="pk_conversation_paces"),
        sqlite_strict=True,
    )


def downgrade() -> None:
    """Drops the table."""
    op.drop_table("conversation_paces")
