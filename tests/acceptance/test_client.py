"""The Python client against a real stack: start, events, result, signal, cancel, and what it says without an answer."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from convergio.graphflow import Client, library
from convergio.graphflow.client.event import FINISHED, RESET
from convergio.graphflow.client.run import Run
from convergio.graphflow.model import errors
from convergio.graphflow.model.states import RunState
from tests.acceptance.town import Place, going, stack
from tests.servers import free_port, valkey_running
from tests.waiting import wait_until

BRIEF: dict[str, Any] = json.loads((library.brief("market_entry") or Path()).read_text())


@pytest.fixture
def client(town: Place) -> Iterator[Client]:
    with Client(town.redis_url, submitter="ann") as made:
        yield made


def approved(run: Run) -> list[str]:
    """Follows the run to its end, approving what is asked; the types of its events."""
    types: list[str] = []
    for event in run.events():
        types.append(event.type)
        if event.type == "step.blocked":
            assert run.signal(str(event.step), {"decision": "approve"})
    return types


def test_a_run_is_started_followed_signalled_and_ends_with_its_result(client: Client, town: Place) -> None:
    run = client.start("market_entry", BRIEF, priority="high")
    types = approved(run)
    assert types[0] == "RUN_STARTED"
    assert types[-1] == FINISHED
    result = run.result("10s")
    assert set(result) == {"country", "market", "strategy", "risks", "finance", "break_even_units", "plan"}
    assert run.state() is RunState.SUCCEEDED
    row = town.json("runs", "show", run.id)
    assert (row["submitter"], row["output"]) == ("ann", result)


def test_the_same_key_is_the_same_run_and_its_result_is_given_to_both(client: Client) -> None:
    first = client.start("market_entry", BRIEF, key="client-key")
    second = client.start("market_entry", BRIEF, key="client-key")
    assert second.id == first.id
    approved(first)
    assert second.result("30s") == first.result("30s")
    late = client.start("market_entry", BRIEF, key="client-key")
    assert late.result("30s") == first.result("30s")
    with pytest.raises(errors.KeyConflict):
        client.start("market_entry", {**BRIEF, "months": 3}, key="client-key")


def test_a_run_is_found_again_by_its_id(client: Client, town: Place) -> None:
    run = client.start("market_entry", BRIEF)
    with Client(town.redis_url) as elsewhere:
        again = elsewhere.run(run.id)
        approved(again)
        assert again.result("30s") == run.result("30s")


def test_a_cancelled_run_raises_and_says_by_whom_and_why(client: Client) -> None:
    run = client.start("market_entry", BRIEF)
    run.cancel("enough")
    with pytest.raises(errors.RunCancelled, match="cancelled by ann: enough"):
        run.result("30s")
    assert run.state() is RunState.CANCELLED


def test_a_rejected_run_raises_and_names_the_step(client: Client) -> None:
    run = client.start("market_entry", BRIEF)
    for event in run.events():
        if event.type == "step.blocked":
            run.signal("sign_off", {"decision": "reject", "reason": "too dear"})
    with pytest.raises(errors.RunFailed, match=r"APPROVAL_REJECTED sign_off .*too dear"):
        run.result("30s")


def test_a_result_that_takes_too_long_leaves_the_run_alone(client: Client) -> None:
    run = client.start("market_entry", BRIEF)
    with pytest.raises(errors.ResultTimeout, match="did not end within"):
        run.result(0.5)
    assert run.state() is RunState.RUNNING
    run.cancel()


def test_everything_can_be_awaited(client: Client) -> None:
    async def play() -> Any:
        run = await client.astart("market_entry", BRIEF)
        async for event in run.aevents():
            if event.type == "step.blocked":
                await run.asignal("sign_off", {"decision": "approve"})
        assert await run.astate() is RunState.SUCCEEDED
        cancelled = await client.astart("market_entry", BRIEF)
        await cancelled.acancel("enough")
        with pytest.raises(errors.RunCancelled):
            await cancelled.aresult("30s")
        return await run.aresult("30s")

    assert asyncio.run(play())["country"] == "Poland"


# --- what goes wrong ----------------------------------------------------------------------------------------------


def test_what_was_wrong_comes_back_as_its_own_error_with_its_hint(client: Client) -> None:
    with pytest.raises(errors.UnknownWorkflow, match="did you mean 'market_entry'"):
        client.start("market_entri", BRIEF)
    with pytest.raises(errors.InvalidInput, match='"months"'):
        client.start("market_entry", {name: value for name, value in BRIEF.items() if name != "months"})
    with pytest.raises(errors.UnknownRun):
        client.run("nope").signal("sign_off", {"decision": "approve"})
    with pytest.raises(errors.UnknownRun):
        client.run("nope").state()
    run = client.start("market_entry", BRIEF)
    with pytest.raises(errors.UnknownStep, match="waits for no signal"):
        run.signal("market_research", {"decision": "approve"})
    with pytest.raises(errors.InvalidInput, match="what was decided"):
        run.signal("sign_off", {"decision": "aprove"})
    run.cancel()


def test_without_redis_it_says_so(town: Place) -> None:
    with Client(f"redis://127.0.0.1:{free_port()}/0") as client, pytest.raises(errors.BoardUnavailable):
        client.start("market_entry", BRIEF)


def test_without_a_worker_it_says_so_and_the_submission_waits_for_one() -> None:
    with valkey_running(aof=False) as server, Client(server.url, patience=0.5) as client:
        with pytest.raises(errors.NoWorker, match="no worker took it from queue 'convergio'") as caught:
            client.start("market_entry", BRIEF, run_id="wanted")
        assert caught.value.where == {"id": "wanted"}
        assert "convergio worker" in str(caught.value.hint)
        with server.client() as board:
            assert board.llen("convergio") == 1


def test_while_sql_is_away_a_submission_is_not_accepted_and_says_why(new_place: Place) -> None:
    with valkey_running(aof=False) as server:
        away = {
            "CONVERGIO_REDIS_URL": server.url,
            "CONVERGIO_JOURNAL_URL": "sqlite:////nonexistent/directory/j.sqlite3",
        }
        with (
            going("worker", "--no-service", env={**new_place.env, **away}),
            Client(server.url, patience=20) as client,
            pytest.raises(errors.JournalUnavailable, match="the SQL database does not answer"),
        ):
            client.start("market_entry", BRIEF)


def test_an_unanswered_submission_is_sent_again_under_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convergio.graphflow.client.post.RESEND", 0.1)
    with valkey_running(aof=False) as server, Client(server.url, patience=0.5) as client:
        with pytest.raises(errors.NoWorker):
            client.start("market_entry", BRIEF, run_id="again")
        with server.client() as board:
            messages = [json.loads(text) for text in board.lrange("convergio", 0, -1)]
        assert len(messages) > 1
        assert {message["headers"]["id"] for message in messages} == {"again"}
        shown = {message["headers"]["kwargsrepr"] for message in messages}
        assert len(shown) == 1
        assert BRIEF["company"] not in shown.pop()


# --- over faults --------------------------------------------------------------------------------------------------


def test_events_and_result_ride_over_a_killed_worker_and_a_wiped_redis(new_place: Place) -> None:
    with stack(new_place), Client(new_place.redis_url) as client:
        run = client.start("market_entry", BRIEF)
        types: list[str] = []
        for event in run.events():
            types.append(event.type)
            if event.type == "step.running" and event.step == "market_research" and types.count("step.running") < 4:
                os.kill(new_place.pid("worker"), signal.SIGKILL)
            if event.type == "step.blocked" and RESET not in types:
                with new_place.redis() as board:
                    board.flushall()
            if event.type == "run.snapshot":
                run.signal("sign_off", {"decision": "approve"})
        assert RESET in types
        assert types[-1] == FINISHED
        assert run.result("30s")["country"] == "Poland"


def test_a_result_is_given_although_redis_was_wiped_after_the_end(new_place: Place) -> None:
    with stack(new_place), Client(new_place.redis_url) as client:
        run = client.start("market_entry", BRIEF)
        approved(run)
        with new_place.redis() as board:
            board.flushall()
        answers: list[Any] = []
        waiting = threading.Thread(target=lambda: answers.append(run.result("60s")))
        waiting.start()
        wait_until(lambda: answers, timeout=70)
        waiting.join()
        assert answers[0]["country"] == "Poland"


def test_from_env_finds_the_stack_of_the_directory(town: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVERGIO_HOME", str(town.home))
    with Client.from_env() as client:
        run = client.start("market_entry", BRIEF)
        assert run.state() in (RunState.RUNNING, RunState.ACCEPTED)
        run.cancel()


def test_a_paused_run_goes_on_when_it_is_told_to(client: Client) -> None:
    run = client.start("market_entry", BRIEF)
    run.pause()
    wait_until(lambda: run.state() is RunState.PAUSED, timeout=20)
    run.resume()
    approved(run)
    assert run.state() is RunState.SUCCEEDED
