"""From one step to the next in one move: a port.

A worker that tells the board how a step ended has its hands free: the board may give it the next doorbell with the
answer, its step claimed. That saves a worker's way round the broker (a pop, a claim) for every step that finds another
one waiting. Which lists a worker may take from, and what happens to the message, is the business of the transport
(`convergio.tasks.handover`); the doorbell goes Celery's way from there on, and its task finds the claim made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from convergio.graphflow.board import scripts
from convergio.graphflow.model.ids import RunRef


class Handover(Protocol):
    """Who takes the next doorbell."""

    def lists(self) -> Sequence[str]:
        """The queue lists to take from, the one to look at first first; none if nothing can be taken now."""
        ...

    def rivals(self) -> Sequence[str]:
        """Lists of other messages this worker has to fetch: nothing is taken while one of them has any."""
        ...

    def put(self, queue_list: str, message: str, done: Callable[[], None]) -> None:
        """A message that was taken; `done` is to be called when its task has ended, or never began."""
        ...


class Nobody:
    """Takes no doorbell."""

    def lists(self) -> Sequence[str]:
        return ()

    def rivals(self) -> Sequence[str]:
        return ()

    def put(self, queue_list: str, message: str, done: Callable[[], None]) -> None:
        raise AssertionError("a doorbell was taken that nobody asked for")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """How the claim of a taken doorbell went."""

    answer: scripts.Claimed | scripts.Refused
    nonce: str
    sure_until: float
    """time.monotonic() until which the lease lasts, whatever else happens"""


Key = tuple[RunRef, str, str]
"""A doorbell: run, step, ring."""


class Grants:
    """Claims that were made ahead of their tasks: at most one per thread, and not for long."""

    def __init__(self, handover: Handover, *, worker: str, unused: Callable[[Grant], None]) -> None:
        """`unused` is told of a claim whose task never asked for it."""
        self._handover = handover
        self._worker = worker
        self._unused = unused
        self._grants: dict[Key, Grant] = {}

    def ask(self, nonce: str) -> scripts.Next | None:
        """What to ask the board for besides, if anything."""
        lists = self._handover.lists()
        if not lists:
            return None
        sure_until = time.monotonic() + scripts.LEASE_MS / 1000

        def taken(one: scripts.Taken) -> None:
            if one.ref is None or one.claim is None:
                self._handover.put(one.queue_list, one.message, _nothing)
                return
            key = (one.ref, one.step, one.ring)
            self._grants[key] = Grant(answer=one.claim, nonce=nonce, sure_until=sure_until)
            self._handover.put(one.queue_list, one.message, lambda: self._close(key))

        rivals = self._handover.rivals()
        return scripts.Next(lists=lists, rivals=rivals, nonce=nonce, worker=self._worker, taken=taken)

    def pop(self, ref: RunRef, step: str, ring: str) -> Grant | None:
        """The claim of this doorbell, if it came with an answer of the board."""
        return self._grants.pop((ref, step, ring), None)

    def _close(self, key: Key) -> None:
        grant = self._grants.pop(key, None)
        if grant is not None:
            self._unused(grant)


def _nothing() -> None:
    """Nothing was claimed."""
