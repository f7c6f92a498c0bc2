"""Providers in trouble, as turns and steps of real runs meet them: the thread is intact, the ledger exact."""

from __future__ import annotations

import base64
import io
import json
import random
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

import pytest
import sqlalchemy as sa
from PIL import Image as Picture

from convergio.graphflow.flow import document
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks.agents.model import Limits, ModelSettings
from convergio.tasks.agents.quota import Quota
from convergio.tasks.agents.roster import Roster
from convergio.tasks.agents.step import Agents
from convergio.tasks.agents.tables import model_calls
from tests.dialects import DIALECTS
from tests.failing_provider import FailingProvider, Reply, serving
from tests.integration.engine_rig import QUIET, Stage
from tests.integration.test_turns import called, run, thread
from tests.waiting import wait_until

__all__ = ["called"]  # a fixture: what the tool `turns.look_up` was called with

pytestmark = QUIET
OPENAI = DIALECTS["openai"]


@pytest.fixture
def provider() -> Iterator[FailingProvider]:
    with serving() as server:
        yield server


def talking(*names: str, turns: int = 2, **more: Any) -> Workflow:
    agents = [{"name": name, "role": f"You are {name}.", "tools": more.pop(f"tools_{name}", [])} for name in names]
    talk = {"conversation": {"agents": agents, "stop": {"turns": turns}}, "prompt": "Plan {{ input.x }}", **more}
    return document.parse_document({"workflow": "talking", "version": 1, "steps": {"talk": talk}})


def asking(**more: Any) -> Workflow:
    step = {"agent": "amy", "prompt": "How risky is {{ input.x }}?", **more}
    return document.parse_document({"workflow": "asking", "version": 1, "steps": {"talk": step}})


def answers(stage: Stage, model: ModelSettings, provider: FailingProvider, *replies: Reply) -> None:
    """The worker's agents speak with this provider."""
    provider.replies[:] = replies
    provider.requests.clear()
    process = stage.worker.process
    gate = Quota(process.core.link.client, process.core.link.prefix, patience_s=0.05)
    process.agents = Agents(roster=Roster.load(), model=model, gate=gate)


def ledger(stage: Stage, ref: RunRef) -> list[tuple[str, int, bool]]:
    """(model, tokens out, estimated) of every call of the run."""
    with stage.store.read() as connection:
        mine = sa.select(model_calls).where(model_calls.c.run_id == ref.run).order_by(model_calls.c.started_ms)
        return [(row.model, row.output_tokens, bool(row.estimated)) for row in connection.execute(mine)]


# --- cancel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workflow", [asking(), talking("ann", "ben")], ids=["step", "turn"])
def test_a_cancelled_run_hangs_up_on_its_provider_and_its_call_is_on_the_ledger(
    stage: Stage, provider: FailingProvider, workflow: Workflow
) -> None:
    answers(stage, OPENAI.model(provider, timeout_s=60.0), provider, OPENAI.half("Half ", "an answer", stalls=True))
    ref = stage.submit(workflow, {"x": "tea"})
    bell = stage.take()
    assert bell is not None
    with ThreadPoolExecutor(1) as pool:
        answering = pool.submit(stage.worker.answer, bell)
        wait_until(lambda: provider.requests, 20)
        stage.worker.process.entrance.cancel(ref, by="boss")
        asked = time.monotonic()
        stage.worker.pulse()  # what the beats of a worker do, twice a second
        wait_until(lambda: provider.hung_up, 20)
        answering.result(timeout=20)
    stage.journal()
    assert stage.row(ref).state is RunState.CANCELLED
    assert provider.hung_up[0] >= asked
    (call,) = ledger(stage, ref)
    assert call[2], "nobody told what it cost"


# --- failures of turns ------------------------------------------------------------------------------------------------


FAILURES: Final[Mapping[str, tuple[Reply, bool]]] = {
    "MODEL_REFUSED": (OPENAI.refuses(401), False),
    "RATE_LIMITED": (OPENAI.refuses(429), False),
    "PROVIDER_FAILED": (OPENAI.refuses(500), False),
    "ANSWER_BROKEN": (OPENAI.garbage(), True),
    "ANSWER_WITHHELD": (OPENAI.says(finish="content_filter"), True),
    "MODEL_OUTPUT_INVALID": (OPENAI.says(), True),
}
"""What goes wrong, and whether it is paid for."""


def test_a_turn_that_fails_says_why_and_leaves_the_thread_as_it_was(stage: Stage, provider: FailingProvider) -> None:
    for code, (reply, paid) in FAILURES.items():
        answers(stage, OPENAI.model(provider), provider, OPENAI.says("Tea, ", "then."), reply)
        ref = stage.submit(talking("ann", "ben"), {"x": "tea"})
        run(stage, ref)
        error = stage.row(ref).error
        assert error is not None
        assert (error["code"], bool(error["hint"])) == (code, True)
        assert thread(stage, ref) == [("user", "Plan tea"), ("ann", "Tea, then.")]
        assert len(ledger(stage, ref)) == 1 + paid


def test_the_provider_says_when_and_the_turn_waits_so_long(stage: Stage, provider: FailingProvider) -> None:
    limited = OPENAI.refuses(429, headers={"retry-after": "600"})
    answers(stage, OPENAI.model(provider), provider, limited, OPENAI.says("Tea, ", "then."))
    ref = stage.submit(talking("ann", turns=1, retry={"max": 2, "backoff": "1s"}), {"x": "tea"})
    stage.answer_all()
    stage.age(500)
    stage.pass_time(1.0)
    assert (stage.bells(), len(provider.requests)) == ([], 1)
    stage.age(100)
    stage.pass_time(1.0)
    run(stage, ref)
    assert stage.row(ref).state is RunState.SUCCEEDED
    assert thread(stage, ref)[-1] == ("ann", "Tea, then.")


def test_another_model_takes_the_turn_and_is_on_the_ledger(stage: Stage, provider: FailingProvider) -> None:
    claude = DIALECTS["anthropic"]
    with serving(claude.says("Coffee ", "then.")) as other:
        second = claude.model(other, provider="b", name="second")
        model = OPENAI.model(provider, provider="a", name="first", fallbacks=(second,))
        answers(stage, model, provider, OPENAI.refuses(503))
        ref = stage.submit(talking("ann", turns=1), {"x": "tea"})
        run(stage, ref)
    assert thread(stage, ref)[-1] == ("ann", "Coffee then.")
    assert ledger(stage, ref) == [("b/second", 7, False)]


# --- tools ------------------------------------------------------------------------------------------------------------


def test_what_is_wrong_with_a_tool_call_is_told_to_the_model_in_every_protocol(
    stage: Stage, provider: FailingProvider, called: Any
) -> None:
    """Arguments that are no JSON, or do not fit; a tool that does not exist; at last a call that is right."""
    for kind, dialect in DIALECTS.items():
        asks: list[tuple[str, Any]] = [
            ("turns_look_up", {"wort": "tea"}),
            ("look_down", {"word": "tea"}),
            ("turns_look_up", {"word": kind}),
        ]
        if kind != "ollama":  # its arguments are JSON by its protocol
            asks.insert(0, ("turns_look_up", '{"word": '))
        replies = [dialect.calls(name, arguments) for name, arguments in asks]
        answers(stage, dialect.model(provider), provider, *replies, dialect.says("A drink, ", "it says."))
        ref = stage.submit(talking("ann", turns=1, tools_ann=["turns.look_up"]), {"x": "tea"})
        run(stage, ref)
        assert stage.row(ref).state is RunState.SUCCEEDED, stage.row(ref).error
        assert thread(stage, ref)[-1] == ("ann", "A drink, it says.")
        assert len(provider.requests) == len(ledger(stage, ref)) == len(replies) + 1
        told = [call for message in provider.requests[-1]["messages"] for call in message.get("tool_calls") or ()]
        arguments = [call["function"]["arguments"] for call in told]
        assert all(isinstance(json.loads(one), dict) for one in arguments if isinstance(one, str)), (
            "what is told is JSON"
        )
    assert [word for word, _ in called] == list(DIALECTS)


# --- images -----------------------------------------------------------------------------------------------------------


def test_images_reach_every_provider_as_they_were_given_and_stay_in_the_thread(
    stage: Stage, provider: FailingProvider
) -> None:
    """They are larger than what travels, so each is a blob; the second turn sees them, too."""
    data = noise(200)
    assert len(data) > 32_768
    for dialect in DIALECTS.values():
        answers(stage, dialect.model(provider, vision=True), provider, dialect.says("Noise, ", "it is."))
        ref = stage.submit(talking("ann", "ben", images="input.seen"), {"x": "this", "seen": [data, data]})
        run(stage, ref)
        assert stage.row(ref).state is RunState.SUCCEEDED, stage.row(ref).error
        assert len(provider.requests) == 2
        for request in provider.requests:
            assert dialect.images(request) == [data, data]
            assert "Plan this" in str(request["messages"])
        assert thread(stage, ref)[0] == ("user", "Plan this")


def test_an_image_is_refused_before_anything_is_paid(stage: Stage, provider: FailingProvider) -> None:
    for vision, seen, code in (
        (False, noise(9), "IMAGE_REFUSED"),
        (True, "data:image/png;base64,AAAA", "IMAGE_REFUSED"),
        (True, noise(9)[:-40], "IMAGE_REFUSED"),
    ):
        answers(stage, OPENAI.model(provider, vision=vision), provider, OPENAI.says("x"))
        ref = stage.submit(talking("ann", images="input.seen"), {"x": "this", "seen": seen})
        run(stage, ref)
        error = stage.row(ref).error
        assert error is not None
        assert (error["code"], bool(error["hint"])) == (code, True)
        assert (provider.requests, ledger(stage, ref)) == ([], [])
    with pytest.raises(errors.MessageTooLarge):
        stage.submit(talking("ann"), {"x": "x" * 10_000_000})


def noise(side: int) -> str:
    """A picture that cannot be packed, in a form that AutoGen would not give it."""
    kept = io.BytesIO()
    pixels = random.Random(1).randbytes(3 * side * side)
    Picture.frombytes("RGB", (side, side), pixels).save(kept, format="JPEG")
    return base64.b64encode(kept.getvalue()).decode()


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_turn_beyond_its_models_limits_waits_without_a_slot_and_no_attempt_has_failed(
    stage: Stage, provider: FailingProvider
) -> None:
    model = replace(OPENAI.model(provider), limits=Limits(concurrent=1))
    answers(stage, model, provider, OPENAI.says("Tea, ", "then."))
    client: Any = stage.client
    running = f"{stage.worker.process.core.link.prefix}:quota:running:m"
    client.zadd(running, {"a call of another worker": time.time() * 1000 + 3_600_000})
    ref = stage.submit(talking("ann", turns=1), {"x": "tea"})
    for _ in range(2):
        stage.answer_all()
        stage.pass_time(1.0)
    assert (len(provider.requests), stage.word(ref, "talk").blocked_on) == (0, None)
    client.delete(running)
    run(stage, ref)
    assert stage.row(ref).state is RunState.SUCCEEDED
    assert len(ledger(stage, ref)) == 1
    assert stage.events(ref, "step.retry") == []
