"""Turns know the type of their conversation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "conversation_0003"
down_revision = "conversation_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column; turns of before have no type."""
    op.add_column("conversation_turns", sa.Column("type", sa.Text(), nullable=True))


def downgrade() -> None:
    """Drops the column."""
    op.drop_column("conversation_turns", "type")
