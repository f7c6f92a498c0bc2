"""Keys whose signatures count no more, and definitions that count no more whoever signed them.

Frozen: what the table is now is in `journal/tables.py`; what this added when it was released is here.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "journal_0008"
down_revision = "journal_0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "revoked_signatures",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("revoked_by", sa.Text(), nullable=False),
        sa.Column("revoked_ms", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.CheckConstraint("kind IN ('key', 'sha256')", name=op.f("ck_revoked_signatures_kind")),
        sa.PrimaryKeyConstraint("kind", "value", name="pk_revoked_signatures"),
        sqlite_strict=True,
    )
