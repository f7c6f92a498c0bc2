"""Whether a team can talk as its document says: what it names is there, and its policy has what it needs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from convergio.graphflow.flow import termination
from convergio.graphflow.flow.spelling import did_you_mean
from convergio.graphflow.flow.team import GRAPH, HUMAN, POLICIES
from convergio.graphflow.model.errors import Problem


def problems(path: str, spec: Mapping[str, Any], policies: Collection[str] | None) -> Iterator[Problem]:
    """Every problem of a conversation, but for its agents and expressions. `policies`: the registered ones, if they
    are known here."""
    policy, names = spec["policy"], [member["name"] for member in spec["agents"]]
    if policies is not None and policy not in (*POLICIES, *policies):
        hint = did_you_mean(policy, policies) or "register it with @speaker.policy, in a module that is included"
        yield Problem(code="UNKNOWN_FUNCTION", path=f"{path}.policy", message=f"names '{policy}'", hint=hint)
    if (spec["graph"] is None) == (policy == GRAPH):
        said = "is missing" if policy == GRAPH else f"is there, but the policy is '{policy}'"
        yield Problem(
            code="BAD_VALUE", path=f"{path}.graph", message=said, hint="policy: graph and `graph` go together"
        )
    if spec["graph"] is not None:
        yield from _follow(f"{path}.graph", spec["graph"])
    choosers = {policy, "" if spec["graph"] is None else spec["graph"]["among"]}
    if spec["selector"] is not None and not choosers & {"llm", "scored"}:
        hint = "leave it out, or take the policy llm or scored"
        yield Problem(code="BAD_VALUE", path=f"{path}.selector", message=f"is not asked by '{policy}'", hint=hint)
    if policy == "handoff" and not any(member["handoffs"] for member in spec["agents"]):
        hint = "say of one at least, to whom it may hand over: handoffs: [amy]"
        yield Problem(code="BAD_VALUE", path=f"{path}.policy", message="is 'handoff', and nobody hands over", hint=hint)
    for place, member in enumerate(spec["agents"]):
        yield from _handoffs(f"{path}.agents[{place}]", member, [name for name in names if name != member["name"]])
    yield from _condition(f"{path}.stop.condition", spec["stop"]["condition"])
    for at, named in _named(path, spec):
        if named not in names:
            hint = did_you_mean(named, names) or f"the team is: {', '.join(names)}"
            yield Problem(code="UNKNOWN_AGENT", path=at, message=f"names '{named}'", hint=hint)


def _condition(path: str, given: Mapping[str, Any] | None) -> Iterator[Problem]:
    if given is None:
        return
    condition, found = termination.examine(given, path)
    yield from found
    for at, one in () if condition is None else termination.each(condition, path):
        if isinstance(one, termination.ExternalTermination):
            hint = "end it with `convergio runs cancel`"
            yield Problem(code="INVALID_TERMINATION", path=at, message="is never met by a step", hint=hint)


def _follow(path: str, graph: Mapping[str, Any]) -> Iterator[Problem]:
    """What goes with following one edge, and with following all of them."""
    if graph["follow"] == "one":
        if len(starts(graph)) > 1:
            hint = "name one, or write follow: all"
            yield Problem(code="BAD_VALUE", path=f"{path}.start", message="names several who begin", hint=hint)
        for name, edges in graph["edges"].items():
            for place, edge in enumerate(edges):
                if edge["group"] or edge["join"] != "all":
                    said, at = "has a join, and one edge is followed only", f"{path}.edges.{name}[{place}]"
                    yield Problem(code="BAD_VALUE", path=at, message=said, hint="write follow: all")
        return
    joins: dict[tuple[str, str], str] = {}
    for name, edges in graph["edges"].items():
        for place, edge in enumerate(edges):
            if joins.setdefault((edge["to"], edge["group"]), edge["join"]) != edge["join"]:
                said = f"joins '{edge['to']}' by '{edge['join']}', and others of its group do not"
                hint = "give it a group of its own, or the same join"
                yield Problem(code="BAD_VALUE", path=f"{path}.edges.{name}[{place}]", message=said, hint=hint)


def _handoffs(path: str, member: Mapping[str, Any], others: Collection[str]) -> Iterator[Problem]:
    tools = {f"transfer_to_{name.replace('-', '_')}" for name in member["handoffs"]}
    for place, name in enumerate(member["handoffs"]):
        if name not in (*others, HUMAN):
            hint = did_you_mean(name, others) or f"it can hand over to: {', '.join((*others, HUMAN))}"
            yield Problem(code="UNKNOWN_AGENT", path=f"{path}.handoffs[{place}]", message=f"names '{name}'", hint=hint)
        elif name in member["handoffs"][:place]:
            said = f"names '{name}' again"
            yield Problem(code="BAD_VALUE", path=f"{path}.handoffs[{place}]", message=said, hint="remove it")
    for place, name in enumerate(member["tools"]):
        if name in tools:
            said = f"names '{name}', by which it hands over"
            yield Problem(
                code="BAD_VALUE", path=f"{path}.tools[{place}]", message=said, hint="give the tool another name"
            )


def starts(graph: Mapping[str, Any]) -> list[str]:
    """Who begins, as far as the graph says it."""
    start = graph["start"]
    return list(start) if isinstance(start, list) else [] if start is None else [start]


def _named(path: str, spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where the team names a member of its own."""
    graph = spec["graph"]
    if graph is None:
        return
    for place, name in enumerate(starts(graph)):
        yield f"{path}.graph.start" + (f"[{place}]" if isinstance(graph["start"], list) else ""), name
    for name, edges in graph["edges"].items():
        yield f"{path}.graph.edges.{name}", name
        for place, edge in enumerate(edges):
            yield f"{path}.graph.edges.{name}[{place}].to", edge["to"]
