"""How runs begin: the first decision on a run, which is the same for all runs of a definition that look no further.

A decision depends on nothing but the definition and the fields that it reads. Where it did not read the run's input, it
is kept, and the definition's next run begins with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from convergio.graphflow import decide
from convergio.graphflow.board import fields
from convergio.graphflow.decision import Decision, Unloaded, View
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model.states import StepState

ENTRY: Final = {"t": "start"}

KEPT: Final = 100
"""Definitions whose beginning is remembered."""


class Beginnings:
    """First decisions. Safe for threads: at worst two work out the same one."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, Decision]] = {}
        """by the definition's digest, with the epoch that it was made in: rings are named after it"""

    def decision(self, plan: Plan, values: Mapping[str, str], *, epoch: int) -> Decision | None:
        """The decision on a run that has nothing but these fields. It is shared: nobody may change it.

        None: it depends on the time or on what is elsewhere, and is made under the run's lock.
        """
        number, made = self._known.get(plan.digest, (0, None))
        if made is not None and number == epoch:
            return made
        view = _Watched(dict(values), blank=True)
        try:
            made = decide.decide(plan, view, [ENTRY], epoch=epoch, now_ms=0)
        except Unloaded:
            return None
        waits = any(to.startswith(StepState.BLOCKED) for _, to in made.writes.values())
        if waits or made.timers or made.blobs:
            return None
        if fields.INPUT not in view.read:
            if len(self._known) >= KEPT:
                self._known.clear()
            self._known[plan.digest] = epoch, made
        return made


class _Watched(View):
    """Knows which fields were asked for."""

    def __init__(self, values: dict[str, str], *, blank: bool) -> None:
        super().__init__(values, blank=blank)
        self.read: set[str] = set()

    def get(self, name: str) -> str:
        self.read.add(name)
        return super().get(name)
