"""Runs that steps of other runs start: who wants them, and the definitions that a run needs for them.

Frozen: what the tables are now is in `journal/tables.py`; what this added when it was released is here.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "journal_0006"
down_revision = "journal_0005"
branch_labels = None
depends_on = None

Integer = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
OPEN = "settled_ms IS NULL"
HAS_PARENT = "parent_run IS NOT NULL"


def upgrade() -> None:
    for name in ("pins", "parent_run", "parent_step"):
        op.add_column("runs", sa.Column(name, sa.Text(), nullable=True))
    op.add_column("runs", sa.Column("depth", Integer, nullable=True))
    where = sa.text(HAS_PARENT)
    op.create_index("ix_runs_parent_run", "runs", ["parent_run"], postgresql_where=where, sqlite_where=where)
    op.create_table(
        "children",
        sa.Column("child_id", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("submitter", sa.Text(), nullable=False),
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("iteration", Integer, nullable=False),
        sa.Column("attempt", Integer, nullable=False),
        sa.Column("workflow", sa.Text(), nullable=False),
        sa.Column("wanted_ms", Integer, nullable=False),
        sa.Column("settled_ms", Integer, nullable=True),
        sa.PrimaryKeyConstraint("child_id", name="pk_children"),
        sqlite_strict=True,
    )
    is_open = sa.text(OPEN)
    op.create_index("ix_children_open", "children", ["run_id", "step"], postgresql_where=is_open, sqlite_where=is_open)
