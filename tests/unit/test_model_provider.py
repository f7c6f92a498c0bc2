"""What a model provider's replies and failures become: usage, typed answers, errors of our tree."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from convergio.graphflow.model import errors
from convergio.tasks.agents.spec import ModelUsage
from tests.failing_provider import RISK, Reply, ask, endpoint, failing_provider, refuses, says, serving


def test_usage_is_asked_for_and_booked_and_the_sdk_does_not_retry() -> None:
    with serving(says("Yes, ", "it is.")) as server:
        answer = ask(endpoint(server))
    assert server.requests[0]["stream_options"] == {"include_usage": True}
    assert server.requests[0]["max_tokens"] == 60
    assert not any("name" in message for message in server.requests[0]["messages"])
    assert answer.text == "Yes, it is."
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.estimated) == (11, 7, False)


@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}])
def test_a_provider_without_figures_is_booked_at_an_estimate(usage: Mapping[str, int] | None) -> None:
    with failing_provider(says("A" * 300, usage=usage)) as model:
        answer = ask(model)
    assert answer.usage.estimated
    assert answer.usage.output_tokens == 100
    assert answer.usage.input_tokens > 10


def test_an_exhausted_quota_is_not_tried_again_although_it_comes_as_429() -> None:
    with failing_provider(refuses(429, code="insufficient_quota")) as model, pytest.raises(errors.ModelRefused):
        ask(model)


@pytest.mark.parametrize(
    ("status", "hint"), [(401, "API key"), (403, "key"), (404, "model's name"), (413, "smaller"), (422, "request")]
)
def test_a_refused_call_is_permanent_and_says_what_to_check(status: int, hint: str) -> None:
    with failing_provider(refuses(status)) as model, pytest.raises(errors.ModelRefused) as caught:
        ask(model)
    assert not caught.value.retryable
    assert hint in (caught.value.hint or "")
    assert "key-of-a-test" not in str(caught.value)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(refuses(400, code="context_length_exceeded"), id="OpenAI"),
        pytest.param(refuses(400, type="exceed_context_size_error"), id="llama.cpp"),
    ],
)
def test_a_prompt_that_does_not_fit_the_context_is_permanent(reply: Reply) -> None:
    with failing_provider(reply) as model, pytest.raises(errors.ContextTooLong) as caught:
        ask(model)
    assert "shorten" in (caught.value.hint or "")


def test_a_persons_proxy_is_not_asked_for_a_model_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with failing_provider(says("Yes.")) as model:
        assert ask(model).text == "Yes."


def test_characters_that_no_store_keeps_are_replaced_and_mentioned() -> None:
    pieces: list[str] = []
    with failing_provider(says("a\x00b", "\ud800")) as model:
        answer = ask(model, on_delta=pieces.append)
    assert answer.text == "".join(pieces) == "a\ufffdb\ufffd"
    assert "2 characters" in answer.notes[0]


# --- typed answers ------------------------------------------------------------------------------------------------


def test_a_schema_is_sent_shown_to_the_model_and_checked() -> None:
    with serving(says('```json\n{"level": "high", "why": "war\\u0000"}\n```')) as server:
        answer = ask(endpoint(server), schema=RISK)
    assert server.requests[0]["response_format"]["json_schema"]["schema"] == RISK
    assert "level (low or high), why (text)" in server.requests[0]["messages"][-1]["content"]
    assert answer.output == {"level": "high", "why": "war\ufffd"}


def test_an_answer_that_does_not_fit_is_repaired_once_and_both_calls_are_booked() -> None:
    booked: list[ModelUsage] = []
    with serving(says("It is high."), says('{"level": "high", "why": "prices"}')) as server:
        answer = ask(endpoint(server), schema=RISK, on_usage=booked.append)
    assert answer.output == {"level": "high", "why": "prices"}
    assert len(booked) == len(answer.calls) == len(server.requests) == 2
    assert answer.usage.output_tokens == 14
    assert "cannot be used" in server.requests[1]["messages"][-1]["content"]


@pytest.mark.parametrize("text", ["It is high.", '{"level": "high"}', '{"level": "none", "why": ""}', "[NaN]"])
def test_a_second_answer_that_does_not_fit_fails_the_attempt(text: str) -> None:
    with serving(says(text)) as server, pytest.raises(errors.ModelOutputInvalid) as caught:
        ask(endpoint(server), schema=RISK)
    assert caught.value.retryable
    assert len(server.requests) == 2


def test_a_typed_answer_that_was_cut_off_is_not_repaired_and_hints_at_max_tokens() -> None:
    with serving(says('{"level": "hi', finish="length")) as server, pytest.raises(errors.ModelOutputInvalid) as caught:
        ask(endpoint(server), schema=RISK)
    assert "max_tokens" in (caught.value.hint or "")
    assert len(server.requests) == 1
