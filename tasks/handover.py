"""The next doorbell comes with the answer to the last step's end, where the task runs in the thread that consumes.

That is the pool `solo`: while its channel delivers a message, the task runs, and has ended when the delivery returns.
So the channel can deliver the next one at once, without a pop of its own. In any other pool the task runs elsewhere,
and the thread that consumes pops for it as always.

Only doorbells come this way, only while no other message waits for this worker (a public entry, say), and only for
SPELL seconds: then the channel pops again, from all its queues, and Celery's event loop has its turn. A worker never
holds more than the one doorbell that it starts next.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, Protocol

SPELL: Final = 0.1
"""Seconds after a pop during which doorbells are handed over. A body that runs longer is the last one."""


class Channel(Protocol):
    """A consuming channel, as far as this module knows it."""

    def doorbell_lists(self) -> list[str]:
        """The lists of the queues of doorbells it consumes, the one to pop from first first."""
        ...

    def rival_lists(self) -> list[str]:
        """The lists of the other queues it consumes: their messages are acknowledged, so only a pop can fetch them."""
        ...

    def hand_on(self, queue_list: str, message: str) -> None:
        """Delivers a message as if it had been popped from the list."""
        ...


@dataclass(frozen=True, slots=True)
class Message:
    """A message that waits for its delivery."""

    queue_list: str
    text: str
    done: Callable[[], None]


@dataclass(slots=True)
class Delivery:
    """One pop of a channel, and what follows it."""

    channel: Channel
    until: float
    """time.monotonic() after which nothing more is handed over"""
    messages: deque[Message] = field(default_factory=deque[Message])
    over: bool = False

    def run(self) -> None:
        """Delivers what was put, and what is put meanwhile."""
        while self.messages:
            message = self.messages.popleft()
            try:
                self.channel.hand_on(message.queue_list, message.text)
            finally:
                message.done()


_current: ContextVar[Delivery | None] = ContextVar("delivery", default=None)


@contextmanager
def delivering(channel: Channel) -> Generator[Delivery]:
    """Whatever runs in here, in this thread, may hand the next doorbell over."""
    delivery = Delivery(channel=channel, until=time.monotonic() + SPELL)
    token = _current.set(delivery)
    try:
        yield delivery
    finally:
        delivery.over = True
        _current.reset(token)
        for message in delivery.messages:  # a delivery failed: what was taken behind it goes back
            message.done()


class Handover:
    """The engine's port (`convergio.graphflow.engine.handover`)."""

    def __init__(self, willing: Callable[[], bool]) -> None:
        """`willing`: whether this process takes steps at all."""
        self._willing = willing

    def lists(self) -> Sequence[str]:
        """The lists to take from; none outside of a delivery, or when its time is over."""
        delivery = _current.get()
        if delivery is None or delivery.over or time.monotonic() > delivery.until or not self._willing():
            return ()
        return delivery.channel.doorbell_lists()

    def rivals(self) -> Sequence[str]:
        """The lists whose messages go before: only a pop fetches them."""
        delivery = _current.get()
        return () if delivery is None else delivery.channel.rival_lists()

    def put(self, queue_list: str, message: str, done: Callable[[], None]) -> None:
        """The channel delivers the message when the task that runs has ended."""
        delivery = _current.get()
        assert delivery is not None, "a doorbell was taken outside of a delivery"
        delivery.messages.append(Message(queue_list, message, done))
