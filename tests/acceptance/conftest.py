"""One stack for all tests that break nothing."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager

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


@step(name="demo.noted")
def noted(name: str, value: object = None) -> object:
    """Leaves a line in its file each time it runs."""
    with open(os.path.join(GATES, f"{name}.calls"), "a") as file:
        file.write("ran\\n")
    return value


@step(name="demo.need")
def need(gate: str) -> str:
    """Fails for good unless the file exists."""
    if not os.path.exists(os.path.join(GATES, gate)):
        raise Permanent(f"there is no {gate}")
    return gate


@step(name="demo.echo")
def echo(value: object) -> object:
    return value
'''


@contextmanager
def place() -> Generator[Place]:
    """A new directory with the test's own steps; gone afterwards."""
    home = short_directory()
    modules = home / "modules"
    modules.mkdir()
    (modules / "demo_steps.py").write_text(STEPS)
    (home / "gates").mkdir()
    more = {"CONVERGIO_INCLUDE": "demo_steps", "PYTHONPATH": str(modules), "TEST_GATES": str(home / "gates")}
    try:
        yield Place(home=home, extra=more)
    finally:
        shutil.rmtree(home)


@pytest.fixture
def new_place() -> Iterator[Place]:
    """A directory for a stack of this test's own."""
    with place() as made:
        yield made


@pytest.fixture(scope="session")
def town() -> Iterator[Place]:
    """The stack that tests share: they leave it as it is."""
    with place() as shared, stack(shared, marked=False):
        yield shared
