"""The data directory of one stack: its layout, its lock, and the file that tells other terminals what runs."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from convergio.graphflow.model import errors

#: How long `lock` tries: a reader of `running` holds the lock shared for a moment, and is not another stack.
LOCK_PATIENCE_S = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """What runs in a data directory.

    The supervisor's pid, the start (Unix seconds), URLs to show and processes' pids by name, and the variables that
    lead another process there: they hold passwords, as the URLs may.
    """

    pid: int
    started_at: float
    urls: Mapping[str, str]
    pids: Mapping[str, int]
    env: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str], repr=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataDirectory:
    """The paths below one root. Made by `open`; every file in it is readable by its owner only."""

    root: Path

    @classmethod
    def open(cls, root: Path) -> DataDirectory:
        """Makes the directory where it is missing. Raises `InvalidSetting` where that is not possible."""
        root = root.absolute()
        directory = cls(root=root)
        try:
            for path in (root, directory.valkey, directory.logs):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The directory often lies in a checkout: its passwords must not reach a commit.
            if not (root / ".gitignore").exists():
                write_atomically(root / ".gitignore", b"*\n")
        except OSError as error:
            raise errors.InvalidSetting(
                f"{root} cannot be the data directory: {error.strerror}.", hint="Choose a directory you may write to."
            ) from error
        return directory

    @property
    def valkey(self) -> Path:
        """The embedded Valkey's files."""
        return self.root / "valkey"

    @property
    def journal(self) -> Path:
        """The embedded journal."""
        return self.root / "journal.sqlite3"

    @property
    def logs(self) -> Path:
        """One log per process."""
        return self.root / "logs"

    @contextmanager
    def lock(self) -> Generator[None]:
        """Holds the directory for one stack. Raises `DirectoryInUse`, which names the other's pid.

        The kernel drops the lock with its process, so a killed stack never leaves the directory locked.
        """
        descriptor = self._open_lock()
        try:
            if not _acquired(descriptor, patience_s=LOCK_PATIENCE_S):
                raise self._in_use(descriptor)
            # What a killed stack left must be gone before this one counts as running.
            self._run_file.unlink(missing_ok=True)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            try:
                yield
            finally:
                self._run_file.unlink(missing_ok=True)
        finally:
            os.close(descriptor)

    def publish(self, running: Running) -> None:
        """Tells other terminals what runs here; call it with the lock held, again after every change."""
        write_atomically(self._run_file, json.dumps(dataclasses.asdict(running), indent=2).encode())

    def running(self) -> Running | None:
        """What runs here now; None when nothing does, also when a killed stack left its file behind."""
        try:
            descriptor = os.open(self._lock_file, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            # A free lock is the proof that the writer of the file is gone: pids are reused, locks are not.
            if _acquired(descriptor, shared=True):
                return None
            return Running(**json.loads(self._run_file.read_bytes()))
        except FileNotFoundError:
            return None
        finally:
            os.close(descriptor)

    @property
    def _run_file(self) -> Path:
        return self.root / "run.json"

    @property
    def _lock_file(self) -> Path:
        return self.root / "lock"

    def _open_lock(self) -> int:
        # Never unlinked: a second stack could otherwise lock a new file while the first holds the old one.
        return os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)

    def _in_use(self, descriptor: int) -> errors.DirectoryInUse:
        owner = os.pread(descriptor, 32, 0).decode() or "unknown"
        return errors.DirectoryInUse(
            f"Another stack (pid {owner}) uses {self.root}.",
            hint="Use that one, or stop it (Ctrl-C in its terminal), or choose another data directory.",
            pid=owner,
        )


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces the file's content, readable by its owner only: a reader sees the old or the new, never a part.

    Not synced to the disk: all that is written here can be made anew.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a small file of ours; None when it is missing or no JSON object."""
    try:
        content: Any = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None  # pyright: ignore[reportUnknownVariableType]


def _acquired(descriptor: int, *, shared: bool = False, patience_s: float = 0.0) -> bool:
    """Tries the lock without blocking. `flock`, not POSIX records: those do not conflict within one process."""
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        else:
            return True
