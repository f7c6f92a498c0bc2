"""What a step does: the Celery app and its tasks, pre-run hooks, agents and tools.

Public, each loaded when it is first used: `hook` with its answers `Allow`, `Deny` and `Defer`; `Transient` and
`Permanent`, which a step's function raises to be tried again or not; `heartbeat`, by which a long one says that it
lives.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

assert __name__ == "convergio.tasks", "import convergio.tasks, not tasks"

if TYPE_CHECKING:
    from convergio.graphflow.model.errors import Permanent, Transient
    from convergio.tasks.hooks import Allow, Defer, Deny, HookContext, hook
    from convergio.tasks.liveness import heartbeat

__all__ = ["Allow", "Defer", "Deny", "HookContext", "Permanent", "Transient", "heartbeat", "hook"]

_HOMES: Final = {
    "Allow": "convergio.tasks.hooks",
    "Defer": "convergio.tasks.hooks",
    "Deny": "convergio.tasks.hooks",
    "HookContext": "convergio.tasks.hooks",
    "Permanent": "convergio.graphflow.model.errors",
    "Transient": "convergio.graphflow.model.errors",
    "heartbeat": "convergio.tasks.liveness",
    "hook": "convergio.tasks.hooks",
}


def __getattr__(name: str) -> Any:
    """A public name, from the module that has it."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
