"""One turn of an agent in a conversation, by AutoGen: its context rebuilt from the thread, its facts recorded.

What a model answered is recorded before anything acts on it, and what a tool gave as soon as it is known; a turn that
runs again takes both from its records. AutoGen's own agent does the rest: it is made anew for each turn.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import Handoff, Response
from autogen_agentchat.messages import (
    HandoffMessage,
    ModelClientStreamingChunkEvent,
    ToolCallExecutionEvent,
    ToolCallRequestEvent,
    ToolCallSummaryMessage,
)
from autogen_core import CancellationToken, FunctionCall, Image
from autogen_core.model_context import UnboundedChatCompletionContext
from autogen_core.models import (
    AssistantMessage,
    ChatCompletionClient,
    CreateResult,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    LLMMessage,
    RequestUsage,
    SystemMessage,
    UserMessage,
)
from autogen_core.tools import StaticWorkbench, TextResultContent, ToolResult, ToolSchema
from autogen_ext.models.replay import ReplayChatCompletionClient

from convergio.graphflow.model import errors
from convergio.tasks.agents import autogen_adapter, metering, replies, storable
from convergio.tasks.agents.autogen_adapter import EMPTY, AutogenRunner
from convergio.tasks.agents.calling import Chunks, as_text
from convergio.tasks.agents.model import ModelSettings
from convergio.tasks.agents.turn import Emit, Memory, Part, Question, TurnRequest
from convergio.tasks.agents.wire import MODEL_INFO
from convergio.tasks.conversation.grown import Grown
from convergio.tasks.conversation.thread import SPOKEN, Kind, Message, heard_by
from convergio.tasks.tools.tool import Tool

MOST_CALLS: Final = 10
"""Model calls of one turn, at most: an agent that goes on asking for tools ends with what the last one gave."""


async def speak(
    runner: AutogenRunner, request: TurnRequest, *, memory: Memory, emit: Emit, on_usage: metering.OnUsage
) -> list[Part]:
    """What the agent says, tools included; its last word comes last. Raises as `AutogenRunner.answer` does."""
    model = request.model
    book = metering.CallBook(model.title, on_usage)
    try:
        return await runner.watchdog.run(_turn(runner, request, model, book, memory, emit), request.deadline_s)
    finally:
        book.close()


async def ask(runner: AutogenRunner, question: Question, *, memory: Memory, on_usage: metering.OnUsage) -> str:
    """What a model answers to one question. It is recorded before anybody acts on it, and not asked for twice.

    Raises as `speak`; an answer that names nobody, or is empty, is an answer.
    """
    fact = memory.get(question.key)
    if fact is None:
        model = question.model
        book = metering.CallBook(model.title, on_usage)
        try:
            fact = await runner.watchdog.run(_answered(runner, question, model, book), question.deadline_s)
        except errors.AnswerWithheld:  # it names nobody
            if not book.booked:
                return ""
            fact = {"finish": "content_filter", "content": ""}
        finally:
            book.close()
        await memory.keep(question.key, fact, before_acting=False)
    return str(fact["content"])


async def _answered(
    runner: AutogenRunner, question: Question, model: ModelSettings, book: metering.CallBook
) -> dict[str, Any]:
    spec = question.spec
    client: ChatCompletionClient = (
        _Scripted(spec.script, question.attempt, book, made=question.place)
        if spec.script
        else runner.client(spec, model, None, book)
    )
    asked = UserMessage(content=question.text, source="user")
    messages: list[LLMMessage] = [SystemMessage(content=spec.system_message), asked]
    async with aclosing(_chunks(client, messages, {})) as chunks:
        async for chunk in chunks:
            if isinstance(chunk, CreateResult):
                content = chunk.content if isinstance(chunk.content, str) else ""
                return {"finish": chunk.finish_reason, "content": storable.storable_text(content)}
    raise errors.Transient("the model's answer broke off")


async def _turn(
    runner: AutogenRunner,
    request: TurnRequest,
    model: ModelSettings,
    book: metering.CallBook,
    memory: Memory,
    emit: Emit,
) -> list[Part]:
    spec, parts = request.spec, list[Part]()
    agent = AssistantAgent(
        name=_identifier(spec.name),
        description=spec.description or spec.name,
        handoffs=[_handoff(name, description) for name, description in request.handoffs.items()],
        system_message=spec.system_message,
        model_client=_Recalling(_client(runner, request, model, book), book, memory, request.calls),
        model_client_stream=True,
        model_context=UnboundedChatCompletionContext(initial_messages=context(spec.name, request.thread)),
        workbench=_Workbench(request.tools, request.key, memory),
        max_tool_iterations=spec.rounds or MOST_CALLS,
        reflect_on_tool_use=spec.reflect,
    )
    async with aclosing(agent.on_messages_stream([], CancellationToken())) as events:
        async for event in events:
            match event:
                case ModelClientStreamingChunkEvent():
                    emit("delta", {"text": storable.storable_text(event.content)})
                case ToolCallRequestEvent():
                    parts.append((Kind.CALLS, {"calls": [_call_facts(one) for one in event.content]}))
                    emit("calls", parts[-1][1])
                case ToolCallExecutionEvent():
                    parts.append((Kind.RESULTS, {"results": [_result_facts(one) for one in event.content]}))
                    emit("results", parts[-1][1])
                case Response(chat_message=HandoffMessage() as handed):
                    target = next(name for name in request.handoffs if _identifier(name) == handed.target)
                    parts.append((Kind.HANDOFF, {"text": handed.content, "target": target}))
                case Response():
                    kind = Kind.SUMMARY if isinstance(event.chat_message, ToolCallSummaryMessage) else Kind.TEXT
                    parts.append((kind, {"text": storable.storable_text(event.chat_message.to_text())}))
                case _:
                    pass
    if not parts or parts[-1][0] not in SPOKEN or not str(parts[-1][1]["text"]).strip():
        raise errors.ModelOutputInvalid("the model answered nothing", hint=EMPTY)
    return parts


def _identifier(name: str) -> str:
    """A name as AutoGen takes it."""
    return name.replace("-", "_")


def _handoff(name: str, description: str) -> Handoff:
    target = _identifier(name)
    told = f"Hand over to {name}: {description}" if description else f"Hand over to {name}"
    return Handoff(target=target, name=f"transfer_to_{target}", description=told)


def context(speaker: str, thread: Sequence[Message]) -> list[LLMMessage]:
    """The thread as the speaker's model is given it."""
    return _CONTEXTS.of(speaker, thread)


def _told(speaker: str, thread: Sequence[Message], _before: int) -> list[LLMMessage]:
    return [_model_message(speaker, message) for message in heard_by(speaker, thread)]


_CONTEXTS: Final = Grown[LLMMessage](_told)


def _model_message(speaker: str, message: Message) -> LLMMessage:
    source = _identifier(message.source)
    if message.kind is Kind.CALLS:
        calls = [
            FunctionCall(id=one["id"], name=one["name"], arguments=one["arguments"]) for one in message.body["calls"]
        ]
        return AssistantMessage(content=calls, source=source)
    if message.kind is Kind.RESULTS:
        results = [
            FunctionExecutionResult(call_id=one["id"], name=one["name"], content=one["text"], is_error=not one["ok"])
            for one in message.body["results"]
        ]
        return FunctionExecutionResultMessage(content=results)
    if shown := message.body.get("images"):
        return UserMessage(content=[message.text, *(_Shown(one["data"]) for one in shown)], source=source)
    if message.source == speaker:
        return AssistantMessage(content=message.text, source=source)
    return UserMessage(content=message.text, source=source)


class _Shown(Image):
    """An image as it was given. AutoGen's own would decode it, and make a larger one of it for each call."""

    def __init__(self, data: str) -> None:
        self._data = data

    def to_base64(self) -> str:
        return self._data


def _call_facts(call: FunctionCall) -> dict[str, Any]:
    return {"id": call.id, "name": call.name, "arguments": storable.storable_text(call.arguments)}


def _result_facts(result: FunctionExecutionResult) -> dict[str, Any]:
    text = storable.storable_text(result.content)
    return {"id": result.call_id, "name": result.name, "text": text, "ok": not result.is_error}


def _client(
    runner: AutogenRunner, request: TurnRequest, model: ModelSettings, book: metering.CallBook
) -> ChatCompletionClient:
    if request.spec.script:
        return _Scripted(request.spec.script, request.attempt, book, untold=request.untold)
    return runner.client(request.spec, model, None, book)


class _Recalling(ReplayChatCompletionClient):
    """A client whose answers are recorded before anybody acts on them; what was recorded is not asked for again."""

    def __init__(self, client: ChatCompletionClient, book: metering.CallBook, memory: Memory, calls: str) -> None:
        super().__init__([], model_info=MODEL_INFO)
        self._client = client
        self._book = book
        self._memory = memory
        self._calls = calls
        self._asked = 0

    async def create_stream(self, messages: Sequence[LLMMessage], **options: Any) -> Chunks:
        self._asked += 1
        key = f"model.{self._asked}"
        fact = self._memory.get(key)
        if fact is not None:
            self._book.finish = fact["finish"]
            if isinstance(fact["content"], str):
                yield fact["content"]
            yield _created(fact)
            return
        async with aclosing(_chunks(self._client, messages, options)) as chunks:
            async for chunk in chunks:
                yield await self._kept(key, chunk) if isinstance(chunk, CreateResult) else chunk

    async def _kept(self, key: str, made: CreateResult) -> CreateResult:
        content: str | list[dict[str, Any]]
        if isinstance(made.content, str):
            content = storable.storable_text(made.content)
        else:
            ids = f"{self._calls}_{self._asked}"
            content = [{**_call_facts(call), "id": f"{ids}_{place}"} for place, call in enumerate(made.content)]
        fact = {"finish": made.finish_reason, "content": content}
        if not isinstance(content, str) or content.strip():  # an empty answer is none: the next attempt asks again
            await self._memory.keep(key, fact, before_acting=not isinstance(content, str))
        return _created(fact)


def _chunks(
    client: ChatCompletionClient, messages: Sequence[LLMMessage], options: Mapping[str, Any]
) -> AsyncGenerator[str | CreateResult, None]:
    return client.create_stream(messages, **options)


def _created(fact: Mapping[str, Any]) -> CreateResult:
    content = fact["content"]
    calls = content if isinstance(content, str) else [FunctionCall(**call) for call in content]
    usage = RequestUsage(prompt_tokens=0, completion_tokens=0)  # the book has the figures
    return CreateResult(finish_reason=fact["finish"], content=calls, usage=usage, cached=False)


class _Scripted(ReplayChatCompletionClient):
    """Answers from the agent's script, word by word, and counts words as tokens."""

    def __init__(
        self,
        script: Sequence[Mapping[str, Any]],
        attempt: int,
        book: metering.CallBook,
        *,
        made: int | None = None,
        untold: int = 0,
    ) -> None:
        super().__init__([], model_info=MODEL_INFO)
        self._script = script
        self._made = made
        self._untold = untold
        self._attempt = attempt
        self._book = book

    async def create_stream(self, messages: Sequence[LLMMessage], **options: Any) -> Chunks:
        said = sum(isinstance(message, AssistantMessage) for message in messages)
        made = said + self._untold if self._made is None else self._made
        reply = replies.due(self._script, made, self._attempt)
        if reply.failure is not None and reply.failure != "broken_off":
            raise replies.FAILURES[reply.failure]()
        asked = as_text(messages)
        call = self._book.start(asked)
        for word in reply.words:
            await asyncio.sleep(reply.pace)
            autogen_adapter.hear(self._book, call, word)
            yield word
        if reply.failure is not None:
            raise replies.FAILURES[reply.failure]()
        calls = [
            FunctionCall(id=f"call_{made}_{place}", name=name, arguments=arguments)
            for place, (name, arguments) in enumerate(reply.calls)
        ]
        usage = RequestUsage(
            prompt_tokens=max(1, len(asked.split())), completion_tokens=max(1, len(reply.words) + len(calls))
        )
        result = CreateResult(
            finish_reason="function_calls" if calls else "stop",
            content=calls or "".join(reply.words),
            usage=usage,
            cached=False,
        )
        autogen_adapter.hear(self._book, call, result)
        yield result


class _Workbench(StaticWorkbench):
    """The agent's tools. It never raises: AutoGen waits for ever for the result of a workbench that does."""

    def __init__(self, tools: Sequence[Tool], key: str, memory: Memory) -> None:
        super().__init__([])
        self._own = {tool.name: tool for tool in tools}
        self._key = key
        self._memory = memory

    async def list_tools(self) -> list[ToolSchema]:
        return [
            ToolSchema(name=tool.name, description=tool.description, parameters=_parameters(tool))
            for tool in self._own.values()
        ]

    async def call_tool(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
        call_id: str | None = None,
    ) -> ToolResult:
        key = f"tool.{call_id}"
        fact = self._memory.get(key)
        if fact is None:
            fact = await self._called(name, arguments or {}, f"{self._key}:{call_id}")
            await _quietly(self._memory.keep(key, fact, before_acting=False))
        return ToolResult(name=name, result=[TextResultContent(content=fact["text"])], is_error=not fact["ok"])

    async def _called(self, name: str, arguments: Mapping[str, Any], key: str) -> dict[str, Any]:
        began = time.monotonic()
        try:
            given, ok = await self._own[name].call(arguments, key=key), True
        except Exception as error:  # noqa: BLE001  # whatever a tool raises, the model is told
            given, ok = f"{type(error).__name__}: {error}", False
        text = given if isinstance(given, str) else json.dumps(given, default=str, ensure_ascii=False)
        return {"text": storable.storable_text(text), "ok": ok, "ms": round((time.monotonic() - began) * 1000)}


async def _quietly(keeping: Awaitable[None]) -> None:
    """A claim that is lost ends the turn by itself; a fact that cannot be kept now is asked for again."""
    with suppress(errors.ConvergioError):
        await keeping


def _parameters(tool: Tool) -> Any:
    schema = tool.schema
    return {"type": "object", "properties": schema.get("properties", {}), "required": schema.get("required", [])}
