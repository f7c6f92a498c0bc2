"""The adapter around AutoGen: the scripted model, deadlines, connections and settings."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_core import CancellationToken, FunctionCall
from autogen_core.models import CreateResult, ModelInfo, RequestUsage
from autogen_core.tools import FunctionTool, StaticWorkbench, ToolResult
from autogen_ext.models.replay import ReplayChatCompletionClient

from convergio.graphflow.model import errors
from convergio.tasks.agents import wire_openai
from convergio.tasks.agents.autogen_adapter import AutogenRunner
from convergio.tasks.agents.model import ModelSettings, local_model, model_settings
from convergio.tasks.agents.spec import AgentSpec, ModelUsage
from convergio.tasks.agents.wire import Request
from tests.failing_provider import DOMIK, RISK, ask, failing_provider, says

# --- the scripted model -------------------------------------------------------------------------------------------


def test_the_scripted_model_gives_the_same_answer_to_the_same_question_and_says_what_it_is() -> None:
    first, second, other = ask(ModelSettings()), ask(ModelSettings()), ask(ModelSettings(), "And Mexico?")
    assert first.text == second.text != other.text
    assert "no language model" in first.text
    assert first.finish == "stop"


def test_deltas_are_the_answer_in_pieces() -> None:
    pieces: list[str] = []
    answer = ask(ModelSettings(), on_delta=pieces.append)
    assert len(pieces) > 3
    assert "".join(pieces) == answer.text


def test_the_scripted_model_counts_words_and_stops_at_max_tokens() -> None:
    answer = ask(ModelSettings(), spec=replace(DOMIK, max_tokens=4))
    assert answer.finish == "length"
    assert len(answer.text.split()) == answer.usage.output_tokens == 4
    assert answer.usage.input_tokens == 9, "You are an analyst. + Is Poland a good market?"
    assert not answer.usage.estimated


def test_a_typed_answer_of_the_scripted_model_fits_its_schema() -> None:
    assert ask(ModelSettings(), schema=RISK).output == {"level": "low", "why": "scripted"}


def test_a_name_that_is_no_python_identifier_is_no_trouble() -> None:
    assert ask(ModelSettings(), spec=replace(DOMIK, name="amy-cfo")).text


def test_what_a_delta_reader_raises_ends_the_answer() -> None:
    def fenced(piece: str) -> None:
        raise errors.StaleFence

    with pytest.raises(errors.StaleFence):
        ask(ModelSettings(), on_delta=fenced)


def test_no_log_record_holds_a_prompt(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with failing_provider(says("Yes.")) as model:
        ask(model, "the secret of the kiln")
    assert not [record for record in caplog.records if "kiln" in record.getMessage()]


def test_autogen_is_not_imported_before_an_agent_answers() -> None:
    code = """
import asyncio, sys
from convergio.tasks.agents import deadline, metering, model, roster, spec, step, tables, typed
heavy = lambda: sorted({name.split(".")[0] for name in sys.modules} & {"autogen_agentchat", "autogen_core", "openai"})
print("imported:", *heavy())
agents = step.Agents(roster=roster.Roster.load(), model=model.ModelSettings())
print("made:", *heavy())
request = step.AgentRequest(
    tenant="default", submitter="me", run_id="r", step="s", iteration=0, attempt=1, claim="c", agent="domik",
    prompt="Hello?", deadline_s=60,
)
asyncio.run(agents.run_agent_step(request))
print("answered:", *heavy())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.PIPE, text=True)
    assert done.stdout.splitlines() == ["imported:", "made:", "answered: autogen_agentchat autogen_core"]


# --- deadlines ----------------------------------------------------------------------------------------------------


class ScriptedHang(AutogenRunner):
    """Gives its agent a model that calls one tool, and a workbench that treats the call badly."""

    def __init__(self, workbench: StaticWorkbench) -> None:
        super().__init__()
        self._workbench = workbench

    def _agent(self, spec: AgentSpec, client: Any) -> AssistantAgent:
        usage = RequestUsage(prompt_tokens=1, completion_tokens=1)
        call = FunctionCall(id="1", name="look", arguments="{}")
        result = CreateResult(finish_reason="function_calls", content=[call], usage=usage, cached=False)
        info = ModelInfo(vision=False, function_calling=True, json_output=False, family="x", structured_output=False)
        return AssistantAgent(
            name=spec.name,
            model_client=ReplayChatCompletionClient([result], model_info=info),
            model_client_stream=True,
            workbench=self._workbench,
        )


def look() -> str:
    """A tool."""
    return "nothing"


class Workbench(StaticWorkbench):
    """One tool, badly run."""

    def __init__(self) -> None:
        super().__init__([FunctionTool(look, description="looks")])
        self.called = 0
        self.released = asyncio.Event()

    async def call_tool(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
        call_id: str | None = None,
    ) -> ToolResult:
        self.called += 1
        return await self.misbehave()

    async def misbehave(self) -> ToolResult:
        raise NotImplementedError


class Raising(Workbench):
    """AutoGen 0.7.5 waits for ever after this."""

    async def misbehave(self) -> ToolResult:
        raise RuntimeError("broken workbench")


class Stubborn(Workbench):
    """Does not end when it is cancelled, only when it is released."""

    async def misbehave(self) -> ToolResult:
        await until(self.released)
        raise RuntimeError("released")


async def until(event: asyncio.Event) -> None:
    """Waits for `event` whoever cancels it."""
    while not event.is_set():
        try:
            await event.wait()
        except asyncio.CancelledError:
            continue


@pytest.mark.parametrize("kind", [Raising, Stubborn])
def test_a_tool_that_makes_autogen_hang_does_not_hold_the_step_beyond_its_deadline(kind: type[Workbench]) -> None:
    async def hang() -> None:
        workbench = kind()
        with pytest.raises(errors.StepTimeout):
            await ScriptedHang(workbench).answer(DOMIK, ModelSettings(), "look", deadline_s=0.3)
        assert workbench.called == 1
        workbench.released.set()

    started = time.monotonic()
    asyncio.run(hang())
    assert time.monotonic() - started < 5


def test_a_body_that_ignores_its_cancellation_is_left_behind_after_the_deadline(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def hang() -> None:
        runner = AutogenRunner()
        released = asyncio.Event()

        with pytest.raises(errors.StepTimeout):
            await runner.watchdog.run(until(released), 0.1)
        assert len(runner.watchdog.abandoned) == 1
        released.set()
        await asyncio.wait(tuple(runner.watchdog.abandoned), timeout=5)
        await asyncio.sleep(0)
        assert not runner.watchdog.abandoned

    asyncio.run(hang())
    assert [record.getMessage() for record in caplog.records if "goes on" in record.getMessage()], "it is logged"


def test_cancelling_the_caller_ends_the_answer() -> None:
    async def cancelled() -> None:
        runner = AutogenRunner()
        slow = ModelSettings(pace_s=5)
        task = asyncio.ensure_future(runner.answer(DOMIK, slow, "slowly", deadline_s=60))
        await asyncio.wait({task}, timeout=0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())


def test_an_answer_cut_by_the_deadline_is_booked_as_an_estimate() -> None:
    booked: list[ModelUsage] = []
    heard: list[str] = []
    with pytest.raises(errors.StepTimeout):
        ask(ModelSettings(pace_s=0.1), on_delta=heard.append, on_usage=booked.append, deadline_s=0.45)
    assert heard
    assert [usage.estimated for usage in booked] == [True]
    assert booked[0].input_tokens > 0
    assert booked[0].output_tokens >= len(heard)


# --- connections and settings -------------------------------------------------------------------------------------


def test_a_connection_is_kept_on_its_loop_and_never_used_on_another() -> None:
    runner = AutogenRunner()

    async def connection(model: ModelSettings) -> Any:
        return runner._wire(model)

    async def twice(model: ModelSettings) -> tuple[Any, Any]:
        return await connection(model), await connection(model)

    model = local_model("http://127.0.0.1:9/v1", "k", name="m")
    first, second = asyncio.run(twice(model))
    assert first is second
    assert first.connection.max_retries == 0
    assert asyncio.run(connection(model)) is not first


def test_the_runner_answers_on_a_second_loop_too() -> None:
    runner = AutogenRunner()
    with failing_provider(says("Yes.")) as model:
        for _ in range(3):

            async def asked() -> str:
                answer = await runner.answer(DOMIK, model, "x", deadline_s=10)
                await runner.close()
                return answer.text

            assert asyncio.run(asked()) == "Yes."


def test_sampling_is_sent_only_where_it_is_set_and_stops_only_prose() -> None:
    tuned = local_model("http://127.0.0.1:9/v1", "k", name="m")
    prose = wire_openai.arguments(Request(spec=DOMIK, model=tuned))
    typed = wire_openai.arguments(Request(spec=DOMIK, model=tuned, schema=RISK))
    plain = wire_openai.arguments(Request(spec=DOMIK, model=ModelSettings(name="gpt", api_key="k")))
    assert prose["temperature"] == 0.0
    assert prose["stop"] == ["\n\n"]
    assert "stop" not in typed
    assert plain == {"model": "gpt", "stream_options": {"include_usage": True}, "max_completion_tokens": 60}


def test_the_model_is_what_is_configured_else_openai_else_local_else_scripted() -> None:
    local = local_model("http://127.0.0.1:9/v1", "k", name="smol")
    assert model_settings(base_url="http://x/v1", name="big", local=local).place == "big at http://x/v1"
    assert model_settings(api_key="k", local=local).place == "gpt-4o-mini at OpenAI"
    assert model_settings(local=local) == model_settings(local=local, name="smol") == local
    assert model_settings().scripted
    assert model_settings(name="scripted", base_url="http://x/v1", local=local).scripted
    assert "scripted" in model_settings().place
    with pytest.raises(errors.InvalidSetting, match="nope"):
        model_settings(name="nope", local=local)


def test_a_key_shows_in_no_representation() -> None:
    assert "hush" not in repr(ModelSettings(name="m", api_key="hush"))
