"""An id of the journal's own, by which a board says whose it is. The row is made when it is first asked for.

Frozen: what the table is now is in `journal/tables.py`; what this added when it was released is here.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "journal_0007"
down_revision = "journal_0006"
branch_labels = None
depends_on = None

Integer = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "identity",
        sa.Column("id", Integer, nullable=False, autoincrement=False),
        sa.Column("journal", sa.Text(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_identity_id")),
        sa.PrimaryKeyConstraint("id", name="pk_identity"),
        sqlite_strict=True,
    )
