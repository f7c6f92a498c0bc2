"""Teams as people give them: a file of ours, names of the roster, or a document of AutoGen's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convergio.workers.cli.run import FILES

if TYPE_CHECKING:
    from convergio.graphflow.flow.component_team import Imported
    from convergio.graphflow.flow.known import Known
    from convergio.graphflow.model.workflow import Workflow
    from convergio.graphflow.trust import Trust

STEP = "talk"


def workflow_of(
    text: str, *, tools: Mapping[str, str], known: Known, trust: Trust, turns: int | None = None
) -> Workflow:
    """The workflow in which this team talks: a conversation or, of a graph without cycles, its steps.

    Raises InvalidInput, InvalidTeam, InvalidWorkflow with all that is wrong; DefinitionRefused for a file whose
    signature does not count, where it has to.
    """
    from convergio.graphflow.flow import component_team, document, teamfile
    from convergio.graphflow.trust import Definition
    from convergio.workers.cli import given

    if not text.endswith(FILES):
        names = [name.strip() for name in text.split(",") if name.strip()]
        return talking({"agents": names}, source=text, known=known, turns=turns)
    path, source = Path(text), Path(text).name
    found, content = given.file(text, what="TEAM")
    trust.check(Definition.of(path, content))
    if component_team.is_component(found):
        made = component_team.read(found, tools=tools, source=source)
        tell(made)
        if made.kind == "workflow":
            return document.parse_document(made.document, source=source, known=known)
        found = made.document
    if teamfile.is_team(found):
        team = teamfile.parse(found, source, known=known)
        title = f"{team.title or team.name} {team.version}"
        return talking(team.talk, source=source, known=known, turns=turns, title=title)
    return talking(_mapping(found, text), source=source, known=known, turns=turns)


def talking(
    team: Mapping[str, Any], *, source: str, known: Known, turns: int | None = None, title: str = "A conversation"
) -> Workflow:
    """A workflow with one conversation of this team. `turns`: that it may take, instead of its own."""
    from convergio.graphflow.flow import document

    if turns is not None:
        team = {**team, "stop": {**team.get("stop", {}), "turns": turns}}
    said = {"prompt": "{{ input.said }}", "after": "input.after", "images": "input.images"}
    talk = {"conversation": team, **said, "retry": 2}
    chat = {"workflow": "chat", "version": 1, "title": title, "steps": {STEP: talk}}
    return document.parse_document(chat, source=source, known=known)


def imported(text: str, *, tools: Mapping[str, str], known: Known) -> Imported:
    """AutoGen's document as one of ours, checked whole. Raises InvalidInput, InvalidTeam, InvalidWorkflow."""
    from convergio.graphflow.flow import component_team, document, teamfile
    from convergio.workers.cli import given

    made = component_team.read(given.value(text, what="FILE"), tools=tools, source=Path(text).name)
    if made.kind == "workflow":
        document.parse_document(made.document, source=Path(text).name, known=known)
    else:
        teamfile.parse(made.document, source=Path(text).name, known=known)
    return made


def tell(made: Imported) -> None:
    """What is good to know, on standard error."""
    for note in made.notes:
        click.echo(f"note: {note}", err=True)


def tools_of(given: Sequence[str]) -> dict[str, str]:
    """NAME=OURS, or NAME alone for a tool of the same name."""
    pairs = (text.partition("=") for text in given)
    return {name: ours or name for name, _, ours in pairs}


def _mapping(found: Any, text: str) -> dict[str, Any]:
    from convergio.graphflow.model import errors

    if not isinstance(found, dict):
        raise errors.InvalidInput(f"{text} holds no team", hint="write `team: NAME`, and under `agents:` their names")
    return found  # pyright: ignore[reportUnknownVariableType]
