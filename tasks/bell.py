"""Doorbells: the Celery messages that the board pushes, as Celery and kombu themselves would make them.

The board's scripts mark a step ready and push its message in one atomic move, so somebody else than kombu has to push.
The message stays kombu's: for each route one is sent through Celery's own sender over kombu's own Redis channel, whose
client writes the LPUSH down instead of telling a server. Its placeholders are then filled in per doorbell.
`tests/integration/test_bell_contract.py` holds the result against `send_task` of the installed kombu and Celery.
"""

from __future__ import annotations

import base64
import functools
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import kombu
import redis
from celery import Celery
from kombu.transport import redis as stock
from kombu.utils.json import dumps

from convergio.graphflow.engine.bell import Route
from convergio.graphflow.model import errors, instance
from convergio.tasks import transport

ORIGIN: Final = "convergio"
"""Instead of the process and host of whoever recorded the template; host names of pods are long."""

_quote: Final = json.encoder.encode_basestring_ascii
"""A text as JSON: what `json.dumps` does with one, without its way there."""

_compact: Final = functools.partial(dumps, separators=(",", ":"))


def doorbell_id(run: str, step: str, ring: str) -> str:
    """The Celery id of a doorbell. Rings never repeat, and neither runs nor steps have dots, so ids never do."""
    return f"{run}.{instance.slug(step)}.{ring}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Template:
    """One recorded message: the list it was pushed to, its text and its body's text with `%(name)s` for what varies."""

    list_name: str
    text: str
    body: str


class Bell:
    """Renders doorbells for one Celery app: the engine's port. Threads may share it; it connects to nothing."""

    def __init__(self, app: Celery) -> None:
        """`app` gives queues, routing and broker options."""
        self._app = app
        self._templates: dict[tuple[Route, bool], _Template] = {}

    def list_of(self, route: Route) -> str:
        """The Redis list, with the key prefix, that kombu pushes the route's messages to."""
        return self._template(route, False).list_name

    def render(
        self,
        route: Route,
        *,
        tenant: str,
        submitter: str,
        run: str,
        step: str,
        ring: str,
        label: str,
        traceparent: str | None = None,
    ) -> bytes:
        """One message, ready for LPUSH. `label` is the name that Flower shows; `traceparent` is the W3C header.

        The task is called with `(run, step, ring)`; tenant, submitter and traceparent are attributes of its request.
        Its root is the run, whose id is that of the public entry that submitted it.
        Raises `InvalidSetting` when the app's settings make messages that are not plain JSON.
        """
        template = self._template(route, traceparent is not None)
        body = template.body % {"run": _quote(run), "step": _quote(step), "ring": _quote(ring)}
        text = template.text % {
            "id": _quote(doorbell_id(run, step, ring)),
            "root": _quote(run),
            "tag": _quote(secrets.token_urlsafe(8)),
            "arguments": _quote(f"(..., {step!r}, {ring!r})"),  # the run is the root: once less keeps it below 1 KB
            "label": _quote(label),
            "tenant": _quote(tenant),
            "submitter": _quote(submitter),
            "traceparent": _quote(traceparent or ""),
            "body": _quote(base64.b64encode(body.encode()).decode()),
        }
        return text.encode()

    def _template(self, route: Route, traced: bool) -> _Template:
        known = self._templates.get((route, traced))
        if known is None:
            known = self._templates[(route, traced)] = _record(self._app, route, traced)
        return known


class _Deaf(redis.Redis):
    """A Redis client that writes down what it should push, and tells no server."""

    pushed: list[tuple[str, str]]

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Notes an LPUSH; any other command succeeds and does nothing."""
        if args[0] == "LPUSH":
            self.pushed.append((args[1], args[2]))
        return True


class _Recorder(stock.GlobalKeyPrefixMixin, _Deaf):
    """The same behind kombu's own prefixing of keys."""

    def __init__(self, *, pushed: list[tuple[str, str]], prefix: str, **options: Any) -> None:
        super().__init__(**options)
        self.pushed = pushed
        self.global_keyprefix = prefix


class _Channel(transport.Channel):
    """kombu's Redis channel, whose clients record."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.pushed: list[tuple[str, str]] = []
        super().__init__(*args, **options)

    def _get_client(self) -> Callable[..., _Recorder]:
        return functools.partial(_Recorder, pushed=self.pushed, prefix=self.global_keyprefix)


class _Transport(transport.Transport):
    Channel = _Channel


def _record(app: Celery, route: Route, traced: bool) -> _Template:
    """Sends one message with placeholders to nowhere and makes a template of what would have been pushed."""
    mark = secrets.token_hex(4)
    header_names = ["tenant", "submitter", *(["traceparent"] if traced else [])]
    outside = {name: f"{name}-{mark}" for name in ("id", "root", "arguments", "label", *header_names)}
    inside = {name: f"{name}-{mark}" for name in ("run", "step", "ring")}
    message = app.amqp.create_task_message(
        outside["id"],
        route.task,
        tuple(inside.values()),
        {},
        root_id=outside["root"],
        shadow=outside["label"],
        argsrepr=outside["arguments"],
        kwargsrepr="{}",
        origin=ORIGIN,
        ignore_result=True,
    )
    headers = {name: outside[name] for name in header_names}
    known_headers = set(message.headers) | set(headers)
    list_name, pushed = _pushed(app, route, message, headers)
    record = json.loads(pushed)
    # Tracers add and overwrite headers of whatever this process publishes; what they say is true of no doorbell.
    record["headers"] = {
        name: headers.get(name, value) for name, value in record["headers"].items() if name in known_headers
    }
    body = _body_of(record)
    outside |= {"body": f"body-{mark}", "tag": f"tag-{mark}"}
    record["body"], record["properties"]["delivery_tag"] = outside["body"], outside["tag"]
    return _Template(list_name=list_name, text=_with_blanks(_compact(record), outside), body=_with_blanks(body, inside))


def _pushed(app: Celery, route: Route, message: Any, headers: Mapping[str, str]) -> tuple[str, str]:
    """The one LPUSH of Celery's sender: its list and its payload."""
    options = dict(app.conf.broker_transport_options)
    with kombu.Connection(transport=_Transport, transport_options=options) as connection:
        channel = cast(_Channel, connection.default_channel)
        app.amqp.send_task_message(
            app.amqp.Producer(channel, auto_declare=False),
            route.task,
            message,
            queue=kombu.Queue(route.queue),  # by name Celery would want it declared here, where nothing consumes
            priority=route.priority,
            serializer="json",
            headers=headers,
            declare=[],
            retry=False,
        )
        (push,) = channel.pushed
        return push


def _body_of(record: Mapping[str, Any]) -> str:
    """The recorded arguments and their embedding, as compact JSON."""
    try:
        return _compact(json.loads(base64.b64decode(record["body"])))
    except ValueError as fault:
        raise _hidden("body") from fault


def _with_blanks(text: str, placeholders: Mapping[str, str]) -> str:
    """The text as a `%` format: `%(name)s` where the JSON string of a placeholder stood."""
    text = text.replace("%", "%%")
    for name, placeholder in placeholders.items():
        if f'"{placeholder}"' not in text:
            raise _hidden(name)
        text = text.replace(f'"{placeholder}"', f"%({name})s")
    return text


def _hidden(what: str) -> errors.InvalidSetting:
    return errors.InvalidSetting(
        f"A Celery message made by this app does not show its {what} as plain JSON.",
        hint="Doorbells need task_protocol 2, no task_compression and kombu's default body_encoding.",
    )
