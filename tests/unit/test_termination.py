"""When a conversation is over: pure conditions, held against AutoGen's own on generated conversations."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, Final

import pytest
from autogen_agentchat import base, conditions, messages
from autogen_core import FunctionCall
from autogen_core.models import FunctionExecutionResult, RequestUsage

from convergio.graphflow.flow import termination
from convergio.graphflow.flow.termination import Condition, Said, Turn
from convergio.graphflow.model import errors

NAMES: Final = ("ann", "bob", "user")
CASES: Final = 300
WORDS: Final = ("DONE", "we go on", "TERMINATE", "nearly DONE", "")


def leaf(luck: random.Random) -> base.TerminationCondition:
    """One of AutoGen's conditions, with small numbers: most are met within ten turns."""
    made: list[Any] = [
        lambda: conditions.MaxMessageTermination(luck.randint(1, 9), include_agent_event=luck.random() < 0.5),
        lambda: conditions.TextMentionTermination(luck.choice(("DONE", "TERMINATE"))),
        conditions.StopMessageTermination,
        lambda: conditions.TextMessageTermination(luck.choice((None, *NAMES))),
        lambda: conditions.HandoffTermination(luck.choice(NAMES)),
        lambda: conditions.SourceMatchTermination(luck.sample(NAMES, 2)),
        lambda: conditions.FunctionCallTermination(luck.choice(("search", "pay"))),
        lambda: conditions.TokenUsageTermination(max_total_token=luck.randint(1, 60)),
        lambda: conditions.TokenUsageTermination(max_prompt_token=luck.randint(1, 40), max_completion_token=30),
        lambda: conditions.TimeoutTermination(10_000),
        conditions.ExternalTermination,
    ]
    chosen: base.TerminationCondition = luck.choice(made)()
    return chosen


def tree(luck: random.Random, depth: int = 0) -> base.TerminationCondition:
    if depth == 2 or luck.random() < 0.3:
        return leaf(luck)
    inner = [tree(luck, depth + 1) for _ in range(luck.randint(2, 3))]
    kind = base.AndTerminationCondition if luck.random() < 0.5 else base.OrTerminationCondition
    return kind(*inner)


def message(luck: random.Random) -> Any:
    source = luck.choice(NAMES)
    used = RequestUsage(prompt_tokens=luck.randint(0, 9), completion_tokens=luck.randint(0, 9))
    usage = luck.choice((None, used))
    call = luck.choice(("search", "pay", "look"))
    result = FunctionExecutionResult(content="ok", name=call, call_id="1", is_error=False)
    kind = luck.choices(("text", "stop", "handoff", "request", "execution", "summary"), (8, 1, 2, 2, 2, 1))[0]
    match kind:
        case "stop":
            return messages.StopMessage(source=source, content="enough", models_usage=usage)
        case "handoff":
            return messages.HandoffMessage(source=source, content="over", target=luck.choice(NAMES), models_usage=usage)
        case "request":
            asked = [FunctionCall(id="1", name=call, arguments="{}")]
            return messages.ToolCallRequestEvent(source=source, content=asked, models_usage=usage)
        case "execution":
            return messages.ToolCallExecutionEvent(source=source, content=[result])
        case "summary":
            return messages.ToolCallSummaryMessage(source=source, content="ok", tool_calls=[], results=[])
        case _:
            return messages.TextMessage(source=source, content=luck.choice(WORDS), models_usage=usage)


def as_turn(delta: Sequence[Any]) -> Turn:
    usages = [one.models_usage for one in delta if one.models_usage]
    return Turn(
        said=tuple(
            Said(
                kind=type(one).__name__,
                source=one.source,
                text=one.to_text(),
                target=getattr(one, "target", None),
                executed=tuple(result.name for result in one.content)
                if type(one).__name__.endswith("ionEvent")
                else (),
            )
            for one in delta
        ),
        prompt_tokens=sum(one.prompt_tokens for one in usages),
        completion_tokens=sum(one.completion_tokens for one in usages),
    )


async def autogen_stop(
    condition: base.TerminationCondition, deltas: Sequence[Sequence[Any]]
) -> tuple[str, str, int] | None:
    for place, delta in enumerate(deltas):
        stop = await condition(delta)
        if stop is not None:
            return stop.content, stop.source, place
    return None


def stop_of(condition: Condition, turns: Sequence[Turn]) -> tuple[str, str, int] | None:
    stop = condition.met(turns)
    return None if stop is None else (stop.content, stop.source, stop.turn)


def test_conditions_end_conversations_where_and_as_autogen_does() -> None:
    """Generated trees of conditions on generated conversations: the same turn, the same words, the same order."""
    ends = 0
    with asyncio.Runner() as runner:
        for seed in range(CASES):
            luck = random.Random(seed)
            theirs = tree(luck)
            ours = termination.read(theirs.dump_component().model_dump())
            deltas = [[message(luck) for _ in range(luck.randint(1, 3))] for _ in range(luck.randint(1, 10))]
            expected = runner.run(autogen_stop(theirs, deltas))
            assert stop_of(ours, [as_turn(delta) for delta in deltas]) == expected, f"seed {seed}"
            ends += expected is not None
    assert CASES / 5 < ends < CASES, "the cases are no test if all end alike"


def test_a_condition_goes_to_autogens_json_and_back() -> None:
    for seed in range(100):
        component = tree(random.Random(seed)).dump_component().model_dump()
        ours = termination.read(component)
        again = base.TerminationCondition.load_component(ours.as_component() | {"description": None, "label": None})
        assert termination.read(again.dump_component().model_dump()) == ours


def turns(*texts: str, **more: Any) -> list[Turn]:
    return [Turn(said=(Said(kind="TextMessage", source="ann", text=text),), **more) for text in texts]


def test_what_was_counted_before_a_restart_still_counts() -> None:
    """AutoGen's counters are in no saved state: stopped at 3 of 6 messages and loaded, it runs 6 more."""
    condition = termination.read(conditions.MaxMessageTermination(6).dump_component().model_dump())
    kept = turns("a", "b", "c")
    reloaded = termination.read(condition.as_component())
    assert reloaded.met(kept) is None
    stop = reloaded.met([*kept, *turns("d", "e", "f")])
    assert stop is not None
    assert stop.turn == 5


def test_time_is_the_conversations_not_the_process() -> None:
    condition = termination.TimeoutTermination(timeout_seconds=60)
    assert condition.met(turns("a", elapsed_s=59.0)) is None
    stop = condition.met([*turns("a", elapsed_s=59.0), *turns("b", elapsed_s=60.0)])
    assert stop is not None
    assert (stop.turn, stop.content) == (1, "Timeout of 60.0 seconds reached")


def test_tokens_are_the_ledgers_and_not_only_those_that_messages_show() -> None:
    condition = termination.TokenUsageTermination(max_prompt_token=100)
    assert condition.met(turns("a", prompt_tokens=99)) is None
    assert condition.met(turns("a", "b", prompt_tokens=50)) is not None


def test_somebody_outside_may_end_it() -> None:
    condition = termination.ExternalTermination()
    assert condition.met(turns("a")) is None
    assert condition.met(turns("a", stop_asked=True)) is not None


def test_sources_of_a_mention_are_kept() -> None:
    """AutoGen's own JSON drops them, and the loaded condition fires on anybody's text."""
    condition = termination.TextMentionTermination(text="DONE", sources=("bob",))
    assert termination.read(condition.as_component()) == condition
    assert condition.met(turns("DONE")) is None


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ("stop", "termination"),
        ({"provider": "os.system", "config": {}}, "termination.provider"),
        ({"provider": "autogen_agentchat.conditions.FunctionalTermination", "config": {}}, "termination.provider"),
        ({"provider": "autogen_agentchat.conditions.StopMessageTermination"}, "termination"),
        ({"provider": "autogen_agentchat.conditions.MaxMessageTermination", "config": {}}, "max_messages"),
        (
            {"provider": "autogen_agentchat.conditions.MaxMessageTermination", "config": {"max_messages": 0}},
            "max_messages",
        ),
        ({"provider": "autogen_agentchat.conditions.TokenUsageTermination", "config": {}}, "termination.config"),
        ({"provider": "autogen_agentchat.base.OrTerminationCondition", "config": {"conditions": []}}, "conditions"),
        ({"provider": "autogen_agentchat.base.OrTerminationCondition", "config": {"conditions": [3]}}, "conditions[0]"),
    ],
)
def test_what_is_no_condition_is_refused_with_its_place(document: object, path: str) -> None:
    with pytest.raises(errors.InvalidTermination) as caught:
        termination.read(document)
    assert any(path in problem.path for problem in caught.value.problems)


def test_conditions_are_not_read_deeper_than_they_may_be() -> None:
    document: dict[str, Any] = termination.StopMessageTermination().as_component()
    for _ in range(termination.DEEPEST + 1):
        document = {"provider": "autogen_agentchat.base.OrTerminationCondition", "config": {"conditions": [document]}}
    with pytest.raises(errors.InvalidTermination):
        termination.read(document)
