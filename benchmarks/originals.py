"""Generated teams in AutoGen's own runtime, in this process: what they said, and why they stopped."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Sequence
from typing import Any, Final

from autogen_agentchat.messages import (
    BaseAgentEvent,
    BaseChatMessage,
    HandoffMessage,
    ToolCallExecutionEvent,
    ToolCallRequestEvent,
)
from autogen_agentchat.teams import BaseGroupChat
from autogen_core import EVENT_LOGGER_NAME, ROOT_LOGGER_NAME, TRACE_LOGGER_NAME

from convergio.benchmarks.casts import Case
from convergio.benchmarks.rig import level
from convergio.benchmarks.scripts import Line, Play

PATIENCE_S: Final = 60.0
"""Nothing that is generated hangs; what does is a finding of its own."""


def play(cases: Sequence[Case]) -> list[Play]:
    """One play for each case."""
    with level(logging.CRITICAL, EVENT_LOGGER_NAME, TRACE_LOGGER_NAME, ROOT_LOGGER_NAME), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # AutoGen warns of each tool whose source it executes
        return asyncio.run(_all(cases))


async def _all(cases: Sequence[Case]) -> list[Play]:
    return [await _one(case) for case in cases]


async def _one(case: Case) -> Play:
    team: BaseGroupChat = BaseGroupChat.load_component(case.document)
    try:
        async with asyncio.timeout(PATIENCE_S):
            result = await team.run(task=case.task)
    except TimeoutError:
        return Play(lines=(), stop="(it hangs)")
    except Exception as error:  # noqa: BLE001  # whatever ends it there is what it ends with
        return Play(lines=(), stop=f"({type(error).__name__}: {str(error)[:200]})")
    return Play(lines=tuple(_line(message) for message in result.messages), stop=str(result.stop_reason))


def _line(message: BaseAgentEvent | BaseChatMessage) -> Line:
    said: Any = message.to_text()
    match message:
        case ToolCallRequestEvent():
            said = tuple((call.name, call.arguments) for call in message.content)
        case ToolCallExecutionEvent():
            said = tuple((one.name, one.content, not one.is_error) for one in message.content)
        case HandoffMessage():
            said = (message.content, message.target)
        case _:
            pass
    return Line(source=message.source, kind=type(message).__name__, said=said)
