"""The engine on real servers, for every module of this folder that does not put up a stage of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from convergio.workers.service import Service
from tests.integration.engine_rig import Stage, another_service, stage_on


@pytest.fixture
def stage(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Stage]:
    with stage_on(valkey, sqlite_url, tmp_path) as made:
        yield made


@pytest.fixture
def both(valkey: str, journal_url: str, tmp_path: Path) -> Iterator[Stage]:
    """The same on each database."""
    with stage_on(valkey, journal_url, tmp_path) as made:
        yield made


@pytest.fixture
def rival(stage: Stage) -> Iterator[Service]:
    """Another service process."""
    with ExitStack() as stack:
        yield another_service(stage.settings, stack)
