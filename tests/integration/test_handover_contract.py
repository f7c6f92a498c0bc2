"""The short way from one doorbell to the next, against the installed kombu: it looks where a pop would have looked, and
delivers what a pop would have delivered.

It is built on private names of kombu's (`_brpop_read`, `_deliver`, `_queue_cycle`): a kombu in which they mean
something else fails here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import kombu
import pytest
import redis

from convergio.graphflow.board import scripts
from convergio.graphflow.engine.bell import CONTINUATION, FRESH, QUEUES, Route, canary_route
from convergio.graphflow.model.ids import RunRef
from convergio.tasks import handover
from convergio.tasks.app import PRIORITY_SEPARATOR
from convergio.tasks.bell import Bell
from convergio.tasks.handover import Handover
from tests.integration.bell_app import make_app
from tests.integration.board_stage import Stage, stage_on

TURNS = kombu.Queue("turns", no_ack=True)
STEPS = kombu.Queue("steps", no_ack=True)
ENTRIES = kombu.Queue("convergio")

Message = kombu.Message


class Worker:
    """A kombu consumer that takes the next message, if it may, while it has one in hand: as the board's TAKE does."""

    def __init__(self, connection: kombu.Connection, server: redis.Redis) -> None:
        self.connection = connection
        self.server = server
        self.channel: Any = connection.default_channel
        self.port = Handover(lambda: True)
        self.received: list[Message] = []
        self.done: list[str] = []

    def send(self, queue: kombu.Queue, number: int, priority: int = 0) -> None:
        producer = self.connection.Producer(self.channel)
        producer.publish(number, routing_key=queue.name, priority=priority, serializer="json")

    @contextmanager
    def consuming(self, *queues: kombu.Queue, taking: bool = True) -> Generator[None]:
        on_message = self.receive if taking else self.received.append
        with kombu.Consumer(self.channel, queues, on_message=on_message, auto_declare=False):
            yield

    def receive(self, message: Message) -> None:
        self.received.append(message)
        for name in self.port.lists():
            text: Any = self.server.rpop(name)
            if text is not None:
                self.port.put(name, text, partial(self.done.append, text))
                return

    def until(self, count: int) -> list[Message]:
        """Waits for so many messages in all."""
        while len(self.received) < count:
            self.connection.drain_events(timeout=5)
        return self.received


@pytest.fixture
def server(valkey: str) -> Generator[redis.Redis]:
    with redis.Redis.from_url(valkey, decode_responses=True) as client:
        yield client


@contextmanager
def worker_on(url: str, server: redis.Redis, **broker: Any) -> Generator[Worker]:
    with make_app(url, **broker).connection_for_read() as connection:
        yield Worker(connection, server)


@pytest.fixture
def worker(valkey: str, server: redis.Redis) -> Iterator[Worker]:
    with worker_on(valkey, server) as made:
        yield made


@pytest.fixture
def long_spell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A spell that no slow machine ends."""
    monkeypatch.setattr(handover, "SPELL", 60.0)


def pops(server: redis.Redis) -> int:
    """How many pops the server was sent."""
    statistics: Any = server.info("commandstats")
    return int(statistics.get("cmdstat_brpop", {"calls": 0})["calls"])


# --- where it looks ---------------------------------------------------------------------------------------------------


def lists_of_a_pop(channel: Any) -> list[str]:
    """What kombu would send now, if it popped."""
    sent: list[tuple[Any, ...]] = []

    def send(*words: Any) -> None:
        sent.append(words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channel.client.connection, "send_command", send)
        patch.setattr(channel, "_in_poll", None)
        channel._brpop_start()
    ((command, *names, _timeout),) = sent
    assert command == "BRPOP"
    return [str(name) for name in names]


def at(channel: Any, turn: int, look: Callable[[], list[str]]) -> list[str]:
    """A look that is the one after `turn` others."""
    channel._pops = turn
    return look()


@pytest.mark.parametrize("prefix", ["", "team:"])
def test_it_looks_where_a_pop_would_look_but_for_the_queues_with_acknowledgements(
    prefix: str, valkey: str, server: redis.Redis
) -> None:
    seen: set[tuple[str, ...]] = set()
    queues = [TURNS, ENTRIES, STEPS]
    with worker_on(valkey, server, key_prefix=prefix) as worker, worker.consuming(*queues, taking=False):
        channel = worker.channel
        for count, queue in enumerate([STEPS, TURNS, ENTRIES, TURNS, STEPS, ENTRIES], start=1):
            worker.send(queue, count)
            worker.until(count)
            for turn in (0, 1, 14, 15, 16, 30, 31):
                ours = at(channel, turn, channel.doorbell_lists)
                pop = at(channel, turn, lambda: lists_of_a_pop(channel))
                entries = [name for name in pop if name.startswith(f"{prefix}convergio")]
                assert ours == [name for name in pop if name not in entries]
                assert len(entries) == len(ours) / 2 == 4
                seen.add(tuple(ours))
    assert len(seen) == 6, "two orders of the queues, forwards and upwards from each of two lists"


def test_every_list_of_a_queue_with_acknowledgements_goes_before(worker: Worker) -> None:
    with worker.consuming(STEPS, ENTRIES, TURNS, taking=False):
        worker.send(STEPS, 1)
        worker.until(1)
        pop = lists_of_a_pop(worker.channel)
        assert sorted(worker.channel.rival_lists()) == sorted(name for name in pop if name.startswith("convergio"))
    with worker.consuming(STEPS, taking=False):
        assert worker.channel.rival_lists() == []


def test_a_look_counts_as_a_pop_so_that_every_sixteenth_of_both_is_reversed(worker: Worker) -> None:
    with worker.consuming(STEPS, taking=False):
        worker.send(STEPS, 1)
        worker.until(1)
        worker.channel._pops = 0
        looks = [
            worker.channel.doorbell_lists() if turn % 3 else lists_of_a_pop(worker.channel) for turn in range(1, 49)
        ]
    reversed_at = [turn for turn, names in enumerate(looks, start=1) if names[0] != "steps"]
    assert reversed_at == [16, 32, 48]
    assert [names[0][-1] for names in looks[15::16]] == ["9", "6", "3"]
    assert looks[15] == looks[0][::-1]


def test_who_consumes_no_doorbells_takes_none(worker: Worker) -> None:
    with worker.consuming(ENTRIES):
        worker.send(ENTRIES, 1)
        worker.until(1)
        assert worker.channel.doorbell_lists() == []


def test_a_queue_that_is_not_consumed_any_more_is_not_looked_at(worker: Worker) -> None:
    with worker.consuming(STEPS):
        with worker.consuming(TURNS):
            assert {"steps", "turns"} <= set(worker.channel.doorbell_lists())
        names = worker.channel.doorbell_lists()
        assert "steps" in names
        assert not any(name.startswith("turns") for name in names)


def test_a_queue_that_is_consumed_with_acknowledgements_later_is_not_looked_at(worker: Worker) -> None:
    """Its messages would be lost with the worker."""
    with worker.consuming(TURNS, STEPS):
        pass
    with worker.consuming(kombu.Queue("turns"), STEPS):
        names = worker.channel.doorbell_lists()
    assert "steps" in names
    assert not any(name.startswith("turns") for name in names)


# --- what it delivers -------------------------------------------------------------------------------------------------


def told(message: Message) -> dict[str, Any]:
    """All that a message says of itself, but for its tag."""
    properties = {name: value for name, value in message.properties.items() if name != "delivery_tag"}
    return {
        "payload": message.payload,
        "headers": message.headers,
        "properties": properties,
        "delivery_info": message.delivery_info,
        "content": (message.content_type, message.content_encoding),
    }


@pytest.mark.parametrize("priority", [CONTINUATION, FRESH])
@pytest.mark.parametrize("prefix", ["", "team:"])
def test_what_is_handed_on_is_what_a_pop_would_have_delivered(
    prefix: str, priority: int, valkey: str, server: redis.Redis, long_spell: None
) -> None:
    with worker_on(valkey, server, key_prefix=prefix) as worker, worker.consuming(STEPS):
        for _ in range(2):
            worker.send(STEPS, 7, priority=priority)
        popped, handed_on = worker.until(2)
        assert len(worker.done) == 1
        assert told(handed_on) == told(popped)
        assert handed_on.delivery_tag != popped.delivery_tag
        handed_on.ack()
        assert not worker.channel.qos._delivered
        assert not server.exists(f"{prefix}convergio.unacked")


def test_what_names_its_type_is_read_as_kombu_reads_it(worker: Worker, server: redis.Redis, long_spell: None) -> None:
    """Where nothing does, the short way leaves kombu's hook out, which is called for every object of a message."""
    when = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)
    producer = worker.connection.Producer(worker.channel)
    with worker.consuming(STEPS):
        for _ in range(2):
            producer.publish(7, routing_key="steps", serializer="json", headers={"when": when})
        popped, handed_on = worker.until(2)
    assert len(worker.done) == 1
    told_when: list[Any] = [popped.headers["when"], handed_on.headers["when"]]
    assert told_when == [when, when]


def test_kombu_itself_delivers_with_the_same_call(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, long_spell: None
) -> None:
    calls: list[tuple[Any, ...]] = []
    deliver = worker.channel.connection._deliver

    def noted(*args: Any, **options: Any) -> None:
        calls.append((args, options))
        deliver(*args, **options)

    monkeypatch.setattr(worker.channel.connection, "_deliver", noted)
    with worker.consuming(STEPS):
        for _ in range(2):
            worker.send(STEPS, 7, priority=FRESH)
        worker.until(2)
    for (raw, _queue), _ in calls:
        del raw["properties"]["delivery_tag"]
    popped, handed_on = calls
    assert popped == handed_on


def test_forty_messages_need_one_pop_within_a_spell(worker: Worker, server: redis.Redis, long_spell: None) -> None:
    for number in range(40):
        worker.send(STEPS, number)
    with worker.consuming(STEPS):
        before = pops(server)
        assert [message.payload for message in worker.until(40)] == list(range(40))
        assert pops(server) == before + 1
        assert len(worker.done) == 39


def test_without_a_spell_each_needs_its_own(
    worker: Worker, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "SPELL", -1.0)
    for number in range(10):
        worker.send(STEPS, number)
    with worker.consuming(STEPS):
        before = pops(server)
        worker.until(10)
        assert pops(server) == before + 10
        assert worker.done == []


# --- in which order ---------------------------------------------------------------------------------------------------


def order(worker: Worker, *, taking: bool, count: int) -> list[tuple[str, Any, Any]]:
    """Queue, priority and number of the messages, in the order they came in; there are enough of each kind."""
    for number in range(count):
        for queue in (TURNS, STEPS):
            for priority in (FRESH, CONTINUATION):
                worker.send(queue, number, priority=priority)
    worker.channel._pops = 0
    with worker.consuming(TURNS, STEPS, taking=taking):
        messages = worker.until(count)[:count]
    return [
        (str(message.delivery_info["routing_key"]), message.properties["priority"], message.payload)
        for message in messages
    ]


def test_the_order_is_that_of_pops(valkey: str, server: redis.Redis, long_spell: None) -> None:
    """Queues take turns, within one list the first is first, and of 48 messages two may be of new runs."""
    orders: list[list[tuple[str, Any, Any]]] = []
    for taking in (False, True):
        server.flushall()
        with worker_on(valkey, server) as worker:
            orders.append(order(worker, taking=taking, count=50))
    by_pops, by_handover = orders
    # active queues are a set: which one is the first, kombu does not say
    names = list(dict.fromkeys(name for name, *_ in by_pops))
    others = list(dict.fromkeys(name for name, *_ in by_handover))
    renamed = dict(zip(others, names, strict=True))
    assert [(renamed[name], *rest) for name, *rest in by_handover] == by_pops
    assert [turn for turn, (_, priority, _) in enumerate(by_handover, start=1) if priority == FRESH] == [16, 32]


def test_after_one_was_handed_on_its_queue_is_the_last_to_be_popped_from(worker: Worker, server: redis.Redis) -> None:
    with worker.consuming(TURNS, ENTRIES, STEPS, taking=False):
        for queue in (TURNS, STEPS, TURNS):
            worker.send(queue, 1)
            text: Any = server.rpop(queue.name)
            worker.channel.hand_on(queue.name, text)
            worker.send(ENTRIES, 1)
            worker.until(len(worker.received) + 1)
            worker.channel._pops = 0
            assert worker.channel.doorbell_lists()[1] == queue.name


def test_an_entry_that_waits_is_popped_before_another_doorbell(
    worker: Worker, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a spell is over: doorbells are never short of it, so entries must not be either."""
    now = [0.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            now[0] += handover.SPELL / 10
            return now[0]

    monkeypatch.setattr(handover, "time", Clock)
    for number in range(60):
        worker.send(STEPS, number)
    for number in range(3):
        worker.send(ENTRIES, number)
    with worker.consuming(STEPS, ENTRIES):
        names = [str(message.delivery_info["routing_key"]) for message in worker.until(63)]
    turns = [turn for turn, name in enumerate(names) if name == "convergio"]
    assert len(turns) == 3
    assert turns[-1] < 40


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_message_whose_consumer_is_gone_goes_back_to_its_list(worker: Worker, server: redis.Redis) -> None:
    worker.send(STEPS, 1)
    text: Any = server.rpop("steps")
    worker.channel.hand_on("steps", text)
    assert server.llen("steps") == 1
    assert not server.exists("convergio.unacked")


@pytest.mark.parametrize("text", ["cheep", ""])
def test_a_text_that_is_no_message_is_as_bad_as_popping_it(text: str, worker: Worker, server: redis.Redis) -> None:
    with worker.consuming(STEPS):
        server.lpush("steps", text)
        with pytest.raises(ValueError) as popping:  # which one, kombu's JSON decides
            worker.until(1)
        with pytest.raises(type(popping.value)):
            worker.channel.hand_on("steps", text)


# --- doorbells as the bell makes them ---------------------------------------------------------------------------------


@pytest.fixture
def stage(valkey: str) -> Iterator[Stage]:
    with stage_on(valkey) as made:
        yield made


def taken_by(stage: Stage, name: str, queue_list: str) -> scripts.Taken:
    """What a worker gets that ends a step of another run."""
    then, taken = stage.next(queue_list)
    stage.arrive(stage.running(stage.begun(f"{name}-before")), then=then)
    (one,) = taken
    return one


@pytest.mark.parametrize("task", ["convergio.step", "convergio.agent", "convergio.approval"])
@pytest.mark.parametrize("traceparent", [None, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"])
@pytest.mark.parametrize(
    ("tenant", "run", "step"), [("default", "R-1_x", "a"), ("t-1_2", "0" * 64, "z" * 63)], ids=["short", "long"]
)
def test_a_doorbell_as_the_bell_renders_it_is_claimed(
    stage: Stage, valkey: str, task: str, traceparent: str | None, tenant: str, run: str, step: str
) -> None:
    bell, route = Bell(make_app(valkey)), Route(queue="turns", task=task, priority=FRESH)
    message = bell.render(
        route,
        tenant=tenant,
        submitter='a "b" \\ é',
        run=run,
        step=step,
        ring="12.345",
        label='"id":"x.y.1.1"',
        traceparent=traceparent,
    )
    stage.client.lpush(name := bell.list_of(route), message)
    one = taken_by(stage, "r1", name)
    assert (one.ref, one.step, one.ring) == (RunRef(tenant=tenant, run=run), step, "12.345")
    assert one.claim == scripts.Refused(why="GONE")
    assert one.message.encode() == message


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("priority", [CONTINUATION, FRESH])
def test_a_canary_as_the_bell_renders_it_is_no_doorbell(stage: Stage, valkey: str, queue: str, priority: int) -> None:
    bell, route = Bell(make_app(valkey)), canary_route(queue, priority)
    name, canary = bell.list_of(route), stage.nonces.next()
    assert name == (queue if not priority else f"{queue}{PRIORITY_SEPARATOR}{priority}")
    text = bell.render(
        route, tenant="default", submitter="convergio", run="canary", step=name, ring=canary, label=f"canary/{queue}"
    )
    stage.client.lpush(name, text)
    assert taken_by(stage, "r1", name) == scripts.Taken(queue_list=name, message=text.decode())
