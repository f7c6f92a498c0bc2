"""What can be wrong with a history, and how that is said."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """What can be wrong with a history; the values are fields of the report."""

    LOST = "lost"  # an accepted run, an outcome, a signal or an event is not there, or a step is not undone
    DOUBLED = "double_committed"  # two outcomes of one step counted, one that no execution brought, or two children
    ORDER = "order_violations"  # a step began before what it needs was there, or was undone out of turn
    FAN_IN = "incomplete_fanins"  # a step did not see the outputs of exactly those parents or items that succeeded
    WRONG = "wrong_outcomes"  # another state, output or attempt than the reference has, or undone for nothing
    LIMIT = "limit_violations"  # more steps of a concurrency key ran at once than may
    THREAD = "wrong_transcripts"  # a thread is not what the reference says
    EFFECT = "double_effects"  # what a tool was asked for once happened twice, or not at all, by its key
    LEDGER = "ledger_violations"  # a recorded answer is not on the ledger once, or what nobody recorded is


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One thing that is wrong, in words."""

    fault: Fault
    run: str
    step: str
    said: str

    def __str__(self) -> str:
        return f"{self.fault} {self.run}/{self.step}: {self.said}"
