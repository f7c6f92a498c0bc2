"""What a way to a model provider is, whatever its protocol: it makes clients, reads failures, and is closed."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from autogen_core.models import ChatCompletionClient, FinishReasons, ModelInfo

from convergio.graphflow.model import errors
from convergio.tasks.agents.failure import Failure
from convergio.tasks.agents.metering import Call
from convergio.tasks.agents.model import ModelSettings
from convergio.tasks.agents.spec import AgentSpec

logger = logging.getLogger(__name__)

LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})

MODEL_INFO: Final = ModelInfo(
    vision=True,  # or AutoGen takes images out of the context without a word; who may see them, we decide
    function_calling=True,
    json_output=True,
    structured_output=True,
    family="unknown",
    multiple_system_messages=False,
)

FINISHES: Final[Mapping[str, FinishReasons]] = {
    "length": "length",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "content_filter": "content_filter",
    "refusal": "content_filter",
}
"""Providers' words that AutoGen's clients do not know, or not all of them."""

ROOM: Final = 64_000
PER_TOKEN: Final = 32
"""Characters that an answer may have: so many, and so many more for each token of `max_tokens`."""


@dataclass(slots=True, kw_only=True)
class Heard:
    """What is heard of one call on its way: how it ended, its figures, and how to hang up."""

    call: Call
    most: int
    finish: str | None = None
    usage: tuple[int, int] | None = None
    refusal: str = ""
    size: int = 0
    hang_up: Callable[[], Awaitable[object]] | None = None

    def text(self, piece: object) -> None:
        """A piece of what the model says. Raises AnswerTooLong once it goes on without an end."""
        self.size += len(piece) if isinstance(piece, str) else 0
        if self.size > self.most:
            hint = "the provider does not keep to max_tokens; raise it, if the answer was wanted"
            raise errors.AnswerTooLong(f"the answer was cut after {self.size} characters", hint=hint)

    def arguments(self, piece: object) -> None:
        """A piece of what a tool is to be called with: it is paid for like text."""
        if isinstance(piece, str):
            self.call.pieces.append(piece)
            self.text(piece)

    def counted(self, given: object, made: object) -> None:
        """Figures, where they are some."""
        if isinstance(given, int) and isinstance(made, int):
            self.usage = (given, made)

    async def close(self) -> None:
        """Hangs up, whoever stopped reading."""
        hang_up, self.hang_up = self.hang_up, None
        if hang_up is None:
            return
        try:
            await hang_up()
        except Exception as error:  # noqa: BLE001  # a connection that is gone is hung up on
            logger.info("a provider's stream was not closed as it should: %r", error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is the same for all calls of an attempt. `schema`: of a typed answer."""

    spec: AgentSpec
    model: ModelSettings
    schema: Mapping[str, Any] | None = None


class Wire(Protocol):
    """The connections to one endpoint. They belong to the loop that first used them."""

    def client(self, request: Request, heard: Heard) -> ChatCompletionClient:
        """AutoGen's client, for one call."""
        ...

    def failure(self, error: Exception) -> Failure:
        """What happened, in the same words for every protocol. Whatever is no error of the SDK is garbage."""
        ...

    async def close(self) -> None:
        """Ends the connections."""
        ...


def is_here(url: str | None) -> bool:
    """Whether it is this machine's own address: a person's HTTP_PROXY must not be asked for it."""
    return (urlsplit(url or "").hostname or "") in LOOPBACK


def set_only(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are set: a server may refuse a field that it does not know."""
    return {name: value for name, value in values.items() if value is not None}
