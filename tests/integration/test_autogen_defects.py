"""AutoGen 0.7.5's known defects, each shown in its own runtime, and that none of them is ours.

The letters are those of our study of its graphs (a to i); the three hangs are at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.base import TaskResult
from autogen_agentchat.teams import BaseGroupChat, RoundRobinGroupChat
from autogen_core import CancellationToken, FunctionCall
from autogen_core.models import CreateResult, ModelInfo, RequestUsage
from autogen_core.tools import FunctionTool, StaticWorkbench
from autogen_ext.models.replay import ReplayChatCompletionClient

from convergio.benchmarks import casts, conformance, originals
from convergio.benchmarks.casts import Case, assistant, edge, team
from convergio.graphflow.flow import component_team, document, teamfile
from convergio.graphflow.model import errors
from convergio.graphflow.model.states import RunState
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks.agents import autogen_turn
from convergio.tasks.agents.turn import TurnRequest
from convergio.tasks.tools.tool import tool
from tests.integration.engine_rig import QUIET, Stage
from tests.integration.refunds import retried
from tests.integration.test_conformance import played
from tests.integration.test_turns import die, journaling, run, thread
from tests.waiting import wait_until

pytestmark = QUIET


def graph(
    edges: Mapping[str, Sequence[dict[str, Any]]], said: Mapping[str, Sequence[str]] | None = None, **config: Any
) -> Case:
    """A GraphFlow. `said`: what agents say, turn by turn; else their names."""
    eager = config.pop("eager", ())
    nodes = {
        name: {"name": name, "edges": list(targets), "activation": "any" if name in eager else "all"}
        for name, targets in edges.items()
    }
    agents = [assistant(name, (said or {}).get(name, [name] * 9)) for name in edges]
    start = config.pop("start", None)
    made = team("GraphFlow", agents, graph={"nodes": nodes, "default_start_node": start}, **config)
    return Case(number=0, kind="graph", form="graph/ended", document=made, task="Go")


def both(stage: Stage, case: Case) -> tuple[str, str]:
    """Who speaks in AutoGen's runtime, and here."""
    theirs, ours = originals.play([case])[0], played(stage, [case])[0]
    return _speakers(theirs), _speakers(ours)


def _speakers(play: Any) -> str:
    return " ".join(name for name, _ in play.turns())


FORKED = {"ann": [edge("bob"), edge("cem")], "bob": [edge("dora")], "cem": [edge("dora")], "dora": []}
BRANCHED = {"ann": [edge("bob", "B"), edge("cem", "C")], "bob": [edge("dora")], "cem": [edge("dora")], "dora": []}


@pytest.mark.parametrize("config", [{}, {"max_turns": 9}])
def test_a_join_behind_a_branch_that_is_not_taken_fires(stage: Stage, config: dict[str, Any]) -> None:
    """a. As steps of a workflow, and as a conversation."""
    assert both(stage, graph(BRANCHED, {"ann": ["B"]}, **config)) == ("ann bob", "ann bob dora")


def test_an_activation_of_a_node_counts(stage: Stage) -> None:
    """b. In AutoGen both branches are waited for, whatever the node says; the third is late enough to see it."""
    edges = {"ann": [edge("bob"), edge("cem")], "bob": [edge("emil")], "cem": [edge("dora")]}
    case = graph({**edges, "dora": [edge("emil")], "emil": []}, eager=["emil"], max_turns=9)
    assert both(stage, case) == ("ann bob cem dora emil", "ann bob cem emil dora")


def test_a_join_of_kind_any_fires_once_in_a_round(stage: Stage) -> None:
    """c."""
    edges = {"ann": [edge("bob"), edge("cem")], "bob": [edge("emil", join="any")], "cem": [edge("dora")]}
    case = graph({**edges, "dora": [edge("emil", join="any")], "emil": []}, max_turns=9)
    assert both(stage, case) == ("ann bob cem emil dora emil", "ann bob cem emil dora")


def test_nobody_is_held_until_the_slowest_of_a_step_has_spoken(stage: Stage) -> None:
    """d. While `slow` runs, what is behind `fast` is done."""
    edges = {"ann": [edge("fay"), edge("gus")], "fay": [edge("bob")], "gus": [], "bob": []}
    made = component_team.read(graph(edges).document)
    ref = stage.submit(document.parse_document(made.document), {"said": "Go"})
    with journaling(stage):
        stage.answer_one()
    wait_until(lambda: stage.journal() == 0 and "gus" in stage.states(ref))
    slow = stage.claim(ref, "gus")
    for _ in range(2):
        with journaling(stage):
            stage.answer_all()
        stage.journal()
    assert stage.states(ref)["bob"] == "SUCCEEDED"
    assert stage.states(ref)["gus"] == "RUNNING"
    stage.worker.steps.fail(slow, errors.Transient("it was only held"))
    run(stage, ref)
    assert stage.row(ref).state is RunState.SUCCEEDED


def test_an_agent_of_a_graph_is_asked_with_what_autogen_would_ask_it_with(stage: Stage) -> None:
    """As steps of a workflow: the task, and then all who came before."""
    case, asked = graph(FORKED), dict[str, list[str]]()
    agents = stage.worker.process.agents
    speak = agents.speak

    async def speaking(request: TurnRequest, **more: Any) -> Any:
        found = autogen_turn.context(request.spec.name, request.thread)
        asked[request.spec.name] = [str(message.content) for message in found]
        return await speak(request, **more)

    async def original() -> list[str]:
        made: Any = theirs(case)
        await made.run(task="Go")
        client = next(one._model_client for one in made._participants if one.name == "dora")
        return [str(message.content) for message in client.create_calls[0]["messages"][1:]]

    with mock.patch.object(agents, "speak", speaking):
        played(stage, [case])
    assert asked["dora"] == asyncio.run(original()) == ["Go", "ann", "bob", "cem"]


# --- failures, and going on after them --------------------------------------------------------------------------------

BROKEN: set[str] = set()


@pytest.fixture
def fragile(stage: Stage) -> Iterator[Stage]:
    """A stage on which agents that are BROKEN cannot be asked."""
    agents = stage.worker.process.agents
    speak = agents.speak

    async def speaking(request: TurnRequest, **more: Any) -> Any:
        if request.spec.name in BROKEN:
            raise errors.ModelRefused("its model is broken")
        return await speak(request, **more)

    with mock.patch.object(agents, "speak", speaking):
        yield stage
    BROKEN.clear()


def theirs(case: Case) -> BaseGroupChat:
    """The team in AutoGen's runtime."""
    return BaseGroupChat.load_component(case.document)


def names(result: TaskResult) -> str:
    """Who spoke."""
    return " ".join(message.source for message in result.messages if message.source != "user")


def test_after_a_failure_a_retry_does_what_is_left_and_nothing_again(fragile: Stage) -> None:
    """e. AutoGen says that the graph is complete, or stopped, and the work is lost."""
    case = graph(FORKED, {"bob": []})

    async def original() -> tuple[str, str]:
        first = theirs(case)
        with pytest.raises(RuntimeError, match="No more mock responses"):
            await first.run(task="Go")
        fresh = theirs(graph(FORKED))
        await fresh.load_state(await first.save_state())
        result = await fresh.run(task="Once more")
        return names(result), str(result.stop_reason)

    assert asyncio.run(original()) == ("", "Digraph execution is complete")
    BROKEN.add("bob")
    flow = document.parse_document(component_team.read(graph(FORKED).document).document)
    was = fragile.submit(flow, {"said": "Go"})
    run(fragile, was)
    assert fragile.row(was).state is RunState.FAILED
    BROKEN.clear()
    ref = retried(fragile, was)
    run(fragile, ref)
    assert fragile.row(ref).state is RunState.SUCCEEDED
    reused = {name: row.reused_from is not None for name, row in fragile.outcomes(ref).items()}
    assert reused["ann"]
    assert [one.text for one in fragile.worker.process.archive.whole(ref.tenant, ref.run, "ann")] == ["Go", "ann"]
    assert not reused["bob"]
    assert reused["cem"] == (fragile.outcomes(was)["cem"].state == "SUCCEEDED")


def test_after_a_failure_at_once_with_others_going_on_does_not_hang(fragile: Stage) -> None:
    """f, and one of the three hangs."""

    async def original() -> None:
        made = theirs(graph(FORKED, {"bob": []}))
        with pytest.raises(RuntimeError):
            await made.run(task="Go")
        await asyncio.wait_for(made.run(task="Once more"), 0.5)

    with pytest.raises(TimeoutError):
        asyncio.run(original())
    BROKEN.add("bob")
    case = graph(FORKED, max_turns=9)
    talk = {"conversation": teamfile.parse(component_team.read(case.document).document).talk, "prompt": "Go"}
    was = fragile.submit(document.parse_document({"workflow": "chat", "version": 1, "steps": {"talk": talk}}))
    run(fragile, was)
    BROKEN.clear()
    ref = retried(fragile, was)
    run(fragile, ref)
    assert [who for who, _ in thread(fragile, ref)] == ["user", "ann", "bob", "cem", "dora"]


ROUNDS = {
    "ann": [edge("bob", group="in")],
    "bob": [edge("cem")],
    "cem": [edge("bob", "AGAIN", group="back"), edge("dora", "DONE")],
    "dora": [],
}


def test_a_loop_goes_on_exactly_from_wherever_it_was(stage: Stage) -> None:
    """g. AutoGen, resumed from its state after each message, seldom comes to the loop's end."""
    case = graph(ROUNDS, {"cem": ["AGAIN", "AGAIN", "DONE"]}, start="ann", max_turns=20)
    whole = "ann bob cem bob cem bob cem dora"

    async def resumed(place: int) -> str:
        """Who spoke, stopped after so many messages and resumed by another team."""
        first, heard = theirs(case), list[str]()
        async for message in first.run_stream(task="Go"):
            heard.append(getattr(message, "source", ""))
            if len(heard) == place:
                break
        state = await first.save_state()
        fresh = theirs(graph(ROUNDS, {"cem": ["AGAIN", "AGAIN", "DONE"][heard.count("cem") :]}, max_turns=20))
        await fresh.load_state(state)
        return " ".join([*(one for one in heard if one != "user"), names(await fresh.run())]).strip()

    async def original() -> list[str]:
        return [await resumed(place) for place in range(2, 8)]

    assert any(found != whole for found in asyncio.run(original()))
    ref = stage.submit(conformance.imported(case), {"said": "Go"})
    for _ in range(40):
        stage.journal()
        if stage.row(ref).terminal:
            break
        stage.wipe()
        stage.rebuild()
        stage.pass_time(8)
        with journaling(stage):
            stage.answer_all()
    assert " ".join(who for who, _ in thread(stage, ref)[1:]) == whole


def test_a_graph_that_is_complete_is_not_begun_again(stage: Stage) -> None:
    """h."""
    case = graph(FORKED)

    async def original() -> str:
        made = theirs(case)
        await made.run(task="Go")
        return names(await made.run())

    assert asyncio.run(original()).split()[0] == "ann"
    ref = stage.submit(conformance.imported(case), {"said": "Go"})
    run(stage, ref)
    stage.wipe()
    stage.rebuild()
    stage.pass_time(8)
    assert stage.bells() == []
    with pytest.raises(errors.ConvergioError):
        retried(stage, ref)


class Slow(ReplayChatCompletionClient):
    """A model that thinks for longer than anybody waits."""

    async def create(self, *given: Any, **more: Any) -> Any:
        thinking = asyncio.ensure_future(asyncio.sleep(60))
        more["cancellation_token"].link_future(thinking)
        await thinking


def test_who_was_interrupted_has_the_turn_again(stage: Stage) -> None:
    """i. In AutoGen the next one has it."""

    async def original() -> str:
        client = ReplayChatCompletionClient(["said"] * 9)
        ann, cem = AssistantAgent("ann", client), AssistantAgent("cem", client)
        bob, token = AssistantAgent("bob", Slow(["never"])), CancellationToken()
        made = RoundRobinGroupChat([ann, bob, cem], max_turns=3)

        async def interrupted() -> None:
            async for message in made.run_stream(task="Go", cancellation_token=token):
                if getattr(message, "source", "") == "ann":
                    token.cancel()

        with pytest.raises(asyncio.CancelledError):
            await interrupted()
        fresh = RoundRobinGroupChat([AssistantAgent(name, client) for name in ("ann", "bob", "cem")], max_turns=1)
        await fresh.load_state(await made.save_state())
        return names(await fresh.run())

    assert asyncio.run(original()) == "cem"
    agents = [assistant(name, [name]) for name in ("ann", "bob", "cem")]
    case = Case(number=0, kind="", form="", document=team("RoundRobinGroupChat", agents, max_turns=3), task="Go")
    doomed = stage.another_worker()
    ref = stage.submit(conformance.imported(case), {"said": "Go"})
    die(stage, doomed, "succeed", at=2, done=False)
    stage.pass_time(8)
    run(stage, ref)
    assert [who for who, _ in thread(stage, ref)] == ["user", "ann", "bob", "cem"]


# --- the hangs --------------------------------------------------------------------------------------------------------


@tool()
async def endless() -> str:
    """Never gives anything."""
    await asyncio.sleep(60)
    return "too late"


@tool()
def broken() -> str:
    """Raises."""
    raise RuntimeError("it is broken")


def using(name: str, **step: Any) -> Workflow:
    """Ann calls a tool, and then says what it gave."""
    ann = {"name": "ann", "role": "You are ann.", "tools": [name], "script": [{"call": [{"tool": name}]}, "done"]}
    talk = {"conversation": {"agents": [ann], "stop": {"turns": 1}}, "prompt": "Go", **step}
    return document.parse_document({"workflow": "chat", "version": 1, "steps": {"talk": talk}})


def test_a_turn_that_is_cancelled_in_a_tool_ends(stage: Stage) -> None:
    """AutoGen waits for ever for the tool's result (microsoft/autogen#7956)."""

    async def original() -> None:
        calls = CreateResult(
            finish_reason="function_calls",
            content=[FunctionCall(id="1", name="waiting", arguments="{}")],
            usage=RequestUsage(prompt_tokens=1, completion_tokens=1),
            cached=False,
        )
        client = ReplayChatCompletionClient([calls, "done"], model_info=ModelInfo(**casts.MODEL_INFO))  # type: ignore[typeddict-item]
        begun, token = asyncio.Event(), CancellationToken()

        async def waiting() -> str:
            begun.set()
            await asyncio.sleep(60)
            return ""

        agent = AssistantAgent("ann", client, tools=[waiting])
        task = asyncio.ensure_future(agent.run(task="Go", cancellation_token=token))
        await begun.wait()
        token.cancel()
        await asyncio.wait_for(task, 0.5)

    with pytest.raises(TimeoutError):
        asyncio.run(original())
    ref = stage.submit(using("endless", timeout="300ms"))
    run(stage, ref)
    assert (stage.row(ref).error or {})["code"] == "STEP_TIMEOUT"


def test_a_tool_that_raises_is_told_and_does_not_hang(stage: Stage) -> None:
    """AutoGen waits for ever for a workbench that raises."""

    class Raising(StaticWorkbench):
        async def call_tool(self, *given: Any, **more: Any) -> Any:
            raise RuntimeError("it is broken")

    async def original() -> None:
        call = FunctionCall(id="1", name="broken", arguments="{}")
        usage = RequestUsage(prompt_tokens=1, completion_tokens=1)
        calls = CreateResult(finish_reason="function_calls", content=[call], usage=usage, cached=False)
        client = ReplayChatCompletionClient([calls, "done"], model_info=ModelInfo(**casts.MODEL_INFO))  # type: ignore[typeddict-item]
        bench = Raising([FunctionTool(lambda: "", name="broken", description="")])
        await asyncio.wait_for(AssistantAgent("ann", client, workbench=bench).run(task="Go"), 0.5)

    with pytest.raises(TimeoutError):
        asyncio.run(original())
    ref = stage.submit(using("broken"))
    run(stage, ref)
    assert stage.row(ref).state is RunState.SUCCEEDED
    assert thread(stage, ref)[-1] == ("ann", "done")
