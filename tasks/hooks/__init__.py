"""The pre-run hooks: what must agree before a step's body runs. Celery's `task_prerun` cannot veto; these can.

A hook is called after the claim, under its fence, and answers `Allow()`, `Deny(reason)` or `Defer(until, reason)`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from convergio.graphflow.model import instance
from convergio.graphflow.model.workflow import StepKind


@dataclass(frozen=True, slots=True)
class Allow:
    """The body may run."""


@dataclass(frozen=True, slots=True)
class Deny:
    """The step fails, with this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Defer:
    """Not now: the step waits without a slot until `until` (aware), and is asked again."""

    until: datetime
    reason: str


Answer = Allow | Deny | Defer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HookContext:
    """What a hook may look at."""

    tenant: str
    submitter: str
    run: str
    workflow: str
    step: str
    kind: StepKind
    attempt: int
    now: datetime
    iteration: int = 0

    def next(self, *, hour: int) -> datetime:
        """The next time at which it is `hour` o'clock, in the zone of `now`; also where clocks change before then."""
        today = datetime.combine(self.now.date(), time(hour), tzinfo=self.now.tzinfo)
        if today > self.now:
            return today
        return datetime.combine(self.now.date() + timedelta(days=1), time(hour), tzinfo=self.now.tzinfo)


Hook = Callable[[HookContext], Answer]
H = TypeVar("H", bound=Hook)


class Hooks:
    """Hooks in the order in which they were added, each for some kinds of steps."""

    def __init__(self) -> None:
        self._hooks: list[tuple[frozenset[StepKind], Hook]] = []

    def add(self, hook: Hook, kinds: Iterable[StepKind] = tuple(StepKind)) -> None:
        self._hooks.append((frozenset(kinds), hook))

    def concern(self, kind: StepKind) -> bool:
        """Whether any hook is for steps of this kind."""
        return any(kind in kinds for kinds, _ in self._hooks)

    def ask(self, context: HookContext) -> Answer:
        """The first answer that is not Allow, or Allow. A hook that raises denies: the guard fails closed."""
        for kinds, hook in self._hooks:
            if context.kind not in kinds:
                continue
            try:
                answer = _checked(hook(context))
            except (Exception, SystemExit) as error:  # a guard that breaks must not wave steps through
                name, where = getattr(hook, "__name__", hook), f"{context.run}/{context.step}"
                logger.warning("hook %s failed, so step %s is denied", name, where, exc_info=True)
                return Deny(f"hook {name} failed: {error}; the worker's log has the traceback")
            if not isinstance(answer, Allow):
                return answer
        return Allow()


def _checked(answer: object) -> Answer:
    """The answer itself. Raises TypeError for anything else, such as the None of a forgotten `return`."""
    if not isinstance(answer, Allow | Deny | Defer):
        raise TypeError(f"it answered {answer!r}, which is not Allow, Deny or Defer")
    if isinstance(answer, Defer) and answer.until.tzinfo is None:
        raise TypeError("it deferred until a time without a zone")
    return answer


REGISTERED = Hooks()
"""Where `@hook` puts hooks while modules are imported; a worker takes them from here."""

_KINDS: dict[str, tuple[StepKind, ...]] = {
    "step": tuple(StepKind),
    "task": (StepKind.TASK,),
    "agent": (StepKind.AGENT,),
    "approval": (StepKind.APPROVAL,),
    "turn": (StepKind.CONVERSATION,),
}


def hook(*, before: str = "step") -> Callable[[H], H]:
    """Registers a pre-run hook. `before`: "step" for all, or "task", "agent", "approval", "turn"."""
    kinds = _KINDS.get(before)
    if kinds is None:
        raise ValueError(f"before={before!r}: use one of {', '.join(_KINDS)}")

    def register(function: H) -> H:
        REGISTERED.add(function, kinds)
        return function

    return register


@cache
def local_zone() -> tzinfo | None:
    """This machine's zone with its rules, by TZ or /etc/localtime; None where neither names one."""
    link = Path("/etc/localtime")
    named = os.environ.get("TZ", "").removeprefix(":") or (os.readlink(link) if link.is_symlink() else "")
    try:
        return ZoneInfo(named.rpartition("zoneinfo/")[2])
    except (ValueError, OSError, ZoneInfoNotFoundError):
        return None


def context(claimed: Any, kind: StepKind) -> HookContext:
    """The context of a claim (`scripts.Claimed`), in board time."""
    step, iteration = instance.split(claimed.step)
    return HookContext(
        tenant=claimed.ref.tenant,
        submitter=claimed.submitter,
        run=claimed.ref.run,
        workflow=claimed.meta["workflow"],
        step=step,
        iteration=iteration,
        kind=kind,
        attempt=claimed.attempt,
        now=datetime.fromtimestamp(claimed.at_ms / 1000, UTC).astimezone(local_zone()),
    )
