"""What bodies really did, written by themselves: one append-only file per process, one JSON line per fact.

The engine neither writes nor reads it: it is the other half of the evidence beside the journal. A line is one `write`,
so a `kill -9` loses none that was begun. Times are CLOCK_MONOTONIC seconds, which all processes of a machine share, and
wall milliseconds, which the board's clock shares.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

VARIABLE: Final = "CONVERGIO_CHAOS_EFFECTS"
"""Names the directory of the log."""


@dataclass(slots=True, kw_only=True)
class Execution:
    """One execution of a body, under one claim.

    `nonce` names the claim, `saw` the claims whose outputs it was given. `early`: parents with durability `step` whose
    outcome was not in the journal when the body began. `key`: its concurrency key.
    """

    nonce: str
    run: str
    step: str
    attempt: int
    pid: int
    began: float
    began_ms: int
    saw: Mapping[str, str] = field(default_factory=dict[str, str])
    early: Sequence[str] = ()
    key: str = ""
    ended: float | None = None
    ended_ms: int | None = None
    succeeded: bool = False
    fenced: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a tool of a conversation wrote down. `key`: its idempotency key."""

    key: str
    text: str
    pid: int


class Log:
    """Writes this process's file. Safe for threads and after a fork."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def write(self, fact: str, nonce: str, **rest: Any) -> None:
        """Adds one line: `began`, `ended` or `fenced`, and for which claim; or `noted`, and under which key."""
        line = {"fact": fact, "nonce": nonce, "at": time.monotonic(), "ms": time.time_ns() // 1_000_000, **rest}
        os.write(self._file(), json.dumps(line).encode() + b"\n")

    def _file(self) -> int:
        pid = os.getpid()
        with self._lock:
            if pid not in self._files:
                path = self.directory / f"{pid}.jsonl"
                self._files[pid] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            return self._files[pid]


class Effects:
    """Reads the files of all processes; what was read before is not read again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._executions: dict[str, Execution] = {}
        self._open: dict[str, Execution] = {}
        self._notes: list[Note] = []
        self._offsets: dict[Path, int] = {}

    def all(self) -> list[Execution]:
        """Every execution so far, by its beginning."""
        self._read()
        return sorted(self._executions.values(), key=lambda execution: execution.began)

    def notes(self) -> list[Note]:
        """All that tools have noted so far."""
        self._read()
        return list(self._notes)

    def running(self) -> list[Execution]:
        """Those that have begun and neither ended nor lost their claim; those of dead processes are among them."""
        self._read()
        return list(self._open.values())

    def _read(self) -> None:
        for path in sorted(self.directory.glob("*.jsonl")):
            for line in self._new_lines(path):
                self._take(line)

    def _new_lines(self, path: Path) -> Iterator[dict[str, Any]]:
        with path.open("rb") as file:
            file.seek(self._offsets.get(path, 0))
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offsets[path] = self._offsets.get(path, 0) + len(whole)
        yield from (json.loads(line) for line in whole.splitlines())

    def _take(self, line: dict[str, Any]) -> None:
        nonce = line["nonce"]
        if line["fact"] == "noted":
            self._notes.append(Note(key=nonce, text=line["text"], pid=line["pid"]))
            return
        if line["fact"] == "began":
            self._executions[nonce] = self._open[nonce] = Execution(
                nonce=nonce,
                run=line["run"],
                step=line["step"],
                attempt=line["attempt"],
                pid=line["pid"],
                began=line["at"],
                began_ms=line["ms"],
                saw=line["saw"],
                early=tuple(line["early"]),
                key=line.get("key", ""),
            )
            return
        self._open.pop(nonce, None)
        execution = self._executions[nonce]
        if line["fact"] == "ended":
            execution.ended, execution.ended_ms, execution.succeeded = line["at"], line["ms"], line["succeeded"]
        else:
            execution.fenced = line["at"]
