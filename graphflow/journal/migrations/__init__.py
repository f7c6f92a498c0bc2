"""The journal's schema through time, run by Alembic."""
