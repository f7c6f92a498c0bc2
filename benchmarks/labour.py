"""The bodies of chaos steps and a tool, which write down what they do; workers import them (`CONVERGIO_INCLUDE`)."""

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

from convergio.benchmarks import effects, evidence, graphs, reference, talks
from convergio.config.settings import variable
from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.flow import registry
from convergio.graphflow.model import errors
from convergio.tasks.tools.tool import tool

WATCH_S: Final = 0.1
"""Seconds between two looks at the claims."""

KEPT_S: Final = 60.0
"""How long a claim is looked at: its outcome may be refused after its body has ended."""

NOTING_S: Final = 0.03
"""Seconds that the tool takes after it wrote down what it was asked for: time to be killed in."""


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
    value: int,
    step: str,
    millis: int,
    flaws: int,
    parents: Mapping[str, Any],
    durable: Sequence[str],
    deals: int = 0,
    round: int = 0,  # as workflows say it
    place: int = -1,
    key: str = "",
) -> dict[str, Any]:
    """Takes `millis`, fails on the first `flaws` attempts, and returns a digest of what it was given.

    `round`, `place`: which round of a loop, or item of a map, this is. `deals`: it gives so many numbers, too.
    """
    given = {name: reference.seen(output) for name, output in parents.items() if output is not None}
    saw = {f"{name}{part}": by for name, (_, parts) in given.items() for part, by in parts.items()}
    name = reference.instance(step, round, place)
    by = _act(
        name,
        saw,
        millis=millis,
        flaws=flaws,
        durable=[one for one in durable if one.partition("#")[0] in given],
        key=key,
    )
    text = reference.digest(name, value, {parent: digest for parent, (digest, _) in given.items()})
    return {
        "digest": text,
        "value": reference.value_of(text),
        "by": by,
        "saw": saw,
        "numbers": reference.numbers(text, deals),
    }


@tool(name=talks.TOOL)
def note(text: str, idempotency_key: str) -> str:
    """Writes a note down."""
    _log(os.getpid()).write("noted", idempotency_key, text=text, pid=os.getpid())
    time.sleep(NOTING_S)
    return talks.noted(text)


@registry.step(name=graphs.UNDO)
def undo(step: str, flaws: int, result: Mapping[str, Any]) -> dict[str, Any]:
    """Takes back what a step did, on the attempt after `flaws`."""
    saw = {step: str(result["by"])}
    return {"by": _act(f"{graphs.UNDOES}{step}", saw, millis=30, flaws=flaws, durable=[step]), "saw": saw}


def _act(step: str, saw: Mapping[str, str], *, millis: int, flaws: int, durable: Sequence[str], key: str = "") -> str:
    """What every body does, written down. The name of its claim."""
    claim = cast(Claim, cast(Any, current_task).request.claim)
    log, attempt, run = _log(os.getpid()), claim.held.attempt, claim.held.ref.run
    early = _early(run, durable)
    facts = {"run": run, "step": step, "attempt": attempt, "pid": os.getpid(), "saw": saw, "early": early, "key": key}
    log.write("began", claim.nonce, **facts)
    _watch(os.getpid()).add(claim)
    time.sleep(millis / 1000)
    flawed = attempt <= flaws
    log.write("ended", claim.nonce, succeeded=not flawed)
    if flawed:
        raise errors.Transient(f"attempt {attempt} of {step} fails by design")
    return claim.nonce


def _early(run: str, durable: Sequence[str]) -> list[str]:
    """Parents that had to be in the journal before this step began, and are not."""
    journal = evidence.Journal(os.environ[variable("journal_url")])
    while True:
        try:
            return [name for name in durable if not journal.has_outcome(run, name)]
        except (psycopg.OperationalError, sqlite3.OperationalError):
            time.sleep(WATCH_S)  # the journal may be away, which is one of the faults: nothing was learnt yet
