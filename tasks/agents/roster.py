"""Who is there: the agents by name, read once from files and never changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pydantic
import yaml

from convergio.graphflow.flow import spelling
from convergio.graphflow.model import errors
from convergio.graphflow.trust import SHIPPED, Definition, Trust, Verdict
from convergio.tasks.agents.profile import Document, Profile
from convergio.tasks.agents.spec import AgentSpec

SUFFIXES: Final = (".yaml", ".yml")
NO_MODELS: Final[Mapping[str, str]] = MappingProxyType({})


class Roster:
    """The agents a process knows. Aliases find the same agent; listings show real names only.

    Whether an agent's definition still counts is looked at whenever the agent is asked for.
    """

    def __init__(self, profiles: Iterable[Profile], trust: Trust | None = None) -> None:
        self._profiles = {profile.spec.name: profile for profile in profiles}
        self._found = {alias: one for one in self._profiles.values() for alias in one.aliases} | self._profiles
        self._trust = trust or Trust()

    @classmethod
    def load(
        cls, path: Path | None = None, *, trust: Trust | None = None, models: Mapping[str, str] = NO_MODELS
    ) -> Roster:
        """The roster in a YAML file, or in all those of a folder; without `path` the one that ships.

        `models`: names of models by tier. Raises: errors.InvalidSetting with every problem of a file. A definition
        that is refused is none: its agents are there, and whoever asks for one is told.
        """
        if path is not None:
            return cls(_profiles(files(path), models, shipped=False), trust)
        with resources.as_file(resources.files("convergio.config") / "agents") as folder:
            return cls(_profiles(files(folder), models, shipped=True), trust)

    def get(self, name: str) -> AgentSpec:
        """The agent called `name`. Raises: errors.UnknownAgent with the nearest name; errors.DefinitionRefused."""
        return self.profile(name).spec

    def profile(self, name: str) -> Profile:
        """The agent called `name` with its title, tier and domains. Raises as `get` does."""
        found = self.look(name)
        try:
            self._trust.check(found.definition)
        except errors.DefinitionRefused as error:
            raise errors.DefinitionRefused(f"agent '{name}': {error.message}", hint=error.hint) from error
        return found

    def look(self, name: str) -> Profile:
        """The agent called `name`, whether its definition counts or not. Raises: errors.UnknownAgent."""
        if name not in self._found:
            hint = spelling.did_you_mean(name, self._found) or f"there are: {', '.join(self._profiles)}"
            raise errors.UnknownAgent(f"there is no agent '{name}'", hint=hint)
        return self._found[name]

    def verdict(self, profile: Profile) -> Verdict:
        """What the definition of this agent is found to be. Raises: errors.DefinitionRefused."""
        return self._trust.verdict(profile.definition)

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


def files(path: Path) -> list[Path]:
    """The files of a roster: the file itself, or those of the folder. Raises: errors.InvalidSetting without any."""
    if not path.is_dir():
        return [path]
    found = sorted(one for one in path.iterdir() if one.suffix in SUFFIXES)
    if not found:
        raise errors.InvalidSetting(f"there is no file with agents in {path}", hint="agents are in *.yaml")
    return found


def _profiles(paths: Iterable[Path], models: Mapping[str, str], *, shipped: bool) -> list[Profile]:
    """The agents of these files. What is verified is what was read, not what is there later."""
    made: list[Profile] = []
    names = set[str]()
    for path in paths:
        try:
            content = path.read_bytes()
            document = read(content, path)
            definition = SHIPPED if shipped else Definition.of(path, content)
        except OSError as error:
            raise errors.InvalidSetting(f"the roster cannot be read: {error}", path=str(path)) from error
        for name, entry in document.agents.items():
            for each in (name, *entry.aliases):
                if each in names:
                    raise errors.InvalidSetting(f"the roster is not valid: '{each}' is already taken", path=str(path))
                names.add(each)
            made.append(entry.profile(name, definition, models))
    known = {one.spec.name for one in made}
    if strangers := {name for one in made for name in one.partners} - known:
        raise errors.InvalidSetting(
            f"the roster is not valid: no agent is called {', '.join(sorted(strangers))} (partners)"
        )
    return made


def read(content: bytes, path: Path) -> Document:
    """What a file with agents says. Raises: errors.InvalidSetting with every problem."""
    try:
        return Document.model_validate(yaml.safe_load(content.decode("utf-8")))
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{_path(fault['loc'])}: {fault['msg']}" for fault in error.errors())
        raise errors.InvalidSetting(f"the roster is not valid: {problems}", path=str(path)) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise errors.InvalidSetting(f"the roster cannot be read: {error}", path=str(path)) from error


def _path(parts: tuple[Any, ...]) -> str:
    return ".".join(map(str, parts)) or "roster"
