"""`convergio workflows`: list, show, validate, import."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from convergio.workers.cli import exits
from convergio.workers.cli.menu import Group
from convergio.workers.cli.session import Session, as_json, with_session

if TYPE_CHECKING:
    from convergio.graphflow.flow.known import Known
    from convergio.graphflow.model.workflow import Step, Workflow


@click.group(cls=Group)
def workflows() -> None:
    """List, show, validate and import workflows."""


@workflows.command("list")
@click.option("--json", "json_wanted", is_flag=True, help="JSON on standard output.")
@with_session
def list_workflows(session: Session, json_wanted: bool) -> int:
    """Every workflow that ships, that CONVERGIO_WORKFLOWS names, or that included modules build."""
    found = [session.catalog.look(name) for name in session.catalog.names()]
    if json_wanted:
        click.echo(as_json([_summary(workflow) for workflow in found]))
        return exits.OK
    from convergio.workers.cli import look

    table = look.table("WORKFLOW", "VERSION", "STEPS", "WHAT IT DOES", right=("VERSION", "STEPS"))
    for one in found:
        table.add_row(one.name, str(one.version), str(len(one.steps)), one.title or one.description)
    look.show(table)
    return exits.OK


def _summary(workflow: Workflow) -> dict[str, object]:
    return {
        "name": workflow.name,
        "version": workflow.version,
        "digest": workflow.digest,
        "title": workflow.title,
        "description": workflow.description,
        "steps": list(workflow.steps),
    }


@workflows.command("show")
@click.argument("workflow")
@click.option("--json", "json_wanted", is_flag=True, help="The canonical document.")
@with_session
def show(session: Session, workflow: str, json_wanted: bool) -> int:
    """One workflow: what it takes, and its steps in order."""
    from convergio.workers.cli.run import definition_of

    found = definition_of(session, workflow)
    if json_wanted:
        click.echo(as_json(dict(found.document)))
        return exits.OK
    from convergio.workers.cli import look

    look.say(f"{found.name} {found.version}  {found.title}", style="bold")
    if found.description:
        look.say(found.description.strip())
    required = found.input_schema.get("required", [])
    fields = [f"{name}{'' if name in required else '?'}" for name in found.input_schema.get("properties", {})]
    look.say(f"input: {', '.join(fields) or 'anything'}\n")
    table = look.table("STEP", "KIND", "DOES", "NEEDS", "WHEN")
    for step in found.steps.values():
        table.add_row(step.name, step.kind.value, _does(step), _needs(step), step.when or "")
    look.show(table)
    return exits.OK


def _does(step: Step) -> str:
    from convergio.graphflow.engine.inquiry import does

    return does(step)


def _needs(step: Step) -> str:
    return ", ".join(edge.step + (f" [{edge.when}]" if edge.when else "") for edge in step.needs)


@workflows.command("validate")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "json_wanted", is_flag=True, help="Every problem, as JSON.")
@with_session
def validate(session: Session, files: tuple[Path, ...], json_wanted: bool) -> int:
    """Check workflow files whole: every problem at once, each with its place and what to do."""
    from convergio.graphflow.flow import document
    from convergio.graphflow.model import errors

    environment = known(session)
    problems: dict[str, list[errors.Problem]] = {}
    for path in files:
        try:
            found = document.load(path, known=environment)
            problems[str(path)] = []
            if not json_wanted:
                click.echo(f"{path}: {found.name} {found.version} is valid, {len(found.steps)} steps")
        except errors.InvalidWorkflow as error:
            problems[str(path)] = list(error.problems)
            if not json_wanted:
                click.echo(str(error), err=True)
    if json_wanted:
        click.echo(as_json(problems))
    return exits.INVALID if any(problems.values()) else exits.OK


@workflows.command("import")
@click.argument("file")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write it there, and not to stdout.")
@click.option("--tool", "tools", multiple=True, metavar="NAME=TOOL", help="Our tool, instead of a tool's source.")
@click.option("--json", "json_wanted", is_flag=True, help="JSON: what it became, the document, and what to know.")
@with_session
def import_component(session: Session, file: str, out: Path | None, tools: tuple[str, ...], json_wanted: bool) -> int:
    """Read a team that AutoGen dumped (ComponentModel JSON) as a document of ours: nothing in it is executed."""
    import yaml

    from convergio.workers.cli import teams

    made = teams.imported(file, tools=teams.tools_of(tools), known=known(session))
    text = yaml.safe_dump(made.document, sort_keys=False, allow_unicode=True, width=120)
    if out is not None:
        out.write_text(text, encoding="utf-8")
    if json_wanted:
        click.echo(as_json({"kind": made.kind, "document": made.document, "notes": list(made.notes)}))
        return exits.OK
    teams.tell(made)
    start = "convergio chat {} TEXT" if made.kind == "team" else 'convergio run {} --input \'{{"said": "TEXT"}}\''
    click.echo(
        f"{made.kind} written: start it with {start.format(out)}" if out is not None else text, nl=out is not None
    )
    return exits.OK


def known(session: Session) -> Known:
    """Functions and agents that exist here."""
    from convergio.graphflow.flow.known import Known
    from convergio.graphflow.flow.registry import REGISTRY
    from convergio.tasks.conversation.speaker import POLICIES
    from convergio.workers import boot

    workflows = boot.catalog(session.settings).names()
    agents = boot.roster(session.settings).names
    return Known(functions=REGISTRY.functions(), agents=agents, workflows=workflows, policies=POLICIES.names())
