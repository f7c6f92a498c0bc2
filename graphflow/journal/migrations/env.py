"""Run by Alembic: migrates over the connection that `schema.migrate` has opened and locked."""

from __future__ import annotations

from alembic import context

from convergio.graphflow.journal import tables

context.configure(connection=context.config.attributes["connection"], target_metadata=tables.metadata)
context.run_migrations()
