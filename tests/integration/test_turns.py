"""A conversation's turns are tasks: whoever takes the next one, and whatever is lost, the thread is the same."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import pytest
import sqlalchemy as sa

from convergio.graphflow.board.voice import speak
from convergio.graphflow.client.event import RESTARTED, Event
from convergio.graphflow.client.feed import Feed
from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.flow import document
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks.agents import tables as agent_tables
from convergio.tasks.agents.tables import model_calls
from convergio.tasks.conversation import tables
from convergio.tasks.conversation.thread import Kind, heard_by
from convergio.tasks.conversation.voice import CONTENT
from convergio.tasks.tools.tool import tool
from tests.integration.engine_rig import QUIET, Stage, Worker

pytestmark = QUIET


def agent(name: str, *script: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, "role": f"You are {name}.", "script": list(script), **more}


def talking(*agents: Mapping[str, Any], stop: Any = None, **more: Any) -> Workflow:
    """`talk` is a conversation of these agents; `after` uses its result."""
    talk = {"conversation": {"agents": list(agents), "stop": stop or {"turns": 4}}, "prompt": "Plan {{ input.x }}"}
    follows = {"task": "probe.echo", "with": {"value": "talk.text"}, "needs": ["talk"]}
    return document.parse_document(
        {"workflow": "talking", "version": 1, "steps": {"talk": {**talk, **more}, "after": follows}}
    )


@contextmanager
def journaling(stage: Stage) -> Generator[None]:
    """SQL hears of everything meanwhile: a turn waits for it before it calls a tool."""
    over = threading.Event()

    def journal() -> None:
        while not over.wait(0.002):
            stage.journal()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(journal)
        try:
            yield
        finally:
            over.set()
            done.result()


def run(stage: Stage, *refs: RunRef) -> None:
    """Answers doorbells until the runs have ended."""
    for _ in range(100):
        with journaling(stage):
            answered = stage.answer_all()
        stage.journal()
        if all(stage.row(ref).terminal for ref in refs):
            return
        if not answered and not stage.bells():
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


def test_a_scored_choice_is_kept_with_its_turn_factor_by_factor(stage: Stage) -> None:
    flow = document.parse_document(
        {
            "workflow": "scored",
            "version": 1,
            "steps": {
                "talk": {
                    "conversation": {
                        "agents": [agent("ann", "the budget is fine"), agent("bob", "so it is")],
                        "policy": "scored",
                        "stop": {"turns": 2},
                    },
                    "prompt": "What does it cost?",
                }
            },
        }
    )
    ref = stage.submit(flow)
    run(stage, ref)
    assert stage.row(ref).state is RunState.SUCCEEDED
    first = turns(stage, ref)[0]
    chosen = json.loads(first["chosen"])
    assert (chosen["policy"], chosen["speaker"]) == ("scored", first["speaker"])
    assert [turn["type"] for turn in turns(stage, ref)] == ["simple_query", "simple_query"]
    assert set(chosen["scores"]) == {"ann", "bob"}
    assert all(chosen["scores"]["ann"].keys() == factors.keys() for factors in chosen["scores"].values())


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


def test_tools_of_a_turn_are_in_the_thread_and_only_their_speaker_is_told_of_them_again(
    stage: Stage, called: Any
) -> None:
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


def test_arguments_that_are_no_json_and_tools_that_do_not_exist_are_told_to_the_model(
    stage: Stage, called: Any
) -> None:
    odd: dict[str, Any] = {
        "call": [{"tool": "turns.look_up", "arguments": "{word"}, {"tool": "nobody", "arguments": {}}]
    }
    ref = stage.submit(talking(agent("ann", odd, "sorry", tools=["turns.look_up"]), stop={"turns": 1}), {"x": "it"})
    run(stage, ref)
    (results,) = [
        one for one in stage.worker.process.archive.thread(ref.tenant, ref.run, "talk", 9) if one.kind is Kind.RESULTS
    ]
    assert [one["ok"] for one in results.body["results"]] == [False, False]
    assert (called, thread(stage, ref)[-1]) == ([], ("ann", "sorry"))


# --- whoever dies -----------------------------------------------------------------------------------------------------


TELLS = ("record", "guard", "spend", "succeed", "fail", "retry", "give_back")
"""Verbs by which a worker's process has an effect on others."""


def die(stage: Stage, worker: Worker, verb: str, *, at: int, done: bool) -> None:
    """Answers doorbells with a worker that is killed at its `at`-th call of a verb, when it has, or has not, done its
    work. Nothing that the process says after that reaches anybody."""
    steps, dead, count = worker.steps, threading.Event(), 0
    real = {name: getattr(steps, name) for name in TELLS}

    def telling(name: str, claim: Claim, *args: Any, **more: Any) -> Any:
        nonlocal count
        count += name == verb and not dead.is_set()
        last = name == verb and count == at and not dead.is_set()
        if not dead.is_set() and (not last or done):
            found = real[name](claim, *args, **more)
            if not last:
                return found
        dead.set()
        raise errors.StaleFence(run=claim.held.ref.run, step=claim.held.step)

    with ExitStack() as stack:
        for name in TELLS:
            stack.enter_context(mock.patch.object(steps, name, partial(telling, name)))
        stack.enter_context(mock.patch.object(agent_tables, "book"))  # a dead process writes nothing into SQL, either
        for _ in range(20):
            with journaling(stage):
                while not dead.is_set() and (bell := stage.take()) is not None:
                    worker.answer(bell)
            stage.journal()
            if dead.is_set():
                break
    assert dead.is_set()
    worker.claims._claims.clear()


def ledger(stage: Stage, ref: RunRef) -> list[tuple[str, int, int]]:
    """Agent, turn and tokens of every call."""
    ours = model_calls.c
    with stage.store.read() as connection:
        found = connection.execute(sa.select(model_calls).where(ours.run_id == ref.run).order_by(ours.iteration)).all()
    assert len({row.call_id for row in found}) == len(found)
    return sorted((row.agent, row.iteration, row.output_tokens) for row in found)


def team() -> Workflow:
    return talking(looking_up("over"), agent("bob", "two words"), stop={"turns": 3}, retry=2)


LEDGER = [("ann", 0, 1), ("ann", 0, 1), ("ann", 0, 2), ("ann", 2, 1), ("bob", 1, 2)]
"""What the team costs, if nothing happens to it."""

SPEAK = ["user", "ann", "ann", "ann", "ann", "ann", "bob", "ann"]


def undisturbed(stage: Stage, ref: RunRef) -> bool:
    """Whether the thread and the ledger are those of a conversation to which nothing has happened."""
    messages = said(stage, ref)
    texts = [text for _, text in messages if not text.startswith("{")]
    assert [who for who, _ in messages] == SPEAK
    assert texts == ["Plan it", "found it", "two words", "over"]
    assert ledger(stage, ref) == LEDGER
    return True


def said(stage: Stage, ref: RunRef) -> list[tuple[str, str]]:
    """The thread, but for the ids of calls: they name their run."""
    return [(who, text.replace(ref.run[-8:], "")) for who, text in thread(stage, ref)]


def test_a_conversation_to_which_nothing_happens(stage: Stage, called: Any) -> None:
    ref = stage.submit(team(), {"x": "it"})
    run(stage, ref)
    assert undisturbed(stage, ref)
    assert [word for word, _ in called] == ["dog", "nothing"]


@pytest.mark.parametrize(
    ("verb", "at", "done", "lost"),
    [
        ("guard", 1, True, "board"),  # it knows which tool to call, and so does SQL
        ("guard", 2, False, "worker"),
        ("record", 2, True, "board"),  # the first tool's result is known
        ("record", 2, False, "worker"),  # the tool has run, and nobody knows
        ("succeed", 1, False, "board"),  # the last answer is known, the outcome is not
        ("succeed", 2, True, "worker"),  # told, and not heard any more
    ],
)
def test_a_worker_that_dies_in_a_turn_costs_nothing_but_time(
    stage: Stage, called: Any, verb: str, at: int, done: bool, lost: str
) -> None:
    doomed = stage.another_worker()
    ref = stage.submit(team(), {"x": "it"})
    die(stage, doomed, verb, at=at, done=done)
    if lost == "board":
        stage.wipe()
        stage.rebuild()
    stage.pass_time(8)
    run(stage, ref)
    assert undisturbed(stage, ref)
    unknown = (verb, done) == ("record", False)  # the one gap that nobody can close: the key says that it is the same
    effects = list(dict.fromkeys(called)) if unknown else called
    assert [word for word, _ in effects] == ["dog", "nothing"], "no side effect twice"


def test_a_conversation_goes_on_when_the_board_is_lost_after_each_turn(stage: Stage) -> None:
    ref = stage.submit(team(), {"x": "it"})
    for _ in range(30):
        stage.journal()
        if stage.row(ref).terminal:
            break
        stage.wipe()
        stage.rebuild()
        stage.pass_time(8)
        with journaling(stage):
            stage.answer_all()
    assert undisturbed(stage, ref)


# --- readers ----------------------------------------------------------------------------------------------------------


def heard(stage: Stage, ref: RunRef, after: str = "") -> list[Event]:
    """What a reader of the run's feed is told, to its end."""
    feed = Feed(stage.client, ref, lambda: None)
    found: list[Event] = []
    for event in feed.events(after):
        if event is None:
            return found
        found.append(event)
    return found


def shown(events: Sequence[Event]) -> dict[int, str]:
    """The text of each turn as a reader has it who drops what a dead attempt said."""
    texts: dict[int, str] = {}
    for event in events:
        if event.type == "CUSTOM" and event.data["name"] == RESTARTED:
            texts[event.iteration] = ""
        if event.type == CONTENT:
            texts[event.iteration] = texts.get(event.iteration, "") + event.data["delta"]
    return texts


def test_readers_are_told_of_a_turn_in_typed_events_numbered_without_a_gap(stage: Stage) -> None:
    ref = stage.submit(team(), {"x": "it"})
    run(stage, ref)
    events = heard(stage, ref)
    assert [event.position[1] for event in events] == list(range(1, len(events) + 1))
    first = [event.type for event in events if event.step == "talk" and event.iteration == 0 and event.type.isupper()]
    tool = ["TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "TOOL_CALL_RESULT"]
    text = ["TEXT_MESSAGE_START", CONTENT, "TEXT_MESSAGE_END"]
    squeezed = [kind for place, kind in enumerate(first) if kind != CONTENT or first[place - 1] != CONTENT]
    opening = ["STEP_STARTED", "TEXT_MESSAGE_CHUNK", "CUSTOM"]
    assert squeezed == [*opening, *tool, *tool, *text, "CUSTOM", "STEP_FINISHED"]
    assert shown(events) == {0: "found it", 1: "two words", 2: "over"}
    ends = [event for event in events if event.type == "step.succeeded" and event.step == "talk"]
    assert [event.iteration for event in ends] == [0, 1, 2]
    half = events[len(events) // 2]
    assert heard(stage, ref, after=half.id) == events[len(events) // 2 + 1 :]


def test_a_turn_that_begins_anew_says_so_once(stage: Stage) -> None:
    doomed = stage.another_worker()
    ref = stage.submit(team(), {"x": "it"})
    die(stage, doomed, "succeed", at=2, done=False)
    stage.pass_time(8)
    run(stage, ref)
    events = heard(stage, ref)
    restarted = [one.iteration for one in events if one.type == "CUSTOM" and one.data["name"] == RESTARTED]
    assert restarted == [1]
    assert shown(events) == {0: "found it", 1: "two words", 2: "over"}


def test_what_a_claim_says_again_is_told_once_and_what_a_dead_one_says_not_at_all(stage: Stage) -> None:
    ref = stage.submit(talking(agent("ann", "hello")), {"x": "it"})
    claim = stage.claim(ref, "talk")
    for batch in (1, 1, 2, 1):
        speak(stage.worker.steps.link, claim.held, batch=batch, anew="{}", said=[("X", f'{{"n":{batch}}}')])
    assert [event.data["n"] for event in heard(stage, ref) if event.type == "X"] == [1, 2]
    stage.worker.steps.give_back(claim)
    with pytest.raises(errors.StaleFence):
        speak(stage.worker.steps.link, claim.held, batch=3, anew="{}", said=[("X", "{}")])


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
    assert row.error is not None
    assert row.error["code"] == "MODEL_REFUSED"
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
    assert error is not None
    assert error["code"] == "UNKNOWN_RUN"
