"""The steps that benchmarks run: a worker includes this module."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

from convergio.benchmarks import stamping
from convergio.graphflow.flow import registry

NOOP: Final = "bench.noop"
SLEEP: Final = "bench.sleep"
STAMP: Final = "bench.stamp"
MODULES: Final = "bench.modules"


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


@registry.step(name=MODULES)
def modules(path: str) -> None:
    """Writes down what this process has imported."""
    Path(path).write_text("\n".join(sorted(sys.modules)))
