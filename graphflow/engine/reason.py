"""Why a step is not running, in one true sentence. Pure: a view of the run in, text out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from convergio.graphflow.model import instance
from convergio.graphflow.model.states import TERMINAL_RUN, TERMINAL_STEP, BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import DEFAULT_PRIORITY, UNDO, StepKind, Workflow

Serving = Mapping[str, Collection[str]]
"""Workers by the queue they serve."""

QUEUED_LONG_MS: Final = 2_000
"""A doorbell that waits longer than this, with nobody to answer it, is worth a warning."""


RETRIED: Final = (RunState.FAILED, RunState.CANCELLED)
"""Runs that can be retried."""

JOURNAL: Final = "JOURNAL, "
"""Begins what a worker lacked where that was a journal that keeps up."""

_WAITS: Final[Mapping[BlockedOn, str]] = {
    BlockedOn.SIGNAL: " on a decision",
    BlockedOn.RETRY: " until its retry",
    BlockedOn.HOOK: " by a hook",
    BlockedOn.TIMER: " until its time",
    BlockedOn.JOURNAL: " on the journal",
    BlockedOn.LIMIT: " for its turn",
    BlockedOn.CHILD: " on its run",
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
class Turn:
    """A concurrency key that a step waits for: how many steps may have it, some of those that do (run/step), and how
    many wait before this one; None: it does not wait in line."""

    key: str
    limit: int
    holders: tuple[str, ...]
    held: int
    before: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """One step as it is now. Times in milliseconds of the board's clock; None = not known, or not the case.

    `since_ms`: when it came into this state; `due_ms`: when its retry, or its hook's time, is due; `held_ms`: until
    when it is held, after a rebuild or because a worker declined it; `parked`: the outcome that waits for SQL; `ahead`:
    messages in its queue, up to those of its `priority`; `awaits`: what goes on elsewhere that its body waits for;
    `missing`: what a worker lacked. `reused_from`: the run in which it ended, if this one only has its outcome.
    `limit`: of its concurrency key. `cached_from`: run/step whose outcome it has, because the call was the same.
    `child`: the run that it is, if it is of that kind, and `child_state` how that one is, as SQL knows it.
    `iteration`: the round of its loop, the last one that began; `tally`: how far it is, if it is a map; `failures`:
    which items failed first, and why.
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
    asks_people: bool = False
    awaits: str = ""
    missing: str = ""
    started_ms: int | None = None
    finished_ms: int | None = None
    tokens: int = 0
    reused_from: str | None = None
    priority: str = DEFAULT_PRIORITY
    cached_from: str | None = None
    limit: int | None = None
    turn: Turn | None = None
    child: str | None = None
    child_state: RunState | None = None
    iteration: int = 0
    tally: Tally | None = None
    failures: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its name, and from the second round of its loop on which one it is: `draft#2`."""
        return instance.named(self.name, self.iteration)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """A run as it is now. `board`: "live", "left" (it ended), "absent" (not started yet), "away" or "rebuilding".

    `stopping`: the state it is being ended with. `inbox_ms`: since when decisions wait. `lag`: events not in SQL yet.
    `forked_from`: the run it was made from, by a retry, a redrive or a fork (`fork_kind`), which named `fork_step`.
    `paused_ms`, `paused_by`: since when somebody wants it to be paused; `state` says whether it is. `parent_run`,
    `parent_step`: the step that it is for.
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
    parent_run: str | None = None
    parent_step: str | None = None
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
    """What the run has from another one: `fork of RUN from STEP: 3 of 6 steps reused`; of a child for whom it is; ""
    for one that began anew, by itself."""
    if view.parent_run is not None:
        return f"child of {view.parent_run}, for its step {view.parent_step}"
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
    running = [step.label for step in view.steps.values() if step.state is StepState.RUNNING]
    still = f"; {_listed(running)} still {'runs' if len(running) == 1 else 'run'}" if running else ""
    return f"the run is paused{since}{by}{still}. Let it go on: convergio runs resume {view.id}"


def _undoing(view: RunView, serving: Serving | None) -> str:
    at_work = [step for step in view.steps.values() if step.name.startswith(UNDO) and step.state not in TERMINAL_STEP]
    now = f"{at_work[0].name} {of_step(view, at_work[0], serving)}" if at_work else "that begins when SQL knows of it"
    return f"the run undoes what it did before it ends: {now}"


def _off_board(view: RunView) -> str:
    match view.board:
        case "away":
            return "Redis does not answer: what the run does now cannot be seen, and nothing of it is lost"
        case "rebuilding":
            return "the board is being made anew from the journal; the run goes on when that is done"
        case _ if view.state is not RunState.ACCEPTED:
            told = "this version of the engine could not read it when the board was made anew, and its log says why"
            return f"the run is {view.state} and not on the board: {told}. Once that is mended: convergio rebuild"
        case _:
            waited = span(view.now_ms - view.created_ms)
            return f"accepted {waited} ago and not on the board yet: the service process starts it within some 10 s"


def _at_work(view: RunView, serving: Serving | None) -> str:
    if view.state is RunState.COMPENSATING:
        return _undoing(view, serving)
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
    if view.state is RunState.COMPENSATING:
        return "will not start: the run undoes what it did"
    open_needs = [view.steps[name] for name in step.needs if view.steps[name].state not in TERMINAL_STEP]
    if open_needs:
        return f"waits for {_listed([f'{need.name} ({_word(need)})' for need in open_needs])}"
    if view.board != "live":
        return "waits until its run is on the board"
    return "has all it needs: the decision to start it is in the run's inbox"


def _ready(view: RunView, step: StepView, serving: Serving | None) -> str:
    if view.state is RunState.PAUSED:
        return f"is ready, and starts when its run goes on: convergio runs resume {view.id}"
    if step.held_ms is not None and step.missing.startswith(JOURNAL):
        return f"is ready: {step.missing}; it starts when that has caught up"
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
    urgency = "" if step.priority == DEFAULT_PRIORITY else f" at priority {step.priority}"
    return f"is queued{waited} in '{step.queue}'{urgency}{ahead}{who}"


def _running(view: RunView, step: StepView) -> str:
    where = f" on {step.worker}" if step.worker else ""
    since = f" for {span(view.now_ms - step.since_ms)}" if step.since_ms is not None else ""
    lost = f"; {step.deliveries} workers lost it before" if step.deliveries else ""
    return f"runs{where}{since}{_attempt(step)}{lost}"


def _blocked(view: RunView, step: StepView) -> str:
    since = span(view.now_ms - (step.since_ms or view.now_ms))
    if step.on is BlockedOn.LIMIT:
        return _in_line(view, step, since)
    return _waits_on(view, step, since)


def _waits_on(view: RunView, step: StepView, since: str) -> str:
    due = "soon" if step.due_ms is None else f"in {span(step.due_ms - view.now_ms)}"
    match step.on:
        case BlockedOn.TIMER:
            return f"waits {step.does}: goes on {due}"
        case BlockedOn.SIGNAL:
            return _for_signal(view, step, since, due)
        case BlockedOn.CHILD:
            return _for_child(view, step, since)
        case BlockedOn.RETRY | BlockedOn.HOOK:
            return _deferred(step, due)
        case BlockedOn.ITEMS:
            return f"works on its list since {since}: {step.tally}{_failures(step)}"
        case _:
            behind = f"; {view.lag} events are ahead of it or with it" if view.lag else ""
            return f"has ended as {step.parked} {since} ago and waits until the journal (SQL) has that{behind}"


def _in_line(view: RunView, step: StepView, since: str) -> str:
    if view.state is RunState.PAUSED:
        return f"waits for its turn, and asks for it when its run goes on: convergio runs resume {view.id}"
    turn = step.turn
    if turn is None:
        return f"waits for its turn since {since}: LIMIT"
    said = f"waits since {since}: LIMIT, {turn.limit} at once may have concurrency key '{turn.key}'"
    more = f" and {turn.held - len(turn.holders)} more" if turn.held > len(turn.holders) else ""
    who = f"{', '.join(turn.holders)}{more}" if turn.holders else "nobody"
    place = "" if turn.before is None else f"; {turn.before} are before it"
    return f"{said}; held by {who}{place}"


def _for_signal(view: RunView, step: StepView, since: str, due: str) -> str:
    told = f"convergio runs signal {view.id} {step.name}"
    match step.kind:
        case StepKind.WAIT:
            until = "" if step.due_ms is None else f"; fails {due} without it"
            return f"waits for {step.does} since {since}{until}"
        case StepKind.APPROVAL:
            return f"waits for a decision since {since}. Give it: {told} --approve (or --reject)"
        case StepKind.CONVERSATION if step.asks_people:
            asked = f" ({step.note})" if step.note else ""
            return f"waits since {since} for somebody's words{asked}. Say them: convergio chat --resume {view.id} TEXT"
        case _:
            answers = f"{told} --answer retry (or skip, fail{_or_undo(view)})"
            return f"has failed, and asks what to do since {since}{_because(step.error)}. Say it: {answers}"


def _or_undo(view: RunView) -> str:
    return ", compensate" if any(step.compensate is not None for step in view.workflow.steps.values()) else ""


def _for_child(view: RunView, step: StepView, since: str) -> str:
    until = "" if step.due_ms is None else f"; it is cancelled in {span(step.due_ms - view.now_ms)}"
    if step.child is None:
        held = f" when this run goes on: convergio runs resume {view.id}" if view.state is RunState.PAUSED else ""
        return f"is about to start a run of '{step.does}'{held or ', as soon as SQL knows that it is wanted'}"
    how = f"{step.child_state.lower()}; convergio runs why {step.child}" if step.child_state else ""
    return f"waits since {since} for run {step.child} of '{step.does}' ({how}){_attempt(step)}{until}"


def _deferred(step: StepView, due: str) -> str:
    if step.on is BlockedOn.RETRY:
        return f"is tried again {due}{_attempt(step)}{_because(step.error)}"
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
    cached = f" (cached: the outcome of {step.cached_from})" if step.cached_from is not None else ""
    return f"ended as {step.state}{took}{where}{cached}{_because(step.error)}{_failures(step)}"


def _failures(step: StepView) -> str:
    """Which items of a map failed first."""
    if not step.failures or step.tally is None:
        return ""
    left = step.tally.done - step.tally.good - len(step.failures)
    return f". Failed: {'; '.join(step.failures)}{f'; and {left} more' if left > 0 else ''}"


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
