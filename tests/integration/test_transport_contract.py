"""The transport against the installed kombu: what it changes, and that kombu still needs the change.

A test named `…stock kombu still…` that fails is good news: kombu has learned it, and our line can go.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import kombu
import pytest
import redis

from convergio.tasks import transport
from tests.integration.bell_app import make_app

DOORBELLS = kombu.Queue("turns", no_ack=True)
ENTRIES = kombu.Queue("convergio")
UNACKED = "convergio.unacked"

Message = kombu.Message


class Consumer:
    """A kombu consumer in this process, on a channel of ours or of kombu's."""

    def __init__(self, connection: kombu.Connection) -> None:
        self.connection = connection
        self.channel: Any = connection.default_channel
        self.received: list[Message] = []

    def send(self, queue: kombu.Queue, number: int, priority: int = 0) -> None:
        producer = self.connection.Producer(self.channel)
        producer.publish(number, routing_key=queue.name, priority=priority, serializer="json")

    def receive(self, count: int, *queues: kombu.Queue) -> list[Message]:
        """The next `count` messages, in the order in which they were popped."""
        before = len(self.received)
        with kombu.Consumer(self.channel, queues, on_message=self.received.append, auto_declare=False):
            while len(self.received) < before + count:
                self.connection.drain_events(timeout=5)
        return self.received[before:]


@pytest.fixture
def server(valkey: str) -> Generator[redis.Redis]:
    with redis.Redis.from_url(valkey, decode_responses=True) as client:
        yield client


@contextmanager
def consumer(url: str, *, stock: bool) -> Generator[Consumer]:
    with make_app(url, stock=stock).connection_for_read() as connection:
        yield Consumer(connection)


def calls(server: redis.Redis, *commands: str) -> int:
    """How often the server was sent these commands."""
    statistics: Any = server.info("commandstats")
    return sum(int(statistics.get(f"cmdstat_{command}", {"calls": 0})["calls"]) for command in commands)


# --- acknowledgements ---------------------------------------------------------------------------------------------


def tags_kept(ears: Consumer) -> int:
    return len(ears.channel.qos._delivered) + len(ears.channel.qos._dirty)


def answer_doorbells(ears: Consumer, count: int) -> None:
    for number in range(count):
        ears.send(DOORBELLS, number)
    for message in ears.receive(count, DOORBELLS):
        message.ack()


def test_acknowledging_a_doorbell_tells_the_server_nothing_and_keeps_nothing(valkey: str, server: redis.Redis) -> None:
    with consumer(valkey, stock=False) as ears:
        before = calls(server, "zrem", "hdel")
        answer_doorbells(ears, 50)
        assert calls(server, "zrem", "hdel") == before
        assert tags_kept(ears) == 0


def test_stock_kombu_still_acknowledges_what_needs_no_receipt_and_keeps_the_tags(
    valkey: str, server: redis.Redis
) -> None:
    with consumer(valkey, stock=True) as ears:
        before = calls(server, "zrem", "hdel")
        answer_doorbells(ears, 50)
        assert calls(server, "zrem", "hdel") == before + 100
        assert tags_kept(ears) == 50


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock kombu still forgets it"])
def test_the_prefetch_limit_of_entries_holds_beside_doorbells(valkey: str, stock: bool) -> None:
    with consumer(valkey, stock=stock) as ears:
        ears.send(ENTRIES, 1)
        ears.receive(1, ENTRIES)
        answer_doorbells(ears, 3)
        ears.channel.basic_qos(prefetch_count=1)
        assert ears.channel.qos.can_consume() is stock


def test_rejecting_a_doorbell_is_nothing_either(valkey: str, server: redis.Redis) -> None:
    with consumer(valkey, stock=False) as ears:
        for number in range(2):
            ears.send(DOORBELLS, number)
        dropped, requeued = ears.receive(2, DOORBELLS)
        dropped.reject()
        requeued.requeue()
        assert tags_kept(ears) == 0
        assert server.llen("turns") == 0


def test_an_entry_is_kept_until_it_is_acknowledged(valkey: str, server: redis.Redis) -> None:
    with consumer(valkey, stock=False) as ears:
        ears.send(ENTRIES, 1)
        (entry,) = ears.receive(1, ENTRIES)
        assert (server.hlen(UNACKED), server.zcard(f"{UNACKED}_index")) == (1, 1)
        entry.ack()
        assert (server.hlen(UNACKED), server.zcard(f"{UNACKED}_index")) == (0, 0)
        assert not server.exists("unacked", "unacked_index", "unacked_mutex"), "those are other apps' keys"


def test_an_entry_that_is_requeued_or_never_answered_goes_back_to_its_queue(valkey: str, server: redis.Redis) -> None:
    with consumer(valkey, stock=False) as ears:
        for number in range(2):
            ears.send(ENTRIES, number)
        requeued, _unanswered = ears.receive(2, ENTRIES)
        requeued.requeue()
        assert server.llen("convergio") == 1
    assert (server.llen("convergio"), server.hlen(UNACKED)) == (2, 0)


def test_a_doorbell_without_a_consumer_goes_back_to_its_list(valkey: str, server: redis.Redis) -> None:
    """A queue that is cancelled while its pop is under way: kombu gives the message a receipt, then requeues it."""
    with consumer(valkey, stock=False) as ears:
        ears.send(DOORBELLS, 1)
        message = server.rpop("turns")
        assert isinstance(message, str)
        ears.channel.connection._deliver(json.loads(message), "turns")
        assert (server.llen("turns"), server.hlen(UNACKED)) == (1, 0)


# --- order --------------------------------------------------------------------------------------------------------


def order_of(ears: Consumer, *, pops: int) -> list[Any]:
    """The priorities of the messages popped, with enough of both kinds in the queue."""
    for number in range(pops):
        ears.send(DOORBELLS, number, priority=3)
        ears.send(DOORBELLS, number, priority=0)
    return [message.properties["priority"] for message in ears.receive(pops, DOORBELLS)]


def test_every_sixteenth_pop_takes_a_new_run_before_the_continuations(valkey: str) -> None:
    with consumer(valkey, stock=False) as ears:
        order = order_of(ears, pops=50)
    assert [turn for turn, priority in enumerate(order, start=1) if priority == 3] == [16, 32, 48]


def test_no_list_starves_while_the_first_and_the_last_are_full(valkey: str) -> None:
    """Lists between two full ones: what is urgent and what is not must not starve what lies between."""
    with consumer(valkey, stock=False) as ears:
        for number in range(200):
            for priority in (0, 3, 6, 9):
                ears.send(DOORBELLS, number, priority=priority)
        order: list[Any] = [message.properties["priority"] for message in ears.receive(96, DOORBELLS)]
    turns = {priority: [turn for turn, one in enumerate(order, 1) if one == priority] for priority in (3, 6, 9)}
    assert turns == {9: [16, 64], 6: [32, 80], 3: [48, 96]}


def test_stock_kombu_still_starves_low_priorities(valkey: str) -> None:
    with consumer(valkey, stock=True) as ears:
        assert set(order_of(ears, pops=50)) == {0}


def test_within_one_list_the_first_is_served_first_also_when_the_lists_are_reversed(valkey: str) -> None:
    with consumer(valkey, stock=False) as ears:
        for number in range(40):
            ears.send(DOORBELLS, number, priority=3)
        assert [message.payload for message in ears.receive(40, DOORBELLS)] == list(range(40))


def test_queues_take_turns_also_when_the_lists_are_reversed(valkey: str) -> None:
    other = kombu.Queue("steps", no_ack=True)
    with consumer(valkey, stock=False) as ears:
        for number in range(20):
            ears.send(DOORBELLS, number)
            ears.send(other, number)
        order = [message.delivery_info["routing_key"] for message in ears.receive(40, DOORBELLS, other)]
    assert all(first != second for first, second in itertools.pairwise(order))


def test_a_key_prefix_reaches_every_list_and_the_unacknowledged(valkey: str, server: redis.Redis) -> None:
    with make_app(valkey, key_prefix="team:").connection_for_read() as connection:
        ears = Consumer(connection)
        for queue in (DOORBELLS, ENTRIES):
            ears.send(queue, 1)
        keys = {"team:turns", "team:convergio"}
        assert keys <= set(server.keys())
        ears.receive(2, DOORBELLS, ENTRIES)
        assert server.hlen(f"team:{UNACKED}") == 1


# --- ways in ------------------------------------------------------------------------------------------------------


def test_doorbells_come_through_a_unix_socket(valkey_server: Any) -> None:
    server = valkey_server(aof=False)
    with consumer(f"redis+socket://{server.socket_path}?virtual_host=1", stock=False) as ears:
        answer_doorbells(ears, 3)
        assert isinstance(ears.channel, transport.Channel)
        assert tags_kept(ears) == 0
