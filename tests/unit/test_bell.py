"""Doorbells without a server: their ids, their size, and what must not get into them."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import pytest
from celery import Celery, signals

from convergio.graphflow.engine.bell import Bell as Port
from convergio.graphflow.engine.bell import Route
from convergio.graphflow.model import errors
from convergio.tasks import bell, transport

ROUTE = Route(queue="turns", task="convergio.agent", priority=0)
NOWHERE = "redis://127.0.0.1:1/0"
USUAL = {
    "tenant": "default",
    "submitter": "cli:alex",
    "run": "019abcde0123456789abcdef01234567",
    "step": "competitor_analysis",
    "ring": "17.3",
    "label": "market_entry/competitor_analysis",
}


@pytest.fixture
def app() -> Celery:
    app = Celery("doorbells", amqp=transport.AMQP, set_as_current=False)
    app.conf.update(transport.broker_settings(NOWHERE) | transport.consumer_settings())
    return app


def test_the_bell_is_what_the_engine_asks_for(app: Celery) -> None:
    port: Port = bell.Bell(app)
    assert port.list_of(ROUTE) == "turns"
    assert port.render(ROUTE, **USUAL)


def test_continuations_and_new_runs_have_lists_of_their_own(app: Celery) -> None:
    ringer = bell.Bell(app)
    names = [ringer.list_of(Route(queue="turns", task="convergio.agent", priority=priority)) for priority in (0, 3)]
    assert names == ["turns", "turns\x06\x163"]


def test_a_queue_that_only_workers_declare_can_be_rung(app: Celery) -> None:
    route = Route(queue="gpu", task="convergio.step", priority=3)
    message = json.loads(bell.Bell(app).render(route, **USUAL))
    assert message["properties"]["delivery_info"] == {"exchange": "", "routing_key": "gpu"}
    assert bell.Bell(app).list_of(route) == "gpu\x06\x163"


def test_a_usual_doorbell_is_under_one_kilobyte(app: Celery) -> None:
    assert len(bell.Bell(app).render(ROUTE, **USUAL)) < 1024


def test_a_doorbell_is_named_after_its_run_step_and_ring(app: Celery) -> None:
    headers = json.loads(bell.Bell(app).render(ROUTE, **USUAL))["headers"]
    assert headers["id"] == bell.doorbell_id(USUAL["run"], USUAL["step"], USUAL["ring"])
    assert headers["id"] == "019abcde0123456789abcdef01234567.competitor_analysis.17.3"


def test_no_two_messages_share_a_delivery_tag(app: Celery) -> None:
    ringer = bell.Bell(app)
    tags = {json.loads(ringer.render(ROUTE, **USUAL))["properties"]["delivery_tag"] for _ in range(200)}
    assert len(tags) == 200


def test_one_message_is_recorded_for_a_route_and_all_are_made_of_it(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[Route] = []
    record = bell._record

    def counted(app: Celery, route: Route, traced: bool) -> Any:
        recorded.append(route)
        return record(app, route, traced)

    monkeypatch.setattr(bell, "_record", counted)
    ringer = bell.Bell(app)
    for ring in range(10):
        ringer.render(ROUTE, **(USUAL | {"ring": f"1.{ring}"}))
        ringer.list_of(ROUTE)
    assert recorded == [ROUTE]


@pytest.fixture
def tracer() -> Generator[None]:
    """What an OpenTelemetry or Sentry instrumentation does to every publish of its process."""

    def inject(headers: dict[str, Any], **_: Any) -> None:
        headers.update({"traceparent": "00-of-the-recording-01", "baggage": "of=the recording"})

    signals.before_task_publish.connect(inject)
    yield
    signals.before_task_publish.disconnect(inject)


@pytest.mark.usefixtures("tracer")
def test_a_tracer_of_this_process_leaves_no_trace_in_doorbells(app: Celery) -> None:
    ringer = bell.Bell(app)
    untraced = json.loads(ringer.render(ROUTE, **USUAL))["headers"]
    traced = json.loads(ringer.render(ROUTE, traceparent="00-run-01", **USUAL))["headers"]
    assert not {"traceparent", "baggage"} & set(untraced)
    assert (traced["traceparent"], "baggage" in traced) == ("00-run-01", False)


def test_a_trace_of_the_run_travels_with_its_doorbell(app: Celery) -> None:
    ringer = bell.Bell(app)
    traced, untraced = ringer.render(ROUTE, traceparent="00-run-01", **USUAL), ringer.render(ROUTE, **USUAL)
    assert json.loads(traced)["headers"]["traceparent"] == "00-run-01"
    assert "traceparent" not in json.loads(untraced)["headers"]


@pytest.mark.parametrize(
    "setting",
    [
        {"task_compression": "gzip"},
        {"task_protocol": 1},
        {"broker_transport_options": {"body_encoding": "utf-8"}},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_that_hide_what_varies_are_refused_in_words(app: Celery, setting: dict[str, Any]) -> None:
    app.conf.update(setting)
    with pytest.raises(errors.InvalidSetting, match="task_compression"):
        bell.Bell(app).render(ROUTE, **USUAL)
