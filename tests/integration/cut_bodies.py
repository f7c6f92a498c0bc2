"""Tools and a policy of conversations whose workers are cut: what they do outlives their process."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from convergio.tasks.conversation import speaker
from convergio.tasks.conversation.floor import SelectionContext
from convergio.tasks.tools.tool import tool

EFFECTS: Final = "CONVERGIO_TEST_EFFECTS"
"""Names the file to which every effect adds its key."""

SLOW_S: Final = 60.0


def _effect(key: str) -> None:
    with Path(os.environ[EFFECTS]).open("a") as file:
        file.write(f"{key}\n")


@tool(name="cut.now")
def now(word: str, idempotency_key: str) -> str:
    """Does something, on a thread."""
    _effect(idempotency_key)
    return f"done {word}"


@tool(name="cut.later")
async def later(word: str, idempotency_key: str) -> str:
    """Does something, on the loop."""
    _effect(idempotency_key)
    await asyncio.sleep(0)
    return f"done {word}"


@tool(name="cut.slow")
async def slow(word: str, idempotency_key: str) -> str:
    """Takes longer than its turn may, in a process that is to be cut."""
    if "CONVERGIO_TEST_CUT" in os.environ:
        await asyncio.sleep(SLOW_S)
    return f"done {word}"


@speaker.policy
def own(context: SelectionContext) -> str:
    """The team in its order."""
    said = sum(one.speaker in context.names for one in context.thread)
    return context.names[said % len(context.names)]
