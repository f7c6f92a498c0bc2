"""The table of model calls: what a row holds, and that the migration makes exactly the table that is declared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy.exc import IntegrityError

from convergio.tasks.agents import migrations, tables
from convergio.tasks.agents.spec import ModelUsage
from convergio.tasks.agents.tables import MODEL_CALLS, metadata, model_calls, usage_row

USAGE = ModelUsage(model="m", input_tokens=11, output_tokens=7, estimated=True, latency_ms=1200, started_ms=1_700_000)


def row(call_id: str = "r1:c1:1") -> dict[str, Any]:
    return usage_row(
        USAGE,
        call_id=call_id,
        tenant="default",
        submitter="me",
        run_id="r1",
        step="s",
        iteration=0,
        attempt=2,
        agent="domik",
    )


def revisions() -> ScriptDirectory:
    folder = str(Path(migrations.__file__).parent)
    config = Config()
    config.set_main_option("script_location", folder)
    config.set_main_option("version_locations", folder)
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config)


def migrated(connection: sa.Connection) -> None:
    """Runs every revision of the branch, in order."""
    with Operations.context(MigrationContext.configure(connection)):
        for revision in reversed(list(revisions().walk_revisions())):
            revision.module.upgrade()


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'journal.sqlite'}")
    yield engine
    engine.dispose()


def test_the_branch_starts_with_its_label_and_depends_on_no_other() -> None:
    first = revisions().get_revision("agents@head")
    assert first is not None
    assert (first.revision, first.down_revision, first.branch_labels) == ("agents_0001", None, {"agents"})


def test_the_migration_makes_the_declared_table(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        migrated(connection)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        made = connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name = 'model_calls'").scalar_one()
    assert "STRICT" in made


def test_a_row_is_json_and_fits_the_table(engine: sa.Engine) -> None:
    carried = json.loads(json.dumps(row()))
    assert set(carried) == set(model_calls.c.keys())
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(sa.insert(model_calls), [carried])
        kept = connection.execute(sa.select(model_calls)).mappings().one()
    assert dict(kept) == row()


def test_a_call_is_kept_once(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        metadata.create_all(connection)
        connection.execute(sa.insert(model_calls), [row()])
        with pytest.raises(IntegrityError):
            connection.execute(sa.insert(model_calls), [row()])


def test_the_table_is_known_by_its_name() -> None:
    assert set(metadata.tables) == {MODEL_CALLS}
    assert tables.model_calls.name == MODEL_CALLS


def test_the_migration_can_be_taken_back(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        migrated(connection)
        with Operations.context(MigrationContext.configure(connection)):
            for revision in revisions().walk_revisions():
                revision.module.downgrade()
        assert sa.inspect(connection).get_table_names() == []
