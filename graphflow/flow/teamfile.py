"""A team as a document of its own: named, versioned, checked whole. Tools and models are references; no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field, ValidationError

from convergio.graphflow.flow import component, reader, refusal, storable, talk, values
from convergio.graphflow.flow.component import Findings
from convergio.graphflow.flow.known import Known
from convergio.graphflow.flow.scalars import Name, Text
from convergio.graphflow.flow.team import TeamForm
from convergio.graphflow.model import errors
from convergio.graphflow.model.errors import Problem
from convergio.graphflow.model.workflow import digest_of

HEADER = ("team", "version", "title", "description")


class TeamDocument(TeamForm):
    """A team's file."""

    model_config = ConfigDict(title="Team file")

    team: Name
    version: int = Field(1, ge=1, le=2**31 - 1)
    title: str = Field("", max_length=200)
    description: Text = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamSpec:
    """A team that is valid. `talk`: what a conversation says of it; `document`: all of it, defaults included."""

    name: str
    version: int
    title: str
    description: str
    document: Mapping[str, Any]

    @property
    def talk(self) -> dict[str, Any]:
        """The team as a conversation step has it."""
        return {name: value for name, value in self.document.items() if name not in HEADER}

    @property
    def digest(self) -> str:
        """The same for the same team, however it was written."""
        return digest_of(self.document)


def load(path: str | Path, *, known: Known | None = None) -> TeamSpec:
    """The team in a file (`.json`: JSON; else YAML). Raises as `parse`; OSError if it cannot be read."""
    file = Path(path)
    document, found = reader.read_file(file)
    if found:
        raise errors.InvalidTeam(problems=found, source=file.name)
    return parse(document, source=file.name, known=known)


def is_team(document: Any) -> bool:
    """Whether it may be a team's document, by its form."""
    return values.is_map(document) and "team" in document


def parse(document: Any, source: str = "team", *, known: Known | None = None) -> TeamSpec:
    """The team that a mapping describes. `known`: agents and policies that exist, to check those it names.

    Raises errors.InvalidTeam with every problem at once.
    """
    if not values.is_map(document):
        problem = Problem(code="BAD_DOCUMENT", path="", message="is not a mapping", hint="start with `team: name`")
        raise errors.InvalidTeam(problems=[problem], source=source)
    findings = Findings(problems=list(storable.problems_of(document)))
    component.secrets(document, "", findings)
    try:
        made = TeamDocument.model_validate(dict(document))
    except ValidationError as error:
        findings.problems += refusal.problems_of(error, "", TeamDocument, "a team")
        raise errors.InvalidTeam(problems=findings.problems, source=source) from None
    canonical = made.model_dump()
    findings.problems += _problems(canonical, known or Known())
    if findings.problems:
        raise errors.InvalidTeam(problems=findings.problems, source=source)
    return TeamSpec(
        name=made.team, version=made.version, title=made.title, description=made.description, document=canonical
    )


def _problems(canonical: Mapping[str, Any], known: Known) -> list[Problem]:
    found = [
        Problem(code=one.code, path=one.path.removeprefix("."), message=one.message, hint=one.hint)
        for one in talk.problems("", canonical, known.policies)
    ]
    for place, member in enumerate(canonical["agents"]):
        if member["role"] is None and known.agents is not None and member["name"] not in known.agents:
            hint = "no agent of this name is in the roster; one with a `role` need not be"
            said = f"names '{member['name']}'"
            found.append(Problem(code="UNKNOWN_AGENT", path=f"agents[{place}]", message=said, hint=hint))
    return found
