"""`convergio demo`: one business workflow, from its brief to its outcome, on this machine."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import click

from convergio.graphflow.model.workflow import StepKind
from convergio.workers.cli import exits
from convergio.workers.cli.menu import Command

if TYPE_CHECKING:
    from types import FrameType

    from convergio.config.settings import Settings
    from convergio.graphflow.model.workflow import Workflow
    from convergio.workers.cli.local import Brain
    from convergio.workers.cli.session import Session
    from convergio.workers.embedded.stack import Stack

DEFAULT = "market_entry"

BY: Final[Mapping[StepKind, tuple[str, str]]] = {
    StepKind.AGENT: ("an agent", "agents"),
    StepKind.CONVERSATION: ("a team that talks", "teams that talk"),
    StepKind.TASK: ("a function", "functions"),
    StepKind.APPROVAL: ("a person", "people"),
}
"""Who does steps of these kinds, if it is one, and if there are more."""


@click.command(cls=Command)
@click.option("--workflow", "-w", default=DEFAULT, show_default=True, help="A workflow that ships, or a YAML file.")
@click.option("--input", "-i", "given_input", help="A JSON or YAML file, JSON text, or - (default: the shipped brief).")
@click.option("--yes", is_flag=True, help="Approve what is asked: for CI.")
@click.option("--scripted", is_flag=True, help="The scripted model, whatever is installed or configured.")
def demo(workflow: str, given_input: str | None, yes: bool, scripted: bool) -> int:
    """A business workflow on real input: agents, data, an approval and a plan, each step a Celery task.

    It runs in a directory of its own, which is kept. `--home` chooses it.
    """
    from convergio.config import settings
    from convergio.workers.cli import local
    from convergio.workers.cli.session import Session

    if "CONVERGIO_HOME" not in os.environ:
        os.environ["CONVERGIO_HOME"] = tempfile.mkdtemp(prefix="convergio-demo-")
    # A demonstration never touches a Redis or a journal that happens to be configured.
    os.environ.update({"CONVERGIO_REDIS_URL": "", "CONVERGIO_JOURNAL_URL": ""})
    given = settings.load()
    show = _prepare(Session(given), workflow, given_input, local.brain(given, scripted=scripted))
    show.announce()
    with _interruptible(), _running(show) as stack:
        return _play(show, stack, yes=yes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """What will be played. Everything in it was checked before anything is started."""

    settings: Settings
    workflow: Workflow
    value: Any
    source: str
    brain: Brain

    def announce(self) -> None:
        """Says what will happen."""
        from convergio.workers.cli import look

        kinds = [step.kind for step in self.workflow.steps.values()]
        of = {kind: kinds.count(kind) for kind in BY if kind in kinds}
        said = [f"{count} by {BY[kind][count > 1]}" for kind, count in of.items()]
        look.say(f"{self.workflow.name}: {self.workflow.title or 'a workflow'}", style="bold")
        talks = StepKind.CONVERSATION in kinds
        task = "each one, and each turn of a team, is a Celery task" if talks else "each one is a Celery task"
        look.say(f"  {len(kinds)} steps: {', '.join(said)}; {task}")
        look.say(f"  input     {self.source}")
        look.say(f"  model     {self.brain.words}")
        look.say(f"  directory {self.settings.home.absolute()} (kept)")


def _prepare(session: Session, workflow: str, given_input: str | None, which: Brain) -> Show:
    from convergio.graphflow.flow import inputs
    from convergio.workers.cli import given
    from convergio.workers.cli.run import definition_of, shipped_brief

    definition = definition_of(session, workflow)
    source = given_input or shipped_brief(definition)
    value = given.value(source, what="--input")
    inputs.check_input(definition, value)
    return Show(settings=session.settings, workflow=definition, value=value, source=_short(source), brain=which)


def _short(source: str) -> str:
    return source if len(source) < 100 else f"{source[:60]} ..."


@contextmanager
def _running(show: Show) -> Generator[Stack]:
    """The stack, from the first process to the last."""
    from convergio.workers.cli import local, up
    from convergio.workers.embedded.stack import Stack

    programs = [local.service(show.brain.env), local.worker(show.settings, env=show.brain.env)]
    plan = local.plan(show.settings, show.brain, programs=programs)
    names = ["Valkey", "the journal (SQLite)", *(["the model"] if plan.model is not None else [])]
    click.echo(f"starting {', '.join(names)}, a service process and a worker ...")
    with Stack(plan, on_change=up.told) as stack:
        yield stack


def _play(show: Show, stack: Stack, *, yes: bool) -> int:
    from convergio.workers import boot
    from convergio.workers.cli.answers import Person, Yes
    from convergio.workers.cli.follow import Follower, patiently
    from convergio.workers.cli.report import report
    from convergio.workers.cli.run import submit
    from convergio.workers.cli.session import Session

    session = Session(boot.resolve(show.settings))
    try:
        row = patiently(lambda: submit(session, show.workflow, show.value, key=None))
        click.echo(f"run {row.run_id}")
        code = Follower(session, session.ref(row.run_id), answers=Yes() if yes else Person()).follow()
        report(session.inquiry.view(session.ref(row.run_id)), stack.directory)
        return code
    except KeyboardInterrupt:
        home = show.settings.home
        click.echo(f"\nstopping. Nothing is lost: `convergio up --home {home}` goes on with it", err=True)
        return exits.INTERRUPTED
    finally:
        session.close()


@contextmanager
def _interruptible() -> Generator[None]:
    """SIGTERM and SIGHUP end the demonstration as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {sign: signal.signal(sign, interrupt) for sign in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
