"""One attempt of an agent step, from request to output and ledger rows. Knows neither Celery nor the board."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from convergio.tasks.agents import tables
from convergio.tasks.agents.model import Kind, ModelSettings
from convergio.tasks.agents.registry import Registry
from convergio.tasks.agents.roster import Roster
from convergio.tasks.agents.spec import ModelUsage
from convergio.tasks.agents.turn import Emit, Memory, Part, Question, TurnRequest

if TYPE_CHECKING:
    from convergio.tasks.agents.autogen_adapter import AutogenRunner
    from convergio.tasks.agents.calling import Gate

ADAPTER = "convergio.tasks.agents.autogen_adapter"
TURN_ADAPTER = "convergio.tasks.agents.autogen_turn"

Ledger = list[dict[str, Any]]
"""Rows of `model_calls`, filled as calls end: after a failed attempt it holds what the attempt cost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRequest:
    """One attempt. `claim` is the claim's nonce: call ids are made of it, so that no two attempts share one.

    `prompt` is rendered. `max_tokens` None = the agent's own. `deadline_s` bounds the attempt, model calls included.
    """

    tenant: str
    submitter: str
    run_id: str
    step: str
    iteration: int
    attempt: int
    claim: str
    agent: str
    prompt: str
    output_schema: Mapping[str, Any] | None = None
    max_tokens: int | None = None
    deadline_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentResult:
    """A step's output (`text`, `output`, `usage`, `finish`, `notes`) and the ledger rows that travel in its outcome."""

    output: dict[str, Any]
    rows: tuple[dict[str, Any], ...]


class Agents:
    """What a worker process keeps between agent steps: the roster, the model, and AutoGen once it was needed."""

    def __init__(
        self, *, roster: Roster, model: ModelSettings, models: Registry | None = None, gate: Gate | None = None
    ) -> None:
        """`model` answers for whom no other is named; `models`: all there are; `gate`: where those with limits wait."""
        self.roster = roster
        self.model = model
        self.models = models or Registry(default=model)
        self._gate = gate
        self._runner: AutogenRunner | None = None
        self._spoken: set[Kind] = set()
        self._speakers: Any = None
        self._importing = asyncio.Lock()

    async def run_agent_step(
        self,
        request: AgentRequest,
        *,
        on_delta: Callable[[str], None] | None = None,
        ledger: Ledger | None = None,
    ) -> AgentResult:
        """Asks the agent once. Every call must come on the same event loop.

        Raises: errors.UnknownAgent, errors.UnknownModel, errors.InvalidSetting, and what `AutogenRunner.answer`
        raises. `ledger` is filled in either case.
        """
        spec = self.roster.get(request.agent)
        model = self.models.named(spec.model)
        if request.max_tokens is not None:
            spec = replace(spec, max_tokens=request.max_tokens)
        rows: Ledger = [] if ledger is None else ledger

        def book(usage: ModelUsage) -> None:
            rows.append(_row(request, spec.name, usage, number=len(rows) + 1))

        answer = await (await self._ready(model)).answer(
            spec,
            model,
            request.prompt,
            output_schema=request.output_schema,
            on_delta=on_delta,
            on_usage=book,
            deadline_s=request.deadline_s,
        )
        output = {
            "text": answer.text,
            "output": answer.output,
            "usage": answer.usage.as_dict(),
            "finish": answer.finish,
            "notes": list(answer.notes),
        }
        return AgentResult(output=output, rows=tuple(rows))

    async def speak(
        self, request: TurnRequest, *, memory: Memory, emit: Emit, on_usage: Callable[[ModelUsage], None]
    ) -> list[Part]:
        """One turn of a conversation: what the agent says, tools included. Raises as `AutogenRunner.answer` does."""
        request = replace(request, model=self.models.named(request.spec.model))
        runner = await self._ready(request.model)
        adapter = await self._turns()
        parts: list[Part] = await adapter.speak(runner, request, memory=memory, emit=emit, on_usage=on_usage)
        return parts

    async def ask(self, question: Question, *, memory: Memory, on_usage: Callable[[ModelUsage], None]) -> str:
        """What a model answers to one question; it is recorded. Raises as `AutogenRunner.answer` does."""
        question = replace(question, model=self.models.named(question.spec.model))
        runner = await self._ready(question.model)
        adapter = await self._turns()
        answer: str = await adapter.ask(runner, question, memory=memory, on_usage=on_usage)
        return answer

    async def close(self) -> None:
        """Closes the model's HTTP connections."""
        if self._runner is not None:
            await self._runner.close()

    async def _turns(self) -> Any:
        """AutoGen's agents as speakers; imported in a thread, once: a thread for nothing costs more than a lookup."""
        if self._speakers is None:
            self._speakers = await asyncio.to_thread(importlib.import_module, TURN_ADAPTER)
        return self._speakers

    async def _ready(self, model: ModelSettings) -> AutogenRunner:
        """AutoGen, and what speaks the protocols of this model and of those that are asked when it fails."""
        asked = [one for one in (model, *model.fallbacks) if not one.scripted]
        kinds = set[Kind](one.kind for one in asked) - self._spoken
        if self._runner is not None and not kinds:
            return self._runner
        async with self._importing:
            # In a thread: an import takes a second or two, and the loop serves other steps meanwhile.
            adapter = await asyncio.to_thread(importlib.import_module, ADAPTER)
            for kind in kinds:
                await asyncio.to_thread(adapter.protocol, kind)
                self._spoken.add(kind)
            runner: AutogenRunner = self._runner or adapter.AutogenRunner(self._gate)
            self._runner = runner
        return runner


def _row(request: AgentRequest, agent: str, usage: ModelUsage, *, number: int) -> dict[str, Any]:
    return tables.usage_row(
        usage,
        call_id=f"{request.run_id}:{request.claim}:{number}",
        tenant=request.tenant,
        submitter=request.submitter,
        run_id=request.run_id,
        step=request.step,
        iteration=request.iteration,
        attempt=request.attempt,
        agent=agent,
    )
