"""The tables of turns and messages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "conversation_0001"
down_revision = None
branch_labels = ("conversation",)
depends_on = None


def upgrade() -> None:
    """Makes the tables as they were in the first version; later changes are revisions of their own."""
    integer = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "conversation_turns",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("iteration", integer, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("submitter", sa.Text(), nullable=False),
        sa.Column("speaker", sa.Text(), nullable=False),
        sa.Column("chosen", sa.Text(), nullable=True),
        sa.Column("next_speaker", sa.Text(), nullable=True),
        sa.Column("next_chosen", sa.Text(), nullable=True),
        sa.Column("stop", sa.Text(), nullable=True),
        sa.Column("continues", sa.Text(), nullable=True),
        sa.Column("calls", integer, nullable=False),
        sa.Column("input_tokens", integer, nullable=False),
        sa.Column("output_tokens", integer, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "step", "iteration", name="pk_conversation_turns"),
        sqlite_strict=True,
    )
    op.create_table(
        "conversation_messages",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("iteration", integer, nullable=False),
        sa.Column("seq", integer, nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("submitter", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("at_ms", integer, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "step", "iteration", "seq", name="pk_conversation_messages"),
        sqlite_strict=True,
    )


def downgrade() -> None:
    """Drops the tables and every thread."""
    op.drop_table("conversation_messages")
    op.drop_table("conversation_turns")
