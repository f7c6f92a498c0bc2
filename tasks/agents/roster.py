"""Who is there: the agents by name, read once from a file and never changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pydantic
import yaml

from convergio.graphflow.flow import spelling
from convergio.graphflow.model import errors
from convergio.tasks.agents.spec import DEFAULT_MAX_TOKENS, AgentSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """An agent and what it is good for: its tier in the organisation and the domains it may be asked about."""

    spec: AgentSpec
    title: str
    tier: str
    domains: tuple[str, ...]
    aliases: tuple[str, ...] = ()


class Roster:
    """The agents a process knows. Aliases find the same agent; listings show real names only."""

    def __init__(self, profiles: Mapping[str, Profile]) -> None:
        self._profiles = dict(profiles)
        self._found = {alias: profile for profile in profiles.values() for alias in profile.aliases} | self._profiles

    @classmethod
    def load(cls, path: Path | None = None) -> Roster:
        """The roster in a YAML file; without `path` the one that ships.

        Raises: errors.InvalidSetting with every problem of the file.
        """
        place = str(path or "config/agents.yaml")
        try:
            text = (path or resources.files("convergio.config") / "agents.yaml").read_text(encoding="utf-8")
            document = _Document.model_validate(yaml.safe_load(text))
        except pydantic.ValidationError as error:
            problems = "; ".join(f"{_path(fault['loc'])}: {fault['msg']}" for fault in error.errors())
            raise errors.InvalidSetting(f"the roster is not valid: {problems}", path=place) from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise errors.InvalidSetting(f"the roster cannot be read: {error}", path=place) from error
        return cls({name: entry.profile(name) for name, entry in document.agents.items()})

    def get(self, name: str) -> AgentSpec:
        """The agent called `name`. Raises: errors.UnknownAgent with the nearest name."""
        return self.profile(name).spec

    def profile(self, name: str) -> Profile:
        """The agent called `name` with its title, tier and domains. Raises: errors.UnknownAgent."""
        if name not in self._found:
            hint = spelling.did_you_mean(name, self._found) or f"there are: {', '.join(self._profiles)}"
            raise errors.UnknownAgent(f"there is no agent '{name}'", hint=hint)
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[Profile]:
        return iter(self._profiles.values())

    def __len__(self) -> int:
        return len(self._profiles)

    @property
    def names(self) -> frozenset[str]:
        """Every name that finds an agent, aliases included."""
        return frozenset(self._found)


class _Entry(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    title: str = pydantic.Field(min_length=1)
    tier: str = pydantic.Field(min_length=1)
    domains: tuple[str, ...] = pydantic.Field(min_length=1)
    system_message: str = pydantic.Field(min_length=1)
    aliases: tuple[str, ...] = ()
    model: str | None = None
    max_tokens: int = pydantic.Field(default=DEFAULT_MAX_TOKENS, gt=0)
    temperature: float | None = pydantic.Field(default=None, ge=0, le=2)

    def profile(self, name: str) -> Profile:
        spec = AgentSpec(
            name=name,
            description=self.title,
            system_message=self.system_message,
            model=self.model,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
        )
        return Profile(spec=spec, title=self.title, tier=self.tier, domains=self.domains, aliases=self.aliases)


class _Document(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    domains: frozenset[str]
    agents: dict[str, _Entry] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _names_and_domains(self) -> _Document:
        taken = set(self.agents)
        for name, entry in self.agents.items():
            for each in (name, *entry.aliases):
                if not each.replace("-", "_").isidentifier():
                    raise ValueError(f"'{each}' is no name: letters, digits, '-' and '_' only, no digit first")
            if unknown := set(entry.domains) - self.domains:
                raise ValueError(f"{name}: unknown domains {sorted(unknown)}")
            if twice := taken & set(entry.aliases):
                raise ValueError(f"{name}: {sorted(twice)} is already taken")
            taken |= set(entry.aliases)
        return self


def _path(parts: tuple[Any, ...]) -> str:
    return ".".join(map(str, parts)) or "roster"
