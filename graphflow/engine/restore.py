"""A run's place on an empty board, from what the journal knows of it. Pure: facts in, fields out.

What is derived (joins, readiness) is derived by `decide` again, from the journaled outcomes in their order; what was a
verdict (retries, approvals, timeouts, quarantine, cancel) is replayed as it was journaled.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from convergio.graphflow import asking, decide, draft, nested, talking, undoing, waiting
from convergio.graphflow.board import fields
from convergio.graphflow.decision import ASK, LEAVE, Decision, Entry, Event, Unloaded, View
from convergio.graphflow.engine.submission import granted_version, meta_of, signal_entry
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.journal.rows import EventRow, OutcomeRow, RunFacts
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.states import TERMINAL_STEP, BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import StepKind

JOURNALED = "journal"
"""Stands where a fence stood: the outcome came from SQL."""

ANSWERS = ("step.retry", "step.deferred", "step.blocked", "step.given_back")
"""Events of a worker that lived: claims lost before them do not count any more."""


HELD = (f"{StepState.READY}|", f"{StepState.BLOCKED}|{BlockedOn.LIMIT}|")
"""How the words of steps begin that a process may still run."""


@dataclass(slots=True)
class Restored:
    """What goes on the board."""

    values: dict[str, str] = field(default_factory=dict)
    """fields of the run's hash"""
    held: list[str] = field(default_factory=list)
    """READY steps, and those that wait for their concurrency key: they go on after one lease, unless the process that
    runs them asserts its claim"""
    limited: dict[str, int] = field(default_factory=dict)
    """since when steps wait for their concurrency key, or had it (ms)"""
    timers: dict[str, int] = field(default_factory=dict)
    """step/ON -> due (ms)"""
    inbox: list[Entry] = field(default_factory=list)
    """what must be decided on the live board, because it has consequences that SQL does not know"""
    events: list[Event] = field(default_factory=list)
    """outcomes that follow from journaled ones, but were not journaled themselves yet"""
    blobs: list[str] = field(default_factory=list[str])
    """JSON of large values that were made again: to be kept before anything refers to them"""


def restore(
    facts: RunFacts, plan: Plan, *, epoch: int, now_ms: int, opened: Callable[[str], Any] | None = None
) -> Restored:
    """The run as it goes on in `epoch`. `opened`: the large value of a digest; without it there is none."""
    work = _Work(facts, plan, epoch, now_ms, opened)
    if facts.run.state is RunState.ACCEPTED:
        # It may have begun on the board that is gone, and its first steps may run still: they must find it here.
        work.made.events.append(Event(kind="run.started"))
    work.records()
    if facts.run.state is RunState.COMPENSATING:
        work.undo()
    else:
        work.replay({"t": "start"})
        for outcome in facts.outcomes:
            work.outcome(outcome)
    for event in facts.events:
        work.event(event)
    work.signals()
    work.settle()
    work.made.values = {name: value for name, value in work.view.values.items() if value != ""}
    work.made.held = [name[2:] for name, value in work.made.values.items() if value.startswith(HELD)]
    return work.made


class _Work:
    def __init__(
        self, facts: RunFacts, plan: Plan, epoch: int, now_ms: int, opened: Callable[[str], Any] | None
    ) -> None:
        self.opened = opened
        self.facts = facts
        self.plan = plan
        self.epoch = epoch
        self.now_ms = now_ms
        self.made = Restored()
        self.cause_ms = facts.run.started_ms
        """when that happened from which follows what is derived now"""
        self.known = {row.instance for row in facts.outcomes}
        self.talks = {step.name for step in plan.workflow.steps.values() if step.kind is StepKind.CONVERSATION}
        self.told = {(row.type, row.instance) for row in facts.events}
        self.applied = {row.data["id"] for row in facts.events if row.type == "signal.applied" and _is_done(row)}
        run = facts.run
        values = {
            fields.STATE: (RunState.PAUSED if run.state is RunState.PAUSED else RunState.RUNNING).value,
            fields.CONTROL: str(granted_version(run)),
            fields.OPEN: str(len(plan.workflow.steps)),
            fields.META: json.dumps(meta_of(run), ensure_ascii=False),
            fields.INPUT: json.dumps(run.input, ensure_ascii=False),
        }
        self.view = View(values, complete=True, ended=frozenset(self.known))

        self.applied |= {
            row.worker.removeprefix(waiting.BY_SIGNAL)
            for row in facts.outcomes
            if row.worker is not None and row.worker.startswith(waiting.BY_SIGNAL)
        }
        self.view.values |= {fields.used(one): "x" for one in self.applied}

    def word(self, step: str) -> fields.Word:
        return fields.Word.parse(self.view.values.get(fields.state(step)))

    def outcome(self, row: OutcomeRow) -> None:
        step, whole = row.instance, instance.whole(row.instance)
        if self.word(step).state in TERMINAL_STEP and fields.cursor(step) in self.view.values:
            return  # it was derived already, from what it follows from
        self.keep(row)
        self.cause_ms = row.finished_ms
        if step != whole and whole in self.known:
            self.view.values[fields.cursor(step)] = draft.DONE  # how its map ended is known: nothing is worked out
        else:
            self.replay({"t": "arrived", "step": step})

    def undo(self) -> None:
        """The run is being undone: what it had come to stands, nothing follows from it but the next undo."""
        (begun, *_) = [row for row in self.facts.events if row.type == undoing.COMPENSATING]
        self.view.values[fields.STATE] = RunState.COMPENSATING.value
        self.view.values[fields.UNDO] = json.dumps(begun.data, ensure_ascii=False, separators=(",", ":"))
        self.view.values[fields.state(undoing.GATE)] = f"{StepState.SUCCEEDED}|{JOURNALED}"
        for row in self.facts.outcomes:
            self.keep(row)
            self.reach_round(row.instance)
        self.replay({"t": "arrived", "step": undoing.GATE})

    def reach_round(self, step: str) -> None:
        """A loop came as far as this. Of every round that began, its first step has an outcome when the run ends."""
        region, number = self.plan.loops.get(instance.step_of(step)), instance.round_of(step)
        if region is not None and number > int(self.view.values.get(fields.round_of(region.end)) or 0):
            self.view.values[fields.round_of(region.end)] = str(number)

    def keep(self, row: OutcomeRow) -> None:
        """The step as SQL knows that it ended."""
        step = row.instance
        self.view.values[fields.state(step)] = f"{row.state}|{JOURNALED}"
        kept = draft.kept(self.plan.step(step), row)
        if kept is not None:
            self.view.values[fields.output(step)] = json.dumps(kept, ensure_ascii=False, separators=(",", ":"))

    def replay(self, entry: Entry) -> None:
        """Decides on `entry` as the board did.

        From the first entry that would end the run on, the live board decides.
        """
        queue: list[Entry] = [entry]
        while queue:
            if self.made.inbox:
                self.made.inbox.extend(queue)
                return
            decision = self._decide(queue)
            if decision.writes.keys() & {fields.STATE, fields.STOP}:
                self.made.inbox.extend(queue)
                return
            self.view.values.update({name: to for name, (_, to) in decision.writes.items()})
            self.limited(decision.writes)
            self.made.blobs += decision.blobs
            for step, on, due in decision.timers:
                self.timer(step, on, due)
            news = [event for event in decision.events if event.journal and self.is_news(event)]
            self.made.events += [dataclasses.replace(event, at_ms=self.cause_ms) for event in news]
            queue = [*queue[decision.consumed :], *decision.posts]

    def limited(self, names: Iterable[str]) -> None:
        """Steps that wait for their concurrency key have waited since that which moved them."""
        for name in names:
            if self.view.values[name].startswith(HELD[1]):
                self.wait_turn(name[2:], self.cause_ms or self.now_ms)

    def wait_turn(self, step: str, since_ms: int) -> None:
        """The step waits for its concurrency key, unless a process asserts that it runs it."""
        self.made.limited[step] = since_ms
        ring = f"{self.epoch}.{self.view.values.get(fields.rings(step), '0')}"
        self.view.values[fields.state(step)] = fields.limited(since_ms, ring)

    def is_news(self, event: Event) -> bool:
        """Whether SQL does not know what follows from what it knows."""
        return event.step not in self.known and (event.kind, event.step) not in self.told

    def timer(self, step: str, on: str, due_ms: int | None) -> None:
        if on in (ASK, LEAVE):
            return  # it is done when the step is no longer held
        if due_ms is None:
            self.made.timers.pop(f"{step}/{on}", None)
        else:
            self.made.timers[f"{step}/{on}"] = due_ms

    def _decide(self, entries: list[Entry]) -> Decision:
        while True:
            try:
                return decide.decide(self.plan, self.view, entries, epoch=self.epoch, now_ms=self.now_ms)
            except Unloaded as missing:
                self.view.values.update(dict.fromkeys(missing.names, ""))
                for digest in missing.blobs:
                    if self.opened is None:
                        raise errors.JournalUnavailable(f"nobody has blob {digest}") from None
                    self.view.blobs[digest] = self.opened(digest)

    def event(self, row: EventRow) -> None:
        step = row.instance
        word = self.word(step)
        if word.state not in (StepState.READY, StepState.BLOCKED):
            return
        if row.type in ANSWERS:
            self.view.values.pop(fields.deliveries(step), None)
        match row.type:
            case "step.retry" | "step.deferred":
                self.wait(step, row)
            case nested.WANTED:
                self.want(step, row)
            case asking.ASKED | asking.ANSWERED:
                self.ask(step, row)
            case "signal.applied" if row.data.get("how") == "applied" and row.step in self.talks:
                self.ready(step, row.at_ms)  # its words are a record of the turn
            case "step.blocked":
                self.block(step, row.at_ms, BlockedOn.SIGNAL, row.step or "")
            case "step.waiting":
                self.timer(step, row.data["on"], row.data["due_ms"])
            case "step.expired":
                self.view.values[fields.deliveries(step)] = str(row.data.get("deliveries", 1))
            case "step.rung" | "step.given_back":
                self.ready(step, row.at_ms)
            case _:
                pass

    def want(self, step: str, row: EventRow) -> None:
        """The child that was wanted last is the one that is waited for."""
        attempt, due = row.data["attempt"], row.data["due_ms"]
        self.block(step, row.at_ms, BlockedOn.CHILD, str(attempt))
        self.attempt(step, attempt)
        self.timer(step, BlockedOn.CHILD, due)
        self.timer(step, BlockedOn.RETRY, None)

    def ask(self, step: str, row: EventRow) -> None:
        """The step has failed, and asks; or it was told to try once more. A child is wanted by an event of its own."""
        self.attempt(step, row.data["attempt"])
        if row.type == asking.ASKED:
            self.block(step, row.at_ms, BlockedOn.SIGNAL, asking.detail_of(row.data["error"]))
        else:
            self.ready(step, row.at_ms)
        for on in (BlockedOn.CHILD, BlockedOn.RETRY, waiting.QUEUE):
            self.timer(step, on, None)

    def attempt(self, step: str, number: int) -> None:
        if number > 1:
            self.view.values[fields.attempt(step)] = str(number)

    def wait(self, step: str, row: EventRow) -> None:
        on = BlockedOn.RETRY if row.type == "step.retry" else BlockedOn.HOOK
        data: Mapping[str, Any] = row.data
        if "attempt" in data:
            self.view.values[fields.attempt(step)] = str(data["attempt"])
        due = row.at_ms + round(float(data["seconds"]) * 1000)
        if self.plan.step(step).kind is StepKind.WORKFLOW:  # no worker has it: its timer says what follows
            self.block(step, row.at_ms, on, str(data["attempt"]))
            self.timer(step, BlockedOn.CHILD, None)
            self.timer(step, on, due)
            return
        if due <= self.now_ms:
            self.ready(step, due)  # it may be running: the process that runs it must find it held
            return
        self.block(step, row.at_ms, on, "restored")
        self.made.timers[f"{step}/{on}"] = due

    def block(self, step: str, since_ms: int, on: BlockedOn, detail: str) -> None:
        word = fields.Word(StepState.BLOCKED, f"{on}|{since_ms}|{detail}|{JOURNALED}")
        self.view.values[fields.state(step)] = word.text
        self.made.limited.pop(step, None)

    def ready(self, step: str, since_ms: int) -> None:
        if self.plan.step(step).concurrency is not None:
            self.wait_turn(step, self.made.limited.get(step, since_ms))
            self.drop_timers(step)
            return
        count = self.view.values.get(fields.rings(step), "1")
        self.view.values[fields.state(step)] = fields.ready(f"{self.epoch}.{count}")
        self.drop_timers(step)

    def drop_timers(self, step: str) -> None:
        for on in (BlockedOn.RETRY, BlockedOn.HOOK):
            self.made.timers.pop(f"{step}/{on}", None)

    def records(self) -> None:
        for row in self.facts.records:
            value = json.dumps(row.value, ensure_ascii=False, separators=(",", ":"))
            name = fields.records(row.instance)
            self.view.values[name] = f"{self.view.values.get(name, '')}{row.key}\t{value}\n"

    def settle(self) -> None:
        """No timer for what has ended."""
        self.made.limited = {
            name: since for name, since in self.made.limited.items() if self.word(name).state not in TERMINAL_STEP
        }
        timers = self.made.timers.items()
        self.made.timers = {
            name: due for name, due in timers if self.word(name.split("/", 1)[0]).state not in TERMINAL_STEP
        }

    def latest(self, step: str) -> str:
        """The instance of the last round that began."""
        region = self.plan.loops.get(step)
        number = 0 if region is None else int(self.view.values.get(fields.round_of(region.end)) or 0)
        return instance.named(step, number)

    def signals(self) -> None:
        """All that ended no wait yet: what was applied before changes nothing, what came early is kept again."""
        for row in self.facts.signals:
            waiters = [self.latest(step) for step in self.plan.waiters.get(row.name, ())]
            talk = talking.conversation_of(self.plan, row.name)
            if talk is not None and row.signal_id not in self.applied and self.is_followed_later(self.latest(talk)):
                self.keep_words(signal_entry(row))
            elif row.signal_id not in self.applied and any(
                self.word(step).state not in TERMINAL_STEP for step in waiters
            ):
                self.made.inbox.append(signal_entry(row))

    def is_followed_later(self, step: str) -> bool:
        """Whether what follows from the step's success is decided on the live board, by what it has kept till then."""
        return self.word(step).state is StepState.SUCCEEDED and fields.cursor(step) not in self.view.values

    def keep_words(self, entry: Entry) -> None:
        """Words for the next turn of a conversation, of which nobody may say that it is over before they are heard."""
        name, line = fields.early(entry["name"]), json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
        self.view.values[name] = "\n".join(part for part in (self.view.values.get(name, ""), line) if part)


def _is_done(row: EventRow) -> bool:
    """One that came late came after the outcome that it was late for, here too."""
    return row.data.get("how") in ("applied", "late")
