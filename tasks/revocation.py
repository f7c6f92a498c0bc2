"""A revoked Celery task: whoever revokes one of our tasks cancels its run, as Flower's buttons and `celery control` do.

The engine itself revokes nothing, and knows no other way to end a single step. Celery's own way would not do: it tells
the process that holds the message, and a step that waits has none; to terminate, it kills a child, or fails in a
thread. So our workers hear the command itself and note the ids, which a worker can do whose slots are all taken. The
service process cancels.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Final, cast

from convergio.graphflow.board.connection import Link
from convergio.graphflow.engine.submission import board_time
from convergio.graphflow.journal.doors import Doors
from convergio.graphflow.journal.history import History
from convergio.graphflow.model import ids, instance

BY: Final = "celery"
"""Who cancelled: a broadcast does not say who sent it."""

BATCH: Final = 200

TASK: Final = re.compile(rf"(?P<run>{ids.RUN_ID.pattern})(\.(?P<step>[a-z0-9_:~]+)\.\d+\.\d+)?")
"""The ids of our tasks: a doorbell's, or a submission's, which is its run's."""


def listen(link: Link) -> None:
    """From now on this process hears revocations as a worker of ours: Celery's own commands are replaced."""
    from celery.worker import control  # the worker's alone: it is heavy, and clients and doors have no use for it

    stock = cast(Any, control).revoke

    @control.control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
    def revoke(state: Any, task_id: str | Collection[str], **options: Any) -> Any:
        """Cancel the run of a task, by the task's id (or a list of ids)."""
        named = [task_id] if isinstance(task_id, str) else list(task_id)
        note(link, named)
        # Nobody is terminated: the engine ends the body that it means, and none that has begun since.
        return stock(state, named, **{**options, "terminate": False})

    @control.control_command(args=[("signal", str)], variadic="task_id", signature="<signal> [id1 [id2 [... [idN]]]]")
    def terminate(state: Any, signal: str, task_id: str | Collection[str], **options: Any) -> Any:
        """Cancel the run of a task, by the task's id (or a list of ids)."""
        return revoke(state, task_id, signal=signal, **options)


def note(link: Link, task_ids: Collection[str]) -> None:
    """Keeps the ids until they are settled: every worker hears of them, and one note is enough."""
    ours = [one for one in task_ids if TASK.fullmatch(one)]
    if ours:
        link.client.sadd(_key(link), *ours)


def _key(link: Link) -> str:
    return f"{link.prefix}:revoked"


class Revocations:
    """What was revoked and not settled yet; for the service process."""

    def __init__(self, link: Link, doors: Doors, history: History) -> None:
        self.link = link
        self.doors = doors
        self.history = history

    def settle(self) -> None:
        """Asks for the end of the runs whose tasks were revoked. Raises JournalUnavailable; the next call goes on."""
        for task_id in cast("list[str]", self.link.client.srandmember(_key(self.link), BATCH)):
            self.cancel(task_id)
            self.link.client.srem(_key(self.link), task_id)

    def cancel(self, task_id: str) -> None:
        """Cancels the run of which this is a task: one of a step that has not ended, or that of its submission.

        Any other id, and one of what has ended, changes nothing.
        """
        match = TASK.fullmatch(task_id)
        run, step = match.group("run", "step") if match else ("", None)
        for row in self.history.runs_of([run]):
            if step is None or not self._has_ended(run, instance.of_slug(step)):
                reason = f"task {task_id} was revoked"
                self.doors.request_cancel(run, row.tenant, BY, reason, board_time(self.link))

    def _has_ended(self, run: str, step: str) -> bool:
        return any(row.instance == step for row in self.history.outcomes(run, [instance.step_of(step)]))
