"""Following a run in a terminal until it ends, over killed workers, lost boards and rebuilds."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any, Final, Protocol

import click
from rich.live import Live

from convergio.graphflow.client.event import RESET, Event
from convergio.graphflow.client.feed import Feed
from convergio.graphflow.engine.reason import RunView, StepView
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import StepKind
from convergio.workers.cli import exits, look, picture
from convergio.workers.cli.session import Session
from convergio.workers.cli.talk import Talk

LOOK_EVERY: Final = 0.2
"""Least seconds between two looks at a run."""

LOOK_SHARE: Final = 10
"""Looking at a large run takes longer: it gets at most about one tenth of the time, ..."""

LOOK_RARELY: Final = 5.0
"""... and a person's answer, which is part of a look, does not count for more than this."""

DRAW_EVERY: Final = 0.1
"""Least seconds between two drawings of a table because something is said."""

TAIL: Final = 400
"""Characters of what is being said that are shown below a table."""

QUESTION_MS: Final = 500
"""How long a question may need to come to SQL, where it is read, before it is asked without its text."""

AWAY: Final = (errors.BoardUnavailable, errors.BoardRebuilding, errors.JournalUnavailable)


class Answers(Protocol):
    """Decides on an approval: the signal's data, or None to leave it to somebody else."""

    def decide(self, view: RunView, step: StepView) -> Mapping[str, Any] | None: ...


class Screen(Protocol):
    """Where a run is shown. `speaking`: an agent is in the middle of a line, which nothing may cut."""

    @property
    def speaking(self) -> bool: ...
    def show(self, view: RunView) -> None: ...
    def tell(self, event: Event) -> None: ...
    def pause(self) -> None: ...
    def close(self) -> None: ...


class Follower:
    """Reads the feed of one run, shows it, and has approvals answered."""

    def __init__(
        self,
        session: Session,
        ref: RunRef,
        *,
        as_json: bool = False,
        answers: Answers | None = None,
        shown: Screen | None = None,
        after: str = "",
    ) -> None:
        """`answers` None: approvals are left to others. `shown`: where, if not as anywhere else. `after`: the id of the
        event behind which to begin."""
        self._session = session
        self._ref = ref
        self._answers = answers
        self._screen = shown or screen(as_json=as_json)
        self.at = after
        """the id of the last event that was shown"""
        self._asked: set[str] = set()
        self._next_look = 0.0
        self.view: RunView | None = None
        """the run as it was seen last"""

    def follow(self) -> int:
        """Until the run ends. Returns the exit code: OK if it succeeded, else FAILED."""
        try:
            for event in self._feed().events(self.at):
                if event is None:
                    self._look(wait=True)
                    continue
                self._screen.tell(event)
                self.at = event.id
                if event.final:
                    self._look(wait=False)
                    return exits.OK if event.data["state"] == RunState.SUCCEEDED else exits.FAILED
        finally:
            self._screen.close()
        self._look(wait=False)  # there is nothing behind where it began: the run has ended
        ended = self._ended()
        return exits.OK if ended is not None and ended["state"] == RunState.SUCCEEDED else exits.FAILED

    def _feed(self) -> Feed:
        session, ref = self._session, self._ref
        recall = partial(session.archive.past, ref.tenant, ref.run)
        return Feed(session.core.link.client, ref, self._ended, recall=recall, prefix=session.settings.key_prefix)

    def _ended(self) -> Mapping[str, Any] | None:
        try:
            row = self._session.history.run(self._ref.tenant, self._ref.run)
        except errors.JournalUnavailable:
            return None
        if not row.terminal:
            return None
        return {"state": row.state.value, "output": row.output, "error": row.error}

    def _look(self, *, wait: bool) -> None:
        """Looks at the run and shows it: not too often, and never too rarely, since what happens meanwhile is kept."""
        if wait:
            time.sleep(max(0.0, self._next_look - time.monotonic()))
        began = time.monotonic()
        with suppress(*AWAY):
            self.view = self._session.inquiry.view(self._ref)
            self._screen.show(self.view)
            self._decide(self.view)
        now = time.monotonic()
        self._next_look = now + max(LOOK_EVERY, min(LOOK_SHARE * (now - began), LOOK_RARELY))

    def _decide(self, view: RunView) -> None:
        if self._screen.speaking:
            return  # it is asked when the line has ended
        for step in view.steps.values():
            asks = step.asks_people or (step.kind is StepKind.APPROVAL and step.on is BlockedOn.SIGNAL)
            if not asks or step.label in self._asked or self._answers is None:
                continue
            if not step.note and view.now_ms - (step.since_ms or 0) < QUESTION_MS:
                continue
            self._screen.pause()
            data = self._answers.decide(view, step)
            self._asked.add(step.label)
            if data is not None:
                self._signal(step.name, data)

    def _signal(self, name: str, data: Mapping[str, Any]) -> None:
        """Gives the decision; as often as it takes, under one id, while a store is away."""
        from convergio.graphflow.model import ids

        signal_id = ids.new_run_id()
        entrance, by = self._session.entrance, self._session.submitter
        patiently(lambda: entrance.signal(self._ref, name=name, data=dict(data), by=by, signal_id=signal_id))


def on_screen(follower: Follower, run: str) -> int:
    """Follows, and says how to go on where somebody stopped it."""
    try:
        return follower.follow()
    except KeyboardInterrupt:
        if follower.at:
            click.echo(f"\ngo on with: convergio runs watch {run} --from {follower.at}", err=True)
        raise


def patiently(action: Callable[[], Any], *, seconds: float = 60.0, pause: float = 0.25) -> Any:
    """The action's result; tried again while Redis or SQL are away, for so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except AWAY:
            if time.monotonic() > deadline:
                raise
            time.sleep(pause)


def screen(*, as_json: bool) -> Screen:
    """JSON lines, a live table on a terminal, else plain lines."""
    if as_json:
        return JsonLines()
    return LiveTable() if look.console().is_terminal else Lines()


class JsonLines:
    """Every event as a line of JSON."""

    speaking = False

    def show(self, view: RunView) -> None:
        """Nothing: the events say it all."""

    def tell(self, event: Event) -> None:
        """One line."""
        click.echo(json.dumps(asdict(event), ensure_ascii=False))

    def pause(self) -> None:
        """Nothing to pause."""

    def close(self) -> None:
        """Nothing to end."""


class LiveTable:
    """A table that is drawn anew."""

    speaking = False

    def __init__(self) -> None:
        self._live: Live | None = None
        self._talk = Talk(self._print)
        self._view: RunView | None = None
        self._drawn = 0.0

    def show(self, view: RunView) -> None:
        """Draws the run, and below it what is being said."""
        if self._live is None:
            self._live = Live(console=look.console(), auto_refresh=False, vertical_overflow="visible")
            self._live.start()
        self._view, self._drawn = view, time.monotonic()
        self._live.update(picture.live(view, saying=self._talk.tail[-TAIL:]), refresh=True)

    def tell(self, event: Event) -> None:
        """Says above the table what the table cannot say: whole messages. Until it is whole, a message grows below."""
        if event.type == RESET:
            self._print(rebuilt(event))
        self._talk.tell(event)
        if self._live is not None and self._view is not None and time.monotonic() > self._drawn + DRAW_EVERY:
            self.show(self._view)

    def pause(self) -> None:
        """Leaves the table as it is, for a question below it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def close(self) -> None:
        """Leaves the last table on the screen."""
        self.pause()

    def _print(self, line: str) -> None:
        (self._live.console if self._live is not None else look.console()).print(line)


class Lines:
    """A line per change: for logs, pipes and CI."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[StepState, BlockedOn | None, int]] = {}
        """by the step and, if it is in a loop, its round"""
        self._talk = Talk(click.echo, piece=lambda text: click.echo(text, nl=False))

    @property
    def speaking(self) -> bool:
        return self._talk.open

    def show(self, view: RunView) -> None:
        """A line for every step that is not where it was; not in the middle of what an agent says."""
        if self.speaking:
            return
        for step in view.steps.values():
            now = (step.state, step.on, step.attempt)
            if _talks_on(step):
                continue
            named = picture.named(step)
            before = self._seen.get(named, (StepState.WAITING, None, 1))
            if now != before and step.on is not BlockedOn.JOURNAL:
                self._seen[named] = now
                click.echo(line_of(view, step))

    def tell(self, event: Event) -> None:
        """Says what no step says."""
        if event.type == RESET:
            click.echo(rebuilt(event))
        self._talk.tell(event)

    def pause(self) -> None:
        """Nothing to pause."""

    def close(self) -> None:
        """Nothing to end."""


def _talks_on(step: StepView) -> bool:
    """Whether it is a turn of a conversation that others came before: that it goes on can be heard."""
    return (
        step.kind is StepKind.CONVERSATION and step.iteration > 0 and step.state in (StepState.READY, StepState.RUNNING)
    )


def line_of(view: RunView, step: StepView) -> str:
    """`  12 s  ● market_research succeeded   domik  4.1 s  213 tokens`"""
    at = (step.finished_ms if step.state in (StepState.SUCCEEDED, StepState.FAILED) else step.since_ms) or view.now_ms
    at = at if step.reused_from is None else view.created_ms  # it ended long before this run began
    look_of = look.LOOKS[step.state]
    word = look.word_of(step.state, step.on).removeprefix(f"{look_of.icon} ")
    parts = [f"{(at - view.created_ms) / 1000:7.1f} s  {look_of.icon} {picture.named(step)} {word}", step.does]
    if step.state not in (StepState.READY, StepState.RUNNING, StepState.BLOCKED):
        parts += [picture.took(view, step), f"{step.tokens} tokens" if step.tokens else ""]
    parts.append(picture.note(view, step))
    return "  ".join(part for part in parts if part)


def rebuilt(event: Event) -> str:
    """What a reader of the screen is told of a new epoch."""
    return f"the board was lost: it is made anew from the journal (epoch {event.data['epoch']}), and the run goes on"
