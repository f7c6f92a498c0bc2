"""What goes wrong with a provider has one outcome, whatever its protocol; each against real sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import pytest

from convergio.graphflow.model import errors
from convergio.tasks.agents.autogen_adapter import AutogenRunner
from convergio.tasks.agents.metering import estimated_tokens
from convergio.tasks.agents.spec import ModelUsage
from tests.dialects import DIALECTS, Dialect
from tests.failing_provider import DOMIK, RISK, FailingProvider, Reply, ask, serving
from tests.waiting import wait_until

EACH = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)


@pytest.fixture(scope="module")
def server() -> Iterator[FailingProvider]:
    """One provider for all tests of this module; `replies` are each test's own."""
    with serving() as made:
        yield made


@pytest.fixture
def provider(server: FailingProvider) -> Callable[..., FailingProvider]:
    def prepared(*replies: Reply) -> FailingProvider:
        server.replies[:] = replies
        server.requests.clear()
        server.paths.clear()
        server.headers.clear()
        server.hung_up.clear()
        return server

    return prepared


# --- how it is asked --------------------------------------------------------------------------------------------------


@EACH
def test_every_protocol_streams_an_answer_with_the_providers_figures(dialect: Dialect, provider: Any) -> None:
    pieces: list[str] = []
    server = provider(dialect.says("Yes, ", "it is."))
    answer = ask(dialect.model(server), on_delta=pieces.append)
    assert (answer.text, pieces, answer.finish) == ("Yes, it is.", ["Yes, ", "it is."], "stop")
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.estimated) == (11, 7, False)
    assert len(server.requests) == 1


def test_each_protocol_asks_in_its_own_words(provider: Any) -> None:
    asked: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {}
    for kind, dialect in DIALECTS.items():
        server = provider(dialect.says("Yes, ", "so."))
        ask(dialect.model(server, temperature=0.5))
        headers = {name.lower(): value for name, value in server.headers[0].items()}
        asked[kind] = (server.paths[0], server.requests[0], headers)
    path, body, headers = asked["openai"]
    assert (path, headers["authorization"]) == ("/v1/chat/completions", "Bearer key-of-a-test")
    assert body["stream_options"] == {"include_usage": True}
    assert (body["max_tokens"], body["temperature"]) == (60, 0.5)
    path, body, headers = asked["azure"]
    assert path == "/openai/deployments/m/chat/completions?api-version=2024-10-21"
    assert headers["api-key"] == "key-of-a-test"
    assert body["max_completion_tokens"] == 60
    assert body["stream_options"] == {"include_usage": True}
    path, body, headers = asked["anthropic"]
    assert (path, headers["authorization"]) == ("/v1/messages", "Bearer key-of-a-test")
    assert (body["max_tokens"], body["temperature"], body["system"]) == (60, 0.5, "You are an analyst.")
    path, body, headers = asked["ollama"]
    assert (path, headers["authorization"]) == ("/api/chat", "Bearer key-of-a-test")
    assert body["options"] == {"num_predict": 60, "temperature": 0.5}


@EACH
def test_an_answer_in_one_piece_is_an_answer(dialect: Dialect, provider: Any) -> None:
    assert ask(dialect.model(provider(dialect.at_once("Yes.")))).text == "Yes."


@EACH
def test_a_typed_answer_is_checked_whatever_the_protocol_makes_of_a_schema(dialect: Dialect, provider: Any) -> None:
    server = provider(dialect.says('{"level": "low", ', '"why": "calm"}'))
    assert ask(dialect.model(server), schema=RISK).output == {"level": "low", "why": "calm"}


@EACH
def test_an_answer_that_is_cut_at_max_tokens_says_so(dialect: Dialect, provider: Any) -> None:
    assert ask(dialect.model(provider(dialect.says("Half ", "an", finish="length")))).finish == "length"


# --- what goes wrong --------------------------------------------------------------------------------------------------


def fails(model: Any, *, deadline_s: float = 20.0) -> tuple[errors.ConvergioError, list[ModelUsage]]:
    booked: list[ModelUsage] = []
    with pytest.raises(errors.ConvergioError) as caught:
        ask(model, on_usage=booked.append, deadline_s=deadline_s)
    assert caught.value.hint, "it says what to do"
    assert "key-of-a-test" not in f"{caught.value} {caught.value.as_dict()}"
    return caught.value, booked


@EACH
@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "MODEL_REFUSED"),
        (403, "MODEL_REFUSED"),
        (404, "MODEL_REFUSED"),
        (429, "RATE_LIMITED"),
        (500, "PROVIDER_FAILED"),
        (503, "PROVIDER_FAILED"),
    ],
)
def test_a_status_has_one_meaning_and_costs_nothing(dialect: Dialect, status: int, code: str, provider: Any) -> None:
    server = provider(dialect.refuses(status, "the key key-of-a-test is no good"))
    error, booked = fails(dialect.model(server))
    assert (error.code, error.retryable) == (code, code != "MODEL_REFUSED")
    assert str(status) in error.message
    assert "is no good" in error.message
    assert booked == []
    assert len(server.requests) == 1, "the SDK does not retry"


@EACH
@pytest.mark.parametrize("form", ["seconds", "date", "milliseconds"])
def test_retry_after_is_honoured_in_each_of_its_forms(dialect: Dialect, form: str, provider: Any) -> None:
    headers = {
        "seconds": {"retry-after": "7"},
        "date": {"retry-after": formatdate(time.time() + 3600, usegmt=True)},
        "milliseconds": {"retry-after-ms": "7000", "retry-after": "8"},
    }[form]
    error, _ = fails(dialect.model(provider(dialect.refuses(429, headers=headers))))
    assert isinstance(error, errors.RateLimited)
    assert error.retry_after is not None
    assert 3000 < error.retry_after <= 3600 if form == "date" else error.retry_after == 7


@EACH
def test_a_provider_that_says_nothing_is_silent(dialect: Dialect, provider: Any) -> None:
    error, booked = fails(dialect.model(provider(Reply(hangs=True)), timeout_s=0.3))
    assert error.code == "MODEL_SILENT"
    assert [call.estimated for call in booked] == [True], "the model may have worked on it"


@EACH
def test_a_provider_that_falls_silent_in_the_middle_is_paid_for_what_it_said(dialect: Dialect, provider: Any) -> None:
    server, booked, pieces = provider(dialect.half("Half ", "an answer", stalls=True)), list[ModelUsage](), list[str]()
    with pytest.raises(errors.Transient) as caught:
        ask(dialect.model(server, timeout_s=0.5), on_usage=booked.append, on_delta=pieces.append)
    assert caught.value.code in {"MODEL_SILENT", "ANSWER_BROKEN"}
    assert [(call.estimated, call.output_tokens) for call in booked] == [(True, estimated_tokens("".join(pieces)))]


@EACH
@pytest.mark.parametrize("how", ["connection", "clean end", "garbage", "no protocol at all"])
def test_an_answer_that_breaks_off_or_is_garbage_is_broken(dialect: Dialect, how: str, provider: Any) -> None:
    reply = {
        "connection": dialect.half("Half ", "an", breaks_off=True),
        "clean end": dialect.half("Half ", "an"),
        "garbage": dialect.garbage(),
        "no protocol at all": Reply(raw=b"<html>It works!</html>"),
    }[how]
    error, booked = fails(dialect.model(provider(reply)))
    assert (error.code, error.retryable) == ("ANSWER_BROKEN", True)
    assert [call.estimated for call in booked] == [True]


@EACH
def test_a_provider_that_is_not_there_is_unavailable_and_costs_nothing(dialect: Dialect) -> None:
    with serving() as gone:
        model = dialect.model(gone)
    error, booked = fails(model)
    assert (error.code, booked) == ("MODEL_UNAVAILABLE", [])


@EACH
def test_a_refusal_is_not_tried_again_and_paid_for(dialect: Dialect, provider: Any) -> None:
    finish = "refusal" if dialect.kind == "anthropic" else "content_filter"
    error, booked = fails(dialect.model(provider(dialect.says(finish=finish))))
    assert (error.code, error.retryable) == ("ANSWER_WITHHELD", False)
    assert len(booked) == 1


def test_the_words_of_a_refusal_are_told(provider: Any) -> None:
    first = json.loads(DIALECTS["openai"].parts(("",), None, None)[0].removeprefix("data: "))
    first["choices"][0]["delta"] = {"refusal": "I can't help with that."}
    rest = "".join(DIALECTS["openai"].parts((), "stop", (11, 7)))
    error, _ = fails(DIALECTS["openai"].model(provider(Reply(raw=f"data: {json.dumps(first)}\n\n{rest}".encode()))))
    assert error.code == "ANSWER_WITHHELD"
    assert "I can't help with that." in error.message


@EACH
def test_an_empty_answer_is_invalid_and_paid_for(dialect: Dialect, provider: Any) -> None:
    booked: list[ModelUsage] = []
    with pytest.raises(errors.ModelOutputInvalid):
        ask(dialect.model(provider(dialect.says())), on_usage=booked.append)
    assert len(booked) == 1


@EACH
def test_an_answer_without_an_end_is_cut_and_hung_up_on(dialect: Dialect, provider: Any) -> None:
    server = provider(dialect.half(*(["x" * 30_000] * 3), stalls=True))
    error, booked = fails(dialect.model(server))
    assert (error.code, error.retryable) == ("ANSWER_TOO_LONG", False)
    assert booked[0].estimated
    wait_until(lambda: server.hung_up, 20)


@EACH
def test_figures_of_nothing_beside_a_text_are_estimated(dialect: Dialect, provider: Any) -> None:
    usage = ask(dialect.model(provider(dialect.says("A" * 150, "A" * 150, usage=(0, 0))))).usage
    assert (usage.estimated, usage.output_tokens) == (True, 100)


def test_no_log_holds_a_key_or_a_prompt(provider: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for dialect in DIALECTS.values():
        with pytest.raises(errors.ConvergioError):
            ask(dialect.model(provider(dialect.refuses(401))), "the secret of the kiln")
    assert not [one for one in caplog.records if "kiln" in one.getMessage() or "key-of-a-test" in one.getMessage()]


# --- hanging up -------------------------------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("moment", ["before it says anything", "in the middle"])
def test_whoever_cancels_hangs_up_on_the_provider(dialect: Dialect, moment: str, provider: Any) -> None:
    reply = Reply(hangs=True) if moment == "before it says anything" else dialect.half("Half ", "an", stalls=True)
    server = provider(reply)
    booked: list[ModelUsage] = []

    async def cancelled() -> None:
        runner, heard = AutogenRunner(), asyncio.Event()
        model = dialect.model(server, timeout_s=60.0)
        answering = runner.answer(
            DOMIK, model, "x", deadline_s=60, on_usage=booked.append, on_delta=lambda _: heard.set()
        )
        task = asyncio.ensure_future(answering)
        if reply.hangs:
            await asyncio.to_thread(wait_until, lambda: server.requests, 20)
        else:
            await asyncio.wait_for(heard.wait(), 20)
        task.cancel()
        await asyncio.wait({task}, timeout=20)
        await asyncio.to_thread(wait_until, lambda: server.hung_up, 20)
        await runner.close()

    asyncio.run(cancelled())
    assert [call.estimated for call in booked] == [True]


@EACH
def test_the_attempts_deadline_holds_whatever_the_provider_does_and_hangs_up(dialect: Dialect, provider: Any) -> None:
    server = provider(dialect.half("Half ", "an", stalls=True))
    booked: list[ModelUsage] = []

    async def late(deadline_s: float) -> None:
        runner = AutogenRunner()
        with pytest.raises(errors.StepTimeout) as caught:
            await runner.answer(
                DOMIK, dialect.model(server, timeout_s=60.0), "x", deadline_s=deadline_s, on_usage=booked.append
            )
        assert caught.value.retryable
        if server.requests:
            await asyncio.to_thread(wait_until, lambda: server.hung_up, 20)
        await runner.close()

    for deadline_s in (0.5, 4.0, 16.0):  # on a busy machine the first may be over before the provider was asked
        booked.clear()
        asyncio.run(late(deadline_s))
        if server.requests:
            break
    assert server.requests
    assert [call.estimated for call in booked] == [True]


# --- who is asked instead ---------------------------------------------------------------------------------------------


def two(server: FailingProvider, other: FailingProvider, **given: Any) -> Any:
    second = replace(DIALECTS["anthropic"].model(other), provider="b", name="second")
    return replace(
        DIALECTS["openai"].model(server),
        provider="a",
        name="first",
        fallbacks=(second,),
        **{"timeout_s": 20.0, **given},
    )


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(DIALECTS["openai"].refuses(429), id="rate limit"),
        pytest.param(DIALECTS["openai"].refuses(503), id="in trouble"),
        pytest.param(Reply(hangs=True), id="silent"),
        pytest.param(Reply(raw=b"data: {]\n\n"), id="garbage"),
    ],
)
def test_another_model_answers_and_is_on_the_ledger_under_its_own_name(reply: Reply, provider: Any) -> None:
    with serving(DIALECTS["anthropic"].says("Yes, ", "it is.")) as other:
        booked: list[ModelUsage] = []
        patience = 0.3 if reply.hangs else 20.0
        answer = ask(two(provider(reply), other, timeout_s=patience), on_usage=booked.append)
    assert answer.text == "Yes, it is."
    assert [(call.model, call.estimated) for call in booked][-1] == ("b/second", False)
    assert [call.model for call in booked][:-1] in ([], ["a/first"]), "what may have cost something is booked"


def test_on_other_errors_nobody_else_is_asked(provider: Any) -> None:
    with serving(DIALECTS["anthropic"].says("Yes, ", "it is.")) as other:
        error, _ = fails(two(provider(DIALECTS["openai"].refuses(401)), other))
        assert (error.code, other.requests) == ("MODEL_REFUSED", [])
        named = two(provider(DIALECTS["openai"].refuses(401)), other, fall_on=frozenset({"MODEL_REFUSED"}))
        assert ask(named).text == "Yes, it is."


def test_nobody_goes_on_with_what_another_began_but_the_next_attempt_asks_the_other(provider: Any) -> None:
    with serving(DIALECTS["anthropic"].says("Yes, ", "it is.")) as other:
        model = two(provider(DIALECTS["openai"].half("Half ", "an")), other)

        async def attempts() -> tuple[str, list[str]]:
            runner = AutogenRunner()
            with pytest.raises(errors.AnswerBroken):
                await runner.answer(DOMIK, model, "x", deadline_s=20)
            answer = await runner.answer(DOMIK, model, "x", deadline_s=20)
            await runner.close()
            return answer.text, [call.model for call in answer.calls]

        assert asyncio.run(attempts()) == ("Yes, it is.", ["b/second"])
