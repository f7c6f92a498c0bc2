"""`convergio runs speakers` and `savings`: why each speaker was chosen, and how many turns that saves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from convergio.graphflow.model.workflow import StepKind
from convergio.workers.cli import exits
from convergio.workers.cli.session import Session, as_json, with_session

json_option = click.option("--json", "json_wanted", is_flag=True, help="JSON on standard output.")


@click.command("speakers")
@click.argument("run")
@json_option
@with_session
def speakers(session: Session, run: str, json_wanted: bool) -> int:
    """Why each speaker of a run's conversations was chosen: what every candidate had, factor by factor."""
    view = session.inquiry.view(session.ref(run))
    steps = [step.name for step in view.steps.values() if step.kind is StepKind.CONVERSATION]
    found = {step: list(_choices(session.archive.turns(session.settings.tenant, view.id, step))) for step in steps}
    if json_wanted:
        click.echo(as_json({"run": view.id, "conversations": found}))
        return exits.OK
    if not any(found.values()):
        click.echo(f"no speaker was chosen in run {view.id} yet")
    for step, choices in found.items():
        for choice in choices:
            _show(step, choice)
    return exits.OK


def _choices(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every choice in order, with the turn that it was for, from 1."""
    for row in rows:
        for column, later in (("chosen", 1), ("next_chosen", 2)):
            if row[column] is not None:
                yield {"turn": row["iteration"] + later, **json.loads(row[column])}


def _show(step: str, choice: Mapping[str, Any]) -> None:
    from convergio.workers.cli import look

    chosen = choice["speaker"] or "(the end)"
    asked = ", a model was asked" if choice["asked"] else ""
    margin = "" if choice["margin"] is None else f", ahead by {choice['margin']:.2f}"
    look.say(f"\n{step} {choice['turn']}: {chosen}", style="bold")
    look.say(f"{choice['policy']}: {choice['reason']}{margin}{asked}")
    if not choice["scores"]:
        return
    factors = list(dict.fromkeys(factor for values in choice["scores"].values() for factor in values))
    made = look.table("CANDIDATE", "TOTAL", *factors, right=("TOTAL", *factors))
    for name in sorted(choice["scores"], key=lambda name: -choice["totals"].get(name, 0.0)):
        values = choice["scores"][name]
        shown = [f"{values[factor]:.2f}" if factor in values else "" for factor in factors]
        total = choice["totals"].get(name)
        made.add_row(name or "(the end)", "" if total is None else f"{total:.2f}", *shown)
    look.show(made)


@click.command("savings")
@click.option("--run", help="Only the conversations of this run.")
@json_option
@with_session
def savings(session: Session, run: str | None, json_wanted: bool) -> int:
    """How many turns conversations took, by type, beside a round robin's: measured by `convergio bench selection`."""
    from convergio.tasks.conversation import kind, tuning

    one = None if run is None else session.ref(run).run
    found = kind.savings(session.archive.ended(session.settings.tenant, one), tuning.load().kinds)
    if json_wanted:
        click.echo(as_json([asdict(each) for each in found]))
        return exits.OK
    if not found:
        click.echo("no conversation has ended yet")
        return exits.OK
    from convergio.workers.cli import look

    right = ("CONVERSATIONS", "TURNS", "ROUND ROBIN", "SAVED")
    made = look.table("TYPE", "POLICY", *right, right=right)
    for each in found:
        measured = ("", "") if each.saved is None else (f"{each.baseline:.1f}", f"{each.saved:.0%}")
        made.add_row(each.type, each.policy, str(each.conversations), f"{each.turns:.1f}", *measured)
    look.show(made)
    return exits.OK
