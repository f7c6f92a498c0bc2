"""Alembic revisions of the agents' own tables (branch label `agents`)."""
