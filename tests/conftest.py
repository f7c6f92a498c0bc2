"""Shared fixtures: real servers, a clean environment, leak checkers, and the rule about skips."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests import leaks, servers

ValkeyFactory = Callable[..., servers.ValkeyServer]

NO_SKIPS = "CONVERGIO_TEST_NO_SKIPS"
"""Set where everything a test may ask for is installed (`.ci/run`): there a skip is a failure."""

# Set anew in every process that runs tests, so that parallel ones do not take each other's processes for their own.
os.environ[servers.SESSION_MARK] = uuid.uuid4().hex

# A shell that runs tests in its background ignores Ctrl-C for them and for all that they start: no test could press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# --- skips --------------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test fails under `CONVERGIO_TEST_NO_SKIPS`; an expected failure is none."""
    report = yield
    if os.environ.get(NO_SKIPS) and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped where nothing may be: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself while it is collected."""
    report = yield
    if os.environ.get(NO_SKIPS) and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped where nothing may be: {report.longrepr}"
    return report


# --- order ----------------------------------------------------------------------------------------------------------


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the longest tests come first: one that begins last would keep one process busy and the others idle.

    How long a file may take is told by its marks. The sort is stable: what is equal keeps its random order.
    """
    longest: dict[Path, tuple[float, bool]] = {}
    for item in items:
        limit = item.get_closest_marker("timeout")
        given = (float(limit.args[0]) if limit else 0.0, item.get_closest_marker("slow") is not None)
        longest[item.path] = max(longest.get(item.path, given), given)
    items.sort(key=lambda item: longest[item.path], reverse=True)


# --- the world around a test --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting and no key of the person who runs the tests reaches a test."""
    for name in list(os.environ):
        ours = name.startswith("CONVERGIO_") and not name.startswith("CONVERGIO_TEST_")
        if ours or name.startswith(("OPENAI_", "AZURE_OPENAI_")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test ends every process it started and closes every port it listened on. Unit tests start none: not watched."""
    if "unit" in Path(str(request.node.path)).parts:
        yield
        return
    before = leaks.census()
    yield
    leaked = leaks.census_since(before)
    leaks.end(leaked)
    assert not leaked, f"left behind by this test: {leaked}"


# --- Valkey -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def session_valkey() -> Iterator[servers.ValkeyServer]:
    """The one server that every ordinary test shares, one test at a time."""
    with servers.valkey_running(aof=False, marked=False) as server:
        yield server


@pytest.fixture(scope="session")
def session_redis() -> Iterator[servers.ValkeyServer]:
    """The same by the second implementation: the Redis that is installed on this machine."""
    binary = servers.redis_binary()
    if binary is None:
        pytest.skip("no redis-server on this machine (Debian: apt install redis-server)")
    with servers.valkey_running(binary=binary, aof=False, marked=False) as server:
        yield server


@pytest.fixture
def valkey(session_valkey: servers.ValkeyServer) -> Iterator[str]:
    """The URL of an empty, running Valkey. Tests that stop, kill or reconfigure a server take `valkey_server`."""
    _empty(session_valkey)
    yield session_valkey.url
    _empty(session_valkey)


@pytest.fixture(params=["valkey", "redis"])
def board_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test runs twice: on an empty Valkey and on an empty Redis."""
    server: servers.ValkeyServer = request.getfixturevalue(f"session_{request.param}")
    _empty(server)
    yield server.url
    _empty(server)


def _empty(server: servers.ValkeyServer) -> None:
    with server.client() as client:
        client.flushall()
        client.function_flush()
        client.script_flush()


@pytest.fixture
def valkey_server() -> Iterator[ValkeyFactory]:
    """Starts private servers: `valkey_server(aof=True, fsync="always")` gives a running `servers.ValkeyServer`."""
    with ExitStack() as stack:

        def start(*, aof: bool = True, fsync: str = "always") -> servers.ValkeyServer:
            return stack.enter_context(servers.valkey_running(aof=aof, fsync=fsync))

        yield start


# --- SQL ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def session_postgres() -> Iterator[servers.PostgresServer]:
    """The one PostgreSQL server of the session; a skip with the reason where it cannot run."""
    with ExitStack() as stack:
        try:
            server = stack.enter_context(servers.postgres_running())
        except servers.NoPostgres as reason:
            pytest.skip(f"no PostgreSQL: {reason}")
        yield server


@pytest.fixture
def postgres_url(session_postgres: servers.PostgresServer) -> Iterator[str]:
    """A SQLAlchemy URL of an empty PostgreSQL database of this test's own."""
    database = session_postgres.create()
    yield session_postgres.url(database)
    session_postgres.drop(database)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLAlchemy URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'journal.sqlite'}"


@pytest.fixture(params=["sqlite", "postgres"])
def journal_url(request: pytest.FixtureRequest) -> str:
    """The test runs twice: on an empty SQLite file and on an empty PostgreSQL database."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
