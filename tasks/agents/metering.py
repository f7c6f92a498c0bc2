"""Every model call of one attempt, booked once: at the provider's figures, or at an estimate that says it is one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from convergio.tasks.agents.spec import ModelUsage
from convergio.tasks.liveness import heartbeat

OnUsage = Callable[[ModelUsage], None]

BYTES_PER_TOKEN = 3
"""English has about 4.5 bytes a token, Chinese about 3: a wrong estimate is rather too high than too low."""

TOKENS_PER_IMAGE = 1_600
"""What a provider makes of one image at most, about: Anthropic's figure for the largest that it does not shrink."""


def estimated_tokens(text: str) -> int:
    """A guess at the tokens of `text`, for calls whose provider gave no figure."""
    return math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN)


@dataclass(slots=True, kw_only=True)
class Call:
    """One model call under way."""

    prompt: str
    model: str
    images: int = 0
    started: float = field(default_factory=time.monotonic)
    started_ms: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    pieces: list[str] = field(default_factory=list)


class CallBook:
    """The calls of one attempt. A call that never ends in a figure is booked when the book is closed."""

    def __init__(self, model: str, on_usage: OnUsage | None = None) -> None:
        self.booked: list[ModelUsage] = []
        self.finish = "unknown"
        self._model = model
        self._on_usage = on_usage
        self._open: list[Call] = []

    def start(self, prompt: str, *, model: str | None = None, images: int = 0) -> Call:
        """A call begins; add what is heard of it to `pieces`. `model`: who is asked, if it is not the attempt's own."""
        heartbeat()
        call = Call(prompt=prompt, model=model or self._model, images=images)
        self._open.append(call)
        return call

    def end(self, call: Call, *, input_tokens: int, output_tokens: int, finish: str) -> None:
        """The call ended with the provider's figures. Zeros beside a text are no figures: they are estimated."""
        if not any(call is other for other in self._open):
            return
        self.finish = finish
        heard = "".join(call.pieces)
        if input_tokens == 0 or (output_tokens == 0 and heard):
            self._estimate(call)
        else:
            self._book(call, input_tokens, output_tokens, estimated=False)

    def drop(self, call: Call) -> None:
        """The call never reached a model: nothing is booked."""
        self._open = [other for other in self._open if other is not call]

    def close(self) -> None:
        """Books what is still open: a call that broke off, or was cut by the deadline, was paid for all the same."""
        for call in tuple(self._open):
            self.broke_off(call)

    def broke_off(self, call: Call) -> None:
        """The call is over. One that is not booked yet is so now, at an estimate."""
        if any(call is other for other in self._open):
            self._estimate(call)

    def _estimate(self, call: Call) -> None:
        given = estimated_tokens(call.prompt) + TOKENS_PER_IMAGE * call.images
        self._book(call, given, estimated_tokens("".join(call.pieces)), estimated=True)

    def _book(self, call: Call, input_tokens: int, output_tokens: int, *, estimated: bool) -> None:
        heartbeat()
        self.drop(call)
        usage = ModelUsage(
            model=call.model,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            estimated=estimated,
            latency_ms=round((time.monotonic() - call.started) * 1000),
            started_ms=call.started_ms,
        )
        self.booked.append(usage)
        if self._on_usage is not None:
            self._on_usage(usage)
