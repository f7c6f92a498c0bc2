"""What the explorer found and the engine does not do right yet: `tests/unit/test_decide_open.py` shows each in short.

Without a line here the explorer fails on it. Who mends one takes its line out.
"""

from __future__ import annotations

from typing import Final

ROOT_TWICE: Final = "a start that is decided once more skips its roots once more"
SIGNAL_TWICE: Final = "a signal that is delivered twice ends a second wait, which began after the first"
TAKEN_IN_TIME: Final = "the queue's timer fails a step that was taken in time, and is READY again when it is due"
TIMER_LOST: Final = "an old entry of the queue's timer drops the timer of a step that still waits"
NEVER_RUNG: Final = "a step that is rung, and refused, between a resume's look and its commit is never rung again"

KNOWN: Final = frozenset({ROOT_TWICE, SIGNAL_TWICE, TAKEN_IN_TIME, TIMER_LOST, NEVER_RUNG})
