"""The consumer of a worker process: Celery's own, which loses no doorbell that it popped and did not start."""

from __future__ import annotations

import logging
from functools import partial
from queue import Empty
from typing import TYPE_CHECKING, Any, Final

from celery.worker import consumer, state
from kombu.utils.json import dumps

from convergio.graphflow.board.connection import UNREACHABLE, Link
from convergio.tasks.app import list_prefix, queue_list
from convergio.tasks.transport import ENTRY_QUEUE
from convergio.workers.probe import Doing

logger = logging.getLogger(__name__)

SIGN_EVERY: Final = 1.0
"""Seconds between two looks at what was consumed: a pop that finds nothing takes one."""

BURY_EVERY: Final = 0.5
"""Seconds between two looks for prefork children that died."""

if TYPE_CHECKING:

    class _StockConsumer(consumer.Consumer):
        """What Celery's types leave out."""

        task_consumer: Any
        pool: Any
        connection_errors: tuple[type[Exception], ...]

else:
    _StockConsumer = consumer.Consumer


class Consumer(_StockConsumer):
    """Puts doorbells back that were popped and not started; Celery drops them, as nothing acknowledges them.

    Whoever pops one again may be too late, if a child had it after all: a doorbell is answered once, by its claim.
    """

    _stops = False
    _popped_at: float | None = None

    def register_with_event_loop(self, hub: Any) -> None:
        """The loop wakes when the process is asked to stop: a signal alone leaves it in its poll, for a second."""
        super().register_with_event_loop(hub)
        pipe = self._process.farewell.pipe
        hub.add_reader(pipe.end, pipe.listen)
        self._popped_at = None
        hub.call_repeatedly(SIGN_EVERY, self._give_sign)
        if self._process.children is not None:
            # The end of a child's pipe wakes the pool, which finds the child alive if the kernel is not done with it
            # yet, and looks again after five seconds only: its steps would wait for that.
            hub.call_repeatedly(BURY_EVERY, self.pool._pool.maintain_pool)

    def _give_sign(self) -> None:
        """Consuming is that a pop was answered and the next was sent, or that there is no slot to pop for.

        A pop's time changes when the next one is sent on the same connection; a new connection proves nothing yet.
        """
        if self.task_consumer is None:
            return
        channel = self.task_consumer.channel
        before, self._popped_at = self._popped_at, channel._brpop_sent_at
        if not channel.qos.can_consume():
            self._process.show(Doing.BUSY)
        elif before is not None and self._popped_at not in (None, before):
            self._process.show(Doing.CONSUMES)

    def on_close(self) -> None:
        """The consumer stops, or its connection is lost."""
        for request in list(state.reserved_requests):
            if request not in state.active_requests:
                put_back(self._process.core.link, list_prefix(self.app), request.message)
        super().on_close()
        if self._stops:
            self._pop_no_more()
            self._process.farewell.quiet.set()

    def stop(self) -> None:
        """For good: a signal came, or a remote control's `shutdown`, as Flower sends it."""
        self._stops = True
        self._process.ask_to_stop()
        self._process.show(Doing.STOPS)
        super().stop()

    def _pop_no_more(self) -> None:
        """Waits for the pop that is under way, and puts back what it brings; Celery would, once all bodies have ended.

        As kombu does it when it closes the channel.
        """
        tasks = self.task_consumer
        if tasks is None or not tasks.channel._in_poll:
            return
        tasks.on_message = partial(put_back, self._process.core.link, list_prefix(self.app))
        try:
            tasks.channel._brpop_read()
        except Empty:
            pass
        except self.connection_errors as error:
            logger.warning("the last pop got lost: %s", error)

    @property
    def _process(self) -> Any:
        return vars(self.app)["worker"]


def put_back(link: Link, prefix: str, message: Any) -> None:
    """Pushes a doorbell to the consuming end of its list. What this cannot push, the canaries find."""
    if message.delivery_info.get("routing_key") == ENTRY_QUEUE:
        return  # kombu restores what has to be acknowledged
    try:
        name = queue_list({**message.delivery_info, **message.properties}, prefix)
        link.client.rpush(name, dumps(message.serializable()))
    except UNREACHABLE as error:
        logger.warning("doorbell %s could not be put back: %s", message.headers.get("id"), error)
    else:
        logger.info("doorbell %s is put back", message.headers.get("id"))
