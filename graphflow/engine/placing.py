"""Where a doorbell goes among those of its own run: what has the longest way before it is taken first.

Only where steps say how long they take. Lists are in the order of pushing, so a step that becomes READY late may be the
one that all others of its run wait for in the end. It goes before those of its run that are less urgent, and behind the
first steps of its run that are more urgent and wait still. Other runs do not matter: nobody goes before them because of
what a workflow says of itself, but beside its own doorbells, which were there before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from convergio.graphflow.board import scripts
from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.decision import Ring
from convergio.graphflow.engine.bell import Caller, route_of
from convergio.graphflow.engine.ringer import Ringer
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import instance
from convergio.graphflow.model.workflow import Step

LOOK: Final = 48
"""Doorbells at the consuming end of a list that are looked at."""

LONGEST: Final = 2_000
"""In a longer list nothing is placed: the server would have to walk through it."""


@dataclass(slots=True)
class Line:
    """What waits in one list, of whatever run: messages, the one that is popped next first."""

    name: str
    waiting: list[str]

    def own(self, run: str, plan: Plan) -> Iterable[tuple[int, float]]:
        """Places of the run's doorbells, and how urgent they are."""
        known = re.compile(rf'"id":\s*"{re.escape(run)}\.([^".]+)\.')
        for place, text in enumerate(self.waiting):
            found = known.search(text)
            if found is not None:
                yield place, plan.ranks.get(instance.step_of(instance.of_slug(found[1])), 0.0)


class Placing:
    """Makes the doorbells of a decision."""

    def __init__(self, link: Link, ringer: Ringer) -> None:
        self.link = link
        self.ringer = ringer

    def bells(self, rings: Sequence[Ring], plan: Plan, caller: Caller) -> list[scripts.Doorbell]:
        """The rings' doorbells, each with its place. Raises BoardUnavailable."""
        lines: dict[str, Line] = {}
        made: list[scripts.Doorbell] = []
        for ring in rings:
            step = plan.step(ring.step)
            if ring.fresh or not plan.ranks:
                made.append(self.ringer.doorbell(caller, step, ring=ring.ring, fresh=ring.fresh))
            else:
                made.append(self._placed(step, ring.ring, plan, caller, lines))
        return made

    def _placed(self, step: Step, ring: str, plan: Plan, caller: Caller, lines: dict[str, Line]) -> scripts.Doorbell:
        """Where the run has what is less urgent, before that; where first steps are more urgent, behind them."""
        rank, run = plan.ranks.get(instance.step_of(step.name), 0.0), caller.ref.run
        begun, fresh = self._lines(step, caller, lines)
        bell = self.ringer.doorbell(caller, step, ring=ring, fresh=False)
        for place, other in begun.own(run, plan):
            if other < rank:
                return _beside(bell, begun, place, before=True)
        behind = [place for place, other in fresh.own(run, plan) if other >= rank] if fresh is not begun else []
        if behind:
            return _beside(self.ringer.doorbell(caller, step, ring=ring, fresh=True), fresh, behind[-1], before=False)
        if len(begun.waiting) < LOOK:
            begun.waiting.append(bell.content.decode())
        return bell

    def _lines(self, step: Step, caller: Caller, lines: dict[str, Line]) -> tuple[Line, Line]:
        """The list of continuations and that of first steps; both are read once for a decision."""
        routes = [route_of(step, priority=caller.priority, fresh=fresh) for fresh in (False, True)]
        names = [self.ringer.bell.list_of(route) for route in routes]
        unread = [name for name in dict.fromkeys(names) if name not in lines]
        try:
            with self.link.client.pipeline(transaction=False) as pipe:
                for name in unread:
                    pipe.llen(name)
                    pipe.lrange(name, -LOOK, -1)
                answers: list[Any] = pipe.execute() if unread else []
        except UNREACHABLE as error:
            raise unavailable(error) from error
        for name, length, texts in zip(unread, answers[::2], answers[1::2], strict=True):
            lines[name] = Line(name, [] if length > LONGEST else texts[::-1])
        return lines[names[0]], lines[names[1]]


def _beside(bell: scripts.Doorbell, line: Line, place: int, *, before: bool) -> scripts.Doorbell:
    """The doorbell next to the one at `place`; whoever comes next finds it there."""
    beside = line.waiting[place]
    line.waiting.insert(place if before else place + 1, bell.content.decode())
    return replace(bell, side="AFTER" if before else "BEFORE", beside=beside)
