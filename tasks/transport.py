"""How doorbells travel: kombu's Redis transport with three facts changed, and the Celery settings that go with it.

1. Acknowledging a message that asked for no receipt is nothing (kombu sends ZREM and HDEL for it, and keeps its tag).
2. Every sixteenth pop looks at lists of low priority first, each of them in turn: so that new runs are not starved by
   long ones, and what is urgent starves nothing.
3. What a task was handed over while it was delivered is delivered behind it, without another pop (`handover`).

Everything else is kombu's. `tests/integration/test_transport_contract.py` holds each fact against the installed kombu,
and says so when kombu itself has learned one. Producers and clients need none of this.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import kombu
from celery.app import amqp
from kombu.transport import redis as stock
from kombu.utils.json import loads

from convergio.graphflow.engine import bell
from convergio.graphflow.model import errors
from convergio.tasks import handover

ENTRY_QUEUE: Final = "convergio"
"""The public entries' queue: acknowledged late, redelivered when a worker dies."""

REVERSE_EVERY: Final = 16
"""Every how many pops the lists are looked at from a low priority up: from each but the first in turn."""

SCHEMES: Final = ("redis", "rediss", "redis+socket", "sentinel")

if TYPE_CHECKING:

    class _StockChannel(stock.Channel):
        """The private names of kombu's that this module builds on."""

        active_queues: set[str]
        _queue_cycle: Any

        def _brpop_start(self, timeout: float | None = None) -> None: ...
        def _brpop_read(self, **options: Any) -> bool: ...
        def _q_for_pri(self, queue: str, pri: int) -> str: ...

else:
    _StockChannel = stock.Channel


class QoS(stock.QoS):
    """Acknowledges what was delivered against a receipt, and nothing else.

    Celery acknowledges every message, also those of `no_ack` queues. `_delivered` holds exactly the others.
    """

    def ack(self, delivery_tag: str) -> None:
        """Takes the message off the list of the unacknowledged; a doorbell is on none."""
        if delivery_tag in (self._delivered or ()):
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Drops or requeues the message; a doorbell is gone already, and the board rings it again."""
        if delivery_tag in (self._delivered or ()):
            super().reject(delivery_tag, requeue=requeue)


class _Upwards(list[int]):
    """Priority steps that are walked backwards and around, from one of them on; indexing, which kombu bisects by, stays
    as it was."""

    def __init__(self, steps: Sequence[int], turn: int) -> None:
        """`turn`: each begins one step higher than the last, and never with the first."""
        super().__init__(steps)
        upwards = list(reversed(steps))
        start = turn % max(1, len(steps) - 1)
        self._walk = upwards[start:] + upwards[:start]

    def __iter__(self) -> Iterator[int]:
        return iter(self._walk)


class Channel(_StockChannel):
    """kombu's channel, fair to low priorities, and with a short way from one doorbell to the next."""

    QoS = QoS
    _pops = 0
    _silent: frozenset[str] | set[str] = frozenset()

    def __init__(self, *args: Any, **options: Any) -> None:
        self._names: dict[tuple[tuple[str, ...], tuple[int, ...]], list[str]] = {}
        super().__init__(*args, **options)

    def _brpop_start(self, timeout: float | None = None) -> None:
        steps = self.priority_steps
        self.priority_steps = self._next_steps()
        try:
            super()._brpop_start(timeout)
        finally:
            self.priority_steps = steps

    def _brpop_read(self, **options: Any) -> bool:
        with handover.delivering(self) as delivery:
            popped = super()._brpop_read(**options)
            delivery.run()
        return popped

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **options: Any) -> Any:
        """Notes which queues are of doorbells: those that ask for no receipt."""
        self._silent = {*self._silent, queue} if no_ack else self._silent - {queue}
        return super().basic_consume(queue, no_ack, *args, **options)

    def doorbell_lists(self) -> list[str]:
        """The lists that a pop would look at now, in its order, without those whose messages are acknowledged."""
        queues = tuple(queue for queue in self._queue_cycle.consume(len(self.active_queues)) if queue in self._silent)
        return self._lists(queues, self._next_steps())

    def rival_lists(self) -> list[str]:
        """Every list of the queues whose messages are acknowledged."""
        queues = tuple(queue for queue in self.active_queues if queue not in self._silent)
        return self._lists(queues, self.priority_steps)

    def hand_on(self, queue_list: str, message: str) -> None:
        """Delivers a message as if it had been popped from the list."""
        queue = queue_list.removeprefix(self.global_keyprefix).rsplit(self.sep, 1)[0]
        self._queue_cycle.rotate(queue)
        # Only what names a type needs kombu's hook, which is called for each object; a doorbell names none.
        self.connection._deliver((loads if "__type__" in message else json.loads)(message), queue)

    def _lists(self, queues: tuple[str, ...], steps: Sequence[int]) -> list[str]:
        """The names of these queues' lists. Orders come again and again: by far the most are known."""
        order = (queues, tuple(steps))
        names = self._names.get(order)
        if names is None:
            prefix = self.global_keyprefix
            names = [prefix + self._q_for_pri(queue, step) for step in order[1] for queue in queues]
            self._names[order] = names
        return names

    def _next_steps(self) -> list[int]:
        self._pops += 1
        if self._pops % REVERSE_EVERY:
            return self.priority_steps
        return _Upwards(self.priority_steps, self._pops // REVERSE_EVERY - 1)


class SentinelChannel(Channel, stock.SentinelChannel):
    """The same, through Sentinel."""


class Transport(stock.Transport):
    """kombu's Redis transport with our channel."""

    Channel = Channel


class SentinelTransport(Transport, stock.SentinelTransport):
    """The same, through Sentinel."""

    Channel = SentinelChannel


OURS: Final[Mapping[Any, Any]] = {stock.Transport: Transport, stock.SentinelTransport: SentinelTransport}


class Connection(kombu.Connection):
    """kombu's connection, with our transport wherever a URL names kombu's.

    The setting `broker_transport` would not do: a `redis+socket://` URL overrides it, and so does each switch to the
    next URL of a list, that is, every failed attempt with more than one Sentinel.
    """

    def get_transport_cls(self) -> Any:
        """Our transport for `redis`, `rediss`, `redis+socket` and `sentinel`, kombu's for any other."""
        named = super().get_transport_cls()
        return OURS.get(named, named)


class AMQP(amqp.AMQP):
    """What a Celery app connects with: `Celery("convergio", amqp=transport.AMQP)`."""

    Connection = Connection


def queues(extra: Iterable[str] = ()) -> list[kombu.Queue]:
    """Every queue: those of doorbells, and `extra` ones, without acknowledgements; the entries' with them."""
    exchange = kombu.Exchange(ENTRY_QUEUE)
    doorbells = dict.fromkeys((*bell.QUEUES, *extra))
    return [
        *(kombu.Queue(name, exchange, routing_key=name, no_ack=True) for name in doorbells),
        kombu.Queue(ENTRY_QUEUE, exchange, routing_key=ENTRY_QUEUE),
    ]


def broker_settings(
    url: str,
    *,
    visibility_timeout: int = 15,
    restore_interval: int = 5,
    socket_timeout: float = 5.0,
    health_check_interval: int = 5,
    key_prefix: str = "",
    master_name: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The `broker_*` settings of a Celery app made with `amqp=transport.AMQP`. All times are seconds.

    A killed worker's public entry is delivered again within `visibility_timeout + restore_interval`; the keys of the
    unacknowledged are our own, so that this short time never reaches other apps on the same Redis. `socket_timeout`
    must exceed kombu's pop of 1 s. `key_prefix` is put before every key, `master_name` is Sentinel's name for the
    server, `options` are further transport options of kombu's.
    Raises `InvalidSetting` for a URL that cannot carry the broker.
    """
    scheme = _scheme(url)
    transport_options: dict[str, Any] = {
        "unacked_key": "convergio.unacked",
        "unacked_index_key": "convergio.unacked_index",
        "unacked_mutex_key": "convergio.unacked_mutex",
        "unacked_mutex_expire": 30,
        "visibility_timeout": visibility_timeout,
        "unacked_restore_interval": restore_interval,
        "unacked_restore_throttle": 1,
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": socket_timeout,
        "health_check_interval": health_check_interval,
        "client_name": "convergio",
    }
    if scheme != "redis+socket":
        transport_options["socket_keepalive"] = True
    if key_prefix:
        transport_options["global_keyprefix"] = key_prefix
    if master_name is not None:
        transport_options["master_name"] = master_name
    settings: dict[str, Any] = {
        "broker_url": url,
        "broker_transport_options": transport_options | dict(options or {}),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A server that became a replica, or refuses writes for now, answers with an error: reconnect, do not die of it.
        "broker_channel_error_retry": True,
    }
    if scheme == "rediss" and "ssl_cert_reqs" not in url:
        settings["broker_use_ssl"] = {"ssl_cert_reqs": ssl.CERT_REQUIRED}  # kombu alone would check no certificate
    return settings


def consumer_settings(extra_queues: Iterable[str] = ()) -> dict[str, Any]:
    """The Celery settings that consuming doorbells relies on; the contract tests show what breaks without each."""
    return {
        "task_queues": queues(extra_queues),
        "task_default_queue": ENTRY_QUEUE,
        "task_create_missing_queues": False,
        # The late acknowledgement is what wakes the event loop when a thread is free again: early ones stall the pool.
        "task_acks_late": True,
        # Without acknowledgements there is no prefetch limit: a worker would pop a whole queue into its memory.
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        "worker_enable_prefetch_count_reduction": False,
        # A step outlives a lost broker connection; the board's fence, not Celery, says whether its result still counts.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }


def _scheme(url: str) -> str:
    schemes = {urlsplit(part).scheme for part in url.split(";")}
    scheme = schemes.pop()
    if schemes or scheme not in SCHEMES:
        raise errors.InvalidSetting(
            f"The broker cannot be reached by a URL of the kind {scheme!r}.",
            hint="Use redis://, rediss://, redis+socket:// or sentinel://. Redis Cluster cannot carry a Celery broker.",
        )
    return scheme
