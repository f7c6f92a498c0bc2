"""What goes into one agent's answer and what comes out of it: plain values, nothing of AutoGen's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT_MAX_TOKENS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """One agent as a definition. `model` None = the model of the settings; `temperature` None = the model's own."""

    name: str
    description: str
    system_message: str
    model: str | None = None
    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float | None = None
    tools: tuple[str, ...] = ()
    handoffs: tuple[str, ...] = ()
    rounds: int | None = None
    """how often it may ask for tools in one turn; none: `autogen_turn.MOST_CALLS` calls of its model"""
    reflect: bool = False
    """whether the model has a word more after the last of these rounds"""
    script: tuple[Mapping[str, Any], ...] = ()
    """what the scripted model answers, call by call (see `graphflow.flow.team.ReplyForm`); none: it makes it up"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUsage:
    """What one model call took. `estimated` = the provider gave no figure, and this one errs on the high side.

    `latency_ms` is the time of the call, `started_ms` its start in milliseconds of Unix time.
    """

    model: str
    input_tokens: int
    output_tokens: int
    estimated: bool = False
    latency_ms: int = 0
    started_ms: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The part that a step's output shows."""
        return {
            "model": self.model,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "estimated": self.estimated,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAnswer:
    """An agent's answer. `output` is the parsed JSON of a typed answer, else None; `calls` has one entry per call.

    `finish` is `stop`, `length` (cut at max_tokens), `content_filter` or `unknown`. `notes` say what was changed in
    the text on its way in (NUL characters and lone surrogates, which no store keeps).
    """

    text: str
    output: Any = None
    calls: tuple[ModelUsage, ...]
    finish: str
    latency_s: float
    notes: tuple[str, ...] = ()

    @property
    def usage(self) -> ModelUsage:
        """All calls of this answer together."""
        return total(self.calls)


def total(calls: Iterable[ModelUsage]) -> ModelUsage:
    """The sum of `calls` (at least one), under the model of the last one."""
    booked = tuple(calls)
    return ModelUsage(
        model=booked[-1].model,
        input_tokens=sum(call.input_tokens for call in booked),
        output_tokens=sum(call.output_tokens for call in booked),
        estimated=any(call.estimated for call in booked),
        latency_ms=sum(call.latency_ms for call in booked),
        started_ms=booked[0].started_ms,
    )
