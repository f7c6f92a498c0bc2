"""Every table of the journal. JSON is canonical text, times are milliseconds, ids are text, on both databases.

`migrations/` makes the same tables step by step; a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from convergio.graphflow.model import states

KEY_LIMIT: Final = 255
"""Characters of a caller's key: PostgreSQL cannot index values of more than some 2,700 bytes."""

metadata: Final = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

Integer: Final = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""64 bits on both; SQLite's STRICT tables know it as INTEGER."""


def _listed(values: Iterable[StrEnum]) -> str:
    return ", ".join(f"'{value.value}'" for value in values)


LIVE_RUNS: Final = f"state IN ({_listed(state for state in states.RunState if state not in states.TERMINAL_RUN)})"
"""SQL. Literal, as a partial index serves only a query that repeats its condition word for word."""

ACCEPTED_RUNS: Final = f"state = '{states.RunState.ACCEPTED.value}'"
UNSETTLED_RUNS: Final = "(paused_ms IS NOT NULL AND state = 'RUNNING') OR (paused_ms IS NULL AND state = 'PAUSED')"
"""Runs that somebody asked to pause or to resume, and that have not done it yet."""

CANCELLING_RUNS: Final = f"cancel_requested_ms IS NOT NULL AND {LIVE_RUNS}"
CACHED_OUTCOMES: Final = "cache_digest IS NOT NULL"
OPEN_CHILDREN: Final = "settled_ms IS NULL"
"""Children of which something may still be to do: to start them, to tell their parent, to cancel them."""

OPEN_SIGNALS: Final = "applied_ms IS NULL AND dropped_ms IS NULL"


def _text(name: str, *more: Any, null: bool = False, key: bool = False) -> sa.Column[Any]:
    return sa.Column(name, sa.Text(), *more, nullable=null, primary_key=key)


def _int(name: str, *, null: bool = False, key: bool = False) -> sa.Column[Any]:
    return sa.Column(name, Integer, nullable=null, primary_key=key, autoincrement=False)


def _table(name: str, *items: sa.Column[Any] | sa.CheckConstraint) -> sa.Table:
    # STRICT makes SQLite refuse what PostgreSQL refuses: text in a column of numbers.
    return sa.Table(name, metadata, *items, sqlite_strict=True)


def _partial(name: str, *columns: sa.Column[Any], where: str, unique: bool = False) -> sa.Index:
    condition = sa.text(where)
    return sa.Index(name, *columns, unique=unique, postgresql_where=condition, sqlite_where=condition)


definitions: Final = _table(
    "definitions",
    _text("digest", key=True),
    _text("name"),
    _int("version"),
    _text("document"),
    _int("created_ms"),
)

runs: Final = _table(
    "runs",
    _text("run_id", key=True),
    _text("tenant"),
    _text("submitter"),
    _text("workflow"),
    _int("version"),
    _text("digest", sa.ForeignKey(definitions.c.digest)),
    _text("start_key", null=True),
    _text("input"),
    _text("state"),
    _int("control_version"),
    _text("priority"),
    _int("not_after_ms"),
    _int("created_ms"),
    _int("started_ms", null=True),
    _int("finished_ms", null=True),
    _text("output", null=True),
    _text("error", null=True),
    _int("cancel_requested_ms", null=True),
    _text("cancel_reason", null=True),
    _text("cancel_by", null=True),
    _text("trace", null=True),
    _text("forked_from", null=True),
    _text("fork_kind", null=True),
    _text("fork_step", null=True),
    _int("paused_ms", null=True),
    _text("paused_by", null=True),
    _text("pins", null=True),
    _text("parent_run", null=True),
    _text("parent_step", null=True),
    _int("depth", null=True),
    sa.CheckConstraint(f"state IN ({_listed(states.RunState)})", name="state"),
    sa.CheckConstraint(f"length(start_key) <= {KEY_LIMIT}", name="start_key"),
)

sa.Index("ix_runs_tenant_created_ms", runs.c.tenant, runs.c.created_ms, runs.c.run_id)
_partial("ux_runs_start_key", runs.c.tenant, runs.c.start_key, where="start_key IS NOT NULL", unique=True)
_partial("ix_runs_live", runs.c.run_id, where=LIVE_RUNS)
_partial("ix_runs_accepted", runs.c.not_after_ms, where=ACCEPTED_RUNS)
_partial("ix_runs_cancelling", runs.c.cancel_requested_ms, where=CANCELLING_RUNS)
_partial("ix_runs_unsettled", runs.c.run_id, where=UNSETTLED_RUNS)
_partial("ix_runs_forked_from", runs.c.forked_from, where="forked_from IS NOT NULL")

_partial("ix_runs_parent_run", runs.c.parent_run, where="parent_run IS NOT NULL")

children: Final = _table(
    "children",
    _text("child_id", key=True),
    _text("tenant"),
    _text("submitter"),
    _text("run_id"),
    _text("step"),
    _int("iteration"),
    _int("attempt"),
    _text("workflow"),
    _int("wanted_ms"),
    _int("settled_ms", null=True),
)
_partial("ix_children_open", children.c.run_id, children.c.step, where=OPEN_CHILDREN)

outcomes: Final = _table(
    "outcomes",
    _text("run_id", key=True),
    _text("step", key=True),
    _int("iteration", key=True),
    _text("tenant"),
    _text("submitter"),
    _text("state"),
    _int("attempt"),
    _text("output", null=True),
    _text("error", null=True),
    _int("started_ms", null=True),
    _int("finished_ms", null=True),
    _text("worker", null=True),
    _int("tokens"),
    _int("epoch"),
    _int("seq"),
    _int("stream_seq"),
    _text("reused_from", null=True),
    _text("cache_digest", null=True),
    _text("cached_from", null=True),
    sa.CheckConstraint(
        f"state IN ({_listed(state for state in states.StepState if state in states.TERMINAL_STEP)})", name="state"
    ),
)

_partial(
    "ix_outcomes_cache",
    outcomes.c.tenant,
    outcomes.c.cache_digest,
    outcomes.c.finished_ms,
    where=CACHED_OUTCOMES,
)

events: Final = _table(
    "events",
    _text("run_id", key=True),
    _int("epoch", key=True),
    _int("seq", key=True),
    _text("tenant"),
    _text("submitter"),
    _text("type"),
    _text("step", null=True),
    _int("iteration"),
    _text("data"),
    _int("at_ms"),
    _int("stream_seq"),
)

records: Final = _table(
    "records",
    _text("run_id", key=True),
    _text("step", key=True),
    _int("iteration", key=True),
    _text("key", key=True),
    _text("tenant"),
    _text("submitter"),
    _text("value", null=True),
    _int("epoch"),
    _int("at_ms"),
    sa.CheckConstraint(f"length(key) <= {KEY_LIMIT}", name="key"),
)

signals: Final = _table(
    "signals",
    _text("signal_id", key=True),
    _text("tenant"),
    _text("submitter"),
    _text("run_id"),
    _text("name"),
    _text("data", null=True),
    _int("created_ms"),
    _int("applied_ms", null=True),
    _int("dropped_ms", null=True),
)

sa.Index("ix_signals_run_id", signals.c.run_id)
_partial("ix_signals_open", signals.c.created_ms, where=OPEN_SIGNALS)

boards: Final = _table(
    "boards",
    _int("id", key=True),
    _int("epoch"),
    _int("high_water"),
    _int("schema"),
    _text("server"),
    _int("updated_ms"),
    sa.CheckConstraint("id = 1", name="id"),
)

identity: Final = _table(
    "identity",
    _int("id", key=True),
    _text("journal"),
    sa.CheckConstraint("id = 1", name="id"),
)

revoked_signatures: Final = _table(
    "revoked_signatures",
    _text("kind", key=True),
    _text("value", key=True),
    _text("reason"),
    _text("revoked_by"),
    _int("revoked_ms"),
    sa.CheckConstraint("kind IN ('key', 'sha256')", name="kind"),
)

blobs: Final = _table(
    "blobs",
    _text("tenant", key=True),
    _text("digest", key=True),
    sa.Column("content", sa.LargeBinary(), nullable=False),
    _int("created_ms"),
)

dead_events: Final = _table(
    "dead_events",
    _int("epoch", key=True),
    _int("stream_seq", key=True),
    _text("run_id"),
    _text("step", null=True),
    _text("tenant"),
    _text("submitter"),
    _text("reason"),
    _text("body"),
    _int("at_ms"),
)
