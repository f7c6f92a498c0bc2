"""One stack for all tests that break nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.acceptance.town import Place, stack
from tests.servers import short_directory

STEPS = '''
"""Steps whose end a test decides."""

import os
import time

from convergio.graphflow import step
from convergio.tasks import Permanent, Transient

GATES = os.environ["TEST_GATES"]


@step(name="demo.wait_for")
def wait_for(gate: str) -> str:
    """Runs until the file exists."""
    while not os.path.exists(os.path.join(GATES, gate)):
        time.sleep(0.02)
    return gate


@step(name="demo.fail")
def fail(message: str) -> None:
    raise Permanent(message)


@step(name="demo.busy")
def busy(seconds: float) -> None:
    raise Transient("503", retry_after=seconds)


@step(name="demo.echo")
def echo(value: object) -> object:
    return value
'''


def place(**extra: str) -> Place:
    """A new directory with the test's own steps."""
    home = short_directory()
    modules = home / "modules"
    modules.mkdir()
    (modules / "demo_steps.py").write_text(STEPS)
    (home / "gates").mkdir()
    more = {"CONVERGIO_INCLUDE": "demo_steps", "PYTHONPATH": str(modules), "TEST_GATES": str(home / "gates")}
    return Place(home=home, extra={**more, **extra})


@pytest.fixture
def new_place() -> Place:
    """A directory for a stack of this test's own."""
    return place()


@pytest.fixture(scope="session")
def town() -> Iterator[Place]:
    """The stack that tests share: they leave it as it is."""
    shared = place()
    with stack(shared, marked=False):
        yield shared
