"""One attempt of an agent step: its output, its ledger rows, and what a failed attempt leaves behind."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, Final

import pytest

from convergio.graphflow.model import errors
from convergio.graphflow.model.outcome import encode
from convergio.tasks.agents.model import ModelSettings
from convergio.tasks.agents.roster import Roster
from convergio.tasks.agents.step import AgentRequest, AgentResult, Agents, Ledger
from convergio.tasks.agents.tables import model_calls
from tests.failing_provider import RISK, Reply, failing_provider, refuses, says

REQUEST: Final = AgentRequest(
    tenant="acme",
    submitter="me",
    run_id="r1",
    step="risk",
    iteration=0,
    attempt=2,
    claim="c7",
    agent="amy",
    prompt="Is it risky?",
    deadline_s=20,
)


def run(request: AgentRequest, model: ModelSettings | None = None, ledger: Ledger | None = None) -> AgentResult:
    async def work() -> AgentResult:
        agents = Agents(roster=Roster.load(), model=model or ModelSettings())
        try:
            return await agents.run_agent_step(request, ledger=ledger)
        finally:
            await agents.close()

    return asyncio.run(work())


def test_the_output_has_text_output_and_usage_and_can_be_stored() -> None:
    output = run(REQUEST).output
    assert set(output) == {"text", "output", "usage", "finish", "notes"}
    assert output["output"] is None
    assert output["usage"]["model"] == "scripted"
    assert encode(output, what="output")


def test_a_row_names_the_attempt_and_the_agents_real_name() -> None:
    (row,) = run(REQUEST).rows
    assert set(row) == set(model_calls.c.keys())
    named = {name: row[name] for name in ("tenant", "submitter", "run_id", "step", "iteration", "attempt", "agent")}
    assert named == {
        "tenant": "acme",
        "submitter": "me",
        "run_id": "r1",
        "step": "risk",
        "iteration": 0,
        "attempt": 2,
        "agent": "amy-cfo",
    }
    assert encode(row, what="row")


def test_every_call_has_an_id_of_its_own_in_every_claim() -> None:
    ids: list[str] = []
    for claim in ("c7", "c8"):
        with failing_provider(says("no JSON"), says('{"level": "low", "why": ""}')) as model:
            ids += [row["call_id"] for row in run(replace(REQUEST, claim=claim, output_schema=RISK), model).rows]
    assert len(ids) == len(set(ids)) == 4


def test_the_steps_max_tokens_goes_before_the_agents_own() -> None:
    assert run(replace(REQUEST, max_tokens=3)).output["usage"]["output_tokens"] == 3


def test_a_typed_output_is_parsed() -> None:
    assert run(replace(REQUEST, output_schema=RISK)).output["output"] == {"level": "low", "why": "scripted"}


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        pytest.param([says("no JSON")], errors.ModelOutputInvalid, id="invalid twice"),
        pytest.param([says("no JSON"), refuses(500)], errors.Transient, id="repair fails"),
    ],
)
def test_a_failed_attempt_leaves_what_it_cost_in_the_ledger(
    replies: list[Reply], error: type[errors.ConvergioError]
) -> None:
    ledger: list[dict[str, Any]] = []
    with failing_provider(*replies) as model, pytest.raises(error):
        run(replace(REQUEST, output_schema=RISK), model, ledger)
    assert ledger[0]["output_tokens"] == 7
    assert not ledger[0]["estimated"]


def test_an_unknown_agent_costs_nothing() -> None:
    ledger: list[dict[str, Any]] = []
    with pytest.raises(errors.UnknownAgent):
        run(replace(REQUEST, agent="nobody"), ledger=ledger)
    assert ledger == []
