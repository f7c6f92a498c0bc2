"""How large a process is that imports the libraries which another one has, and does nothing with them."""

from __future__ import annotations

import importlib
import os
import sys
from contextlib import suppress
from pathlib import Path

from convergio.benchmarks import rig

OURS = "convergio"


def main() -> None:
    """`python -m convergio.benchmarks.imports FILE`: imports what FILE names, but nothing of ours; prints its MB."""
    for name in Path(sys.argv[1]).read_text().split():
        if name.split(".", 1)[0] != OURS:
            with suppress(Exception):  # modules that only exist while something runs
                importlib.import_module(name)
    print(f"{rig.resident_mb(os.getpid()):.2f}")


if __name__ == "__main__":
    main()
