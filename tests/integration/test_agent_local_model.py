"""Agents on the real local model: SmolLM2-135M-Instruct in its real server, through AutoGen. No key, no network."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from convergio.graphflow.model import errors
from convergio.tasks.agents.model import ModelSettings, local_model
from convergio.tasks.agents.roster import Roster
from convergio.tasks.agents.step import AgentRequest, AgentResult, Agents
from convergio.workers.embedded.model_server import ModelServer
from convergio.workers.embedded.supervisor import Supervisor
from tests.waiting import wait_until

T = TypeVar("T")

QUESTION = "Why is Poland a good market for electric bicycles? Answer in two sentences."
STORY = "Tell a very long story about a bicycle."
RISK = {
    "type": "object",
    "required": ["level", "why"],
    "properties": {"level": {"enum": ["low", "high"]}, "why": {"type": "string", "maxLength": 80}},
    "additionalProperties": False,
}


@contextmanager
def serving(directory: Path) -> Generator[tuple[ModelSettings, Supervisor]]:
    server = ModelServer.open(directory / "model.json", context=1024)
    with Supervisor([server.child()], logs=directory) as supervisor:
        yield local_model(server.url, server.key, name=server.name, timeout_s=60), supervisor


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelSettings]:
    with serving(tmp_path_factory.mktemp("model")) as (settings, _):
        yield settings


def request(prompt: str = QUESTION, **changes: Any) -> AgentRequest:
    plain = AgentRequest(
        tenant="default",
        submitter="me",
        run_id="r1",
        step="market_research",
        iteration=0,
        attempt=1,
        claim="c1",
        agent="domik",
        prompt=prompt,
        max_tokens=60,
        deadline_s=60,
    )
    return replace(plain, **changes)


def with_agents(model: ModelSettings, work: Callable[[Agents], Awaitable[T]]) -> T:
    async def run() -> T:
        agents = Agents(roster=Roster.load(), model=model)
        try:
            return await work(agents)
        finally:
            await agents.close()

    return asyncio.run(run())


def test_an_answer_streams_and_its_tokens_are_the_servers_own(model: ModelSettings) -> None:
    pieces: list[str] = []
    result = with_agents(model, lambda agents: agents.run_agent_step(request(), on_delta=pieces.append))
    assert len(result.output["text"].split()) > 5
    assert "".join(pieces).strip() == result.output["text"].strip()
    assert len(pieces) > 5
    (row,) = result.rows
    assert not row["estimated"]
    assert 20 < row["input_tokens"] < 80
    assert 0 < row["output_tokens"] <= 60
    assert row["latency_ms"] > 0
    assert row["model"] == model.name
    assert result.output["usage"]["output_tokens"] == row["output_tokens"]
    assert json.loads(json.dumps(result.output)) == result.output


def test_max_tokens_cuts_an_answer_and_says_so(model: ModelSettings) -> None:
    result = with_agents(model, lambda agents: agents.run_agent_step(request(STORY, max_tokens=5)))
    assert result.output["finish"] == "length"
    assert result.rows[0]["output_tokens"] == 5


def test_a_typed_answer_fits_its_schema(model: ModelSettings) -> None:
    asked = request("How high is the risk of selling electric bicycles?", output_schema=RISK, max_tokens=80)
    result = with_agents(model, lambda agents: agents.run_agent_step(asked))
    assert result.output["output"]["level"] in ("low", "high")
    assert json.loads(result.output["text"]) == result.output["output"]


def test_two_agents_answer_at_the_same_time(model: ModelSettings) -> None:
    heard: list[str] = []

    async def both(agents: Agents) -> None:
        async def one(name: str) -> None:
            asked = request(agent=name, max_tokens=40)
            result = await agents.run_agent_step(asked, on_delta=lambda _piece: heard.append(name))
            assert result.output["text"]

        await asyncio.gather(one("domik"), one("luca"))

    with_agents(model, both)
    spoke = [(heard.index(name), len(heard) - heard[::-1].index(name)) for name in ("domik", "luca")]
    assert max(first for first, _ in spoke) < min(last for _, last in spoke), "each began before the other ended"


def test_a_prompt_beyond_the_context_is_permanent(model: ModelSettings) -> None:
    with pytest.raises(errors.ContextTooLong):
        with_agents(model, lambda agents: agents.run_agent_step(request("bicycle " * 1500)))


def test_a_wrong_key_is_refused(model: ModelSettings) -> None:
    stranger = replace(model, api_key="wrong")
    with pytest.raises(errors.ModelRefused) as caught:
        with_agents(stranger, lambda agents: agents.run_agent_step(request()))
    assert "API key" in (caught.value.hint or "")


def test_a_deadline_ends_the_answer_books_it_and_frees_the_model(model: ModelSettings) -> None:
    ledger: list[dict[str, Any]] = []

    async def cut_then_ask(agents: Agents) -> AgentResult:
        endless = request(STORY, max_tokens=900, deadline_s=0.7)
        with pytest.raises(errors.StepTimeout):
            await agents.run_agent_step(endless, ledger=ledger)
        return await agents.run_agent_step(request(max_tokens=10))

    result = with_agents(replace(model, stop=()), cut_then_ask)
    assert [row["estimated"] for row in ledger] == [True]
    assert ledger[0]["output_tokens"] > 0
    assert result.output["text"]


def test_a_server_killed_in_the_middle_of_an_answer_is_worth_another_attempt(tmp_path: Path) -> None:
    # a server of its own: the restarted process is this test's to end
    with serving(tmp_path) as (settings, supervisor):
        heard: list[str] = []
        dead: list[int | None] = []

        def kill_at_the_fifth_piece(piece: str) -> None:
            heard.append(piece)
            if len(heard) == 5:
                dead.append(supervisor.kill("model"))

        def revived() -> None:
            wait_until(lambda: supervisor.pid("model") not in (None, *dead))
            supervisor.wait_ready("model")

        async def killed(agents: Agents) -> AgentResult:
            with pytest.raises(errors.ConvergioError) as caught:
                await agents.run_agent_step(request(STORY, max_tokens=900), on_delta=kill_at_the_fifth_piece)
            assert caught.value.retryable
            await asyncio.to_thread(revived)
            return await agents.run_agent_step(request(attempt=2, claim="c2"))

        assert with_agents(replace(settings, stop=()), killed).output["text"]
