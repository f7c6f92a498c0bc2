"""Runs that are made from other runs, and the outcomes they reuse.

Frozen: what the tables are now is in `journal/tables.py`; what this added when it was released is here.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "journal_0002"
down_revision = "journal_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("forked_from", "fork_kind", "fork_step"):
        op.add_column("runs", sa.Column(name, sa.Text(), nullable=True))
    op.add_column("outcomes", sa.Column("reused_from", sa.Text(), nullable=True))
    forked = sa.text("forked_from IS NOT NULL")
    op.create_index("ix_runs_forked_from", "runs", ["forked_from"], postgresql_where=forked, sqlite_where=forked)
