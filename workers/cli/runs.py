"""`convergio runs`: list, show, watch, why, pause, resume, cancel, signal; `again` and `export` have the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from convergio.graphflow.model.workflow import StepKind
from convergio.workers.cli import again, exits, export, speakers
from convergio.workers.cli.menu import Group
from convergio.workers.cli.session import Session, as_json, with_session

if TYPE_CHECKING:
    from convergio.graphflow.engine.reason import RunView, StepView
    from convergio.graphflow.journal.rows import RunRow

json_option = click.option("--json", "json_wanted", is_flag=True, help="JSON on standard output.")


@click.group(cls=Group)
def runs() -> None:
    """List, show, explain, pause, cancel, signal, retry, fork runs. RUN is an id, or the beginning of just one."""


for one in (again.retry, again.fork, again.redrive, export.export, speakers.speakers, speakers.savings):
    runs.add_command(one)


@runs.command("list")
@click.option("--workflow", help="Only runs of this workflow.")
@click.option("--state", help="Only runs in this state: running, succeeded, failed ...")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(1, 1000), help="At most so many.")
@json_option
@with_session
def list_runs(session: Session, workflow: str | None, state: str | None, limit: int, json_wanted: bool) -> int:
    """The newest runs first."""
    rows = session.history.runs(session.settings.tenant, workflow=workflow, state=_state(state), limit=limit)
    if json_wanted:
        click.echo(as_json([_summary(row) for row in rows]))
        return exits.OK
    if not rows:
        click.echo("no runs; start one: convergio run market_entry")
        return exits.OK
    from convergio.graphflow.engine.reason import span
    from convergio.workers.cli import look

    table = look.table("RUN", "WORKFLOW", "STATE", "STARTED", "TOOK", right=("TOOK",))
    for row in rows:
        took = span(row.finished_ms - row.created_ms) if row.finished_ms else ""
        table.add_row(row.run_id, row.workflow, look.shown(row.state), look.moment(row.created_ms), took)
    look.show(table)
    return exits.OK


def _state(text: str | None) -> Any:
    from convergio.graphflow.flow.spelling import did_you_mean
    from convergio.graphflow.model.states import RunState

    if text is None:
        return None
    known = [state.lower() for state in RunState]
    if text.lower() not in known:
        hint = did_you_mean(text.lower(), known) or f"known: {', '.join(known)}"
        raise click.BadParameter(f"'{text}' is no state of a run; {hint}", param_hint="--state")
    return RunState(text.upper())


def _summary(row: RunRow) -> dict[str, Any]:
    return {
        "id": row.run_id,
        "workflow": row.workflow,
        "version": row.version,
        "state": row.state,
        "key": row.start_key,
        "submitter": row.submitter,
        "created_ms": row.created_ms,
        "started_ms": row.started_ms,
        "finished_ms": row.finished_ms,
        "error": row.error,
        "forked_from": row.forked_from,
    }


@runs.command("show")
@click.argument("run")
@json_option
@with_session
def show(session: Session, run: str, json_wanted: bool) -> int:
    """A run and its steps, as they are now."""
    from convergio.tasks.conversation import kind, pace, tuning

    view = session.inquiry.view(session.ref(run))
    talked = any(step.kind is StepKind.CONVERSATION for step in view.steps.values())
    paces: Sequence[Mapping[str, Any]] = ()
    ended: Sequence[Mapping[str, Any]] = ()
    if talked:
        paces = session.archive.paces(session.settings.tenant, view.id)
        ended = session.archive.ended(session.settings.tenant, view.id)
    tempos = pace.tempos(paces)
    saved = kind.savings(ended, tuning.load().kinds)
    if json_wanted:
        facts = {"conversations": [asdict(one) for one in tempos], "paces": paces}
        heard = {**facts, "savings": [asdict(one) for one in saved]} if talked else {}
        click.echo(as_json({**as_facts(view), **heard}))
        return exits.OK
    from convergio.graphflow.engine import reason
    from convergio.workers.cli import look, picture

    console = look.console()
    console.print(picture.heading(view))
    if origin := reason.of_origin(view):
        look.say(origin)
    look.show(picture.steps(view))
    for tempo in tempos:
        look.say(picture.tempo(tempo), style="dim")
    for one in saved:
        look.say(picture.savings(one), style="dim")
    if view.output is not None:
        look.say("\noutput", style="bold")
        click.echo(as_json(view.output))
    if view.error is not None:
        look.say(f"\n{view.error.get('code', '')}  {view.error.get('message', '')}", style="red")
    return exits.OK


def as_facts(view: RunView) -> dict[str, Any]:
    """A run's view as JSON can carry it."""
    return {
        "id": view.id,
        "workflow": view.workflow.name,
        "version": view.workflow.version,
        "state": view.state,
        "board": view.board,
        "submitter": view.submitter,
        "created_ms": view.created_ms,
        "started_ms": view.started_ms,
        "finished_ms": view.finished_ms,
        "output": view.output,
        "error": view.error,
        "forked_from": view.forked_from,
        "fork_kind": view.fork_kind,
        "fork_step": view.fork_step,
        "reused": view.reused,
        "parent_run": view.parent_run,
        "parent_step": view.parent_step,
        "steps": [_step_facts(step) for step in view.steps.values()],
    }


def _step_facts(step: StepView) -> dict[str, Any]:
    names = (
        "name",
        "kind",
        "does",
        "queue",
        "state",
        "on",
        "attempt",
        "worker",
        "tokens",
        "error",
        "reused_from",
        "child",
        "iteration",
    )
    times = ("since_ms", "due_ms", "started_ms", "finished_ms")
    facts = {name: getattr(step, name) for name in (*names, *times)}
    return facts if step.tally is None else {**facts, "tally": asdict(step.tally), "failures": list(step.failures)}


@runs.command("watch")
@click.argument("run")
@click.option(
    "--from", "after", default="", metavar="ID", help="Go on behind this event: the `id` of one, as in --json."
)
@click.option("--json", "json_wanted", is_flag=True, help="Every event as a line of JSON.")
@with_session
def watch(session: Session, run: str, after: str, json_wanted: bool) -> int:
    """Follow a run until it ends. Exit code 1 if it fails or is cancelled."""
    from convergio.workers.cli.follow import Follower, on_screen

    return on_screen(Follower(session, session.ref(run), as_json=json_wanted, after=after), run)


@runs.command("why")
@click.argument("run")
@click.argument("step", required=False)
@json_option
@with_session
def why(session: Session, run: str, step: str | None, json_wanted: bool) -> int:
    """Why a run, or one of its steps, is not running: one true sentence each."""
    from convergio.graphflow.engine import reason
    from convergio.graphflow.flow.spelling import did_you_mean
    from convergio.graphflow.model import errors
    from convergio.graphflow.model.states import TERMINAL_STEP, StepState
    from convergio.workers import rollcall

    view = session.inquiry.view(session.ref(run))
    if step is not None and step not in view.steps:
        hint = did_you_mean(step, view.steps) or f"its steps are {', '.join(view.steps)}"
        raise errors.UnknownStep(f"'{view.workflow.name}' has no step '{step}'", hint=hint)
    ready = any(one.state is StepState.READY for one in view.steps.values())
    serving = rollcall.queues(session.core.app) if ready else None
    over = TERMINAL_STEP - {StepState.FAILED, StepState.QUARANTINED}
    chosen = [one for one in view.steps.values() if (one.name == step if step else one.state not in over)]
    sentences = {one.name: reason.of_step(view, one, serving) for one in chosen}
    of_run = reason.of_run(view, serving)
    if json_wanted:
        click.echo(as_json({"run": view.id, "state": view.state, "why": of_run, "steps": sentences}))
        return exits.OK
    if step is None:
        click.echo(f"{view.workflow.name} {view.id}: {of_run}")
    for name, sentence in sentences.items():
        click.echo(f"{name} {sentence}" if step else f"  {name} {sentence}")
    return exits.OK


@runs.command("pause")
@click.argument("run")
@with_session
def pause(session: Session, run: str) -> int:
    """Start no further step of a run; what runs goes on to its end."""
    return _controlled(session.entrance.pause(session.ref(run), by=session.submitter), "is paused")


@runs.command("resume")
@click.argument("run")
@with_session
def resume(session: Session, run: str) -> int:
    """Let a paused run go on where it is."""
    return _controlled(session.entrance.resume(session.ref(run), by=session.submitter), "goes on")


def _controlled(row: RunRow, said: str) -> int:
    click.echo(f"run {row.run_id} {f'has ended as {row.state} before' if row.terminal else said}")
    return exits.OK


@runs.command("cancel")
@click.argument("run")
@click.option("--reason", default="", help="Kept with the run.")
@with_session
def cancel(session: Session, run: str, reason: str) -> int:
    """End a run: running steps are stopped, no new ones start."""
    row = session.entrance.cancel(session.ref(run), by=session.submitter, reason=reason)
    said = f"has ended as {row.state} before" if row.terminal else "is being cancelled"
    click.echo(f"run {row.run_id} {said}")
    return exits.OK


@runs.command("signal")
@click.argument("run")
@click.argument("name")
@click.option("--approve", "decision", flag_value="approve", help="Approve.")
@click.option("--reject", "decision", flag_value="reject", help="Reject.")
@click.option("--answer", type=click.Choice(["retry", "skip", "fail", "compensate"]), help="To a step that asks.")
@click.option("--reason", default="", help="Why; kept with the decision.")
@click.option("--data", default="", help="What the signal says: a JSON object.")
@with_session
def signal(
    session: Session, run: str, name: str, decision: str | None, answer: str | None, reason: str, data: str
) -> int:
    """Give an approval its decision, a failed step its answer, a waiting one its signal. NAME: the step, or signal."""
    from convergio.workers.cli.given import an_object

    facts = an_object(data, what="--data") if data else {}
    decision = decision or answer
    if decision is None and not data:
        raise click.UsageError("say --approve, --reject or --answer, or --data with what the signal says")
    facts |= {"decision": decision} if decision else {}
    facts |= {"reason": reason} if reason else {}
    ref = session.ref(run)
    session.entrance.signal(ref, name=name, data=facts, by=session.submitter)
    click.echo(f"run {ref.run}: {name} is told{': ' + str(facts['decision']) if 'decision' in facts else ''}")
    return exits.OK
