"""A workflow as a value: what every definition, from YAML or from Python, becomes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final

EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


def _empty() -> Mapping[str, Any]:
    # a mapping proxy has no hash before Python 3.12, so that dataclasses refuse it as a plain default
    return EMPTY


class StepKind(StrEnum):
    """What a step does."""

    TASK = "task"
    AGENT = "agent"
    APPROVAL = "approval"
    WAIT = "wait"
    WORKFLOW = "workflow"
    MAP = "map"
    CONVERSATION = "conversation"


class JoinKind(StrEnum):
    """When a step with several needs starts.

    `all`: when all are resolved, unless none was taken; `any`: with the first that is taken; `quorum`: with the n-th;
    `tolerate`: when all are resolved and at most n were not taken. Where that cannot come true any more it is skipped.
    """

    ALL = "all"
    ANY = "any"
    QUORUM = "quorum"
    TOLERATE = "tolerate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """A join policy; `count` is the n of `quorum` and `tolerate`."""

    kind: JoinKind = JoinKind.ALL
    count: int = 0

    def fires(self, *, edges: int, resolved: int, taken: int) -> bool | None:
        """Whether the step starts now (True), never (False), or perhaps later (None)."""
        left = edges - resolved
        match self.kind:
            case JoinKind.ALL:
                return None if left else taken > 0
            case JoinKind.TOLERATE:
                missed = resolved - taken
                return False if missed > self.count else None if left else taken > 0
            case JoinKind.ANY | JoinKind.QUORUM:
                needed = max(1, self.count)
                return True if taken >= needed else None if taken + left >= needed else False

    def verdict(self, *, items: int, done: int, good: int) -> bool | None:
        """Whether a map of so many items has come true (True), cannot any more (False), or neither yet (None)."""
        left, bad = items - done, done - good
        match self.kind:
            case JoinKind.ALL:
                return False if bad else None if left else True
            case JoinKind.TOLERATE:
                return False if bad > self.count else None if left else True
            case JoinKind.ANY | JoinKind.QUORUM:
                needed = max(1, self.count)
                return True if good >= needed else None if good + left >= needed else False


class OnFailure(StrEnum):
    """What the failure of a step does to its run: end it, let it go on with null as the step's result, end it when
    what it did is undone, or let it wait until somebody has said which."""

    FAIL = "fail"
    CONTINUE = "continue"
    COMPENSATE = "compensate"
    ASK = "ask"


UNDO: Final = "undo:"
"""Begins the name of a step that undoes another one: no step that anybody writes has such a name."""


class Durability(StrEnum):
    """When successors may start: `step` = after the outcome is in the journal; `stream` = at once."""

    STEP = "step"
    STREAM = "stream"


PRIORITIES: Final = ("low", "medium", "high", "critical")
"""How urgent steps are: who comes first where both are ready."""

DEFAULT_PRIORITY: Final = "medium"


class OnMax(StrEnum):
    """What a loop does that has made all its rounds, and its `until` still does not hold."""

    FAIL = "fail"
    CONTINUE = "continue"


DEFAULT_QUEUE: Final = MappingProxyType(
    {
        StepKind.TASK: "steps",
        StepKind.AGENT: "turns",
        StepKind.APPROVAL: "control",
        StepKind.WAIT: "control",
        StepKind.WORKFLOW: "control",
        StepKind.MAP: "control",
        StepKind.CONVERSATION: "turns",
    }
)
DEFAULT_DURABILITY: Final = MappingProxyType(
    {
        StepKind.TASK: Durability.STREAM,
        StepKind.AGENT: Durability.STEP,
        StepKind.APPROVAL: Durability.STEP,
        StepKind.WAIT: Durability.STREAM,
        StepKind.WORKFLOW: Durability.STREAM,
        StepKind.MAP: Durability.STREAM,
        StepKind.CONVERSATION: Durability.STEP,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and how soon a failed attempt is tried again.

    Seconds: `backoff * factor**(attempt-1)`, at most `cap`. `on`: codes of errors, or names of exception classes, that
    are worth another attempt; empty: all that may pass by themselves.
    """

    max: int = 0
    backoff: float = 1.0
    factor: float = 2.0
    cap: float = 60.0
    jitter: float = 0.1
    on: tuple[str, ...] = ()

    def covers(self, *names: str) -> bool:
        """Whether an error of these names (its code, its exception classes) is worth another attempt."""
        return not self.on or any(name in self.on for name in names)

    def delay(self, attempt: int, salt: str) -> float:
        """Seconds to wait after failed attempt `attempt` (from 1).

        The jitter is a hash of `salt`, so it can be replayed.
        """
        plain = min(self.cap, self.backoff * self.factor ** (attempt - 1))
        draw = int.from_bytes(hashlib.blake2b(f"{salt}:{attempt}".encode(), digest_size=4).digest(), "big") / 2**32
        return plain * (1 + self.jitter * (2 * draw - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """A success of the same function with the same arguments counts for this step, too, if it is not older than `ttl`
    seconds. `version`: of the function; another one is another call."""

    ttl: float
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrency:
    """At most `limit` steps of one key run, or are rung, at once, over all runs of a tenant. `key`: text with {{ CEL }}
    pieces."""

    key: str
    limit: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """`step` must be resolved first; with `when` (CEL) the edge is taken only if it is true."""

    step: str
    when: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """After the step the way from `back_to` to it is gone again, unless `until` (CEL) holds or it was gone `max` times.

    Without `until` it is gone so often, and then the run goes on.
    """

    back_to: str
    max: int
    until: str | None = None
    on_max: OnMax = OnMax.FAIL


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """`each` is done for every item of the list that `over` (CEL) gives; `item` names it in its expressions.

    `max_concurrency`: how many at once; None = all. `join`: how many items must succeed.
    """

    over: str
    each: Step
    item: str = "item"
    max_concurrency: int | None = None
    join: Join = field(default_factory=Join)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step. `spec` is what only its kind knows (JSON): function, or agent and prompt, or the approval's title.

    `timeout`: seconds that one attempt may take; `queue_timeout`: seconds that its first one may wait for a worker;
    `idle_timeout`: seconds that an attempt may go on without a sign of life; `expected`: seconds that it usually takes;
    `priority`: how urgent it is, None as its run.
    """

    name: str
    kind: StepKind
    needs: tuple[Edge, ...] = ()
    when: str | None = None
    arguments: Mapping[str, str] = field(default_factory=_empty)
    spec: Mapping[str, Any] = field(default_factory=_empty)
    retry: Retry = field(default_factory=Retry)
    timeout: float | None = None
    queue_timeout: float | None = None
    idle_timeout: float | None = None
    expected: float | None = None
    join: Join = field(default_factory=Join)
    on_failure: OnFailure = OnFailure.FAIL
    durability: Durability = Durability.STREAM
    queue: str = "steps"
    priority: str | None = None
    concurrency: Concurrency | None = None
    cache: Cache | None = None
    compensate: Step | None = None
    """the step that undoes this one; its name is this one's with UNDO before it"""
    loop: Loop | None = None
    map: Map | None = None


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """A whole definition. `document` is its canonical JSON form: what the journal pins and the board carries."""

    name: str
    version: int
    steps: Mapping[str, Step]
    document: Mapping[str, Any]
    title: str = ""
    description: str = ""
    input_schema: Mapping[str, Any] = field(default_factory=_empty)
    output: Mapping[str, str] | None = None
    sla: float | None = None
    priority: str = DEFAULT_PRIORITY
    on_failure: OnFailure = OnFailure.FAIL

    @cached_property
    def text(self) -> str:
        """The canonical document as one text. Made once: it takes milliseconds for a thousand steps."""
        return canonical(self.document)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical document, 32 hex characters: the version a run is pinned to."""
        return _digest_of(self.text)

    @property
    def children(self) -> frozenset[str]:
        """Names of the workflows that its steps start."""
        steps = self.steps.values()
        return frozenset(step.spec["workflow"] for step in steps if step.kind is StepKind.WORKFLOW)


def canonical(document: Mapping[str, Any]) -> str:
    """One text for one document: sorted keys, no spaces."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(document: Mapping[str, Any]) -> str:
    """The digest of a canonical document."""
    return _digest_of(canonical(document))


def _digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
