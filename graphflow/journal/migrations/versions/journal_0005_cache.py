"""Outcomes that may be used again: by the digest of what was called with what, and from which run one was taken.

Frozen: what the table is now is in `journal/tables.py`; what this added when it was released is here.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "journal_0005"
down_revision = "journal_0004"
branch_labels = None
depends_on = None

CACHED = "cache_digest IS NOT NULL"


def upgrade() -> None:
    op.add_column("outcomes", sa.Column("cache_digest", sa.Text(), nullable=True))
    op.add_column("outcomes", sa.Column("cached_from", sa.Text(), nullable=True))
    where = sa.text(CACHED)
    columns = ["tenant", "cache_digest", "finished_ms"]
    op.create_index("ix_outcomes_cache", "outcomes", columns, postgresql_where=where, sqlite_where=where)
