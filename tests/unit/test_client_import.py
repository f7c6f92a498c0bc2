"""What other systems import is light, and the public names are there without loading what they need."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import convergio.graphflow
import convergio.tasks
from convergio.graphflow import client
from convergio.graphflow.client.client import Client
from convergio.graphflow.flow import build, registry
from convergio.graphflow.model import errors
from convergio.tasks import hooks, liveness

LIMIT = 0.15
HEAVY = ("alembic", "asyncio", "autogen_core", "celery", "kombu", "openai", "pydantic", "redis", "sqlalchemy", "yaml")

TIMED = """
import sys, time
began = time.process_time()
{statement}
print(time.process_time() - began, *sys.modules)
"""


def timed(statement: str) -> tuple[float, set[str]]:
    """Seconds that the statement takes in a new process, and the heavy packages it loads.

    Processor time: an import waits for nothing, so that is what a clock would show on an idle machine.
    """
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(statement=statement)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    seconds, *modules = done.stdout.split()
    return float(seconds), {name.partition(".")[0] for name in modules} & set(HEAVY)


def test_the_client_is_imported_in_150_ms_and_loads_nothing_heavy() -> None:
    found = [timed("import convergio.graphflow.client") for _ in range(7)]
    assert all(heavy == set() for _, heavy in found)
    assert min(seconds for seconds, _ in found) < LIMIT, found


@pytest.mark.parametrize(
    "statement",
    [
        "from convergio.graphflow import Client; Client('redis://127.0.0.1:1/0')",
        "import convergio.graphflow, convergio.tasks",
        "from convergio.graphflow import errors",
    ],
)
def test_nothing_is_loaded_until_it_is_used(statement: str) -> None:
    assert timed(statement)[1] == set()


PUBLIC: list[tuple[Any, str, object]] = [
    (convergio.graphflow, "Client", client.Client),
    (convergio.graphflow, "Event", client.Event),
    (convergio.graphflow, "Run", client.Run),
    (convergio.graphflow, "Workflow", build.WorkflowBuilder),
    (convergio.graphflow, "errors", errors),
    (convergio.graphflow, "step", registry.step),
    (convergio.tasks, "Allow", hooks.Allow),
    (convergio.tasks, "Defer", hooks.Defer),
    (convergio.tasks, "Deny", hooks.Deny),
    (convergio.tasks, "HookContext", hooks.HookContext),
    (convergio.tasks, "Permanent", errors.Permanent),
    (convergio.tasks, "Transient", errors.Transient),
    (convergio.tasks, "heartbeat", liveness.heartbeat),
    (convergio.tasks, "hook", hooks.hook),
]


@pytest.mark.parametrize(("package", "name", "thing"), PUBLIC)
def test_public_names_are_what_they_say(package: Any, name: str, thing: object) -> None:
    assert getattr(package, name) is thing
    assert name in package.__all__
    assert name in dir(package)


@pytest.mark.parametrize("package", [convergio.graphflow, convergio.tasks])
def test_every_public_name_is_tested_here(package: Any) -> None:
    tested = {name for owner, name, _ in PUBLIC if owner is package}
    assert tested == set(package.__all__)


@pytest.mark.parametrize("package", [convergio.graphflow, convergio.tasks])
def test_an_unknown_name_is_an_attribute_error(package: Any) -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        _ = package.nope


@pytest.mark.parametrize("url", ["https://example.org", "amqp://host", "redis+cluster://host", "host:6379"])
def test_a_url_that_is_no_redis_is_refused_in_words(url: str) -> None:
    with pytest.raises(errors.UnsupportedServer, match="cannot connect to a URL of the kind"):
        Client(url)


def test_without_a_stack_the_client_says_how_to_get_one(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.BoardUnavailable, match="no stack runs in") as caught:
        Client.from_env()
    assert caught.value.hint == "start one with `convergio up`, or set CONVERGIO_REDIS_URL"
