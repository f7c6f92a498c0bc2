"""The workflows that ship: they hold against the real roster and functions, and have the shape they are known for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from convergio.graphflow import library
from convergio.graphflow.flow import document, registry, schema
from convergio.graphflow.flow.known import Known
from convergio.graphflow.model.workflow import StepKind, Workflow
from convergio.tasks.agents.roster import Roster
from convergio.tasks.tools import market

NAMES = ("customer_onboarding", "market_entry", "product_launch", "strategic_analysis")


def load(name: str) -> Workflow:
    assert market.__name__  # importing it registers its functions
    known = Known(agents=Roster.load().names, functions=registry.REGISTRY.functions())
    (path,) = [path for path in library.shipped() if path.stem == name]
    return document.load(path, known=known)


def brief(name: str) -> Any:
    path = library.brief(name)
    assert isinstance(path, Path)
    return json.loads(path.read_text())


def agents(workflow: Workflow) -> dict[str, str]:
    return {name: step.spec["agent"] for name, step in workflow.steps.items() if step.kind is StepKind.AGENT}


def teams(workflow: Workflow) -> dict[str, list[str]]:
    talks = {name: step for name, step in workflow.steps.items() if step.kind is StepKind.CONVERSATION}
    return {name: [member["name"] for member in step.spec["agents"]] for name, step in talks.items()}


def needs(workflow: Workflow, step: str) -> set[str]:
    return {edge.step for edge in workflow.steps[step].needs}


def approvals(workflow: Workflow) -> set[str]:
    return {name for name, step in workflow.steps.items() if step.kind is StepKind.APPROVAL}


def test_four_workflows_ship() -> None:
    assert {path.stem for path in library.shipped()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_workflow_is_valid_and_its_brief_fits_it(name: str) -> None:
    assert schema.violations(load(name).input_schema, brief(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_agent_steps_are_bounded_in_tokens_and_time(name: str) -> None:
    steps = load(name).steps.values()
    asked = [step for step in steps if step.kind in (StepKind.AGENT, StepKind.CONVERSATION)]
    limits = [one["max_tokens"] for step in asked for one in step.spec.get("agents", [step.spec])]
    assert all(60 <= limit <= 120 for limit in limits)
    assert all(step.timeout for step in asked)


@pytest.mark.parametrize("name", NAMES)
def test_a_team_talks_something_over_in_every_one_and_ends(name: str) -> None:
    (talk,) = teams(load(name))
    step = load(name).steps[talk]
    assert len(step.spec["agents"]) >= 2
    assert step.spec["stop"]["turns"] == 3


@pytest.mark.parametrize(
    ("name", "priority", "sla_minutes", "gates"),
    [
        ("strategic_analysis", "high", 180, 1),
        ("product_launch", "critical", 480, 2),
        ("market_entry", "high", 360, 1),
        ("customer_onboarding", "high", 240, 0),
    ],
)
def test_priority_sla_and_gates(name: str, priority: str, sla_minutes: int, gates: int) -> None:
    workflow = load(name)
    assert (workflow.priority, workflow.sla, len(approvals(workflow))) == (priority, sla_minutes * 60, gates)


def test_market_entry_researches_then_branches_then_asks_then_plans() -> None:
    workflow = load("market_entry")
    assert agents(workflow) == {
        "market_research": "domik",
        "risk_assessment": "luca",
        "financial_modeling": "amy-cfo",
        "implementation_planning": "wanda",
    }
    assert teams(workflow) == {"entry_strategy": ["ali-chief-of-staff", "luca"]}
    assert needs(workflow, "entry_strategy") == needs(workflow, "risk_assessment") == {"market_research"}
    assert "entry_strategy" in needs(workflow, "financial_modeling")
    assert "risk_assessment" not in needs(workflow, "financial_modeling"), "the branches overlap"
    assert needs(workflow, "sign_off") == {"financial_modeling", "risk_assessment"}
    assert "sign_off" in needs(workflow, "implementation_planning")


def test_product_launch_goes_on_only_if_the_product_fits_and_through_both_gates() -> None:
    workflow = load("product_launch")
    for step, gate in (("gtm_strategy", "gtm_gate"), ("financial_planning", "budget_gate")):
        assert workflow.steps[step].when == "product_validation.output.market_fit > 70"
        assert needs(workflow, gate) == {step}
        assert gate in needs(workflow, "execution_coordination")
    assert set(agents(workflow).values()) == {"socrates", "amy-cfo", "wanda", "diana"}
    assert teams(workflow) == {"gtm_strategy": ["domik", "socrates"]}


def test_strategic_analysis_looks_at_market_and_money_side_by_side() -> None:
    workflow = load("strategic_analysis")
    assert needs(workflow, "market_analysis") == needs(workflow, "financial_analysis") == {"initial_context"}
    assert needs(workflow, "strategic_synthesis") == {"market_analysis", "financial_analysis"}
    assert set(agents(workflow).values()) == {"socrates", "domik", "amy-cfo"}
    assert teams(workflow) == {"strategic_synthesis": ["ali-chief-of-staff", "domik", "amy-cfo", "socrates"]}


def test_customer_onboarding_is_one_line_without_a_gate() -> None:
    workflow = load("customer_onboarding")
    assert list(agents(workflow).values()) == ["domik", "diana"]
    assert teams(workflow) == {"onboarding_plan": ["wanda", "diana"]}


def test_the_briefs_countries_are_in_the_data() -> None:
    wanted = brief("market_entry")["countries"]
    assert {country["country"] for country in market.country_profile(wanted)["countries"]} == set(wanted)
