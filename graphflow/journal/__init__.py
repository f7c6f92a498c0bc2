"""The journal: what must not be lost, in SQL (SQLite or PostgreSQL). One method is one transaction."""
