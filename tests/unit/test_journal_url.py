"""Which addresses the journal takes."""

from __future__ import annotations

import pytest

from convergio.graphflow.journal import database
from convergio.graphflow.model import errors


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_spelling_of_postgres_means_psycopg_3(scheme: str) -> None:
    address = database.normalised(f"{scheme}://amy:pw@db.example:5433/journal?sslmode=require")

    assert address.drivername == "postgresql+psycopg"
    assert (address.username, address.password, address.host, address.port) == ("amy", "pw", "db.example", 5433)
    assert (address.database, dict(address.query)) == ("journal", {"sslmode": "require"})


@pytest.mark.parametrize("url", ["sqlite:///a/b.sqlite", "sqlite+pysqlite:///a/b.sqlite"])
def test_a_sqlite_file_is_taken(url: str) -> None:
    assert database.normalised(url).database == "a/b.sqlite"


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "mysql://h/d", "postgresql+asyncpg://h/d", "sqlite+aiosqlite:///x", "?"]
)
def test_any_other_address_is_refused_with_a_hint(url: str) -> None:
    with pytest.raises(errors.InvalidSetting) as caught:
        database.connect(url)
    assert "postgresql://user@host" in (caught.value.hint or "")


def test_no_password_is_shown_wherever_it_stands() -> None:
    for url in ("postgresql://amy:s3cret@db/j", "postgresql://amy@db/j?password=s3cret&sslpassword=s3cret"):
        text = database.shown(database.normalised(url))
        assert "s3cret" not in text
        assert "amy" in text
