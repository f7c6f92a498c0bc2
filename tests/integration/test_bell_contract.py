"""Doorbells against the installed Celery and kombu: what the bell renders is what `send_task` would have pushed."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kombu
import pytest
import redis
from celery import Celery

from convergio.graphflow.engine import bell as port
from convergio.graphflow.engine.bell import Route
from convergio.graphflow.model.workflow import StepKind
from convergio.tasks import transport
from convergio.tasks.bell import Bell, doorbell_id
from tests.integration.bell_app import SEEN, make_app, running_worker
from tests.waiting import wait_until

RUN = "019abcde0123456789abcdef01234567"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ROUTES = [
    Route(queue=queue, task=task, priority=priority)
    for queue, task in [
        ("steps", port.TASK_OF[StepKind.TASK]),
        ("turns", port.TASK_OF[StepKind.AGENT]),
        ("tools", port.TASK_OF[StepKind.TASK]),
        ("control", port.TASK_OF[StepKind.APPROVAL]),
        ("control", port.CANARY_TASK),
    ]
    for priority in (0, 3, 6, 9)
]
WORDS = {
    "usual": {
        "tenant": "default",
        "submitter": "cli:alex",
        "step": "market_research",
        "label": "market_entry/research",
    },
    "unicode": {"tenant": "bücher", "submitter": "李雷 😀", "step": "prüfung", "label": "Markteintritt/Prüfung — 市场"},
    "quotes": {
        "tenant": "a'b",
        "submitter": 'x"y\\z',
        "step": 'it\'s "so"',
        "label": "%(run)s %s %% {step} </script>\n\t",
    },
    "controls": {"tenant": "\u0000", "submitter": "\u2028\x7f", "step": "\ud83d", "label": ""},
    "long": {"tenant": "t" * 32, "submitter": "s" * 300, "step": "x" * 63, "label": "w" * 63 + "/" + "x" * 63},
}

Server = redis.Redis


@pytest.fixture
def server(valkey: str) -> Generator[Server]:
    with redis.Redis.from_url(valkey, decode_responses=True) as client:
        yield client


def render(app: Celery, route: Route, words: dict[str, str], ring: str, traceparent: str | None) -> bytes:
    return Bell(app).render(route, run=RUN, ring=ring, traceparent=traceparent, **words)


def send(app: Celery, route: Route, words: dict[str, str], ring: str, traceparent: str | None) -> None:
    """The same doorbell through Celery's public door."""
    step = words["step"]
    headers = {"tenant": words["tenant"], "submitter": words["submitter"]}
    app.send_task(
        route.task,
        args=(RUN, step, ring),
        task_id=doorbell_id(RUN, step, ring),
        root_id=RUN,
        queue=route.queue,
        priority=route.priority,
        shadow=words["label"],
        argsrepr=f"(..., {step!r}, {ring!r})",
        ignore_result=True,
        headers=headers | ({"traceparent": traceparent} if traceparent else {}),
    )


def comparable(message: bytes | str) -> dict[str, Any]:
    """The message without what every sender makes anew: its tag, who sent it, and where replies would go."""
    content: dict[str, Any] = json.loads(message)
    content["body"] = json.loads(base64.b64decode(content["body"]))
    content["properties"].pop("argsrepr", None)  # a slip of send_task: the option becomes a property as well
    del content["properties"]["delivery_tag"], content["properties"]["reply_to"], content["headers"]["origin"]
    return content


@contextmanager
def watched(server: Server) -> Generator[list[tuple[str, str]]]:
    """What is pushed inside the block: list and message."""
    pushed: list[tuple[str, str]] = []
    yield pushed
    for key in map(str, server.keys("*")):
        if server.type(key) == "list":
            pushed += [(key, str(message)) for message in server.lrange(key, 0, -1)]
            server.delete(key)


@pytest.mark.parametrize("traceparent", [None, TRACE], ids=["untraced", "traced"])
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("prefix", ["", "team:"], ids=["no prefix", "prefix"])
def test_a_doorbell_is_what_celery_would_have_pushed(
    prefix: str, words: dict[str, str], traceparent: str | None, valkey: str, server: Server
) -> None:
    app = make_app(valkey, key_prefix=prefix)
    for route in ROUTES:
        with watched(server) as pushed:
            send(app, route, words, "7.3", traceparent)
        ((list_name, message),) = pushed
        assert comparable(render(app, route, words, "7.3", traceparent)) == comparable(message)
        assert Bell(app).list_of(route) == list_name


EVERYWHERE = [
    Route(queue=queue, task=task, priority=priority)
    for queue in (*port.QUEUES, "gpu")
    for task in (*port.TASK_OF.values(), port.CANARY_TASK)
    for priority in port.LISTS
]
"""Every task on every queue, one of a user's own among them, and every priority."""


def test_every_route_goes_where_celery_would_have_pushed_it(valkey: str, server: Server) -> None:
    app = make_app(valkey, settings={"task_queues": transport.queues(["gpu"])})
    ringer = Bell(app)
    for route in EVERYWHERE:
        with watched(server) as pushed:
            send(app, route, WORDS["usual"], "7.3", None)
        ((list_name, message),) = pushed
        ours = ringer.render(route, run=RUN, ring="7.3", traceparent=None, **WORDS["usual"])
        assert (ringer.list_of(route), comparable(ours)) == (list_name, comparable(message))


def test_kombu_pushes_and_pops_at_the_ends_that_the_board_does(valkey: str, server: Server) -> None:
    """A doorbell that is rung at the consuming end (R) is the next one; the others (L) are behind kombu's own."""
    app, route = make_app(valkey), ROUTES[0]
    for ring, push in (("7.1", None), ("7.2", server.lpush), ("7.3", server.rpush)):
        if push is None:
            send(app, route, WORDS["usual"], ring, None)
        else:
            push(Bell(app).list_of(route), render(app, route, WORDS["usual"], ring, None))
    popped: list[str] = []

    def note(message: kombu.Message) -> None:
        popped.append(str(message.headers["id"]))

    with app.connection_for_read() as connection:
        queue = kombu.Queue(route.queue, no_ack=True)
        with kombu.Consumer(connection.default_channel, [queue], on_message=note, auto_declare=False):
            while len(popped) < 3:
                connection.drain_events(timeout=5)
    assert popped == [doorbell_id(RUN, WORDS["usual"]["step"], ring) for ring in ("7.3", "7.1", "7.2")]


# --- what a real worker makes of it -------------------------------------------------------------------------------

POOLS = {"solo": ("-P", "solo"), "threads": ("-P", "threads", "-c", "2")}


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_answers_a_doorbell_and_its_task_sees_every_header(
    pool: str, valkey: str, server: Server, tmp_path: Path
) -> None:
    app = make_app(valkey)
    words = WORDS["quotes"]
    for number, route in enumerate(ROUTES):
        server.lpush(Bell(app).list_of(route), render(app, route, words, f"7.{number}", TRACE))
    with running_worker(valkey, "-Q", "steps,turns,tools,control", *POOLS[pool], log=tmp_path / "log"):
        wait_until(lambda: server.llen(SEEN) == len(ROUTES), timeout=30)
    notes = {note["id"]: note for note in map(json.loads, server.lrange(SEEN, 0, -1))}
    for number, route in enumerate(ROUTES):
        note = notes[doorbell_id(RUN, words["step"], f"7.{number}")]
        assert (note["task"], note["args"]) == (route.task, [RUN, words["step"], f"7.{number}"])
        assert {name: note[name] for name in ("tenant", "submitter", "traceparent", "root_id", "parent_id")} == {
            "tenant": words["tenant"],
            "submitter": words["submitter"],
            "traceparent": TRACE,
            "root_id": RUN,
            "parent_id": None,
        }


def test_events_show_the_readable_name_and_no_more_of_the_arguments_than_ids(
    valkey: str, server: Server, tmp_path: Path
) -> None:
    app = make_app(valkey)
    words = WORDS["usual"]
    with captured_events(app, server, "task-received") as events:
        server.lpush("steps", render(app, ROUTES[0], words, "7.3", None))
        with running_worker(valkey, "-Q", "steps", *POOLS["threads"], log=tmp_path / "log", events=True):
            wait_until(lambda: events, timeout=30)
    (event,) = events
    assert (event["name"], event["uuid"]) == (words["label"], doorbell_id(RUN, words["step"], "7.3"))
    assert (event["args"], event["kwargs"]) == ("(..., 'market_research', '7.3')", "{}")


@contextmanager
def captured_events(app: Celery, server: Server, kind: str) -> Generator[list[dict[str, Any]]]:
    """The events of one kind that workers send meanwhile, as Flower receives them."""
    events: list[dict[str, Any]] = []
    with app.connection_for_read() as connection:
        receiver: Any = app.events.Receiver(connection, handlers={kind: events.append})
        listener = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        listener.start()
        wait_until(lambda: server.pubsub_numpat() == 1)
        try:
            yield events
        finally:
            receiver.should_stop = True
            listener.join()


def test_a_doorbell_rendered_inside_a_task_is_no_child_of_that_task(
    valkey: str, server: Server, tmp_path: Path
) -> None:
    app = make_app(valkey)
    app.send_task("ring_again", queue="convergio", ignore_result=True)
    with running_worker(valkey, "-Q", "convergio", *POOLS["threads"], log=tmp_path / "log"):
        wait_until(lambda: server.llen(SEEN) == 1, timeout=30)
    message = json.loads(server.lrange(SEEN, 0, 0)[0])
    assert (message["headers"]["root_id"], message["headers"]["parent_id"]) == ("r2", None)
