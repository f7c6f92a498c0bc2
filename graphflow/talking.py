"""What people say to a conversation that goes on: the part of `decide` that is about their words.

Words reach a turn as records of it, so whoever claims it knows them, and a new board does, too: whether one asked for
them (the turn is BLOCKED until they come), or they wait for the next turn, or cut the one that runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from convergio.graphflow.board import fields
from convergio.graphflow.decision import Entry
from convergio.graphflow.draft import DONE
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import instance
from convergio.graphflow.model.states import TERMINAL_STEP, BlockedOn, StepState
from convergio.graphflow.model.workflow import StepKind
from convergio.graphflow.waiting import TIMED, Waiting

SAID: Final = "said."
"""Begins the keys of records that are words of people; then comes their place among those of the turn."""

TEXT: Final = "text"
"""What they said, in a signal's data. Without it, it is no word to a conversation."""

IF_BUSY: Final = "if_busy"
"""What becomes of words that nobody waits for, in a signal's data; else the team says it."""

ENQUEUE: Final = "enqueue"
REJECT: Final = "reject"
CUTS: Final = ("interrupt", "rollback")
"""Words that do not wait for the end of the turn that runs."""


def conversation_of(plan: Plan, name: str) -> str | None:
    """The conversation to which a signal of this name speaks."""
    steps = plan.workflow.steps
    return next((step for step in plan.waiters.get(name, ()) if steps[step].kind is StepKind.CONVERSATION), None)


def waits_for_people(word: fields.Word, step: str) -> bool:
    """Whether the state of a conversation's turn is that somebody is to say something in it; one that has failed asks
    otherwise."""
    if word.blocked_on is not BlockedOn.SIGNAL:
        return False
    return word.rest.split("|", 2)[2].startswith(f"{instance.step_of(step)}|")


class Talking(Waiting):
    """What a person's words do."""

    def signal(self, entry: Entry) -> None:
        """A signal with words, to a conversation, is heard by it."""
        step = conversation_of(self.plan, entry["name"])
        if step is None:
            super().signal(entry)
            return
        name = self.seen(step) or step
        if TEXT in entry["data"] or waits_for_people(self.word(name), name):
            self.spoken_to(name, entry)
        else:
            super().signal(entry)

    def spoken_to(self, name: str, entry: Entry) -> None:
        """Words are heard at once, kept for the next turn, or come too late."""
        self.room()
        word, data = self.word(name), entry["data"]
        policy = data.get(IF_BUSY) or self.plan.step(name).spec["if_busy"]
        waits = waits_for_people(word, name)
        at_work = word.state in (StepState.READY, StepState.RUNNING) or word.blocked_on in TIMED
        if self.ended() or TEXT not in data or self.get(fields.used(entry["id"])):
            self._told(name, entry, "late")
        elif waits or (policy in CUTS and at_work):
            self._cut(name, word)
            self.hear(name, entry, "answer" if waits else policy)
            self.fire(name, fresh=False)
        elif policy != REJECT and self._hears_later(name, word):
            self.put(fields.state(name), self.get(fields.state(name)))  # a PARK in between must make this commit fail
            known = self._kept(name)
            if all(one["id"] != entry["id"] for one in known):
                self._keep(name, [*known, entry])
            self._told(name, entry, "kept")
        else:
            self._told(name, entry, "late")

    def listen(self, name: str) -> None:
        """A turn begins: what was kept for it is heard in it."""
        for entry in self._kept(name):
            self.hear(name, entry, ENQUEUE)

    def is_spoken_to(self, name: str) -> bool:
        """Whether words wait for this turn; or were heard in it, as a rebuild may know."""
        told = fields.records(name)
        return name in self.view.ended or bool(self._kept(name)) or (self.view.knows(told) and SAID in self.get(told))

    def hear(self, name: str, entry: Entry, how: str) -> None:
        """The words are a record of the turn."""
        data, records = entry["data"], self.get(fields.records(name))
        said = {TEXT: data[TEXT], "by": data.get("by", ""), "how": how}
        key = f"{SAID}{records.count(SAID):04d}.{entry['id']}"
        self.put(fields.records(name), f"{records}{key}\t{_line(said)}\n")
        self.put(fields.used(entry["id"]), "x")
        self._keep(name, [one for one in self._kept(name) if one["id"] != entry["id"]])
        self.tell("step.recorded", name, {"key": key, "value": said})
        self._told(name, entry, "applied")

    def _cut(self, name: str, word: fields.Word) -> None:
        """Whoever is at it is at it no more, and what went wrong before does not count."""
        if word.state is StepState.RUNNING:
            self.made.leases.append((name, word.rest))
        if word.blocked_on is not None:
            self.made.timers.append((name, word.blocked_on, None))
        for field in (fields.attempt(name), fields.deliveries(name), fields.unclaimed(name)):
            self.put(field, "")

    def _hears_later(self, name: str, word: fields.Word) -> bool:
        """Whether another turn may come."""
        if word.state is StepState.SUCCEEDED or word.parked is not None:
            return self.get(fields.cursor(name)) != DONE
        return word.state not in TERMINAL_STEP

    def _kept(self, name: str) -> list[Entry]:
        lines = self.get(fields.early(instance.step_of(name))).split("\n")
        return [json.loads(line) for line in lines if line]

    def _keep(self, name: str, entries: list[Entry]) -> None:
        self.put(fields.early(instance.step_of(name)), "\n".join(map(_line, entries)))

    def _told(self, name: str, entry: Entry, how: str) -> None:
        self.tell("signal.applied", name, {"id": entry["id"], "name": entry["name"], "how": how})


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
