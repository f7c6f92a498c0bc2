"""AutoGen's model clients as names of models and scripts: endpoints and keys are the workers' settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from convergio.graphflow.flow import component
from convergio.graphflow.flow.component import LOST, MASK, Component, Findings, Provider
from convergio.graphflow.flow.refusal import shown

REPLAY: Final = "autogen_ext.models.replay.ReplayChatCompletionClient"
_HOSTED: Final = {
    "autogen_ext.models.openai.OpenAIChatCompletionClient": "openai",
    "autogen_ext.models.openai.AzureOpenAIChatCompletionClient": "azure",
    "autogen_ext.models.anthropic.AnthropicChatCompletionClient": "anthropic",
    "autogen_ext.models.ollama.OllamaChatCompletionClient": "ollama",
}
_FIELDS: Final = frozenset({"model", "api_key", "temperature", "max_tokens", "max_completion_tokens"})
_PLACES: Final = frozenset({"base_url", "host", "azure_endpoint", "azure_deployment", "api_version"})
_KEYS: Final = frozenset({"api_key", "azure_ad_token"})
_IDLE: Final = frozenset({"model_info", "model_capabilities", "max_retries", "timeout", "stream_options"})
"""Ours are used: the queue alone retries, under the step's timeout, and usage is always asked for."""

ALLOWED: Final[Mapping[str, Provider]] = {
    REPLAY: Provider(name=REPLAY, fields=frozenset({"chat_completions"}), idle=frozenset({"model_info"})),
    **{name: Provider(name=name, fields=_FIELDS | _PLACES | _KEYS, idle=_IDLE) for name in _HOSTED},
}
REFUSED: Final[Mapping[str, str]] = {
    "autogen_ext.models.cache.ChatCompletionCache": (
        "its key has neither the model nor the tools in it, so one model's answer is given for another's; a turn's "
        "answers are recorded here anyway: name the client inside of it"
    ),
    "autogen_ext.models.semantic_kernel.SKChatCompletionAdapter": "it is built from objects; name the model's client",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Which model answers: by its name (`provider/model`), or by a script."""

    name: str | None = None
    script: tuple[Mapping[str, Any], ...] = ()
    temperature: float | None = None
    max_tokens: int | None = None


def read(document: Any, path: str, findings: Findings) -> Model:
    """The model of a client; problems are in `findings`."""
    found = component.opened(document, path, ALLOWED, REFUSED, findings)
    if found is None:
        return Model()
    if found.provider.name == REPLAY:
        return Model(script=tuple(_script(found, findings)))
    family, name = _HOSTED[found.provider.name], component.text(found, "model", findings)
    for place in sorted(_PLACES & found.config.keys()):
        if found.config[place] is not None:
            hint = f"take it out, and name it in the workers' file of models, as the provider '{family}'"
            findings.wrong(LOST, found.at(place), "names an endpoint", hint)
    for key in sorted(_KEYS & found.config.keys()):
        value = found.config[key]
        if value is not None and not MASK.fullmatch(str(value)):
            findings.wrong("SECRET", found.at(key), "holds a key", "take it out: keys are settings of the workers")
        elif value is not None:
            findings.note(f"{found.at(key)} is masked: workers use their own key for '{family}'")
    most = found.config.get("max_completion_tokens", found.config.get("max_tokens"))
    return Model(
        name=f"{family}/{name}" if name else None, temperature=found.config.get("temperature"), max_tokens=most
    )


def _script(found: Component, findings: Findings) -> list[Mapping[str, Any]]:
    """What a replaying client answers, as a script."""
    given = found.config.get("chat_completions")
    if not isinstance(given, list) or not given:
        findings.wrong("BAD_VALUE", found.at("chat_completions"), f"is {shown(given)}", "must be a list of answers")
        return []
    answers = cast("Sequence[Any]", given)
    return [_reply(one, f"{found.at('chat_completions')}[{place}]", findings) for place, one in enumerate(answers)]


def _reply(answer: Any, path: str, findings: Findings) -> Mapping[str, Any]:
    if isinstance(answer, str):
        return {"say": answer}
    content: Any = cast("Mapping[str, Any]", answer).get("content") if isinstance(answer, Mapping) else None
    if isinstance(answer, Mapping) and cast("Mapping[str, Any]", answer).get("thought"):
        findings.wrong(LOST, f"{path}.thought", "is a thought", "scripts have none: take it out")
    if isinstance(content, str):
        return {"say": content}
    if not isinstance(content, list):
        findings.wrong("BAD_VALUE", path, f"is {shown(answer)}", "must be text, or a result with text or calls")
        return {"say": ""}
    return {
        "call": [
            _call(one, f"{path}.content[{place}]", findings) for place, one in enumerate(cast("Sequence[Any]", content))
        ]
    }


def _call(call: Any, path: str, findings: Findings) -> Mapping[str, Any]:
    """Arguments stay the text that they are."""
    known: Mapping[str, Any] = cast("Mapping[str, Any]", call) if isinstance(call, Mapping) else {}
    name, arguments = known.get("name"), known.get("arguments", "{}")
    if not isinstance(name, str):
        findings.wrong("BAD_VALUE", path, f"is {shown(call)}", "must name a tool and its arguments")
        name = "unread"
    return {"tool": name, "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments)}
