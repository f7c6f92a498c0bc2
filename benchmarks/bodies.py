"""The steps that benchmarks run: a worker includes this module."""

from __future__ import annotations

import time
from typing import Final

from convergio.benchmarks import stamping
from convergio.graphflow.flow import registry

NOOP: Final = "bench.noop"
SLEEP: Final = "bench.sleep"
STAMP: Final = "bench.stamp"


@registry.step(name=NOOP)
def noop() -> None:
    """Nothing."""


@registry.step(name=SLEEP)
def sleep(seconds: float) -> None:
    """Works for so long, as far as anybody can tell."""
    time.sleep(seconds)


@registry.step(name=STAMP)
def stamp() -> None:
    """A timestamp, as the bare tasks leave one."""
    stamping.stamp()
