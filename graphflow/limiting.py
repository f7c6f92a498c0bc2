"""Steps with a concurrency key: they wait for their turn before they are rung. The part of `decide` that is about them.

A decision only says who asks and who leaves, by timers that are due at once; ASK and LEAVE grant. So what a decision
says is done even if its maker dies: the sweeper sees the timers.
"""

from __future__ import annotations

from typing import Final

from convergio.graphflow.board import fields
from convergio.graphflow.decision import ASK, LEAVE, Entry, Event
from convergio.graphflow.draft import Draft
from convergio.graphflow.flow import expressions
from convergio.graphflow.model import errors
from convergio.graphflow.model.states import BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import Concurrency

LONGEST_KEY: Final = 200
"""Characters of a concurrency key: it is a part of the names of Redis keys."""


class Limited(Draft):
    """What a concurrency key means."""

    def queue_up(self, step: str, concurrency: Concurrency) -> None:
        """The step may run as soon as its key is granted; while its run is paused it does not even ask."""
        if self.word(step).blocked_on is not BlockedOn.LIMIT:
            first = self.word(step).state is StepState.WAITING  # not when somebody has said: once more
            try:
                key = self.key_of(step, concurrency)
            except errors.ExpressionFailed as error:
                self.fail(step, error)
                return
            self.put(fields.key(step), key)
            ring = f"{self.epoch}.{self.get(fields.rings(step)) or 0}"
            self.put(fields.state(step), fields.limited(self.now_ms, ring))
            reads = self.reads(step) if first else ()
            if reads:
                self.made.writes[fields.references(step)] = ("", " ".join(reads))
            self.made.events.append(Event(kind="step.limited", step=step, journal=False))
        if self.get(fields.STATE) == RunState.RUNNING:
            # Whoever was to leave the key for it may have died: left later, it would be another turn's.
            self.made.timers += [(step, LEAVE, None), (step, ASK, self.now_ms)]

    def key_of(self, step: str, concurrency: Concurrency) -> str:
        """The key's text, which an item of a map has of its own. Raises ExpressionFailed."""
        template = expressions.compile_template(concurrency.key)
        given, known = expressions.INPUT in template.references, self.item_names(step)
        steps = sorted(template.references - {expressions.INPUT, expressions.ITERATION, *known})
        key = template.render({**self.names(steps, step, given=given), **known})
        if not 0 < len(key) <= LONGEST_KEY:
            said = f"the concurrency key has {len(key)} characters"
            raise errors.ExpressionFailed(said, hint=f"give one of 1 to {LONGEST_KEY} characters")
        return key

    def shelve(self, entry: Entry) -> None:
        """A doorbell found the run paused: the step must not keep its key from others meanwhile."""
        step = entry["step"]
        if self.get(fields.STATE) != RunState.PAUSED or self.get(fields.state(step)) != entry["was"]:
            return
        self.room()
        self.let_go(step)
        self.put(fields.state(step), fields.limited(self.now_ms, self.word(step).rest))
