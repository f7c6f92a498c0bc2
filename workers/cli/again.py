"""`convergio runs retry`, `fork` and `redrive`: a new run does again what failed, or what somebody wants otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from convergio.workers.cli import exits
from convergio.workers.cli.menu import Command
from convergio.workers.cli.session import Session, as_json, with_session

if TYPE_CHECKING:
    from convergio.graphflow.engine.fork import Fork, Forked
    from convergio.graphflow.journal.rows import RunRow

json_option = click.option("--json", "json_wanted", is_flag=True, help="JSON on standard output.")
key_option = click.option("--key", help="The same key means the same new run: a repeated call starts nothing more.")


@click.command("retry", cls=Command)
@click.argument("run")
@key_option
@json_option
@with_session
def retry(session: Session, run: str, key: str | None, json_wanted: bool) -> int:
    """Start a new run that does again what failed or was cancelled in RUN, and reuses what succeeded."""
    from convergio.graphflow.engine.fork import Fork
    from convergio.graphflow.journal.rows import ForkKind

    wanted = Fork(ref=session.ref(run), submitter=session.submitter, kind=ForkKind.RETRY, key=key)
    return _told(session.entrance.fork(wanted), wanted, json_wanted=json_wanted)


@click.command("fork", cls=Command)
@click.argument("run")
@click.option("--from", "step", metavar="STEP", help="Begin with this step: it and what follows from it run again.")
@click.option("--input", "-i", "given_input", help="Another input: a JSON or YAML file, JSON text, or - for stdin.")
@click.option("--workflow", "definition", metavar="FILE", help="An edited definition; what did not change is reused.")
@key_option
@json_option
@with_session
def fork(
    session: Session,
    run: str,
    step: str | None,
    given_input: str | None,
    definition: str | None,
    key: str | None,
    json_wanted: bool,
) -> int:
    """Start a new run that reuses what still holds of RUN."""
    from convergio.graphflow.engine.fork import UNCHANGED, Fork
    from convergio.workers.cli import given
    from convergio.workers.cli.run import definition_of

    wanted = Fork(
        ref=session.ref(run),
        submitter=session.submitter,
        step=step,
        input=UNCHANGED if given_input is None else given.value(given_input, what="--input"),
        definition=None if definition is None else definition_of(session, definition),
        key=key,
    )
    return _told(session.entrance.fork(wanted), wanted, json_wanted=json_wanted)


def _told(made: Forked, wanted: Fork, *, json_wanted: bool) -> int:
    if json_wanted:
        click.echo(as_json(_facts(made)))
        return exits.OK
    click.echo(made.run.run_id)
    said = f"{wanted.kind} of {wanted.ref.run}: {made.reused} of {made.steps} steps reused"
    click.echo(said if made.created else f"{wanted.kind} of {wanted.ref.run}: started before by this key", err=True)
    return exits.OK


def _facts(made: Forked) -> Mapping[str, Any]:
    row = made.run
    names = ("workflow", "state", "forked_from", "fork_kind", "fork_step")
    facts = {"id": row.run_id, **{name: getattr(row, name) for name in names}}
    return {**facts, "created": made.created, "reused": made.reused, "steps": made.steps}


# --- many runs --------------------------------------------------------------------------------------------------------


@click.command("redrive", cls=Command)
@click.option("--workflow", required=True, help="Only runs of this workflow.")
@click.option("--state", type=click.Choice(["failed", "cancelled"]), default="failed", show_default=True)
@click.option("--quarantined", is_flag=True, help="Only runs with a step in quarantine.")
@click.option("--since", help="Only runs that ended since then: 2h, 1d, or 2026-11-23T08:00.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 10_000), help="At most so many.")
@click.option("--dry-run", is_flag=True, help="Only list what would be retried.")
@json_option
@with_session
def redrive(
    session: Session,
    workflow: str,
    state: str,
    quarantined: bool,
    since: str | None,
    limit: int,
    dry_run: bool,
    json_wanted: bool,
) -> int:
    """Retry many runs: those that ended badly and that nobody has retried yet. Exit code 1 if one is refused."""
    from convergio.graphflow.model.states import RunState

    rows = session.history.untried(
        session.settings.tenant,
        state=RunState(state.upper()),
        workflow=workflow,
        since_ms=0 if since is None else _moment(since),
        quarantined=quarantined,
        limit=limit,
    )
    found = [{"run": row.run_id, "error": row.error} if dry_run else _redriven(session, row) for row in rows]
    if json_wanted:
        click.echo(as_json(found))
    else:
        _list(found, dry_run=dry_run)
    return exits.FAILED if any("refused" in one for one in found) else exits.OK


def _redriven(session: Session, row: RunRow) -> dict[str, Any]:
    """What became of one run. Raises what concerns all of them: a store that is away."""
    from convergio.graphflow.engine.fork import Fork
    from convergio.graphflow.journal.rows import ForkKind
    from convergio.graphflow.model import errors
    from convergio.graphflow.model.ids import RunRef

    ref = RunRef(tenant=row.tenant, run=row.run_id)
    # The key makes it once: two who redrive at the same time find the same runs.
    key = f"redrive:{row.run_id}"
    try:
        made = session.entrance.fork(Fork(ref=ref, submitter=session.submitter, kind=ForkKind.REDRIVE, key=key))
    except errors.ConvergioError as error:
        if error.retryable:
            raise
        return {"run": row.run_id, "refused": error.as_dict()}
    return {"run": row.run_id, "new": made.run.run_id, "reused": made.reused, "steps": made.steps}


def _list(found: list[dict[str, Any]], *, dry_run: bool) -> None:
    for one in found:
        problem: Mapping[str, Any] = one.get("refused") or one.get("error") or {}
        if "new" in one:
            click.echo(f"{one['run']}  retried as {one['new']}, {one['reused']} of {one['steps']} steps reused")
        else:
            did = "would be retried: it ended with" if dry_run else "refused:"
            click.echo(f"{one['run']}  {did} {problem.get('code', '')} {problem.get('message', '')}".rstrip())
    refused = sum(1 for one in found if "refused" in one)
    did = "would be retried" if dry_run else f"retried, {refused} refused"
    click.echo(f"{len(found) - refused} runs {did}")


def _moment(text: str) -> int:
    """A length of time before now, or a date, in ms since 1970. Raises click.BadParameter."""
    from convergio.graphflow.flow import durations

    now = datetime.now().astimezone()
    try:
        return round((now.timestamp() - durations.seconds(text)) * 1000)
    except ValueError:
        pass
    try:
        return round(datetime.fromisoformat(text).astimezone().timestamp() * 1000)
    except ValueError:
        hint = "write a length of time (2h, 1d) or a date (2026-11-23T08:00)"
        raise click.BadParameter(f"'{text}' is no time; {hint}", param_hint="--since") from None
