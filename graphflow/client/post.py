"""Sending the public entries (`convergio.submit`, `.signal`, ...) with stock Celery, and their answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from convergio.graphflow.board.keys import DEFAULT, queue_prefix
from convergio.graphflow.model import errors

if TYPE_CHECKING:
    from celery import Celery

QUEUE: Final = "convergio"
"""The queue of the public entries."""

RESEND: Final = 5.0
"""Seconds after which an unanswered message is sent again under the same id; the entries are idempotent."""

SHOWN: Final = frozenset({"workflow", "run", "step", "name", "tenant", "submitter"})
"""Arguments that may be shown."""

POLL: Final = 0.05
CONNECTIONS: Final = 4
"""Threads of one client that may send at once; more of them wait."""

SOCKET_TIMEOUT: Final = 5.0
SCHEMES: Final = ("redis", "rediss", "redis+socket", "unix", "sentinel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a message: Celery's state, and the result or the exception."""

    state: str
    result: Any

    @property
    def error(self) -> Exception | None:
        """What the entry failed with, or is trying again after."""
        if self.state not in ("FAILURE", "RETRY") or not isinstance(self.result, Exception):
            return None
        error = self.result
        if isinstance(
            error, errors.ProblemsError
        ):  # its text begins with its code; as text alone it would be said twice
            error.message = error.message.removeprefix(f"{error.code}  ")
        return error


class Post:
    """A Celery app that only sends. Connects when it is first used; safe for threads."""

    def __init__(self, url: str, *, prefix: str = DEFAULT) -> None:
        """Raises UnsupportedServer for a URL that is no Redis."""
        self._prefix = prefix
        self.url = _broker_url(url)
        self._app: Celery | None = None
        self._connections: Any = None
        self._making = threading.Lock()

    @property
    def app(self) -> Celery:
        """The app, made when it is needed: the import takes a moment."""
        with self._making:
            if self._app is None:
                self._app = _sender(self.url, queue_prefix(self._prefix))
                # Celery's own pool is the process's: closed here, it would be closed for all clients of this server.
                self._connections = self._app.connection_for_write().Pool(limit=CONNECTIONS)
            return self._app

    def send(self, entry: str, kwargs: Mapping[str, Any], *, task_id: str) -> None:
        """Puts one message on the queue. Raises BoardUnavailable.

        What dashboards and logs show of its arguments are names, never an input or a decision.
        """
        from celery.exceptions import OperationalError

        shown = {name: value for name, value in kwargs.items() if name in SHOWN}
        app = self.app
        try:
            with self._connections.acquire(block=True) as connection:
                app.send_task(
                    entry,
                    kwargs=dict(kwargs),
                    task_id=task_id,
                    queue=QUEUE,
                    argsrepr="()",
                    kwargsrepr=repr(shown),
                    connection=connection,
                )
        except (OperationalError, OSError) as error:
            raise _away(error) from error

    def answer(self, task_id: str) -> Answer | None:
        """The answer so far; None while nobody has taken the message. Raises BoardUnavailable."""
        from celery.exceptions import BackendError

        backend: Any = self.app.backend
        try:
            meta = backend.get_task_meta(task_id, cache=False)
        except (*backend.connection_errors, BackendError, OSError) as error:
            raise _away(error) from error
        return None if meta["status"] == "PENDING" else Answer(state=meta["status"], result=meta["result"])

    def ask(self, entry: str, kwargs: Mapping[str, Any], *, task_id: str, patience: float) -> Answer:
        """Sends the message and waits until somebody has taken it: the first answer that is no retry.

        Raises NoWorker when nobody does within `patience` seconds (the message stays in the queue), what the entry
        retries after when it still does by then, and BoardUnavailable.
        """
        began = time.monotonic()
        sent = began - RESEND
        while True:
            now = time.monotonic()
            answer = self.answer(task_id)
            if answer is not None and answer.state != "RETRY":
                return answer
            if now - began > patience:
                raise _unanswered(answer, patience, task_id)
            if answer is None and now - sent >= RESEND:
                self.send(entry, kwargs, task_id=task_id)
                sent = now
            time.sleep(POLL)

    def forget(self, task_id: str) -> None:
        """Takes an answer that nobody asks for again out of Redis."""
        from celery.exceptions import BackendError

        backend: Any = self.app.backend
        try:
            backend.forget(task_id)
        except (*backend.connection_errors, BackendError, OSError) as error:
            raise _away(error) from error

    def close(self) -> None:
        """Ends the connections: Celery itself leaves them to the garbage collector."""
        app: Any = self._app
        self._app = None
        if app is None:
            return
        self._connections.force_close_all()
        app.backend.client.connection_pool.disconnect()
        app.close()


def _sender(url: str, prefix: str) -> Celery:
    from celery import Celery

    from convergio.graphflow.board.address import without_master

    plain, master = without_master(url)
    options = {"master_name": master, "global_keyprefix": prefix}
    named = {name: value for name, value in options.items() if value}
    app = Celery("convergio-client", broker=plain, backend=plain, set_as_current=False)
    app.conf.update(
        broker_transport_options={
            "socket_timeout": SOCKET_TIMEOUT,
            "socket_connect_timeout": SOCKET_TIMEOUT,
            **named,
        },
        result_backend_transport_options=named,
        task_publish_retry=False,  # `ask` sends again by itself, and says when it gives up
        redis_socket_timeout=SOCKET_TIMEOUT,
        redis_socket_connect_timeout=SOCKET_TIMEOUT,
    )
    return app


def _unanswered(answer: Answer | None, patience: float, task_id: str) -> Exception:
    if answer is not None and answer.error is not None:
        return answer.error
    hint = "Start one: convergio worker -Q convergio,steps,turns,tools,control. The message stays in the queue"
    return errors.NoWorker(f"no worker took it from queue '{QUEUE}' for {patience:.0f} s.", hint=hint, id=task_id)


def _away(error: Exception) -> errors.BoardUnavailable:
    hint = "start it (convergio up), or set CONVERGIO_REDIS_URL to a running server"
    return errors.BoardUnavailable(f"Redis does not answer: {error}", hint=hint)


def _broker_url(url: str) -> str:
    scheme = urlsplit(url).scheme
    if scheme not in SCHEMES:
        hint = f"use one of {', '.join(f'{name}://' for name in SCHEMES)}"
        raise errors.UnsupportedServer(f"a client cannot connect to a URL of the kind '{scheme}'", hint=hint)
    return url.replace("unix://", "redis+socket://", 1)
