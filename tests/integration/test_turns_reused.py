"""A retry of a conversation that failed has its turns: they are not paid for again, and are nobody's but its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from convergio.graphflow.flow import document
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks.conversation import speaker
from convergio.tasks.conversation.floor import SelectionContext
from tests.integration.engine_rig import QUIET, Stage
from tests.integration.refunds import retried
from tests.integration.test_turns import agent, ledger, run, thread, turns

pytestmark = QUIET

BROKEN: set[int] = set()
"""After so many turns the policy cannot choose."""


@speaker.policy
def alternating(context: SelectionContext) -> str:
    """One after the other, if it can choose at all."""
    said = sum(one.speaker in context.names for one in context.thread)
    if said in BROKEN:
        raise RuntimeError("the policy is broken")
    return context.names[said % len(context.names)]


@pytest.fixture(autouse=True)
def whole() -> Iterator[None]:
    yield
    BROKEN.clear()


def talking(*, most: int = 9, **stop: Any) -> Workflow:
    team = [agent(name, *(f"{name}{number} said" for number in range(9))) for name in ("ann", "bob")]
    said = {"turns": 5, **stop}
    talk = {"conversation": {"agents": team, "policy": f"{__name__}.alternating", "stop": said}, "prompt": "Plan"}
    return document.parse_document({"workflow": "talking", "version": 1, "steps": {"talk": talk}})


def broken(stage: Stage, after: int, flow: Workflow) -> RunRef:
    """A run whose turn number `after` fails, when it has to say who is next."""
    BROKEN.add(after)
    ref = stage.submit(flow)
    run(stage, ref)
    BROKEN.clear()
    assert stage.row(ref).state is RunState.FAILED
    assert len(turns(stage, ref)) == after - 1
    return ref


def origins(stage: Stage, ref: RunRef) -> list[str | None]:
    found = {row.iteration: row.reused_from for row in stage.outcomes(ref).values()}
    return [found[number] for number in sorted(found)]


THREAD = ["ann0 said", "bob0 said", "ann1 said", "bob1 said", "ann2 said"]


def test_a_retry_goes_on_behind_the_last_turn_that_was_taken(stage: Stage) -> None:
    was = broken(stage, 3, talking())
    ref = retried(stage, was)
    run(stage, ref)
    assert stage.row(ref).state is RunState.SUCCEEDED
    assert [text for _, text in thread(stage, ref)] == ["Plan", *THREAD]
    assert origins(stage, ref) == [was.run, was.run, None, None, None]
    assert [turn for _, turn, _ in sorted(ledger(stage, ref), key=lambda row: row[1])] == [2, 3, 4], "paid once"


def test_a_retry_of_a_retry_has_the_turns_of_both_though_its_board_is_lost(stage: Stage) -> None:
    first = broken(stage, 2, talking())
    BROKEN.add(4)
    second = retried(stage, first)
    run(stage, second)
    assert stage.row(second).state is RunState.FAILED
    BROKEN.clear()
    third = retried(stage, second)
    stage.wipe()
    stage.rebuild()
    run(stage, third)
    assert [text for _, text in thread(stage, third)] == ["Plan", *THREAD]
    assert origins(stage, third) == [first.run, second.run, second.run, None, None]


def test_a_condition_counts_the_turns_that_a_retry_has_of_another_run(stage: Stage) -> None:
    config = {"max_completion_token": 8}
    tokens = {"provider": "autogen_agentchat.conditions.TokenUsageTermination", "config": config}
    was = broken(stage, 3, talking(turns=9, condition=tokens))
    ref = retried(stage, was)
    run(stage, ref)
    assert json.loads(turns(stage, ref)[-1]["stop"])["by"] == "condition"
    assert len(turns(stage, ref)) == 4, "two words a turn"
