"""The body of chaos steps, which writes down what it does; workers import this module (`CONVERGIO_INCLUDE`)."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, cast

import psycopg
from celery import current_task

from convergio.benchmarks import effects, evidence, graphs, reference
from convergio.config.settings import variable
from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.flow import registry
from convergio.graphflow.model import errors

WATCH_S: Final = 0.1
"""Seconds between two looks at the claims."""

KEPT_S: Final = 60.0
"""How long a claim is looked at: its outcome may be refused after its body has ended."""


class Watch:
    """Writes down which claims this process loses. The engine says so on the claim; a killed process says nothing."""

    def __init__(self, log: effects.Log) -> None:
        self.log = log
        self._claims: dict[str, tuple[Claim, float]] = {}
        self._thread = threading.Thread(target=self._look, name="chaos-watch", daemon=True)
        self._thread.start()

    def add(self, claim: Claim) -> None:
        self._claims[claim.nonce] = (claim, time.monotonic())

    def _look(self) -> None:
        while True:
            time.sleep(WATCH_S)
            for nonce, (claim, since) in list(self._claims.items()):
                if claim.lost.is_set():
                    self.log.write("fenced", nonce)
                if claim.lost.is_set() or time.monotonic() - since > KEPT_S:
                    del self._claims[nonce]


@cache
def _log(_pid: int) -> effects.Log:
    return effects.Log(Path(os.environ[effects.VARIABLE]))


@cache
def _watch(pid: int) -> Watch:
    return Watch(_log(pid))


@registry.step(name=graphs.FUNCTION)
def work(
    run: str,
    value: int,
    step: str,
    millis: int,
    flaws: int,
    parents: Mapping[str, Mapping[str, Any] | None],
    durable: Sequence[str],
) -> dict[str, Any]:
    """Takes `millis`, fails on the first `flaws` attempts, and returns a digest of what it was given."""
    claim = cast(Claim, cast(Any, current_task).request.claim)
    log, attempt = _log(os.getpid()), claim.held.attempt
    seen = {name: output for name, output in parents.items() if output is not None}
    saw = {name: str(output.get("by", "")) for name, output in seen.items()}
    log.write(
        "began",
        claim.nonce,
        run=run,
        step=step,
        attempt=attempt,
        pid=os.getpid(),
        saw=saw,
        early=_early(run, [name for name in durable if name in seen]),
    )
    _watch(os.getpid()).add(claim)
    time.sleep(millis / 1000)
    flawed = attempt <= flaws
    log.write("ended", claim.nonce, succeeded=not flawed)
    if flawed:
        raise errors.Transient(f"attempt {attempt} of {step} fails by design")
    text = reference.digest(step, value, {name: str(output["digest"]) for name, output in seen.items()})
    return {"digest": text, "value": reference.value_of(text), "by": claim.nonce, "saw": saw}


def _early(run: str, durable: Sequence[str]) -> list[str]:
    """Parents that had to be in the journal before this step began, and are not."""
    journal = evidence.Journal(os.environ[variable("journal_url")])
    while True:
        try:
            return [name for name in durable if not journal.has_outcome(run, name)]
        except (psycopg.OperationalError, sqlite3.OperationalError):
            time.sleep(WATCH_S)  # the journal may be away, which is one of the faults: nothing was learnt yet
