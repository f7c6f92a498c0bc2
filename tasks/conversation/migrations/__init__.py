"""Alembic revisions of the conversations' own tables (branch label `conversation`)."""
