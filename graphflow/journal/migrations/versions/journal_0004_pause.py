"""Pausing: since when somebody wants a run to be paused, and who.

Frozen: what the table is now is in `journal/tables.py`; what this added when it was released is here.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "journal_0004"
down_revision = "journal_0003"
branch_labels = None
depends_on = None

Integer = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
UNSETTLED = "(paused_ms IS NOT NULL AND state = 'RUNNING') OR (paused_ms IS NULL AND state = 'PAUSED')"


def upgrade() -> None:
    op.add_column("runs", sa.Column("paused_ms", Integer, nullable=True))
    op.add_column("runs", sa.Column("paused_by", sa.Text(), nullable=True))
    where = sa.text(UNSETTLED)
    op.create_index("ix_runs_unsettled", "runs", ["run_id"], postgresql_where=where, sqlite_where=where)
