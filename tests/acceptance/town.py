"""The command line as people use it: in processes of its own, against a stack of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis

from convergio.config import settings
from convergio.graphflow.model.states import StepState
from convergio.workers import boot
from convergio.workers.cli.session import Session
from tests import servers
from tests.waiting import wait_until

COMMAND: Final = (sys.executable, "-m", "convergio.workers.cli")
SCRIPTED: Final = {"CONVERGIO_MODEL_NAME": "scripted"}
PATIENCE: Final = 90.0
"""Seconds for what takes some on a busy machine."""


def environment(extra: Mapping[str, str], *, marked: bool = True) -> dict[str, str]:
    """The environment without settings of whoever runs the tests. `marked`: the leak checker looks for the process."""
    ours = ("CONVERGIO_", "OPENAI_", "AZURE_OPENAI_", "FLOWER_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    if marked:
        kept[servers.SESSION_MARK] = os.environ[servers.SESSION_MARK]
    return {**kept, **extra}


def cli(
    *arguments: str, env: Mapping[str, str], given: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """One call of the command line, to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(env),
        input=given,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=cwd,
    )


@dataclass(kw_only=True)
class Town:
    """A process of ours that goes on, and what it says."""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list[str])

    def wait_for(self, words: str, *, timeout: float = PATIENCE) -> str:
        """The first line with these words. Fails with all that was said."""
        try:
            return wait_until(lambda: self._line(words), timeout=timeout)
        except AssertionError:
            raise AssertionError(f"never said {words!r}: {''.join(self.said)}") from None

    def _line(self, words: str) -> str:
        found = next((line for line in list(self.said) if words in line), "")
        if not found and self.process.poll() is not None and not self._reader.is_alive():
            raise AssertionError(f"ended with {self.process.returncode}")
        return found

    def write(self, text: str) -> None:
        """To its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def ended(self, *, timeout: float = PATIENCE) -> int:
        """Its exit code, once it has ended."""
        code = self.process.wait(timeout=timeout)
        self._reader.join(timeout=5)
        return code

    def interrupt(self) -> int:
        """Ctrl-C; its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.ended()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()


@contextmanager
def going(*arguments: str, env: Mapping[str, str], cwd: Path | None = None, marked: bool = True) -> Generator[Town]:
    """A call of the command line that goes on; interrupted at the end, if it has not ended by itself."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        env={**environment(env, marked=marked), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
    )
    town = Town(process=process)
    try:
        yield town
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            town.ended(timeout=45)
        except subprocess.TimeoutExpired:
            process.kill()
            town.ended()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


@dataclass(frozen=True, kw_only=True)
class Place:
    """A directory in which a stack runs, and how to call the command line there."""

    home: Path
    extra: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def env(self) -> dict[str, str]:
        return {"CONVERGIO_HOME": str(self.home), **SCRIPTED, **self.extra}

    def cli(
        self, *arguments: str, given: str = "", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """One call, to its end."""
        return cli(*arguments, env={**self.env, **(env or {})}, given=given)

    def ok(self, *arguments: str) -> str:
        """What a call that must succeed says."""
        done = self.cli(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """The JSON that a call that must succeed prints."""
        return json.loads(self.ok(*arguments, "--json"))

    @property
    def running(self) -> dict[str, Any]:
        """What the stack tells other terminals."""
        found: dict[str, Any] = json.loads((self.home / "run.json").read_text())
        return found

    @property
    def redis_url(self) -> str:
        return str(self.running["urls"]["redis"])

    @contextmanager
    def redis(self) -> Generator[redis.Redis]:
        """A client of the stack's Redis."""
        with redis.Redis.from_url(self.redis_url, decode_responses=True) as client:
            yield client

    def pid(self, name: str) -> int:
        """A process of the stack."""
        return int(self.running["pids"][name])

    def state(self, run: str, step: str) -> StepState:
        """A step's state now."""
        urls = {name: self.extra.get(f"CONVERGIO_{name.upper()}", "") for name in ("redis_url", "journal_url")}
        session = Session(boot.resolve(settings.load(home=self.home, **urls)))
        try:
            return session.inquiry.view(session.ref(run)).steps[step].state
        finally:
            session.close()


@contextmanager
def stack(place: Place, *options: str, marked: bool = True) -> Generator[Town]:
    """`convergio up`, ready."""
    with going("up", *options, env=place.env, marked=marked) as town:
        town.wait_for("Ctrl-C stops everything")
        yield town
