"""Identifiers: who may be named what, and how a process makes names that never repeat."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import secrets
import time
from dataclasses import dataclass
from typing import Final

NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
"""Workflow and step names: they are CEL identifiers and parts of Redis keys."""

RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Run ids: a Celery task id fits."""

TENANT: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
RESERVED_TENANTS: Final = frozenset({"plan", "rung", "canary", "holders", "waiters"})
"""Words that stand where a tenant stands in the board's keys, which must not be one."""


DEFAULT_TENANT: Final = "default"


def new_run_id() -> str:
    """32 hex characters that sort by creation time (48 bits of milliseconds, then random bits)."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


CHILD: Final = "child-"
"""Begins the id of a run that a step of another run started. Others may use it; it only saves looking them up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRef:
    """Which run: its tenant and its id."""

    tenant: str
    run: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.run}"

    @classmethod
    def parse(cls, text: str) -> RunRef:
        """The inverse of `str()`."""
        tenant, run = text.split("/", 1)
        return cls(tenant=tenant, run=run)


def child_of(ref: RunRef, step: str, attempt: int) -> RunRef:
    """The run that is this attempt of a step's instance: the same, however often it is asked for."""
    name = f"{ref}/{step}/{attempt}".encode()
    return RunRef(tenant=ref.tenant, run=f"{CHILD}{hashlib.blake2b(name, digest_size=16).hexdigest()}")


class Nonces:
    """Names for claims and locks: process boot id + counter. Compared for equality, never by order."""

    def __init__(self) -> None:
        self.boot = f"{os.getpid():x}-{secrets.token_hex(5)}"
        self._count = itertools.count(1)

    def next(self) -> str:
        """A name that no process ever made before."""
        return f"{self.boot}-{next(self._count):x}"
