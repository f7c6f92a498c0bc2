"""People in a conversation: one who is asked is waited for without a worker; who speaks unasked is heard, too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from convergio.graphflow.engine import reason
from convergio.graphflow.engine.fork import Fork
from convergio.graphflow.engine.inquiry import Inquiry
from convergio.graphflow.flow import document
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import BlockedOn, RunState
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks.conversation import transcript
from convergio.tasks.conversation.archive import Place
from convergio.tasks.conversation.thread import Kind, Message
from convergio.tasks.conversation.voice import CONTENT
from tests.integration.engine_rig import QUIET, Stage
from tests.integration.test_engine_callers import answer_of, enter
from tests.integration.test_turns import (
    agent,
    called,
    die,
    journaling,
    ledger,
    looking_up,
    run,
    thread,
    turns,
)
from tests.waiting import wait_until

pytestmark = QUIET

assert called  # a fixture


def talking(*agents: Mapping[str, Any], **team: Any) -> Workflow:
    """`talk` is a conversation of these agents, of four turns at most, and `after` has its result."""
    talk = {"conversation": {"agents": list(agents), "stop": {"turns": 4}, **team}, "prompt": "Help", "retry": 2}
    follows = {"task": "probe.echo", "with": {"value": "talk.text"}, "needs": ["talk"]}
    return document.parse_document({"workflow": "people", "version": 1, "steps": {"talk": talk, "after": follows}})


ASK_PEOPLE: dict[str, Any] = {"call": [{"tool": "transfer_to_user", "arguments": {}}]}


def desk(**team: Any) -> Workflow:
    """`desk` asks people for the order, and then ends."""
    one = agent("desk", "which order?", ASK_PEOPLE, "paid DONE", handoffs=["user"])
    return talking(one, **{"policy": "handoff", "stop": {"turns": 4, "mention": "DONE"}, **team})


def until_quiet(stage: Stage) -> None:
    """Answers doorbells until nothing is left to do without people."""
    while True:
        with journaling(stage):
            answered = stage.answer_all()
        stage.journal()
        if not answered and not stage.bells():
            return


def asked(stage: Stage, flow: Workflow | None = None) -> RunRef:
    """A run of `desk` whose people are asked."""
    ref = stage.submit(flow or desk())
    until_quiet(stage)
    return ref


def say(stage: Stage, ref: RunRef, text: str, **more: Any) -> None:
    entrance = stage.worker.process.entrance
    entrance.signal(ref, name="talk", data={"text": text, **more}, by="eve")


def lost(stage: Stage) -> None:
    """The board is lost, and made anew; whoever was at work is not any more."""
    stage.wipe()
    stage.rebuild()
    stage.pass_time(8)


def test_a_handoff_to_people_waits_without_a_worker_until_they_answer(stage: Stage) -> None:
    ref = asked(stage)
    word = stage.word(ref, "talk#2")
    assert (word.blocked_on, stage.bells()) == (BlockedOn.SIGNAL, [])
    stage.worker.pulse()
    assert len(stage.worker.claims) == 0, "nobody holds it"
    assert stage.client.zcard(stage.keys.leases) == 0
    view = Inquiry(stage.service.link, stage.history).view(ref)
    said = reason.of_step(view, view.steps["talk"])
    assert "waits since" in said
    assert "desk: which order?" in said
    assert f"convergio chat --resume {ref.run} TEXT" in said
    say(stage, ref, "F-17")
    run(stage, ref)
    assert thread(stage, ref)[-2:] == [("user", "F-17"), ("desk", "paid DONE")]
    assert [row["speaker"] for row in turns(stage, ref)] == ["desk", "desk", "user", "desk"]
    assert stage.outcomes(ref)["after"].output == {"value": "paid DONE"}
    assert [who for who, _, _ in ledger(stage, ref)] == ["desk"] * 3


def test_words_that_come_before_they_are_asked_for_are_heard(stage: Stage) -> None:
    """Between the turn that asks and the one that waits: PARK looks back."""
    ref = stage.submit(desk())
    for _ in range(2):
        with journaling(stage):
            stage.answer_one()
        stage.journal()
    claim = stage.claim(ref, "talk#2")
    say(stage, ref, "F-17")
    stage.worker.steps.give_back(claim)
    run(stage, ref)
    assert [text for who, text in thread(stage, ref) if who == "user"] == ["Help", "F-17"]


@pytest.mark.parametrize("when", ["asked", "answered"])
def test_a_lost_board_changes_nothing_for_people(stage: Stage, when: str) -> None:
    ref = asked(stage)
    if when == "asked":
        lost(stage)
        assert stage.word(ref, "talk#2").blocked_on is BlockedOn.SIGNAL
    say(stage, ref, "F-17")
    if when == "answered":
        stage.journal()
        lost(stage)
    run(stage, ref)
    assert thread(stage, ref)[-2:] == [("user", "F-17"), ("desk", "paid DONE")]


def test_words_are_heard_once_however_often_they_are_told(stage: Stage) -> None:
    ref = asked(stage)
    for _ in range(2):
        stage.worker.process.entrance.signal(ref, name="talk", data={"text": "F-17"}, by="eve", signal_id="one")
    run(stage, ref)
    assert [text for who, text in thread(stage, ref) if who == "user"] == ["Help", "F-17"]


def test_a_handoff_to_people_may_end_the_conversation(stage: Stage) -> None:
    ref = asked(stage, desk(people="end"))
    assert json.loads(turns(stage, ref)[-1]["stop"]) == {"by": "handoff", "to": "user"}
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_people_are_asked_by_a_handoff_whatever_the_policy(stage: Stage) -> None:
    ref = asked(stage, desk(policy="round_robin"))
    assert stage.word(ref, "talk#2").blocked_on is BlockedOn.SIGNAL


# --- who speaks unasked -----------------------------------------------------------------------------------------------


def pair(**team: Any) -> Workflow:
    return talking(agent("ann", "a1", "a2", "a3"), agent("bob", "b1", "b2", "b3"), **team)


def in_turn(stage: Stage, flow: Workflow, turn: str) -> tuple[RunRef, Any]:
    """A run in which this turn has just been claimed."""
    ref = stage.submit(flow)
    while stage.word(ref, turn).state != "READY":
        with journaling(stage):
            stage.answer_one()
        stage.journal()
    stage.take()
    return ref, stage.claim(ref, turn)


def whole(stage: Stage, ref: RunRef) -> list[Message]:
    return stage.worker.process.archive.thread(ref.tenant, ref.run, "talk", 1_000)


def spoken(stage: Stage, ref: RunRef) -> list[str]:
    return [f"{who}: {text}" for who, text in thread(stage, ref)]


def test_words_that_come_in_a_turn_wait_for_its_end(stage: Stage) -> None:
    ref, claim = in_turn(stage, pair(), "talk#1")
    say(stage, ref, "and hurry")
    say(stage, ref, "please")
    stage.worker.steps.give_back(claim)
    run(stage, ref)
    said = ["user: Help", "ann: a1", "bob: b1", "user: and hurry", "user: please", "ann: a2", "bob: b2", "ann: a3"]
    assert spoken(stage, ref) == [*said, "bob: b3"], "what people say begins the count of turns anew"


def test_words_that_come_in_the_last_turn_make_another_one(stage: Stage) -> None:
    ref, claim = in_turn(stage, pair(stop={"turns": 2}), "talk#1")
    say(stage, ref, "one thing more")
    stage.worker.steps.give_back(claim)
    run(stage, ref)
    said = ["user: Help", "ann: a1", "bob: b1", "user: one thing more", "ann: a2", "bob: b2"]
    assert spoken(stage, ref) == said


def test_words_for_the_next_turn_survive_the_loss_of_the_board_in_the_last_one(stage: Stage) -> None:
    ref, claim = in_turn(stage, pair(stop={"turns": 2}), "talk#1")
    say(stage, ref, "one thing more")
    stage.worker.steps.give_back(claim)
    for _ in range(30):
        stage.journal()
        if stage.row(ref).terminal:
            break
        lost(stage)
        with journaling(stage):
            stage.answer_all()
    assert spoken(stage, ref)[3:] == ["user: one thing more", "ann: a2", "bob: b2"]


def test_a_run_that_reuses_a_conversation_has_it_whole_though_people_spoke_when_it_seemed_over(stage: Stage) -> None:
    ref, claim = in_turn(stage, pair(stop={"turns": 1}), "talk")
    say(stage, ref, "one thing more")
    stage.worker.steps.give_back(claim)
    run(stage, ref)
    again = stage.worker.process.entrance.fork(Fork(ref=ref, submitter="eve", step="after")).run
    other = RunRef(tenant=again.tenant, run=again.run_id)
    run(stage, other)
    assert stage.outcomes(other)["after"].output == {"value": "b1"}
    assert spoken(stage, other) == spoken(stage, ref) == ["user: Help", "ann: a1", "user: one thing more", "bob: b1"]


def test_words_may_be_refused_while_a_turn_runs(stage: Stage) -> None:
    ref, claim = in_turn(stage, pair(if_busy="reject"), "talk#1")
    with pytest.raises(errors.ConversationBusy, match="a turn runs"):
        say(stage, ref, "and hurry")
    say(stage, ref, "well, then later", if_busy="enqueue")
    stage.worker.steps.give_back(claim)
    run(stage, ref)
    assert "user: and hurry" not in spoken(stage, ref)
    assert "user: well, then later" in spoken(stage, ref)


def test_words_that_interrupt_cut_the_turn_that_runs(stage: Stage) -> None:
    ref, claim = in_turn(stage, pair(if_busy="interrupt"), "talk#1")
    say(stage, ref, "stop")
    with pytest.raises(errors.StaleFence):
        stage.worker.steps.succeed(claim, {"late": True})
    run(stage, ref)
    assert spoken(stage, ref)[:4] == ["user: Help", "ann: a1", "user: stop", "bob: b1"]


def test_words_that_roll_back_take_the_place_of_what_people_said_last(stage: Stage) -> None:
    ref, _ = in_turn(stage, pair(), "talk#2")
    say(stage, ref, "Help me otherwise", if_busy="rollback")
    run(stage, ref)
    said = spoken(stage, ref)
    assert said[:5] == ["user: Help", "ann: a1", "bob: b1", "user: Help me otherwise", "ann: a1"]
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_what_a_cut_turn_asked_of_tools_stands_and_is_paid_for(stage: Stage, called: Any) -> None:
    ann = agent("ann", *looking_up()["script"], tools=["turns.look_up"])
    ref = stage.submit(talking(ann, policy="round_robin", stop={"turns": 1}))
    doomed = stage.another_worker()
    die(stage, doomed, "guard", at=2, done=True)
    say(stage, ref, "never mind", if_busy="interrupt")
    run(stage, ref)
    kinds = [(one.source, one.kind.value) for one in whole(stage, ref)]
    dealt = [("ann", "calls"), ("ann", "results")]
    assert kinds == [("user", "text"), *dealt, *dealt, ("user", "text"), ("ann", "text")]
    results = [one.body["results"][0]["ok"] for one in whole(stage, ref) if one.kind is Kind.RESULTS]
    assert results == [True, False], "the second tool was never called"
    assert [word for word, _ in called] == ["dog"]
    assert len(ledger(stage, ref)) == 3


def test_what_an_answer_had_cost_that_was_interrupted_is_on_the_ledger(stage: Stage) -> None:
    slow = agent("ann", {"say": "word " * 500, "pace": 0.2})
    ref = stage.submit(talking(slow, if_busy="interrupt"))
    bell = stage.take()
    assert bell is not None
    with ThreadPoolExecutor(1) as pool:
        turn = pool.submit(stage.worker.answer, bell)
        feed = stage.keys.feed(ref)
        wait_until(lambda: any(facts["type"] == CONTENT for _, facts in stage.client.xrange(feed)), timeout=30)
        say(stage, ref, "stop")

        def is_cut() -> bool:
            stage.worker.pulse()  # a beat tells the worker that the turn is not its own any more
            return turn.done()

        wait_until(is_cut, timeout=30)
    with journaling(stage):
        stage.answer_one()
    stage.worker.process.entrance.cancel(ref, by="boss")
    stage.journal()
    ((who, number, tokens),) = ledger(stage, ref)
    assert (who, number, tokens > 0) == ("ann", 0, True)


# --- long threads -----------------------------------------------------------------------------------------------------


def test_a_long_thread_is_summed_up_once_on_the_ledger_and_stays_whole(stage: Stage) -> None:
    short = {"messages": 4, "keep": 1, "script": ["in short"]}
    ref = stage.submit(pair(stop={"turns": 5}, compaction=short))
    run(stage, ref)
    said = ["user: Help", "ann: a1", "bob: b1", "ann: a2", "bob: b2", "(summary): in short", "ann: a3"]
    assert spoken(stage, ref) == said
    paid = [(who, number) for who, number, _ in ledger(stage, ref)]
    assert paid == [("(summary)", 4), ("ann", 0), ("ann", 2), ("ann", 4), ("bob", 1), ("bob", 3)]


# --- kept, held, gone on with -----------------------------------------------------------------------------------------


def test_the_transcript_has_everything_that_was_said_and_what_was_taken_back(stage: Stage) -> None:
    ref, _ = in_turn(stage, pair(stop={"turns": 2}), "talk#1")
    say(stage, ref, "Help me otherwise", if_busy="rollback")
    run(stage, ref)
    chapters = stage.worker.process.archive.chapters(ref.tenant, Place(run=ref.run, step="talk"))
    (chapter,) = transcript.as_data(chapters)
    assert [(one["text"], one["standing"]) for one in chapter["messages"]][:3] == [
        ("Help", False),
        ("a1", False),
        ("Help me otherwise", True),
    ]
    assert [turn["speaker"] for turn in chapter["turns"]] == ["ann", "user", "ann", "bob"]
    text = transcript.as_markdown(chapters)
    assert "## 1. ann" in text
    assert "taken back" in text
    assert "## 2. user (eve)" in text
    assert "*It ends here: by turns (2).*" in text


def test_a_conversation_is_held_between_two_turns_and_goes_on(stage: Stage) -> None:
    ref, claim = in_turn(stage, pair(), "talk#1")
    entrance = stage.worker.process.entrance
    entrance.pause(ref, by="boss")
    stage.worker.steps.give_back(claim)
    until_quiet(stage)
    assert (stage.row(ref).state, len(turns(stage, ref))) == (RunState.PAUSED, 1)
    entrance.resume(ref, by="boss")
    run(stage, ref)
    assert len(turns(stage, ref)) == 4


@pytest.mark.parametrize(
    ("place", "said", "expected"),
    [
        ({"turn": 1}, "", ["user: Help", "ann: a1", "bob: b1"]),
        ({"turn": 1, "edit": "a one"}, "", ["user: Help", "ann: a one", "bob: b1"]),
        ({"edit": "b four"}, "and now?", ["bob: b four", "user: and now?", "ann: a3"]),
    ],
)
def test_a_conversation_is_forked_behind_a_turn_with_other_words_for_it(
    stage: Stage, place: dict[str, Any], said: str, expected: list[str]
) -> None:
    first = stage.submit(pair())
    run(stage, first)
    flow = pair(stop={"turns": 1 if said else 2}).document
    talk = {**flow["steps"]["talk"], "prompt": "{{ input.said }}", "after": "input.after"}
    forked = document.parse_document({**flow, "steps": {"talk": talk}})
    ref = stage.submit(forked, {"said": said, "after": {"run": first.run, **place}})
    run(stage, ref)
    archive = stage.worker.process.archive
    told = [f"{one.source}: {one.text}" for one in archive.before(ref.tenant, Place(run=ref.run, step="talk"))]
    assert told[-len(expected) :] == expected


def test_any_celery_client_speaks_to_a_conversation_that_goes_on_and_to_one_that_has_ended(stage: Stage) -> None:
    talk = {**desk().document["steps"]["talk"], "prompt": "{{ input.said }}", "after": "input.after"}
    flow = document.parse_document({"workflow": "chat", "version": 1, "steps": {"talk": talk}})
    ref = stage.submit(flow, {"said": "Help", "after": None})
    until_quiet(stage)
    assert answer_of(stage, enter(stage, "say", ref.run, "F-17")) == ("SUCCESS", ref.run)
    run(stage, ref)
    assert thread(stage, ref)[-2:] == [("user", "F-17"), ("desk", "paid DONE")]
    _, later = answer_of(stage, enter(stage, "say", ref.run, "And F-18?"))
    run(stage, RunRef(tenant=ref.tenant, run=later))
    assert thread(stage, RunRef(tenant=ref.tenant, run=later))[0] == ("user", "And F-18?")


# --- at the door ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [{}, {"text": " "}, {"text": 7}, {"decision": "approve"}, {"text": "x", "if_busy": "x"}]
)
def test_what_is_no_word_is_refused_at_the_door(stage: Stage, data: Any) -> None:
    ref = asked(stage)
    with pytest.raises(errors.InvalidInput):
        stage.worker.process.entrance.signal(ref, name="talk", data=data, by="eve")


def test_ten_megabytes_are_refused_at_every_door(stage: Stage) -> None:
    ref, large = asked(stage), "x" * 10_000_000
    with pytest.raises(errors.PayloadTooLarge):
        say(stage, ref, large)
    flow = {**desk().document, "steps": {"talk": {**desk().document["steps"]["talk"], "prompt": "{{ input.said }}"}}}
    with pytest.raises(errors.MessageTooLarge, match="10000000 characters"):
        stage.submit(document.parse_document(flow), {"said": large})
    with pytest.raises(errors.UnknownRun):
        say(stage, RunRef(tenant="other", run=ref.run), "hello")
