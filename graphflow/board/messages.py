"""What goes into the board's scripts and comes out of them. Values only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.model.ids import RunRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A claim: the fence, and everything the body needs. Times are milliseconds of Redis TIME."""

    epoch: Epoch
    ref: RunRef
    step: str
    fence: str
    at_ms: int
    attempt: int
    deliveries: int
    meta: Mapping[str, Any]
    input: Any
    records: Mapping[str, Any]
    outputs: Mapping[str, Any]

    @property
    def submitter(self) -> str:
        return str(self.meta["submitter"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """No claim: DUPLICATE (the doorbell is old), STOPPED (the run is being ended), GONE (the run left the board)."""

    why: str
    state: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A message that was popped: the list it was in, its text, and, if it is a doorbell, how the claim went."""

    queue_list: str
    message: str
    ref: RunRef | None = None
    step: str = ""
    ring: str = ""
    claim: Claimed | Refused | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """What a worker wants while it tells how a step ended: the next doorbell of these lists, its step claimed.

    Nothing, while one of the `rivals` has a message. `taken` is called with the doorbell, if there is one.
    """

    lists: Sequence[str]
    rivals: Sequence[str] = ()
    nonce: str
    worker: str
    taken: Callable[[Taken], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """The run's lock is ours since `at_ms`: what its inbox holds, and the fields that were asked for."""

    epoch: Epoch
    ref: RunRef
    token: str
    at_ms: int
    entries: Sequence[Mapping[str, Any]]
    values: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What of a run waits for the journal: steps, and its own end as `@`.

    `token`: what to lock the run's inbox with once they are released, and the fields `wanted` then; None: it is left.
    """

    ref: RunRef
    steps: Sequence[str]
    token: str | None = None
    wanted: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """What of a run goes on: how many outcomes, the state that it has ended in or "", its inbox if that is ours now."""

    outcomes: int
    ended: str
    locked: Locked | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """The outcome waits for the journal: it is released when SQL has everything up to `sequence`."""

    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Doorbell:
    """A message to push: the queue list, which end of it, the rendered bytes, the step and ring.

    `side`: L or R; or BEFORE or AFTER (Redis' words: what is after it in the list is popped before it) the message
    `beside`, and R if that was popped meanwhile.
    """

    queue_list: str
    side: str
    content: bytes
    step: str
    ring: str
    beside: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One COMMIT. Writes: (field, from, to).

    Leases: step/fence. Timers: (step/ON, due ms or ""). Events: see commit.lua.
    """

    consumed: int
    writes: Sequence[tuple[str, str, str]] = ()
    posts: Sequence[str] = ()
    leases: Sequence[str] = ()
    timers: Sequence[tuple[str, str]] = ()
    bells: Sequence[Doorbell] = ()
    events: Sequence[tuple[str, str, str, str, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a beat learnt: the board's time, the released high water, and the leases that are lost."""

    at_ms: int
    released: int
    lost: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """A step that a success moves: it becomes READY by its `bell`; without one, it is a join of `edges` edges, not the
    last of which is taken now. `references`: the steps whose outputs it reads."""

    step: str
    edges: int
    references: Sequence[str] = ()
    bell: Doorbell | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """A step that waits for its concurrency key: the state it must have, the one it gets, the timer that brought it."""

    step: str
    was: str
    to: str
    limit: int
    timer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ringing:
    """A step to ring: the state it must have, its new doorbell, why, and what else changes (field -> value, "" =
    absent)."""

    was: str
    bell: Doorbell
    count: int
    kind: str
    data: str = "{}"
    lease: str = ""
    lease_must_be_over: bool = False
    timer: str = ""
    sets: Mapping[str, str] = field(default_factory=dict)
