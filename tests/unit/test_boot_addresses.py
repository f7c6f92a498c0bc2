"""Where processes find the board and the journal, and that they do not mix two installations."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import mock

import pytest

from convergio.config import settings
from convergio.graphflow.board.keys import glob
from convergio.graphflow.model import errors
from convergio.workers import boot
from convergio.workers.embedded.directory import DataDirectory, Running

HERE = "redis://127.0.0.1:7000/0"


def found(given: settings.Settings, **urls: str) -> tuple[str, str]:
    stack = Running(pid=1, started_at=1.0, urls=urls, pids={}) if urls else None
    with mock.patch.object(DataDirectory, "running", return_value=stack):
        return boot.resolve(given).redis_url, boot.journal_url(given)


def test_without_settings_the_stack_of_the_directory_is_meant(tmp_path: Path) -> None:
    assert found(settings.load(home=tmp_path), redis=HERE, journal="sqlite:///j") == (HERE, "sqlite:///j")
    assert found(settings.load(home=tmp_path)) == ("", f"sqlite:///{tmp_path / 'journal.sqlite3'}")


def test_the_redis_of_the_stack_may_be_named(tmp_path: Path) -> None:
    given = settings.load(home=tmp_path, redis_url=HERE)
    assert found(given, redis=HERE, journal="sqlite:///j") == (HERE, "sqlite:///j")


@pytest.mark.parametrize("stack", [{}, {"redis": HERE, "journal": "sqlite:///j"}])
def test_a_redis_of_ones_own_has_no_journal_by_default(tmp_path: Path, stack: dict[str, str]) -> None:
    given = settings.load(home=tmp_path, redis_url="redis://production:6379/0")
    with pytest.raises(errors.InvalidSetting, match="CONVERGIO_JOURNAL_URL"):
        found(given, **stack)


def test_both_may_be_ones_own(tmp_path: Path) -> None:
    given = settings.load(home=tmp_path, redis_url=HERE, journal_url="postgresql://db/convergio")
    assert found(given) == (HERE, "postgresql://db/convergio")


@pytest.mark.parametrize("prefix", ["convergio", "a*b", "a?b", "[ab]", "a^b", "a\\b"])
def test_a_prefix_as_a_pattern_means_itself(prefix: str) -> None:
    assert re.sub(r"\\(.)", r"\1", glob(prefix)) == prefix
    assert not re.search(r"(?<!\\)[*?\[\]]", glob(prefix))
