"""The scheduler: definitions, the pure decision, the board (Redis), the journal (SQL) and the engine between them.

Public, each loaded when it is first used: `Client` to start runs from other systems, `Workflow` and `step` to write
them in Python, `errors` to catch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

assert __name__ == "convergio.graphflow", "import convergio.graphflow, not graphflow"

if TYPE_CHECKING:
    from convergio.graphflow.client import Client, Event, Run
    from convergio.graphflow.flow.build import WorkflowBuilder as Workflow
    from convergio.graphflow.flow.registry import step
    from convergio.graphflow.model import errors

__all__ = ["Client", "Event", "Run", "Workflow", "errors", "step"]

_HOMES: Final = {
    "Client": ("convergio.graphflow.client", "Client"),
    "Event": ("convergio.graphflow.client", "Event"),
    "Run": ("convergio.graphflow.client", "Run"),
    "Workflow": ("convergio.graphflow.flow.build", "WorkflowBuilder"),
    "errors": ("convergio.graphflow.model.errors", ""),
    "step": ("convergio.graphflow.flow.registry", "step"),
}


def __getattr__(name: str) -> Any:
    """A public name, from the module that has it."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
