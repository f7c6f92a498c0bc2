"""How a process of ours tells its supervisor that it is ready: it writes its pid into a file named by a variable."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "CONVERGIO_READY_FILE"


def announce() -> None:
    """Says that this process is ready. Does nothing in a process without a supervisor."""
    if path := os.environ.get(VARIABLE):
        Path(path).write_text(str(os.getpid()))


@dataclass(frozen=True, kw_only=True)
class ReadyFile:
    """The supervisor's side of it."""

    path: Path

    @property
    def env(self) -> Mapping[str, str]:
        """What the process is given."""
        return {VARIABLE: str(self.path)}

    def ready(self, pid: int) -> bool:
        """Whether the process with this pid has announced itself; what an earlier one wrote does not count."""
        try:
            return self.path.read_text() == str(pid)
        except FileNotFoundError:
            return False
