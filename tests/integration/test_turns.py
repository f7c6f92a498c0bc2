"""A conversation's turns are tasks: whoever takes the next one, and whatever is lost, the thread is the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import sqlalchemy as sa
from celery.exceptions import WorkerTerminate

from convergio.graphflow.engine.steps import Steps
from convergio.graphflow.flow import document
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks.agents.tables import model_calls
from convergio.tasks.conversation import tables
from convergio.tasks.conversation.archive import Archive
from convergio.tasks.conversation.thread import Kind, heard_by
from convergio.tasks.tools.tool import tool
from tests.integration.engine_rig import QUIET, Stage, Worker, stage_on

pytestmark = QUIET


@pytest.fixture
def stage(valkey: str, sqlite_url: str, tmp_path: Path) -> Iterator[Stage]:
    with stage_on(valkey, sqlite_url, tmp_path) as made:
        yield made


def agent(name: str, *script: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "role": f"You are {name}.", "script": list(script), **more}


def talking(*agents: Mapping[str, Any], stop: Any = None, **more: Any) -> Workflow:
    """`talk` is a conversation of these agents; `after` uses its result."""
    talk = {"conversation": {"agents": list(agents), "stop": stop or {"turns": 4}}, "prompt": "Plan {{ input.x }}"}
    follows = {"task": "probe.echo", "with": {"value": "talk.text"}, "needs": ["talk"]}
    return document.parse_document(
        {"workflow": "talking", "version": 1, "steps": {"talk": {**talk, **more}, "after": follows}}
    )


def run(stage: Stage, *refs: RunRef) -> None:
    """Answers doorbells until the runs have ended."""
    for _ in range(200):
        stage.journal()
        if all(stage.row(ref).terminal for ref in refs):
            return
        if not stage.answer_all():
            stage.pass_time(1.0)
    raise AssertionError([stage.states(ref) for ref in refs])


def thread(stage: Stage, ref: RunRef) -> list[tuple[str, str]]:
    """Who said what, in order."""
    found = stage.worker.process.archive.thread(ref.tenant, ref.run, "talk", 1_000)
    return [(one.source, one.text or str(one.body)) for one in found]


def turns(stage: Stage, ref: RunRef) -> Sequence[Any]:
    return tables.taken(stage.store, ref.tenant, ref.run, "talk")


def test_a_team_talks_one_after_the_other_until_a_word_ends_it(stage: Stage) -> None:
    flow = talking(agent("ann", "one", "three APPROVED"), agent("bob", "two"), stop={"turns": 9, "mention": "APPROVED"})
    ref = stage.submit(flow, {"x": "a launch"})
    run(stage, ref)
    assert stage.row(ref).state is RunState.SUCCEEDED
    assert thread(stage, ref) == [
        ("user", "Plan a launch"),
        ("ann", "one"),
        ("bob", "two"),
        ("ann", "three APPROVED"),
    ]
    assert [(row["speaker"], row["next_speaker"]) for row in turns(stage, ref)] == [
        ("ann", "bob"),
        ("bob", "ann"),
        ("ann", None),
    ]
    assert stage.outcomes(ref)["after"].output == {"value": "three APPROVED"}


# --- tools ------------------------------------------------------------------------------------------------------------

CALLED: list[tuple[str, str]] = []


@tool(name="turns.look_up")
def look_up(word: str, idempotency_key: str) -> dict[str, str]:
    """What a word means."""
    CALLED.append((word, idempotency_key))
    if word == "nothing":
        raise LookupError("no such word")
    return {"word": word, "means": f"a {word}"}


@pytest.fixture(autouse=True)
def called() -> Iterator[list[tuple[str, str]]]:
    CALLED.clear()
    yield CALLED
    CALLED.clear()


def looking_up(*more: Any) -> dict[str, Any]:
    """An agent that asks its tool twice in one turn, then speaks."""
    asks = [{"call": [{"tool": "turns.look_up", "arguments": {"word": word}}]} for word in ("dog", "nothing")]
    return agent("ann", *asks, "found it", *more, tools=["turns.look_up"])


def test_tools_of_a_turn_are_in_the_thread_and_only_their_speaker_is_told_of_them_again(stage: Stage, called: Any) -> None:
    ref = stage.submit(talking(looking_up("again"), agent("bob", "well"), stop={"turns": 3}), {"x": "it"})
    run(stage, ref)
    messages = stage.worker.process.archive.thread(ref.tenant, ref.run, "talk", 9)
    kinds = [(one.source, one.kind.value) for one in messages]
    asked = [("ann", "calls"), ("ann", "results")]
    assert kinds == [("user", "text"), *asked, *asked, ("ann", "text"), ("bob", "text"), ("ann", "text")]
    assert [word for word, _ in called] == ["dog", "nothing"]
    assert len({key for _, key in called}) == 2
    good, bad = (one.body["results"][0] for one in messages if one.kind is Kind.RESULTS)
    assert (good["ok"], bad["ok"], "no such word" in bad["text"]) == (True, False, True)
    assert messages[-1].text == "again", "the script goes on where the thread says"
    assert [one.source for one in heard_by("bob", messages)] == ["user", "ann", "bob", "ann"]


def test_arguments_that_are_no_json_and_tools_that_do_not_exist_are_told_to_the_model(stage: Stage, called: Any) -> None:
    odd = {"call": [{"tool": "turns.look_up", "arguments": "{word"}, {"tool": "nobody", "arguments": {}}]}
    ref = stage.submit(talking(agent("ann", odd, "sorry", tools=["turns.look_up"]), stop={"turns": 1}), {"x": "it"})
    run(stage, ref)
    (results,) = [one for one in stage.worker.process.archive.thread(ref.tenant, ref.run, "talk", 9) if one.kind is Kind.RESULTS]
    assert [one["ok"] for one in results.body["results"]] == [False, False]
    assert (called, thread(stage, ref)[-1]) == ([], ("ann", "sorry"))


# --- whoever dies -----------------------------------------------------------------------------------------------------


class Killed(WorkerTerminate):
    """The worker process ends here, without another word."""


def die(stage: Stage, worker: Worker, where: tuple[Any, str], *, at: int = 1, after: bool = True) -> None:
    """Answers doorbells with a worker that is killed at the `at`-th call of something, after it has done its work."""
    owner, name = where
    real, count = getattr(owner, name), 0

    def deadly(*args: Any, **more: Any) -> Any:
        nonlocal count
        count += 1
        done = real(*args, **more) if after or count < at else None
        if count == at:
            raise Killed
        return done

    with mock.patch.object(owner, name, deadly), pytest.raises(Killed):
        for _ in range(20):
            stage.journal()
            stage.answer_all(worker)
    for claim in worker.claims._snapshot():
        worker.claims._claims.pop(claim.nonce)


def ledger(stage: Stage, ref: RunRef) -> list[tuple[str, int, int]]:
    """Agent, turn and tokens of every call."""
    ours = model_calls.c
    with stage.store.read() as connection:
        found = connection.execute(sa.select(model_calls).where(ours.run_id == ref.run).order_by(ours.iteration)).all()
    assert len({row.call_id for row in found}) == len(found)
    return sorted((row.agent, row.iteration, row.output_tokens) for row in found)


def team() -> Workflow:
    return talking(looking_up("over"), agent("bob", "two words"), stop={"turns": 3}, retry=2)


@pytest.fixture
def undisturbed(stage: Stage) -> tuple[list[tuple[str, str]], list[tuple[str, int, int]]]:
    """The thread and the ledger of the team, if nothing happens to it."""
    ref = stage.submit(team(), {"x": "it"})
    run(stage, ref)
    CALLED.clear()
    return said(stage, ref), ledger(stage, ref)


def said(stage: Stage, ref: RunRef) -> list[tuple[str, str]]:
    """The thread, but for the ids of calls: they name their run."""
    return [(who, text.replace(ref.run[-8:], "")) for who, text in thread(stage, ref)]


CUTS = [
    ((Steps, "record"), 1),
    ((Steps, "guard"), 1),
    ((Steps, "guard"), 2),
    ((Steps, "succeed"), 1),
    ((Steps, "succeed"), 2),
    ((Archive, "thread"), 1),
]


@pytest.mark.parametrize(("where", "at"), CUTS)
@pytest.mark.parametrize("lost", ["worker", "board too"])
def test_a_worker_that_dies_in_a_turn_costs_nothing_but_time(
    stage: Stage, undisturbed: Any, called: Any, where: tuple[Any, str], at: int, lost: str
) -> None:
    doomed = stage.another_worker()
    ref = stage.submit(team(), {"x": "it"})
    die(stage, doomed, where, at=at, after=where[1] != "succeed")
    if lost == "board too":
        stage.journal()
        stage.wipe()
        stage.rebuild()
    stage.pass_time(8)
    run(stage, ref)
    assert (said(stage, ref), ledger(stage, ref)) == undisturbed
    assert [word for word, _ in called] == ["dog", "nothing"], "no side effect twice"


def test_a_conversation_goes_on_when_the_board_is_lost_after_each_turn(stage: Stage, undisturbed: Any) -> None:
    ref = stage.submit(team(), {"x": "it"})
    for _ in range(30):
        stage.journal()
        if stage.row(ref).terminal:
            break
        stage.wipe()
        stage.rebuild()
        stage.pass_time(8)
        stage.answer_all()
    assert (said(stage, ref), ledger(stage, ref)) == undisturbed


# --- what models do ---------------------------------------------------------------------------------------------------


def test_what_a_failed_attempt_cost_is_in_the_ledger_and_its_words_are_not_in_the_thread(stage: Stage) -> None:
    breaks = {"say": "half an", "fail": "broken_off"}
    ref = stage.submit(talking(agent("ann", breaks), stop={"turns": 1}, retry=1), {"x": "it"})
    run(stage, ref)
    assert thread(stage, ref)[-1] == ("ann", "half an")
    with stage.store.read() as connection:
        rows = connection.execute(sa.select(model_calls).where(model_calls.c.run_id == ref.run)).all()
    assert sorted((row.attempt, bool(row.estimated)) for row in rows) == [(1, True), (2, False)]


def test_a_refusal_ends_the_run_and_the_thread_stays_as_it_was(stage: Stage) -> None:
    ref = stage.submit(talking(agent("ann", "fine"), agent("bob", {"fail": "refused"}), retry=3), {"x": "it"})
    run(stage, ref)
    row = stage.row(ref)
    assert row.state is RunState.FAILED
    assert row.error is not None and row.error["code"] == "MODEL_REFUSED"
    assert thread(stage, ref) == [("user", "Plan it"), ("ann", "fine")]


# --- going on later ---------------------------------------------------------------------------------------------------


def test_a_conversation_goes_on_in_another_run_from_its_end_or_from_any_turn(stage: Stage) -> None:
    team = (agent("ann", "a1", "a2", "a3"), agent("bob", "b1", "b2", "b3"))
    first = stage.submit(talking(*team, stop={"turns": 3}), {"x": "one"})
    run(stage, first)
    later = talking(*team, stop={"turns": 1}, after="input.after")
    second = stage.submit(later, {"x": "two", "after": {"run": first.run}})
    run(stage, second)
    third = stage.submit(later, {"x": "three", "after": {"run": second.run}})
    forked = stage.submit(later, {"x": "other", "after": {"run": first.run, "turn": 1}})
    run(stage, third, forked)
    assert [thread(stage, ref)[-1] for ref in (second, third, forked)] == [("bob", "b2"), ("ann", "a3"), ("bob", "b1")]


def test_a_conversation_of_another_tenant_is_none(stage: Stage) -> None:
    first = stage.submit(talking(agent("ann", "secret"), stop={"turns": 1}), {"x": "one"})
    run(stage, first)
    later = talking(agent("ann", "x", "y"), stop={"turns": 1}, after="input.after")
    ref = stage.submit(later, {"x": "two", "after": {"run": first.run}}, tenant="other")
    run(stage, ref)
    error = stage.row(ref).error
    assert error is not None and error["code"] == "UNKNOWN_RUN"


def test_a_retried_run_keeps_its_turns_and_goes_on_behind_them(stage: Stage) -> None:
    flow = talking(agent("ann", "a1", {"say": "a2", "fail": "refused"}), agent("bob", "b1"), stop={"turns": 3})
    ref = stage.submit(flow, {"x": "it"})
    run(stage, ref)
    assert stage.row(ref).state is RunState.FAILED
    row = stage.worker.process.entrance.doors.fork  # the door that `runs retry` uses
    assert callable(row)
