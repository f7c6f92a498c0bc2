"""AutoGen's AssistantAgent as a member of a team. Its tools are references to registered ones, never sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from convergio.graphflow.flow import component, component_model
from convergio.graphflow.flow.component import LOST, Component, Findings, Provider
from convergio.graphflow.flow.refusal import shown

ASSISTANT: Final = "autogen_agentchat.agents.AssistantAgent"
_FIELDS: Final = frozenset(
    {
        "name",
        "description",
        "system_message",
        "model_client",
        "tools",
        "workbench",
        "handoffs",
        "model_context",
        "memory",
        "reflect_on_tool_use",
        "tool_call_summary_format",
        "max_tool_iterations",
        "structured_message_factory",
    }
)
ALLOWED: Final[Mapping[str, Provider]] = {
    ASSISTANT: Provider(name=ASSISTANT, version=2, fields=_FIELDS, idle=frozenset({"model_client_stream", "metadata"}))
}
_TEAM: Final = "a team inside of a team is none here: make it a step of its own in a workflow"
REFUSED: Final[Mapping[str, str]] = {
    "autogen_agentchat.agents.UserProxyAgent": (
        "its input function is lost in a dump, and it would hold a worker: let agents hand over to `user` instead"
    ),
    "autogen_agentchat.agents.CodeExecutorAgent": "it executes what models write: make that a tool of yours",
    "autogen_agentchat.agents.SocietyOfMindAgent": _TEAM,
    "autogen_agentchat.agents.MessageFilterAgent": "every agent hears the whole thread",
    **{
        f"autogen_agentchat.teams.{name}": _TEAM
        for name in ("RoundRobinGroupChat", "SelectorGroupChat", "Swarm", "GraphFlow", "MagenticOneGroupChat")
    },
}
_CONTEXTS: Final = {
    name: Provider(name=name) for name in ("autogen_core.model_context.UnboundedChatCompletionContext",)
}
_CONTEXT_WHY: Final = {
    f"autogen_core.model_context.{name}": "agents hear the whole thread: leave it out"
    for name in (
        "BufferedChatCompletionContext",
        "HeadAndTailChatCompletionContext",
        "TokenLimitedChatCompletionContext",
    )
}
_BENCHES: Final = {
    name: Provider(name=name, fields=frozenset({"tools", "tool_overrides"}))
    for name in ("autogen_core.tools.StaticStreamWorkbench", "autogen_core.tools.StaticWorkbench")
}
_BENCH_WHY: Final = {"autogen_ext.tools.mcp.McpWorkbench": "it starts processes: make its tools tools of yours"}
_TOOL: Final = "autogen_core.tools.FunctionTool"
_TOOLS: Final = {
    _TOOL: Provider(
        name=_TOOL,
        fields=frozenset({"name", "source_code", "description"}),
        idle=frozenset({"global_imports", "has_cancellation_support"}),
    )
}

Tools = Mapping[str, str]
"""Which registered tool is meant by the name of one in the document."""


def read(document: Any, path: str, tools: Tools, findings: Findings) -> dict[str, Any]:
    """The member that this agent is; problems are in `findings`."""
    found = component.opened(document, path, ALLOWED, REFUSED, findings)
    if found is None:
        return {"name": "unread", "role": "unread"}
    model = component_model.read(found.config.get("model_client"), found.at("model_client"), findings)
    role = found.config.get("system_message")
    if not isinstance(role, str) or not role:
        hint = "say what it is told to be: a `system_message`"
        findings.wrong("MISSING_FIELD", found.at("system_message"), f"is {shown(role)}", hint)
    _refuse_rest(found, findings)
    used = _tools(found, tools, findings)
    member: dict[str, Any] = {
        "name": component.text(found, "name", findings) or "unread",
        "role": role if isinstance(role, str) and role else "unread",
        "description": component.text(found, "description", findings, wanted=False),
        "tools": used,
        "handoffs": _handoffs(found, findings),
        "script": [dict(one) for one in model.script],
        "model": model.name,
        "temperature": model.temperature,
        "max_tokens": model.max_tokens,
        "rounds": found.config.get("max_tool_iterations", 1),
        "reflect": found.config.get("reflect_on_tool_use", False),
    }
    return {name: value for name, value in member.items() if value not in (None, [], "", False)}


def _refuse_rest(found: Component, findings: Findings) -> None:
    """What a member cannot have."""
    if found.config.get("memory"):
        hint = "what is remembered goes into the prompt: a step of its own before the conversation"
        findings.wrong(LOST, found.at("memory"), "is a memory of AutoGen's", hint)
    if found.config.get("structured_message_factory") is not None:
        said, hint = "wants a typed answer", "make it an `agent` step with an `output` schema"
        findings.wrong(LOST, found.at("structured_message_factory"), said, hint)
    if found.config.get("tool_call_summary_format", "{result}") != "{result}":
        said, hint = "changes what tools gave", "let the tool give the text that is wanted"
        findings.wrong(LOST, found.at("tool_call_summary_format"), said, hint)
    if found.config.get("metadata"):
        findings.note(f"{found.at('metadata')} is not kept: it changes nothing that is said")
    if found.config.get("model_context") is not None:
        context(found.config["model_context"], found.at("model_context"), findings)


def context(document: Any, path: str, findings: Findings) -> None:
    """A problem for a context that is not the whole thread."""
    component.opened(document, path, _CONTEXTS, _CONTEXT_WHY, findings)


def _tools(found: Component, tools: Tools, findings: Findings) -> list[str]:
    """The registered tools that it may use."""
    named: list[str] = []
    for path, one in _written(found, findings):
        tool = component.opened(one, path, _TOOLS, {}, findings)
        if tool is None:
            continue
        name = component.text(tool, "name", findings)
        if name not in tools:
            said = f"is the source of '{name[:64]}', which is not executed"
            hint = f"register a @tool of yours, and say --tool {name[:64]}=ITS_NAME"
            findings.wrong("SOURCE_CODE", tool.at("source_code"), said, hint)
            continue
        findings.note(f"the source of '{name}' is dropped: the registered tool '{tools[name]}' is used")
        if tools[name] != name:
            findings.note(f"models know the tool '{name}' as '{tools[name]}'")
        named.append(tools[name])
    return named


def _written(found: Component, findings: Findings) -> list[tuple[str, Any]]:
    """The tools of an agent, with their paths, be they its own or those of a workbench."""
    written = [(f"{found.at('tools')}[{place}]", one) for place, one in enumerate(_list(found, "tools", findings))]
    for place, bench in enumerate(_list(found, "workbench", findings)):
        opened = component.opened(bench, f"{found.at('workbench')}[{place}]", _BENCHES, _BENCH_WHY, findings)
        if opened is None:
            continue
        if opened.config.get("tool_overrides"):
            said, hint = "gives tools other names", "name the registered tool as it is wanted"
            findings.wrong(LOST, opened.at("tool_overrides"), said, hint)
        inside = _list(opened, "tools", findings)
        written += [(f"{opened.at('tools')}[{number}]", one) for number, one in enumerate(inside)]
    return written


def _handoffs(found: Component, findings: Findings) -> list[str]:
    """To whom it may hand over."""
    names: list[str] = []
    for place, one in enumerate(_list(found, "handoffs", findings)):
        path = f"{found.at('handoffs')}[{place}]"
        known: Mapping[str, Any] = {"target": one} if isinstance(one, str) else one if isinstance(one, dict) else {}
        target = known.get("target")
        if not isinstance(target, str) or not target:
            findings.wrong("BAD_VALUE", path, f"is {shown(one)}", "must name a target")
            continue
        names.append(target)
        own = f"Transferred to {target}, adopting the role of {target} immediately."
        if known.get("message", own) != own:
            said, hint = "are words of its own", "let the agent say them before it hands over"
            findings.wrong(LOST, f"{path}.message", said, hint)
        if str(known.get("name", f"transfer_to_{target}")).lower() != f"transfer_to_{target}".lower():
            hint = f"here it is transfer_to_{target}"
            findings.wrong(LOST, f"{path}.name", "is another name of the handoff's tool", hint)
        if known.get("description", f"Handoff to {target}.") != f"Handoff to {target}.":
            findings.note(f"{path}.description is not kept: models are told who '{target}' is")
    return names


def _list(found: Component, name: str, findings: Findings) -> Sequence[Any]:
    value = found.config.get(name)
    if value is None:
        return ()
    if not isinstance(value, list):
        findings.wrong("BAD_VALUE", found.at(name), f"is {shown(value)}", "must be a list")
        return ()
    return cast("Sequence[Any]", value)
