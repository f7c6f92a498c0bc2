"""Why a step is not running, in one true sentence. Pure: a view of the run in, text out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from convergio.graphflow.model import instance
from convergio.graphflow.model.states import TERMINAL_RUN, TERMINAL_STEP, BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import StepKind, Workflow

Serving = Mapping[str, Collection[str]]
"""Workers by the queue they serve."""

QUEUED_LONG_MS: Final = 2_000
"""A doorbell that waits longer than this, with nobody to answer it, is worth a warning."""


RETRIED: Final = (RunState.FAILED, RunState.CANCELLED)
"""Runs that can be retried."""

_WAITS: Final[Mapping[BlockedOn, str]] = {
    BlockedOn.SIGNAL: " on a decision",
    BlockedOn.RETRY: " until its retry",
    BlockedOn.HOOK: " by a hook",
    BlockedOn.TIMER: " until its time",
    BlockedOn.JOURNAL: " on the journal",
    BlockedOn.ITEMS: " on its items",
}


@dataclass(frozen=True, slots=True)
class Tally:
    """How far a map is: `items` in all, of these `done`, and of those `good`; `active` are ready, run, or wait."""

    items: int
    done: int = 0
    good: int = 0
    active: int = 0

    def __str__(self) -> str:
        failed = f", {self.done - self.good} failed" if self.done > self.good else ""
        at_work = f", {self.active} at work" if self.active else ""
        return f"{self.done} of {self.items} items done{failed}{at_work}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """One step as it is now. Times in milliseconds of the board's clock; None = not known, or not the case.

    `since_ms`: when it came into this state; `due_ms`: when its retry, or its hook's time, is due; `held_ms`: until
    when it is held, after a rebuild or because a worker declined it; `parked`: the outcome that waits for SQL; `ahead`:
    messages in its queue; `awaits`: what goes on elsewhere that its body waits for; `missing`: what a worker lacked.
    `reused_from`: the run in which it ended, if this one only has its outcome. `iteration`: the round of its loop, the
    last one that began; `tally`: how far it is, if it is a map.
    """

    name: str
    kind: StepKind
    does: str
    queue: str
    state: StepState
    needs: tuple[str, ...] = ()
    attempt: int = 1
    attempts: int = 1
    deliveries: int = 0
    on: BlockedOn | None = None
    parked: StepState | None = None
    since_ms: int | None = None
    due_ms: int | None = None
    held_ms: int | None = None
    ahead: int | None = None
    worker: str | None = None
    error: Mapping[str, Any] | None = None
    note: str = ""
    awaits: str = ""
    missing: str = ""
    started_ms: int | None = None
    finished_ms: int | None = None
    tokens: int = 0
    reused_from: str | None = None
    iteration: int = 0
    tally: Tally | None = None

    @property
    def label(self) -> str:
        """Its name, and from the second round of its loop on which one it is: `draft#2`."""
        return instance.named(self.name, self.iteration)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run as it is now. `board`: "live", "left" (it ended), "absent" (not started yet), "away" or "rebuilding".

    `stopping`: the state it is being ended with. `inbox_ms`: since when decisions wait. `lag`: events not in SQL yet.
    `forked_from`: the run it was made from, by a retry, a redrive or a fork (`fork_kind`), which named `fork_step`.
    `paused_ms`, `paused_by`: since when somebody wants it to be paused; `state` says whether it is.
    """

    id: str
    tenant: str
    submitter: str
    workflow: Workflow
    state: RunState
    board: str
    now_ms: int
    created_ms: int
    started_ms: int | None = None
    finished_ms: int | None = None
    stopping: RunState | None = None
    inbox_ms: int | None = None
    lag: int = 0
    output: Any = None
    error: Mapping[str, Any] | None = None
    cancel_reason: str | None = None
    forked_from: str | None = None
    fork_kind: str | None = None
    fork_step: str | None = None
    paused_ms: int | None = None
    paused_by: str | None = None
    steps: Mapping[str, StepView] = field(default_factory=dict[str, StepView])

    @property
    def reused(self) -> int:
        """How many steps it has from the run it was made from."""
        return sum(1 for step in self.steps.values() if step.reused_from is not None)


def span(ms: float) -> str:
    """A length of time for people: `0.4 s`, `42 s`, `3 min 10 s`, `2 h 5 min`, `3 d 4 h`."""
    seconds = max(0.0, ms / 1000)
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {below}"
    return f"{whole} s"


def of_origin(view: RunView) -> str:
    """What the run has from another one: `fork of RUN from STEP: 3 of 6 steps reused`; "" for one that began anew."""
    if view.forked_from is None:
        return ""
    begins = f" from {view.fork_step}" if view.fork_step is not None else ""
    return f"{view.fork_kind} of {view.forked_from}{begins}: {view.reused} of {len(view.steps)} steps reused"


def of_run(view: RunView, serving: Serving | None = None) -> str:
    """One sentence on the run itself."""
    if view.state in TERMINAL_RUN:
        took = f" after {span(view.finished_ms - view.created_ms)}" if view.finished_ms else ""
        return f"the run ended as {view.state}{took}{_because(view.error)}"
    if view.board != "live":
        return _off_board(view)
    if view.stopping is not None:
        return f"the run is being ended as {view.stopping}: no step starts any more"
    if view.state is RunState.PAUSED:
        return _paused(view)
    if view.inbox_ms is not None and view.now_ms - view.inbox_ms > QUEUED_LONG_MS:
        return f"decisions wait in its inbox for {span(view.now_ms - view.inbox_ms)}: the service process makes them"
    return _at_work(view, serving)


def _paused(view: RunView) -> str:
    since = "" if view.paused_ms is None else f" for {span(view.now_ms - view.paused_ms)}"
    by = f" by {view.paused_by}" if view.paused_by else ""
    running = [step.name for step in view.steps.values() if step.state is StepState.RUNNING]
    still = f"; {_listed(running)} still {'runs' if len(running) == 1 else 'run'}" if running else ""
    return f"the run is paused{since}{by}{still}. Let it go on: convergio runs resume {view.id}"


def _off_board(view: RunView) -> str:
    match view.board:
        case "away":
            return "Redis does not answer: what the run does now cannot be seen, and nothing of it is lost"
        case "rebuilding":
            return "the board is being made anew from the journal; the run goes on when that is done"
        case _:
            waited = span(view.now_ms - view.created_ms)
            return f"accepted {waited} ago and not on the board yet: the service process starts it within some 10 s"


def _at_work(view: RunView, serving: Serving | None) -> str:
    running = [step.label for step in view.steps.values() if step.state is StepState.RUNNING]
    if running:
        return f"{_listed(running)} {'runs' if len(running) == 1 else 'run'} now"
    waiting = [step for step in view.steps.values() if step.state in (StepState.BLOCKED, StepState.READY)]
    if waiting:
        return f"{waiting[0].label} {of_step(view, waiting[0], serving)}"
    return "no step is running or ready: the service process looks for what is missing twice a second"


def of_step(view: RunView, step: StepView, serving: Serving | None = None) -> str:
    """One sentence on a step; it reads on from the step's name."""
    match step.state:
        case StepState.WAITING:
            return _waiting(view, step)
        case StepState.READY:
            return _ready(view, step, serving)
        case StepState.RUNNING:
            return _running(view, step)
        case StepState.BLOCKED:
            return _blocked(view, step)
        case _:
            return _ended(view, step)


def _waiting(view: RunView, step: StepView) -> str:
    if view.state in TERMINAL_RUN:
        return f"never started: the run ended as {view.state} before"
    if view.stopping is not None:
        return f"will not start: the run is being ended as {view.stopping}"
    open_needs = [view.steps[name] for name in step.needs if view.steps[name].state not in TERMINAL_STEP]
    if open_needs:
        return f"waits for {_listed([f'{need.name} ({_word(need)})' for need in open_needs])}"
    if view.board != "live":
        return "waits until its run is on the board"
    return "has all it needs: the decision to start it is in the run's inbox"


def _ready(view: RunView, step: StepView, serving: Serving | None) -> str:
    if view.state is RunState.PAUSED:
        return f"is ready, and starts when its run goes on: convergio runs resume {view.id}"
    if step.held_ms is not None and step.missing:
        start = f"Start one that knows it: convergio worker -Q {step.queue} --include MODULE"
        return f"is ready: NO_WORKER, {step.missing}; asked again in {span(step.held_ms - view.now_ms)}. {start}"
    if step.held_ms is not None:
        left = span(step.held_ms - view.now_ms)
        return f"is held for {left} after a rebuild: the worker that ran it may still have it, else it is rung again"
    waited = "" if step.since_ms is None else f" for {span(view.now_ms - step.since_ms)}"
    if serving is not None and step.queue not in serving:
        start = f"Start one: convergio worker -Q {step.queue}"
        return f"is ready{waited}: NO_WORKER, no worker serves queue '{step.queue}'. {start}"
    ahead = "" if step.ahead is None else f" with {step.ahead} messages"
    who = "" if serving is None else f", served by {_listed(sorted(serving[step.queue]))}"
    return f"is queued{waited} in '{step.queue}'{ahead}{who}"


def _running(view: RunView, step: StepView) -> str:
    where = f" on {step.worker}" if step.worker else ""
    since = f" for {span(view.now_ms - step.since_ms)}" if step.since_ms is not None else ""
    lost = f"; {step.deliveries} workers lost it before" if step.deliveries else ""
    return f"runs{where}{since}{_attempt(step)}{lost}"


def _blocked(view: RunView, step: StepView) -> str:
    since = span(view.now_ms - (step.since_ms or view.now_ms))
    due = "soon" if step.due_ms is None else f"in {span(step.due_ms - view.now_ms)}"
    match step.on:
        case BlockedOn.TIMER:
            return f"waits {step.does}: goes on {due}"
        case BlockedOn.SIGNAL if step.kind is StepKind.WAIT:
            until = "" if step.due_ms is None else f"; fails {due} without it"
            return f"waits for {step.does} since {since}{until}"
        case BlockedOn.SIGNAL:
            how = f"convergio runs signal {view.id} {step.name} --approve (or --reject)"
            return f"waits for a decision since {since}. Give it: {how}"
        case BlockedOn.RETRY:
            return f"is tried again {due}{_attempt(step)}{_because(step.error)}"
        case BlockedOn.HOOK | BlockedOn.ITEMS:
            return _deferred(step, due) if step.tally is None else f"works on its list since {since}: {step.tally}"
        case _:
            behind = f"; {view.lag} events are ahead of it or with it" if view.lag else ""
            return f"has ended as {step.parked} {since} ago and waits until the journal (SQL) has that{behind}"


def _deferred(step: StepView, due: str) -> str:
    if step.awaits:
        return f"waits for {step.awaits}, and looks again {due}"
    return f"is asked again {due}: a pre-run hook deferred it{f' ({step.note})' if step.note else ''}"


def _ended(view: RunView, step: StepView) -> str:
    took = ""
    if step.started_ms is not None and step.finished_ms is not None:
        took = f" after {span(step.finished_ms - step.started_ms)}"
    if step.state is StepState.SKIPPED:
        needs = [view.steps[name] for name in step.needs]
        if needs and all(need.state is StepState.SKIPPED for need in needs):
            return f"was skipped: so {'was' if len(needs) == 1 else 'were'} {_listed([need.name for need in needs])}"
        return "was skipped: its condition did not hold"
    if step.state is StepState.CANCELLED:
        return f"was cancelled: the run was ended{f' ({view.cancel_reason})' if view.cancel_reason else ''}"
    if step.state is StepState.QUARANTINED:
        again = f". Try again: convergio runs retry {view.id}" if view.state in RETRIED else ""
        return f"is in quarantine{_because(step.error)}{again}"
    where = f" in run {step.reused_from}, and is not run again" if step.reused_from is not None else ""
    return f"ended as {step.state}{took}{where}{_because(step.error)}"


def _word(step: StepView) -> str:
    return step.state.lower() + ("" if step.on is None else _WAITS.get(step.on, ""))


def _attempt(step: StepView) -> str:
    return f" (attempt {step.attempt} of {step.attempts})" if step.attempts > 1 else ""


def _because(error: Mapping[str, Any] | None) -> str:
    if not error:
        return ""
    said = " ".join(str(error[name]) for name in ("code", "step", "message") if error.get(name))
    return f": {said}"


def _listed(names: Collection[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
