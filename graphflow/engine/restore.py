"""A run's place on an empty board, from what the journal knows of it. Pure: facts in, fields out.

What is derived (joins, readiness) is derived by `decide` again, from the journaled outcomes in their order; what was a
verdict (retries, approvals, timeouts, quarantine, cancel) is replayed as it was journaled.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from convergio.graphflow import decide, draft, waiting
from convergio.graphflow.board import fields
from convergio.graphflow.decision import Decision, Entry, Event, Unloaded, View
from convergio.graphflow.engine.submission import granted_version, meta_of, signal_entry
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.journal.rows import EventRow, OutcomeRow, RunFacts
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.states import TERMINAL_STEP, BlockedOn, RunState, StepState

JOURNALED = "journal"
"""Stands where a fence stood: the outcome came from SQL."""

ANSWERS = ("step.retry", "step.deferred", "step.blocked", "step.given_back")
"""Events of a worker that lived: claims lost before them do not count any more."""


@dataclass(slots=True)
class Restored:
    """What goes on the board."""

    values: dict[str, str] = field(default_factory=dict)
    """fields of the run's hash"""
    held: list[str] = field(default_factory=list)
    """READY steps: rung after one lease, unless the process that runs them asserts its claim"""
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
    work.replay({"t": "start"})
    for outcome in facts.outcomes:
        work.outcome(outcome)
    for event in facts.events:
        work.event(event)
    work.records()
    work.signals()
    work.settle()
    work.made.values = {name: value for name, value in work.view.values.items() if value != ""}
    work.made.held = [name[2:] for name, value in work.made.values.items() if value.startswith(f"{StepState.READY}|")]
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
        self.told = {(row.type, row.instance) for row in facts.events}
        self.applied = {row.data["id"] for row in facts.events if row.type == "signal.applied" and _ended_a_wait(row)}
        run = facts.run
        values = {
            fields.STATE: (RunState.PAUSED if run.state is RunState.PAUSED else RunState.RUNNING).value,
            fields.CONTROL: str(granted_version(run)),
            fields.OPEN: str(len(plan.workflow.steps)),
            fields.META: json.dumps(meta_of(run), ensure_ascii=False),
            fields.INPUT: json.dumps(run.input, ensure_ascii=False),
        }
        self.view = View(values, complete=True)

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
        self.view.values[fields.state(step)] = f"{row.state}|{JOURNALED}"
        kept = draft.kept(self.plan.step(step), row)
        if kept is not None:
            self.view.values[fields.output(step)] = json.dumps(kept, ensure_ascii=False, separators=(",", ":"))
        self.cause_ms = row.finished_ms
        if step != whole and whole in self.known:
            self.view.values[fields.cursor(step)] = draft.DONE  # how its map ended is known: nothing is worked out
        else:
            self.replay({"t": "arrived", "step": step})

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
            self.made.blobs += decision.blobs
            for step, on, due in decision.timers:
                self.timer(step, on, due)
            news = [event for event in decision.events if event.journal and self.is_news(event)]
            self.made.events += [dataclasses.replace(event, at_ms=self.cause_ms) for event in news]
            queue = [*queue[decision.consumed :], *decision.posts]

    def is_news(self, event: Event) -> bool:
        """Whether SQL does not know what follows from what it knows."""
        return event.step not in self.known and (event.kind, event.step) not in self.told

    def timer(self, step: str, on: str, due_ms: int | None) -> None:
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
            case "step.blocked":
                self.block(step, row.at_ms, BlockedOn.SIGNAL, row.step or "")
            case "step.waiting":
                self.timer(step, row.data["on"], row.data["due_ms"])
            case "step.expired":
                self.view.values[fields.deliveries(step)] = str(row.data.get("deliveries", 1))
            case "step.rung" | "step.given_back":
                self.ready(step)
            case _:
                pass

    def wait(self, step: str, row: EventRow) -> None:
        on = BlockedOn.RETRY if row.type == "step.retry" else BlockedOn.HOOK
        data: Mapping[str, Any] = row.data
        if "attempt" in data:
            self.view.values[fields.attempt(step)] = str(data["attempt"])
        due = row.at_ms + round(float(data["seconds"]) * 1000)
        if due <= self.now_ms:
            self.ready(step)  # it may be running: the process that runs it must find it held
            return
        self.block(step, row.at_ms, on, "restored")
        self.made.timers[f"{step}/{on}"] = due

    def block(self, step: str, since_ms: int, on: BlockedOn, detail: str) -> None:
        word = fields.Word(StepState.BLOCKED, f"{on}|{since_ms}|{detail}|{JOURNALED}")
        self.view.values[fields.state(step)] = word.text

    def ready(self, step: str) -> None:
        count = self.view.values.get(fields.rings(step), "1")
        self.view.values[fields.state(step)] = fields.ready(f"{self.epoch}.{count}")
        for on in (BlockedOn.RETRY, BlockedOn.HOOK):
            self.made.timers.pop(f"{step}/{on}", None)

    def records(self) -> None:
        for row in self.facts.records:
            value = json.dumps(row.value, ensure_ascii=False, separators=(",", ":"))
            name = fields.records(row.instance)
            self.view.values[name] = f"{self.view.values.get(name, '')}{row.key}\t{value}\n"

    def settle(self) -> None:
        """No timer for what has ended."""
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
            if row.signal_id not in self.applied and any(
                self.word(step).state not in TERMINAL_STEP for step in waiters
            ):
                self.made.inbox.append(signal_entry(row))


def _ended_a_wait(row: EventRow) -> bool:
    return row.data.get("how") == "applied"
