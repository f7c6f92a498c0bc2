"""Which transport a URL gets, and which settings go with it. Nothing here connects to anything."""

from __future__ import annotations

import ssl
from typing import Any

import kombu
import pytest
from celery import Celery
from flower.utils.broker import Broker
from kombu.transport import redis as stock

from convergio.graphflow.model import errors
from convergio.tasks import transport

URLS = {
    "redis://user:secret@board.example:7000/3": transport.Transport,
    "rediss://board.example:7001/0?ssl_cert_reqs=required": transport.Transport,
    "redis+socket:///run/board.sock?virtual_host=2": transport.Transport,
    "sentinel://one.example:26379/0;sentinel://two.example:26379/0": transport.SentinelTransport,
}


def app_on(url: str, **options: Any) -> Celery:
    app = Celery("settings", amqp=transport.AMQP, set_as_current=False)
    app.conf.update(transport.broker_settings(url, **options) | transport.consumer_settings())
    return app


@pytest.mark.parametrize("url", URLS)
def test_every_url_of_a_redis_gets_our_transport(url: str) -> None:
    app = app_on(url, master_name="board")
    for connection in (app.connection_for_read(), app.connection_for_write(), app.connection_for_write().clone()):
        assert type(connection.transport) is URLS[url]


def test_our_transport_stays_when_a_failed_connection_goes_to_the_next_url() -> None:
    connection = app_on("sentinel://one.example:26379;sentinel://two.example:26379").connection_for_read()
    connection.maybe_switch_next()
    assert (connection.hostname, type(connection.transport)) == ("two.example", transport.SentinelTransport)


def test_the_setting_broker_transport_still_loses_to_a_socket_url_and_to_the_next_url() -> None:
    """Why there is a connection class of our own; when this fails, the plain setting will do."""
    by_socket = kombu.Connection("redis+socket:///run/board.sock", transport="convergio.tasks.transport:Transport")
    assert type(by_socket.transport) is stock.Transport
    by_list = kombu.Connection(
        "redis://one.example;redis://two.example", transport="convergio.tasks.transport:Transport"
    )
    assert type(by_list.transport) is transport.Transport
    by_list.maybe_switch_next()
    assert type(by_list.transport) is stock.Transport


@pytest.mark.parametrize("url", URLS)
def test_a_connection_shows_the_url_that_was_given(url: str) -> None:
    """Flower, `celery report` and the worker's banner parse it."""
    app = app_on(url, master_name="board")
    ours = app.connection_for_read().as_uri(include_password=True)
    assert ours == kombu.Connection(url).as_uri(include_password=True)
    kinds = {"redis": "Redis", "rediss": "RedisSsl", "redis+socket": "RedisSocket", "sentinel": "RedisSentinel"}
    shown = Broker(ours, broker_options=app.conf.broker_transport_options, broker_use_ssl=app.conf.broker_use_ssl)
    assert type(shown).__name__ == kinds[ours.split("://")[0]]


def test_another_transport_is_left_alone() -> None:
    assert type(transport.Connection("memory://").transport).__module__ == "kombu.transport.memory"


def test_tls_checks_the_certificate_unless_the_url_says_otherwise() -> None:
    assert app_on("rediss://board.example").connection_for_read().ssl == {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    lax = app_on("rediss://board.example?ssl_cert_reqs=none").connection_for_read()
    assert lax.ssl == {"ssl_cert_reqs": ssl.CERT_NONE}


def test_the_unacknowledged_have_keys_and_times_of_their_own() -> None:
    options = transport.broker_settings("redis://board.example")["broker_transport_options"]
    keys = [options[f"unacked{part}_key"] for part in ("", "_index", "_mutex")]
    assert keys == ["convergio.unacked", "convergio.unacked_index", "convergio.unacked_mutex"]
    times = [options[name] for name in ("visibility_timeout", "unacked_restore_interval", "unacked_restore_throttle")]
    assert times == [15, 5, 1]


def test_keepalive_is_for_tcp() -> None:
    by_tcp = transport.broker_settings("redis://board.example")["broker_transport_options"]
    by_socket = transport.broker_settings("redis+socket:///run/board.sock")["broker_transport_options"]
    assert by_tcp["socket_keepalive"] is True
    assert "socket_keepalive" not in by_socket


def test_options_of_the_caller_come_last() -> None:
    settings = transport.broker_settings(
        "sentinel://one.example",
        key_prefix="team:",
        master_name="board",
        options={"sep": ":", "visibility_timeout": 60},
    )
    options = settings["broker_transport_options"]
    wanted = {"global_keyprefix": "team:", "master_name": "board", "sep": ":", "visibility_timeout": 60}
    assert {name: options[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    "url", ["redis+cluster://board.example", "amqp://board.example", "board.example", "redis://one;amqp://two"]
)
def test_a_url_that_cannot_carry_the_broker_is_refused_in_words(url: str) -> None:
    with pytest.raises(errors.InvalidSetting, match="Redis Cluster cannot carry"):
        transport.broker_settings(url)


def test_doorbell_queues_ask_for_no_receipt_and_entries_do() -> None:
    receipts = {queue.name: not queue.no_ack for queue in transport.queues(["gpu", "turns"])}
    assert receipts == {
        "steps": False,
        "turns": False,
        "tools": False,
        "control": False,
        "gpu": False,
        "convergio": True,
    }


def test_every_queue_has_a_routing_key_of_its_own() -> None:
    """Celery would bind queues without one to the default queue's key: a message for one would reach all."""
    queues = app_on("redis://board.example").amqp.queues
    assert {name: (queue.exchange.name, queue.routing_key) for name, queue in queues.items()} == {
        name: ("convergio", name) for name in ("steps", "turns", "tools", "control", "convergio")
    }
