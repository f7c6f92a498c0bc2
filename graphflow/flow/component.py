"""AutoGen's ComponentModel JSON, read by an allow-list: nothing in it is imported, called or looked up by its name.

AutoGen itself imports whatever a `provider` names, and executes the source of a FunctionTool, when it loads such a
document. Here a provider is a word that is compared, and a config has the fields that are known of it: whatever would
be lost is a problem with its place, and all problems of a document come at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from convergio.graphflow.flow.refusal import shown
from convergio.graphflow.flow.spelling import did_you_mean
from convergio.graphflow.model.errors import Problem

CODE: Final = "UNSUPPORTED_COMPONENT"
LOST: Final = "WOULD_BE_LOST"
SECRET: Final = re.compile(r"\bsk-[\w-]{16,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_\w{30,}|-----BEGIN [A-Z ]*PRIVATE KEY")
"""What is certainly a secret."""
MASK: Final = re.compile(r"\*{4,}")
"""What AutoGen writes where a secret was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A provider that may be named: its version, the fields that its config may have, and those that change nothing."""

    name: str
    version: int = 1
    fields: frozenset[str] = frozenset()
    idle: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """What a document says of one component, at its path."""

    provider: Provider
    config: Mapping[str, Any]
    path: str

    def at(self, name: str) -> str:
        """The path of a field of its config."""
        return f"{self.path}.{name}"


@dataclass(slots=True)
class Findings:
    """What is wrong, and what whoever imports should know."""

    problems: list[Problem] = field(default_factory=list[Problem])
    notes: list[str] = field(default_factory=list[str])

    def wrong(self, code: str, path: str, message: str, hint: str = "") -> None:
        """One more problem."""
        self.problems.append(Problem(code=code, path=path, message=message, hint=hint))

    def note(self, text: str) -> None:
        """Something to know; the same is said once."""
        if text not in self.notes:
            self.notes.append(text)


def opened(
    document: Any,
    path: str,
    allowed: Mapping[str, Provider],
    refused: Mapping[str, str],
    findings: Findings,
) -> Component | None:
    """The component of this part of a document; None, with a problem, if it is none that may be here.

    `refused`: why others are not, by provider.
    """
    if not isinstance(document, Mapping) or not isinstance(document.get("config"), Mapping):
        hint = "a ComponentModel: {provider: ..., config: {...}}, as dump_component() gives it"
        findings.wrong("BAD_COMPONENT", path, f"is {shown(document)}", hint)
        return None
    known = cast("Mapping[str, Any]", document)
    name = str(known.get("provider"))
    provider = allowed.get(name)
    if provider is None:
        hint = refused.get(name) or did_you_mean(name, allowed) or f"allowed are: {', '.join(allowed)}"
        findings.wrong(CODE, f"{path}.provider", f"'{name[:120]}' is not allowed", hint)
        return None
    version = known.get("component_version", known.get("version", provider.version))
    if version != provider.version:
        said = f"is version {shown(version)} of {name.rpartition('.')[2]}"
        findings.wrong("UNSUPPORTED_VERSION", f"{path}.component_version", said, f"known is {provider.version}")
    config = cast("Mapping[str, Any]", known["config"])
    for field_name in config:
        if field_name not in provider.fields | provider.idle:
            said = f"is not known of {name.rpartition('.')[2]}"
            hint = did_you_mean(str(field_name), provider.fields) or "remove it, if the team is the same without it"
            findings.wrong(LOST, f"{path}.config.{str(field_name)[:80]}", said, hint)
    return Component(provider=provider, config=config, path=f"{path}.config")


def secrets(document: Any, path: str, findings: Findings) -> None:
    """A problem for each text in it that is a secret."""
    if isinstance(document, str):
        if SECRET.search(document):
            hint = "take it out, and have it withdrawn: a document is read by many. Keys are settings of the workers"
            findings.wrong("SECRET", path, "holds a secret", hint)
    elif isinstance(document, Mapping):
        for name, value in cast("Mapping[str, Any]", document).items():
            secrets(value, f"{path}.{name}" if path else str(name), findings)
    elif isinstance(document, list):
        for place, value in enumerate(cast("Sequence[Any]", document)):
            secrets(value, f"{path}[{place}]", findings)


def text(component: Component, name: str, findings: Findings, *, wanted: bool = True) -> str:
    """A field that is text; with a problem, if it is not there or something else."""
    value = component.config.get(name)
    if isinstance(value, str) and (value or not wanted):
        return value
    if value is not None or wanted:
        findings.wrong("BAD_VALUE", component.at(name), f"is {shown(value)}", "must be text")
    return ""
