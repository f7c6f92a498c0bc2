"""Blobs: values too large for the board.

Frozen: what the table is now is in `journal/tables.py`; what this added when it was released is here.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "journal_0003"
down_revision = "journal_0002"
branch_labels = None
depends_on = None

Integer = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "blobs",
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.Column("created_ms", Integer, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "digest", name="pk_blobs"),
        sqlite_strict=True,
    )
