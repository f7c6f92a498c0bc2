"""Results of tasks under the ids that callers wait for: of many tasks in one move.

Celery stores one at a time, and asks for what was there before; a journaler that has written a hundred runs would spend
more time with that than with SQL. What is stored, and told to who waits, is Celery's own: `test_engine_callers.py`
holds the two equal.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from celery import Celery, states

logger = logging.getLogger(__name__)

CHUNK: Final = 200
"""Answers that are sent at once: each may be large."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a task's `AsyncResult` will say: a result, or the exception if it failed."""

    task_id: str
    result: Any

    @property
    def state(self) -> str:
        """Celery's word."""
        return states.FAILURE if isinstance(self.result, BaseException) else states.SUCCESS


class Answers:
    """Stores them in the app's result backend."""

    def __init__(self, app: Celery) -> None:
        self.app = app

    def store(self, answers: Sequence[Answer]) -> None:
        """Stores all that can be stored, however long that takes: who waits for one would wait for ever."""
        for start in range(0, len(answers), CHUNK):
            chunk = answers[start : start + CHUNK]
            try:
                self._store(chunk)
            except Exception as error:  # noqa: BLE001  # one by one, Celery tries again, and one fails without the others
                logger.warning("%d answers are stored one by one: %s", len(chunk), error)
                for one in chunk:
                    self._store_alone(one)

    def _store_alone(self, one: Answer) -> None:
        try:
            self.app.backend.store_result(one.task_id, one.result, one.state)
        except Exception:  # whatever it is, the others have their answers
            logger.exception("task %s is not answered", one.task_id)

    def _store(self, answers: Sequence[Answer]) -> None:
        backend: Any = self.app.backend
        with backend.client.pipeline(transaction=False) as pipe:
            for one in answers:
                key, text = backend.get_key_for_task(one.task_id), self._encoded(backend, one)
                pipe.setex(key, backend.expires, text)
                pipe.publish(key, text)
            pipe.execute()

    def _encoded(self, backend: Any, one: Answer) -> Any:
        result = backend.encode_result(one.result, one.state)
        meta = backend._get_result_meta(result=result, state=one.state, traceback=None, request=None)
        return backend.encode({**meta, "task_id": one.task_id})
