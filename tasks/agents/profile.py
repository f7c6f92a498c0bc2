"""The form of a definition of agents, and what it says of each: who it is, what it can do, which model it has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import pydantic

from convergio.graphflow.trust import SHIPPED, Definition
from convergio.tasks.agents.spec import DEFAULT_MAX_TOKENS, AgentSpec

DOMAINS: Final = (
    "strategy",
    "finance",
    "operations",
    "technology",
    "marketing",
    "sales",
    "human_resources",
    "legal",
    "security",
    "analytics",
    "product",
    "design",
)
"""What an agent may be asked about, unless its file says otherwise."""

ModelTier = Literal["small", "standard", "large"]
SECRET: Final = re.compile(r"\bsk-[\w-]{16,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_\w{30,}|-----BEGIN [A-Z ]*PRIVATE KEY")
"""What is certainly a secret: it would be read by every model that the agent speaks with."""

FORM: Final = pydantic.ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """An agent and what it is good for: its tier in the organisation and the domains it may be asked about.

    `phases`, `partners`, `depth` and `seconds` are what speakers are chosen by (see `conversation.floor.Candidate`).
    `definition`: the file that says all this.
    """

    spec: AgentSpec
    title: str
    tier: str
    domains: tuple[str, ...]
    version: int = 1
    aliases: tuple[str, ...] = ()
    model_tier: ModelTier = "standard"
    phases: tuple[str, ...] = ()
    partners: tuple[str, ...] = ()
    depth: float | None = None
    seconds: float | None = None
    definition: Definition = SHIPPED


class Entry(pydantic.BaseModel):
    """An agent as it is written. Secrets have no place here; tools and models are named only."""

    model_config = FORM

    version: int = pydantic.Field(default=1, ge=1)
    title: str = pydantic.Field(min_length=1)
    tier: str = pydantic.Field(min_length=1)
    domains: tuple[str, ...] = pydantic.Field(min_length=1)
    description: str = ""
    system_message: str = pydantic.Field(min_length=1)
    aliases: tuple[str, ...] = ()
    model: str | None = None
    model_tier: ModelTier = "standard"
    max_tokens: int = pydantic.Field(default=DEFAULT_MAX_TOKENS, gt=0)
    temperature: float | None = pydantic.Field(default=None, ge=0, le=2)
    tools: tuple[str, ...] = ()
    phases: tuple[str, ...] = ()
    partners: tuple[str, ...] = ()
    depth: float | None = pydantic.Field(default=None, ge=0, le=1)
    seconds: float | None = pydantic.Field(default=None, gt=0)

    @pydantic.field_validator("system_message", "description")
    @classmethod
    def _no_secrets(cls, value: str) -> str:
        if SECRET.search(value):
            raise ValueError("it holds a secret; let a tool read that from where the worker keeps it")
        return value

    def profile(self, name: str, definition: Definition, models: Mapping[str, str]) -> Profile:
        """The agent of this name. `models`: names of models by tier, where the settings give any."""
        spec = AgentSpec(
            name=name,
            description=self.description or self.title,
            system_message=self.system_message,
            model=self.model or models.get(self.model_tier),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            tools=self.tools,
        )
        return Profile(
            spec=spec,
            title=self.title,
            tier=self.tier,
            domains=self.domains,
            version=self.version,
            aliases=self.aliases,
            model_tier=self.model_tier,
            phases=self.phases,
            partners=self.partners,
            depth=self.depth,
            seconds=self.seconds,
            definition=definition,
        )


class Document(pydantic.BaseModel):
    """A file: agents by name. A roster is one file, or all those of a folder."""

    model_config = FORM

    domains: frozenset[str] = frozenset(DOMAINS)
    agents: dict[str, Entry] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _names_and_domains(self) -> Document:
        for name, entry in self.agents.items():
            for each in (name, *entry.aliases):
                if not each.replace("-", "_").isidentifier():
                    raise ValueError(f"'{each}' is no name: letters, digits, '-' and '_' only, no digit first")
            if unknown := set(entry.domains) - self.domains:
                raise ValueError(f"{name}: unknown domains {sorted(unknown)}")
        return self
