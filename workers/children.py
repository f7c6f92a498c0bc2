"""Prefork children: the processes that run the bodies of a pool `prefork`, and what their parent does for them.

A child makes connections, loop, claims, nonces and beats of its own, after the fork. Its nonces begin with those of its
parent, who so knows the leases of a child that died: it lets them lapse at once, and the next sweep rings the steps.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final, cast

from celery import signals
from celery.exceptions import WorkerLostError
from celery.worker import request

from convergio.config.settings import Settings
from convergio.graphflow.board.connection import UNREACHABLE, Link
from convergio.graphflow.model import errors
from convergio.tasks.app import FlowTask
from convergio.workers import boot
from convergio.workers.farewell import Pipe

logger = logging.getLogger(__name__)

AWAY: Final = (*UNREACHABLE, errors.BoardUnavailable, errors.BoardRebuilding)

TRIES: Final = 2
"""The connection may have been idle for days, and be gone."""


class Request(request.Request):
    """Celery's own request, in the parent: it learns that the child which ran it is gone."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """The task failed. If its process died, that process's leases lapse now."""
        pid = cast("int | None", self.worker_pid)
        raised = exc_info.exception
        if pid is not None and isinstance(getattr(raised, "exc", raised), WorkerLostError):  # as billiard wraps it
            vars(self.app)["worker"].children.lost(pid)
        super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)


class Children:
    """The children, seen by their parent."""

    def __init__(self, core: boot.Core, settings: Settings) -> None:
        self.core = core
        self.settings = settings
        self.pipe = Pipe()

    def serve(self, *, opened: Callable[[boot.Core, int], None], closed: Callable[[], None]) -> None:
        """From now on `opened` is called in each new child, with parts of its own, and `closed` at its end."""
        parent = os.getpid()

        def open_child(**_: Any) -> None:
            if os.getpid() != parent:
                signals.task_prerun.connect(_leave_ends_to_the_parent, weak=False)
                opened(boot.forked(self.core, self.settings), os.getpid())

        def close_child(**_: Any) -> None:
            if os.getpid() != parent:
                closed()

        signals.worker_process_init.connect(open_child, weak=False)
        signals.worker_process_shutdown.connect(close_child, weak=False)
        for task in self.core.app.tasks.values():
            if isinstance(task, FlowTask):
                cast(Any, task).Request = Request

    def lost(self, pid: int) -> None:
        """A child died: its leases lapse. If the board is away, they do so by themselves, some seconds later."""
        for _ in range(TRIES):
            try:
                lapsed = let_lapse(self.core.link, f"{self.core.nonces.boot}.{pid:x}-")
            except AWAY as error:
                logger.warning("child %d is gone, and its leases stay for a while: %s", pid, error)
            else:
                logger.warning("child %d is gone: %s", pid, ", ".join(lapsed) or "it had no lease")
                return


def let_lapse(link: Link, nonce: str) -> list[str]:
    """Ends the leases whose fences were made with nonces that begin so. The sweeper counts them as deliveries."""
    leases = link.keys(link.refresh()).leases
    found = cast("Iterator[tuple[str, float]]", link.client.zscan_iter(leases, match=f"*.{nonce}*", count=1_000))
    members = [member for member, _ in found]
    if members:
        link.client.zadd(leases, dict.fromkeys(members, 0), xx=True)
    return members


def _leave_ends_to_the_parent(**_: Any) -> None:
    """SIGTERM to a whole group of processes must not end the bodies: the parent tells its children to stop.

    Not ignored, as programs that a body starts would inherit that. Done with the first task, as billiard sets its own
    handler after it has opened the child.
    """
    signal.signal(signal.SIGTERM, _go_on)
    signals.task_prerun.disconnect(_leave_ends_to_the_parent)


def _go_on(number: int, frame: FrameType | None) -> None: ...
