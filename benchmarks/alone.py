"""What a turn costs an agent of AutoGen's alone, in one process: the part of a turn's CPU that is not the engine's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Final

from autogen_agentchat.agents import AssistantAgent
from autogen_core import CancellationToken
from autogen_core.model_context import UnboundedChatCompletionContext
from autogen_core.models import AssistantMessage, CreateResult, LLMMessage, RequestUsage, UserMessage
from autogen_ext.models.replay import ReplayChatCompletionClient

from convergio.tasks.agents.wire import MODEL_INFO

WARM: Final = 20
"""Turns before the first that is measured."""


class _Client(ReplayChatCompletionClient):
    """Says its pieces at once."""

    def __init__(self, pieces: Sequence[str]) -> None:
        super().__init__([], model_info=MODEL_INFO)
        self._pieces = pieces

    async def create_stream(
        self, messages: Sequence[LLMMessage], **options: Any
    ) -> AsyncGenerator[str | CreateResult, None]:
        for piece in self._pieces:
            await asyncio.sleep(0)
            yield piece
        usage = RequestUsage(prompt_tokens=1, completion_tokens=1)
        yield CreateResult(finish_reason="stop", content="".join(self._pieces), usage=usage, cached=False)


async def _turn(pieces: Sequence[str], heard: int) -> None:
    said = "".join(pieces)
    messages: list[LLMMessage] = [
        UserMessage(content=said, source="bob") if place % 2 else AssistantMessage(content=said, source="ann")
        for place in range(heard)
    ]
    agent = AssistantAgent(
        name="ann",
        system_message="You say what you have to say.",
        model_client=_Client(pieces),
        model_client_stream=True,
        model_context=UnboundedChatCompletionContext(initial_messages=messages),
    )
    async with aclosing(agent.on_messages_stream([], CancellationToken())) as events:
        async for _ in events:
            pass


async def _turns(pieces: Sequence[str], heard: int, turns: int) -> float:
    for _ in range(WARM):
        await _turn(pieces, heard)
    began = time.process_time()
    for _ in range(turns):
        await _turn(pieces, heard)
    return (time.process_time() - began) * 1000 / turns


def cpu_ms(pieces: Sequence[str], *, heard: int, turns: int = 100) -> float:
    """CPU milliseconds of a fresh agent's turn that is told of so many messages, its context made with it."""
    return asyncio.run(_turns(pieces, heard, turns))
