"""Fields of a run's hash, and the words a step's state is written in.

| field     | holds                                                                                   |
|-----------|-----------------------------------------------------------------------------------------|
| @state    | the run's state                        | @stop  | the state it is being ended with, while that lasts |
| @cv       | control version                        | @seq   | number of the last event       |
| @open     | steps that are not terminal            | @lock  | token|expiry (ms)              |
| @meta     | JSON: workflow, digest, submitter, ... | @input | JSON                           |
| @output   | the run's result (JSON)                | @error | why it failed (JSON)           |
| @commit   | name of the lock holder's last COMMIT  | @undo  | COMPENSATING: how it ends then |
| @spoke    | "1": a step has spoken to readers      |        |                                |
| s:STEP    | state, see below (absent = WAITING)    | n:STEP | rings so far                   |
| a:STEP    | attempt (absent = 1)                   | d:STEP | deliveries lost in a row       |
| u:STEP    | rings lost unclaimed in a row          | o:STEP | output (JSON)                  |
| r:STEP    | names of steps whose outputs it reads  | x:STEP | recorded facts, a line each    |
| j:STEP    | incoming edges resolved                | k:STEP | of these, taken                |
| c:STEP    | outgoing edges already followed        | g:NAME | signals that came early, a JSON line each |
| i:ID      | "x": this signal has ended a wait      | l:STEP | the round its loop is in (absent = 0) |
| p:STEP    | how far a map is: see `Progress`       | y:STEP | its concurrency key            |
| o:STEP#N@ | the item that a map's member is given (JSON) | v:STEP | fence|batch: who spoke last        |

STEP is the name of an instance: `review`, or `review#2001` (see `model.instance`); after l: it is the step itself.

State words: `READY|ring`, `RUNNING|fence`, `BLOCKED|on|since_ms|detail`, `SUCCEEDED|fence` and so on; a parked outcome
is `BLOCKED|JOURNAL|since_ms|STATE|fence`; a step that waits for its concurrency key is `BLOCKED|LIMIT|since_ms|ring`.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Self

from convergio.graphflow.model import instance
from convergio.graphflow.model.states import BlockedOn, StepState

STATE, STOP, CONTROL, SEQ, OPEN, LOCK, META, INPUT, UNDO, SPOKE = (
    "@state",
    "@stop",
    "@cv",
    "@seq",
    "@open",
    "@lock",
    "@meta",
    "@input",
    "@undo",
    "@spoke",
)


def state(step: str) -> str:
    """The step's state word."""
    return f"s:{step}"


def rings(step: str) -> str:
    """How often it was rung."""
    return f"n:{step}"


def attempt(step: str) -> str:
    """Which attempt it is at."""
    return f"a:{step}"


def deliveries(step: str) -> str:
    """Claims lost in a row."""
    return f"d:{step}"


def unclaimed(step: str) -> str:
    """Rings lost in a row."""
    return f"u:{step}"


def output(step: str) -> str:
    """Its output, or, once FAILED, its error."""
    return f"o:{step}"


def references(step: str) -> str:
    """Whose outputs it reads."""
    return f"r:{step}"


def records(step: str) -> str:
    """Its recorded facts."""
    return f"x:{step}"


def resolved(step: str) -> str:
    """Incoming edges resolved."""
    return f"j:{step}"


def taken(step: str) -> str:
    """Incoming edges taken."""
    return f"k:{step}"


def cursor(step: str) -> str:
    """Outgoing edges followed."""
    return f"c:{step}"


def early(signal: str) -> str:
    """Signals of a name that came early."""
    return f"g:{signal}"


def round_of(step: str) -> str:
    """The round of the loop that ends at the step."""
    return f"l:{step}"


def progress(step: str) -> str:
    """How far a map is."""
    return f"p:{step}"


def item(member: str) -> str:
    """The item of a map's member, kept where outputs are kept: a claim brings it along like one."""
    return output(instance.item(member))


def used(signal_id: str) -> str:
    """Whether a signal has ended a wait."""
    return f"i:{signal_id}"


def key(step: str) -> str:
    """Its concurrency key."""
    return f"y:{step}"


def limited(since_ms: int, ring: str) -> str:
    """`BLOCKED|LIMIT|since_ms|ring`: the last ring of a step that waits for its concurrency key."""
    return f"{StepState.BLOCKED}|{BlockedOn.LIMIT}|{since_ms}|{ring}"


@dataclass(frozen=True, slots=True)
class Word:
    """A step's state as the board writes it."""

    state: StepState
    rest: str = ""

    @classmethod
    def parse(cls, text: str | None) -> Word:
        """None or "" is WAITING."""
        if not text:
            return cls(StepState.WAITING)
        head, _, rest = text.partition("|")
        return cls(StepState(head), rest)

    @property
    def text(self) -> str:
        return f"{self.state}|{self.rest}" if self.rest else self.state.value

    @property
    def blocked_on(self) -> BlockedOn | None:
        """What a BLOCKED step waits for."""
        return BlockedOn(self.rest.split("|", 1)[0]) if self.state is StepState.BLOCKED else None

    @property
    def since_ms(self) -> int | None:
        """Since when a BLOCKED step waits (Redis TIME)."""
        return int(self.rest.split("|", 2)[1]) if self.state is StepState.BLOCKED else None

    @property
    def parked(self) -> Word | None:
        """The outcome behind a step BLOCKED on the journal."""
        if self.blocked_on is not BlockedOn.JOURNAL:
            return None
        return Word.parse(self.rest.split("|", 2)[2])


@dataclass(slots=True)
class Progress:
    """How far a map is. All count items: `dealt` have their field, `rung` were rung, in the order of the list; `done`
    have ended, and of these `good` well; `ahead` had ended before it was their turn to be rung: the run has them from
    another one. `verdict`: "1" it comes true, "0" it cannot, "" nobody knows; `folded`: with a verdict, how many were
    looked at to withdraw them. `culprit`: whose failure decided."""

    dealt: int = 0
    rung: int = 0
    done: int = 0
    good: int = 0
    ahead: int = 0
    folded: int = 0
    culprit: int = -1
    verdict: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of `text`; "" is the beginning."""
        if not text:
            return cls()
        *counts, verdict = text.split("|")
        dealt, rung, done, good, ahead, folded, culprit = map(int, counts)
        return cls(dealt, rung, done, good, ahead, folded, culprit, verdict)

    @property
    def text(self) -> str:
        return "|".join(map(str, astuple(self)))

    @property
    def active(self) -> int:
        """How many are READY, RUNNING or BLOCKED."""
        return self.rung - self.done + self.ahead


def ready(ring: str) -> str:
    """`READY|ring`."""
    return f"{StepState.READY}|{ring}"


def running(fence: str) -> str:
    """`RUNNING|fence`."""
    return f"{StepState.RUNNING}|{fence}"
