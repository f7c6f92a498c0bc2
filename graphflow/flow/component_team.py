"""AutoGen's teams as documents of ours: a team, or, for a GraphFlow that nothing ends early, a workflow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from convergio.graphflow.flow import component, component_agent, component_graph, component_model, termination
from convergio.graphflow.flow.component import Component, Findings, Provider
from convergio.graphflow.flow.component_agent import Tools
from convergio.graphflow.flow.refusal import shown
from convergio.graphflow.model import errors, instance

TEAMS: Final = "autogen_agentchat.teams."
ROUND_ROBIN: Final = TEAMS + "RoundRobinGroupChat"
SELECTOR: Final = TEAMS + "SelectorGroupChat"
SWARM: Final = TEAMS + "Swarm"
GRAPH_FLOW: Final = TEAMS + "GraphFlow"
MAGENTIC: Final = TEAMS + "MagenticOneGroupChat"

_FIELDS: Final = frozenset({"name", "description", "participants", "termination_condition", "max_turns"})
FUNCTIONS: Final[Mapping[str, str]] = {
    "selector_func": "register it with @speaker.policy, and name it as the team's `policy`",
    "candidate_func": "register it with @speaker.policy, and name it as the team's `policy`",
}
"""Fields that AutoGen has in its objects and never in a dump."""
_IDLE: Final = frozenset({"emit_team_events", *FUNCTIONS})
_SELECTING: Final = frozenset(
    {"model_client", "selector_prompt", "allow_repeated_speaker", "max_selector_attempts", "model_context"}
)
ALLOWED: Final[Mapping[str, Provider]] = {
    ROUND_ROBIN: Provider(name=ROUND_ROBIN, fields=_FIELDS, idle=_IDLE),
    SELECTOR: Provider(name=SELECTOR, fields=_FIELDS | _SELECTING, idle=_IDLE | {"model_client_streaming"}),
    SWARM: Provider(name=SWARM, fields=_FIELDS, idle=_IDLE),
    GRAPH_FLOW: Provider(name=GRAPH_FLOW, fields=_FIELDS | {"graph"}, idle=_IDLE),
}
REFUSED: Final[Mapping[str, str]] = {
    MAGENTIC: (
        "its ledger of facts, plan and stalls is kept by AutoGen's orchestrator alone, which asks its model up to "
        "three times before each turn; no policy of ours does that. Take SelectorGroupChat, or policy: scored"
    ),
    component_agent.ASSISTANT: "that is an agent and no team: put it into a RoundRobinGroupChat, alone if need be",
}
_LOST: Final[Mapping[str, str]] = {
    SELECTOR: "a dump has no selector_func and no candidate_func: if yours has one, this is another team",
    GRAPH_FLOW: "a dump has no edge conditions that are functions: if yours has one, its edge is always taken here",
}
_SELECTOR_WORDS: Final = re.compile(r"You are in a role play game\. The following roles are available:\s*\{roles\}")
"""How AutoGen's own prompt begins, which says what ours says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What a document became: the document of a `team` or of a `workflow`. `notes`: what is good to know."""

    kind: str
    document: dict[str, Any]
    notes: tuple[str, ...]


def read(document: Any, *, tools: Tools | None = None, source: str = "component") -> Imported:
    """The document of ours. `tools`: which registered tool is meant by the name of a FunctionTool.

    Raises errors.InvalidTeam with every problem, in the order of the document.
    """
    findings = Findings()
    component.secrets(document, "", findings)
    found = component.opened(document, "", ALLOWED, REFUSED, findings)
    imported = None if found is None else _team(found, tools or {}, findings)
    if imported is None or findings.problems:
        problems = [_rooted(problem) for problem in findings.problems]
        raise errors.InvalidTeam(problems=problems, source=source)
    return imported


def _rooted(problem: errors.Problem) -> errors.Problem:
    path = problem.path.removeprefix(".")
    return errors.Problem(code=problem.code, path=path, message=problem.message, hint=problem.hint)


def is_component(document: Any) -> bool:
    """Whether it may be one of AutoGen's documents, by its form."""
    return isinstance(document, Mapping) and "provider" in document and "config" in document


def _team(found: Component, tools: Tools, findings: Findings) -> Imported:
    provider, config = found.provider.name, found.config
    for name in FUNCTIONS.keys() & config.keys():
        findings.wrong("CALLABLE", found.at(name), "is a function, which no document holds", FUNCTIONS[name])
    given = config.get("participants")
    if not isinstance(given, list) or not given:
        findings.wrong("BAD_VALUE", found.at("participants"), f"is {shown(given)}", "must be a list of agents")
        given = []
    paths = [f"{found.at('participants')}[{place}]" for place in range(len(cast("Sequence[Any]", given)))]
    agents = [
        component_agent.read(one, path, tools, findings)
        for path, one in zip(paths, cast("Sequence[Any]", given), strict=True)
    ]
    if provider in _LOST:
        findings.note(_LOST[provider])
    stop = _stop(found, findings)
    header = {"version": 1, "description": str(config.get("description") or "")}
    name = named(str(config.get("name") or provider.rpartition(".")[2]))
    team: dict[str, Any] = {"team": name, **header, "agents": agents, "policy": "round_robin", "stop": stop}
    match provider:
        case name if name == SELECTOR:
            team |= {"policy": "llm", "selector": _selector(found, findings)}
        case name if name == SWARM:
            team["policy"] = "handoff"
        case name if name == GRAPH_FLOW:
            return _graph(found, team, findings)
        case _:
            pass
    return _a_team(team, findings)


def _a_team(team: dict[str, Any], findings: Findings) -> Imported:
    if team["stop"]["turns"] == instance.ROUNDS:
        findings.note(f"without max_turns it ends after {instance.ROUNDS} turns at the latest")
    return Imported(kind="team", document=team, notes=tuple(findings.notes))


def _graph(found: Component, team: dict[str, Any], findings: Findings) -> Imported:
    names = [agent["name"] for agent in team["agents"]]
    graph = component_graph.read(found.config.get("graph"), found.at("graph"), names, findings)
    endless = found.config.get("termination_condition") is None and found.config.get("max_turns") is None
    if graph is not None and endless and (steps := component_graph.steps(graph, team["agents"])) is not None:
        given = {"type": "object", "properties": {"said": {"type": "string"}}, "required": ["said"]}
        flow = {"workflow": team["team"], "version": 1, "description": team["description"]}
        document = {**flow, "input": given, "steps": steps}
        return Imported(kind="workflow", document=document, notes=tuple(findings.notes))
    team |= {"policy": "graph", "graph": None if graph is None else component_graph.written(graph)}
    return _a_team(team, findings)


def _stop(found: Component, findings: Findings) -> dict[str, Any]:
    """When it is over. AutoGen has no bound of its own, and we have."""
    turns, given = found.config.get("max_turns"), found.config.get("termination_condition")
    stop: dict[str, Any] = {"turns": instance.ROUNDS}
    if isinstance(turns, int) and not isinstance(turns, bool) and 1 <= turns <= instance.ROUNDS:
        stop["turns"] = turns
    elif turns is not None:
        hint = f"must be a whole number from 1 to {instance.ROUNDS}"
        findings.wrong("BAD_VALUE", found.at("max_turns"), f"is {shown(turns)}", hint)
    if given is not None:
        condition, problems = termination.examine(given, found.at("termination_condition"))
        findings.problems += problems
        if condition is not None:
            stop["condition"] = condition.as_component()
            if any("TextMention" in type(one).__name__ for _, one in termination.each(condition, "")):
                findings.note(
                    "AutoGen's dumps lose the `sources` of a TextMentionTermination: say them again if wanted"
                )
    return stop


def _selector(found: Component, findings: Findings) -> dict[str, Any]:
    """The model that chooses, and how it is asked."""
    config = found.config
    model = component_model.read(config.get("model_client"), found.at("model_client"), findings)
    if config.get("model_context") is not None:
        component_agent.context(config["model_context"], found.at("model_context"), findings)
    prompt = config.get("selector_prompt")
    own = isinstance(prompt, str) and not _SELECTOR_WORDS.match(prompt)
    selector = {
        "model": model.name,
        "script": [dict(one) for one in model.script],
        "prompt": prompt if own else None,
        "repeat": config.get("allow_repeated_speaker", False),
        "attempts": config.get("max_selector_attempts", 3),
        "otherwise": "same",
    }
    return {name: value for name, value in selector.items() if value not in (None, [])}


def named(text: str) -> str:
    """A name of ours: round_robin_group_chat of RoundRobinGroupChat."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text)
    plain = re.sub(r"[^a-z0-9]+", "_", parted.lower()).strip("_")[:63]
    return plain if plain[:1].isalpha() else f"team_{plain}"[:63].rstrip("_")
