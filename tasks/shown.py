"""What dashboards, `inspect` and logs are shown of a public entry: names, never an input, a definition or a decision.

Celery keeps a text of every task's arguments for them, up to 1 KB. Whoever sends may choose it; whoever receives, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery.worker import request

from convergio.graphflow.client.post import SHOWN


def of_args(args: Sequence[Any]) -> str:
    """What stands for arguments by position: which is which, only the entry knows."""
    return "(...)" if args else "()"


def of_kwargs(kwargs: Mapping[str, Any]) -> str:
    """The arguments that may be shown."""
    return repr({name: value for name, value in kwargs.items() if name in SHOWN})


class Request(request.Request):
    """A public entry that was received, whoever sent it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._argsrepr, self._kwargsrepr = of_args(self.args), of_kwargs(self.kwargs)

    def info(self, safe: bool = False) -> Any:
        """What `inspect` answers."""
        return super().info(safe=True)
