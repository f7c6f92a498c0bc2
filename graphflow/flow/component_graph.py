"""AutoGen's DiGraph as one of ours: a graph of a conversation, or steps of a workflow where nothing ends it early."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from pydantic_core import PydanticCustomError

from convergio.graphflow.flow import scalars
from convergio.graphflow.flow.component import LOST, Findings
from convergio.graphflow.flow.refusal import shown
from convergio.graphflow.flow.spelling import did_you_mean

_NODE: Final = frozenset({"name", "edges", "activation"})
_EDGE: Final = frozenset({"target", "condition", "activation_group", "activation_condition"})
_CALLABLE: Final = "condition_function"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arc:
    """An edge: `any_of`: the first of its group is enough."""

    source: str
    target: str
    contains: str | None
    group: str
    any_of: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Who begins, and who follows whom."""

    starts: tuple[str, ...]
    arcs: tuple[Arc, ...]


def read(document: Any, path: str, names: Sequence[str], findings: Findings) -> Graph | None:
    """The graph; None, with a problem, if there is none. `names`: of the agents."""
    nodes: Any = cast("Mapping[str, Any]", document).get("nodes") if isinstance(document, Mapping) else None
    if not isinstance(nodes, Mapping) or not nodes:
        findings.wrong("BAD_VALUE", path, f"is {shown(document)}", "must be a graph with nodes")
        return None
    known = cast("Mapping[str, Any]", nodes)
    eager = {name for name, node in known.items() if isinstance(node, Mapping) and node.get("activation") == "any"}
    arcs: list[Arc] = []
    for name, node in known.items():
        at = f"{path}.nodes.{name}"
        _member(str(name), at, names, findings)
        if not isinstance(node, Mapping):
            findings.wrong("BAD_VALUE", at, f"is {shown(node)}", "must be a node")
            continue
        _unknown(cast("Mapping[str, Any]", node), _NODE, at, findings)
        edges: Any = cast("Mapping[str, Any]", node).get("edges") or []
        if not isinstance(edges, list):
            findings.wrong("BAD_VALUE", f"{at}.edges", f"is {shown(edges)}", "must be a list")
            continue
        for place, edge in enumerate(cast("Sequence[Any]", edges)):
            made = _arc(str(name), edge, f"{at}.edges[{place}]", known, findings)
            arcs += [] if made is None else [made]
    if eager:
        said = "AutoGen never reads a node's activation; here `any` holds for all edges that lead to it"
        findings.note(f"{said}: {', '.join(sorted(eager))}")
    arcs = [Arc(**{**_fields(arc), "any_of": True}) if arc.target in eager else arc for arc in arcs]
    return _checked(Graph(starts=_starts(cast("Any", document), known, arcs), arcs=tuple(arcs)), path, known, findings)


def _fields(arc: Arc) -> dict[str, Any]:
    return {name: getattr(arc, name) for name in Arc.__slots__}


def _arc(source: str, edge: Any, path: str, nodes: Mapping[str, Any], findings: Findings) -> Arc | None:
    known: Mapping[str, Any] = cast("Mapping[str, Any]", edge) if isinstance(edge, Mapping) else {}
    target, condition = known.get("target"), known.get("condition")
    if not isinstance(target, str):
        findings.wrong("BAD_VALUE", path, f"is {shown(edge)}", "must be an edge with a target")
        return None
    _unknown(known, _EDGE, path, findings)
    _member(target, f"{path}.target", list(nodes), findings)
    if condition is not None and not isinstance(condition, str):
        hint = "conditions are texts that the last message has in it"
        findings.wrong("CALLABLE", f"{path}.condition", f"is {shown(condition)}", hint)
    group = known.get("activation_group") or target
    join = known.get("activation_condition", "all")
    if join not in ("all", "any"):
        findings.wrong("BAD_VALUE", f"{path}.activation_condition", f"is {shown(join)}", "must be all or any")
    return Arc(
        source=source,
        target=target,
        contains=condition if isinstance(condition, str) and condition else None,
        group="" if group == target else str(group),
        any_of=join == "any",
    )


def _unknown(written: Mapping[str, Any], fields: frozenset[str], path: str, findings: Findings) -> None:
    for name in written.keys() - fields:
        code = "CALLABLE" if name == _CALLABLE else LOST
        said = "is a function, which no document holds" if name == _CALLABLE else "is not known of a DiGraph"
        hint = "say it as a text that the message has in it" if name == _CALLABLE else did_you_mean(name, fields)
        findings.wrong(code, f"{path}.{str(name)[:80]}", said, hint)


def _member(name: str, path: str, names: Sequence[str], findings: Findings) -> None:
    if name not in names:
        hint = did_you_mean(name, names) or f"there are: {', '.join(names)}"
        findings.wrong("UNKNOWN_AGENT", path, f"names '{name[:64]}'", hint)


def _starts(document: Mapping[str, Any], nodes: Mapping[str, Any], arcs: Sequence[Arc]) -> tuple[str, ...]:
    given = document.get("default_start_node")
    if isinstance(given, str) and given:
        return (given,)
    targets = {arc.target for arc in arcs}
    return tuple(name for name in nodes if name not in targets)


def _checked(graph: Graph, path: str, nodes: Mapping[str, Any], findings: Findings) -> Graph:
    """The graph, with the problems that it has as a whole."""
    if not graph.starts:
        hint = "name the first one: `default_start_node`"
        findings.wrong("BAD_GRAPH", f"{path}.default_start_node", "is missing, and every node has edges to it", hint)
    for name in graph.starts:
        _member(name, f"{path}.default_start_node", list(nodes), findings)
    joins: dict[tuple[str, str], bool] = {}
    for arc in graph.arcs:
        if joins.setdefault((arc.target, arc.group), arc.any_of) != arc.any_of:
            said = f"joins '{arc.target}' by both all and any in one group"
            findings.wrong("BAD_GRAPH", f"{path}.nodes.{arc.source}", said, "give them groups of their own")
    always = {(arc.source, arc.target) for arc in graph.arcs if arc.contains is None}
    for name in nodes:
        if name in _reached(name, always):
            hint = "give one of its edges a condition. One that was a function is lost in a dump"
            findings.wrong("BAD_GRAPH", f"{path}.nodes.{name}", "is in a cycle that nothing ends", hint)
    return graph


def _reached(first: str, edges: set[tuple[str, str]]) -> set[str]:
    """Where these edges lead from here."""
    found: set[str] = set()
    further = [first]
    while further:
        here = further.pop()
        for source, target in edges:
            if source == here and target not in found:
                found.add(target)
                further.append(target)
    return found


def written(graph: Graph) -> dict[str, Any]:
    """The graph of a conversation that follows all its edges."""
    edges: dict[str, list[dict[str, Any]]] = {}
    for arc in graph.arcs:
        edge: dict[str, Any] = {"to": arc.target}
        edge |= {} if arc.contains is None else {"contains": arc.contains}
        edge |= {"group": arc.group} if arc.group else {}
        edge |= {"join": "any"} if arc.any_of else {}
        edges.setdefault(arc.source, []).append(edge)
    return {"follow": "all", "start": list(graph.starts), "edges": edges}


def steps(graph: Graph, agents: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The graph as steps of a workflow, each a conversation of one turn; None where it is none of steps: it has
    cycles, joins of several groups, or agents that hand over or have no step's name."""
    names = [str(agent["name"]) for agent in agents]
    pairs = {(arc.source, arc.target) for arc in graph.arcs}
    groups = {(arc.target, arc.group) for arc in graph.arcs}
    if (
        any(name in _reached(name, pairs) for name in names)
        or len(groups) > len({target for target, _ in groups})
        or len(pairs) < len(graph.arcs)
        or any(agent.get("handoffs") for agent in agents)
        or not all(map(_step_name, names))
        or set(graph.starts) != set(names) - {target for _, target in pairs}
    ):
        return None
    backwards = {(target, source) for source, target in pairs}
    return {
        str(agent["name"]): {
            "conversation": {"agents": [dict(agent)], "stop": {"turns": 1}},
            "prompt": "{{ input.said }}",
            "retry": 2,
            **_needs([arc for arc in graph.arcs if arc.target == agent["name"]]),
            "hears": [name for name in names if name in _reached(str(agent["name"]), backwards)],
        }
        for agent in agents
    }


def _needs(arcs: Sequence[Arc]) -> dict[str, Any]:
    needs = [
        {"step": arc.source}
        | ({} if arc.contains is None else {"when": f"{arc.source}.text.contains({json.dumps(arc.contains)})"})
        for arc in arcs
    ]
    return {"needs": needs, "join": "any" if arcs and arcs[0].any_of else "all"}


def _step_name(name: str) -> bool:
    try:
        scalars.check_step_name(name)
    except PydanticCustomError:
        return False
    return True
