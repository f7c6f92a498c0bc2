"""What is shown of a public entry, whoever sent it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from celery.utils.imports import symbol_by_name

from convergio.tasks import entries
from convergio.tasks.app import make_app


def received(*args: Any, **kwargs: Any) -> Any:
    """The request that a worker makes of a stock client's message."""
    app = make_app("redis://127.0.0.1:1/0")
    entries.register(app)
    sent = app.amqp.create_task_message("r1", "convergio.submit", args, kwargs)
    assert "secret" in sent.headers["argsrepr"] + sent.headers["kwargsrepr"], "as Celery itself would show it"
    message = SimpleNamespace(
        headers=sent.headers, body="", payload=sent.body, content_type="", content_encoding="", properties={},
        delivery_info={},
    )  # fmt: skip
    made = symbol_by_name(app.tasks["convergio.submit"].Request)
    return made(message, app=app)


def test_an_input_is_never_shown_and_names_are() -> None:
    request = received(workflow="refund", input={"card": "a secret"}, submitter="ann")
    assert request.kwargsrepr == "{'workflow': 'refund', 'submitter': 'ann'}"
    assert request.argsrepr == "()"
    assert "secret" not in str(request.info())
    assert request.kwargs["input"] == {"card": "a secret"}, "the entry itself gets it"


def test_arguments_by_position_are_not_shown_at_all() -> None:
    request = received("refund", {"card": "a secret"})
    assert (request.argsrepr, request.kwargsrepr) == ("(...)", "{}")
    assert "secret" not in str(request.info())
