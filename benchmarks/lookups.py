"""Tools of generated teams: the same functions as our tools, and as sources for AutoGen's FunctionTool."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

from convergio.tasks.tools.tool import REGISTERED


def stock(item: str) -> str:
    """How many are left of an item."""
    return f"{len(item) * 7} left of {item}"


def price(item: str, pieces: int = 1) -> str:
    """What so many pieces cost."""
    return f"{pieces} of {item}: {pieces * len(item)} euros"


ALL: Final[tuple[Callable[..., str], ...]] = (stock, price)

for _function in ALL:
    REGISTERED.add(_function)


def component(name: str) -> dict[str, Any]:
    """AutoGen's document of a tool: it holds the source, which AutoGen executes when it loads it."""
    function = next(one for one in ALL if one.__name__ == name)
    config = {
        "source_code": inspect.getsource(function),
        "name": name,
        "description": inspect.getdoc(function),
        "global_imports": list[str](),
        "has_cancellation_support": False,
    }
    return {"provider": "autogen_core.tools.FunctionTool", "component_type": "tool", "version": 1, "config": config}
