"""Who speaks next, end to end: what a policy decided is kept with its turn, and is the same after any loss."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from convergio.graphflow.flow import document
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks.conversation import speaker
from convergio.tasks.conversation.floor import STOP, SelectionContext
from convergio.tasks.conversation.thread import Kind, heard_by
from tests.integration.engine_rig import QUIET, Stage
from tests.integration.test_turns import agent, die, journaling, ledger, run, thread, turns

pytestmark = QUIET


def talking(*agents: Mapping[str, Any], **team: Any) -> Workflow:
    """`talk` is a conversation of these agents, of nine turns at most."""
    talk = {"conversation": {"agents": list(agents), "stop": {"turns": 9}, **team}, "prompt": "Plan", "retry": 2}
    return document.parse_document({"workflow": "talking", "version": 1, "steps": {"talk": talk}})


def speakers(stage: Stage, ref: RunRef) -> list[str]:
    return [row["speaker"] for row in turns(stage, ref)]


def stop(stage: Stage, ref: RunRef) -> Any:
    return json.loads(turns(stage, ref)[-1]["stop"])


# --- a policy of one's own --------------------------------------------------------------------------------------------


@speaker.policy
def backwards(context: SelectionContext) -> str:
    """The team from its end; it is over when the first has spoken."""
    said = sum(one.speaker in context.names for one in context.thread)
    return STOP if said == len(context.names) else context.names[-1 - said]


OWN = f"{__name__}.backwards"


def test_a_policy_of_ones_own_chooses_and_ends(stage: Stage) -> None:
    ref = stage.submit(talking(agent("ann", "a"), agent("bob", "b"), agent("cem", "c"), policy=OWN))
    run(stage, ref)
    assert speakers(stage, ref) == ["cem", "bob", "ann"]
    assert stop(stage, ref)["by"] == "policy"
    assert json.loads(turns(stage, ref)[0]["chosen"])["policy"] == OWN


def test_a_worker_that_lacks_a_policy_leaves_the_turn_to_another(stage: Stage) -> None:
    ref = stage.submit(talking(agent("ann", "a"), policy="elsewhere.choose"))
    with journaling(stage):
        stage.answer_all()
    assert stage.states(ref) == {"talk": "READY"}
    assert turns(stage, ref) == []


# --- handoffs ---------------------------------------------------------------------------------------------------------


def over_to(name: str) -> dict[str, Any]:
    """A scripted agent hands over."""
    return {"call": [{"tool": f"transfer_to_{name}", "arguments": {}}]}


def desk(**more: Any) -> Workflow:
    """`front` hands over to `refund-desk`, which asks the people outside and then closes."""
    front = agent("front", over_to("refund_desk"), handoffs=["refund-desk"])
    refunds = agent("refund-desk", "which order?", over_to("user"), "paid", handoffs=["front", "user"])
    return talking(front, refunds, **{"policy": "handoff", "people": "end", **more})


def test_an_agent_hands_over_by_its_tool_and_whoever_has_the_floor_keeps_it(stage: Stage) -> None:
    ref = stage.submit(desk())
    run(stage, ref)
    assert speakers(stage, ref) == ["front", "refund-desk", "refund-desk"]
    assert stop(stage, ref) == {"by": "handoff", "to": "user"}
    messages = stage.worker.process.archive.thread(ref.tenant, ref.run, "talk", 9)
    handed = [(one.source, one.body["target"]) for one in messages if one.kind is Kind.HANDOFF]
    assert handed == [("front", "refund-desk"), ("refund-desk", "user")]
    heard = [(one.source, one.kind) for one in heard_by("refund-desk", messages)][:3]
    assert heard == [("user", Kind.TEXT), ("front", Kind.HANDOFF), ("refund-desk", Kind.TEXT)]


@pytest.mark.parametrize(
    ("asks", "said"),
    [
        ([{"call": [*over_to("bob")["call"], *over_to("cem")["call"]]}], ["ann", "bob"]),  # the first one counts
        ([{"call": [{"tool": "transfer_to_bob", "arguments": "{no"}]}], ["ann", "bob"]),
        ([over_to("dora"), over_to("cem")], ["ann", "cem"]),  # it is told that there is no such tool
    ],
)
def test_odd_handoffs_have_one_outcome(stage: Stage, asks: list[Any], said: list[str]) -> None:
    ann = agent("ann", *asks, handoffs=["bob", "cem"])
    ref = stage.submit(talking(ann, agent("bob", "b"), agent("cem", "c"), policy="handoff", stop={"turns": 2}))
    run(stage, ref)
    assert speakers(stage, ref) == said


def test_who_handed_over_to_people_is_answered_when_they_say_something(stage: Stage) -> None:
    first = stage.submit(desk())
    run(stage, first)
    flow = desk(stop={"turns": 1}).document
    again = {**flow, "steps": {"talk": {**flow["steps"]["talk"], "after": f"'{first.run}'"}}}
    second = stage.submit(document.parse_document(again))
    run(stage, second)
    assert thread(stage, second)[-1] == ("refund-desk", "paid")


@pytest.mark.parametrize(("verb", "done"), [("guard", True), ("succeed", False)])
def test_a_handoff_whose_worker_dies_is_one_handoff(stage: Stage, verb: str, done: bool) -> None:
    doomed = stage.another_worker()
    ref = stage.submit(desk())
    die(stage, doomed, verb, at=1, done=done)
    stage.wipe()
    stage.rebuild()
    stage.pass_time(8)
    run(stage, ref)
    assert speakers(stage, ref) == ["front", "refund-desk", "refund-desk"]
    assert [who for who, _, _ in ledger(stage, ref)] == ["front", "refund-desk", "refund-desk"]


# --- a graph ----------------------------------------------------------------------------------------------------------

WRITING = {
    "writer": ["critic"],
    "critic": [{"to": "writer", "contains": "AGAIN"}, {"to": "editor", "contains": "FINE"}],
}


def writing(*verdicts: str, **more: Any) -> Workflow:
    """A writer writes, until the critic finds nothing more; then the editor has the last word."""
    team = (agent("editor", "printed", "and again"), agent("writer", "one", "two", "three"), agent("critic", *verdicts))
    return talking(*team, **{"policy": "graph", "graph": {"start": "writer", "edges": WRITING}, **more})


def test_a_graph_goes_round_until_its_condition_and_ends_where_no_edge_leads_on(stage: Stage) -> None:
    ref = stage.submit(writing("AGAIN", "FINE"))
    run(stage, ref)
    assert speakers(stage, ref) == ["writer", "critic", "writer", "critic", "editor"]
    assert stop(stage, ref) == {"by": "policy", "said": "no edge leads on from editor"}
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_a_graph_that_goes_round_survives_the_loss_of_its_board_after_each_turn(stage: Stage) -> None:
    ref = stage.submit(writing("AGAIN", "AGAIN", "FINE"))
    for _ in range(20):
        stage.journal()
        if stage.row(ref).terminal:
            break
        stage.wipe()
        stage.rebuild()
        stage.pass_time(8)
        with journaling(stage):
            stage.answer_all()
    assert speakers(stage, ref) == [*["writer", "critic"] * 3, "editor"]


def test_a_graph_begins_anew_when_its_conversation_goes_on_later(stage: Stage) -> None:
    first = stage.submit(writing("FINE"))
    run(stage, first)
    flow = writing("FINE", "FINE", stop={"turns": 1})
    again = {**flow.document, "steps": {"talk": {**flow.document["steps"]["talk"], "after": f"'{first.run}'"}}}
    second = stage.submit(document.parse_document(again))
    run(stage, second)
    assert thread(stage, second)[-1] == ("writer", "two")


def test_of_several_that_may_follow_another_policy_chooses(stage: Stage) -> None:
    edges = {"ann": ["bob", "cem"], "cem": ["ann"]}
    graph = {"edges": edges, "among": "llm"}
    ref = stage.submit(asking("cem", policy="graph", graph=graph, stop={"turns": 3}))
    run(stage, ref)
    assert speakers(stage, ref) == ["ann", "cem", "ann"]
    assert [who for who, turn, _ in ledger(stage, ref) if turn == 0] == ["(selector)", "ann"]


# --- conditions -------------------------------------------------------------------------------------------------------


def when(name: str, **config: Any) -> dict[str, Any]:
    return {"provider": f"autogen_agentchat.conditions.{name}", "component_type": "termination", "config": config}


def either(*conditions: dict[str, Any], all_of: bool = False) -> dict[str, Any]:
    name = "And" if all_of else "Or"
    return {"provider": f"autogen_agentchat.base.{name}TerminationCondition", "config": {"conditions": [*conditions]}}


def counting(condition: dict[str, Any], **more: Any) -> Workflow:
    """Two agents say three words a turn."""
    team = (agent(name, *["one two three"] * 9) for name in ("ann", "bob"))
    return talking(*team, **{"stop": {"turns": 9, "condition": condition}, **more})


@pytest.mark.parametrize(
    ("condition", "turns_taken", "by"),
    [
        (when("MaxMessageTermination", max_messages=4), 3, "MaxMessageTermination"),
        (when("TokenUsageTermination", max_completion_token=12), 4, "TokenUsageTermination"),
        (when("TimeoutTermination", timeout_seconds=1e-9), 1, "TimeoutTermination"),
        (
            either(
                when("MaxMessageTermination", max_messages=6), when("TextMentionTermination", text="two"), all_of=True
            ),
            5,
            "TextMentionTermination, MaxMessageTermination",
        ),
    ],
)
def test_a_conversation_ends_by_autogens_condition_though_its_board_is_lost_after_each_turn(
    stage: Stage, condition: dict[str, Any], turns_taken: int, by: str
) -> None:
    ref = stage.submit(counting(condition))
    for _ in range(20):
        stage.journal()
        if stage.row(ref).terminal:
            break
        stage.wipe()
        stage.rebuild()
        stage.pass_time(8)
        with journaling(stage):
            stage.another_worker()
            stage.answer_all()
    verdict = stop(stage, ref)
    assert (len(turns(stage, ref)), verdict["by"], verdict["source"]) == (turns_taken, "condition", by)


def test_handoffs_and_tools_meet_their_conditions(stage: Stage) -> None:
    wanted = either(when("HandoffTermination", target="bob"), when("FunctionCallTermination", function_name="x"))
    ref = stage.submit(
        talking(agent("ann", over_to("bob"), handoffs=["bob"]), agent("bob", "b"), stop={"condition": wanted})
    )
    run(stage, ref)
    assert stop(stage, ref)["said"] == "Handoff to bob from ann detected."


def test_a_condition_counts_what_a_failed_attempt_cost_and_not_what_an_earlier_conversation_did(stage: Stage) -> None:
    words = when("TokenUsageTermination", max_completion_token=8)
    team = (
        agent("ann", {"say": "one two three", "fail": "broken_off"}, *["one two three"] * 9),
        agent("bob", *["x"] * 9),
    )
    first = stage.submit(talking(*team, stop={"turns": 9, "condition": words}))
    run(stage, first)
    assert (len(turns(stage, first)), stop(stage, first)["by"]) == (2, "condition")
    flow = talking(*team, stop={"turns": 3, "condition": when("MaxMessageTermination", max_messages=3)}).document
    again = {**flow, "steps": {"talk": {**flow["steps"]["talk"], "after": f"'{first.run}'"}}}
    second = stage.submit(document.parse_document(again))
    run(stage, second)
    assert len(turns(stage, second)) == 2


# --- a model chooses --------------------------------------------------------------------------------------------------


def asking(*answers: Any, **more: Any) -> Workflow:
    """A model chooses, which answers this; `ann` and `bob` say three things each."""
    team = (agent("ann", "a1", "a2", "a3"), agent("bob", "b1", "b2", "b3"), agent("cem", "c1", "c2", "c3"))
    selector = {"selector": {"script": list(answers)}}
    return talking(*team, **{"policy": "llm", "stop": {"turns": 3}, **selector, **more})


CHOICES = ("bob", "ann, or cem", "it is hard to say", "ann", "cem")
"""The first opens; the next two name nobody."""

COSTS = [
    *(("(selector)", turn, words) for turn, words in ((0, 1), (0, 3), (0, 5), (0, 1), (1, 1))),
    ("ann", 1, 1),
    ("bob", 0, 1),
    ("cem", 2, 1),
]


def test_a_model_that_chooses_is_on_the_ledger_and_asked_again_when_it_names_nobody(stage: Stage) -> None:
    ref = stage.submit(asking(*CHOICES))
    run(stage, ref)
    assert speakers(stage, ref) == ["bob", "ann", "cem"]
    assert ledger(stage, ref) == sorted(COSTS)
    first = turns(stage, ref)[0]
    assert json.loads(first["next_chosen"]) | {"speaker": "ann", "policy": "llm", "asked": True} == json.loads(
        first["next_chosen"]
    )
    assert first["calls"] == 5


@pytest.mark.parametrize(("at", "done"), [(1, True), (4, False)])
def test_what_a_model_chose_is_not_asked_for_again_by_the_next_worker(stage: Stage, at: int, done: bool) -> None:
    doomed = stage.another_worker()
    ref = stage.submit(asking(*CHOICES))
    die(stage, doomed, "record", at=at, done=done)
    stage.pass_time(8)
    run(stage, ref)
    assert speakers(stage, ref) == ["bob", "ann", "cem"]
    assert ledger(stage, ref) == sorted(COSTS)


def test_a_turn_whose_choice_fails_is_tried_again_and_what_was_said_is_not_paid_for_again(stage: Stage) -> None:
    breaks = {"say": "ann", "fail": "unavailable"}
    ref = stage.submit(asking("bob", breaks, stop={"turns": 2}))
    run(stage, ref)
    assert speakers(stage, ref) == ["bob", "ann"]
    assert ledger(stage, ref) == [("(selector)", 0, 1), ("(selector)", 0, 1), ("ann", 1, 1), ("bob", 0, 1)]


def test_a_choice_that_no_model_can_make_is_the_scored_ones(stage: Stage) -> None:
    ref = stage.submit(asking(*["nobody"] * 9, stop={"turns": 1}))
    run(stage, ref)
    chosen = json.loads(turns(stage, ref)[0]["chosen"])
    assert set(chosen["scores"]) == {"ann", "bob", "cem"}
    assert [who for who, _, _ in ledger(stage, ref)].count("(selector)") == speaker.ATTEMPTS


def test_scored_asks_its_selector_only_where_two_are_close(stage: Stage) -> None:
    close, clear = (
        stage.submit(asking(policy="scored", stop={"turns": 1}, selector={"script": ["cem"], "epsilon": epsilon}))
        for epsilon in (10.0, 0.0)
    )
    run(stage, close, clear)
    assert [thread(stage, ref)[-1] for ref in (close, clear)] == [("cem", "c1"), ("ann", "a1")]
    assert [json.loads(turns(stage, ref)[0]["chosen"])["asked"] for ref in (close, clear)] == [True, False]
    assert ["(selector)" in [who for who, _, _ in ledger(stage, ref)] for ref in (close, clear)] == [True, False]
