"""The course of a conversation: who speaks next. Pure functions over what is persisted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from convergio.graphflow.flow import talk
from convergio.graphflow.flow.team import GRAPH
from convergio.tasks.conversation import branches, kind, speaker, tuning
from convergio.tasks.conversation.branches import Branch, Branches
from convergio.tasks.conversation.floor import STOP, Selection, SelectionContext, ToolEvent, Utterance
from convergio.tasks.conversation.grown import Grown
from convergio.tasks.conversation.team import Team
from convergio.tasks.conversation.thread import SPOKEN, Kind, Message


def chosen(
    team: Team, thread: Sequence[Message], *, may_stop: bool = False, ask: speaker.Ask | None = None
) -> Selection:
    """Who speaks next, by the team's policy. `may_stop`: ending is one of the choices; `ask`: asks the model of the
    team's selector. Raises as `speaker.select`, and what `ask` raises."""
    context = SelectionContext(candidates=team.candidates, thread=utterances(thread), may_stop=may_stop)
    policy = _policy(team, team.policy, None if team.selector is None else ask)
    found = policy(context)
    if isinstance(policy, speaker.Graph) and found.speaker == STOP and not may_stop:
        found = replace(found, speaker=policy.start, reason="is where the graph begins anew")
    return speaker.checked(context, found)


def _policy(team: Team, name: str, ask: speaker.Ask | None) -> speaker.Policy:
    if name == GRAPH and team.graph is not None and team.graph["follow"] == "all":
        return _branches(team, team.graph)
    if name == GRAPH and team.graph is not None:
        among = _policy(team, team.graph["among"], ask)
        return speaker.Graph(start=_starts(team, team.graph)[0], edges=_edges(team.graph), among=among)
    if name == "scored" and ask is not None:
        return speaker.Scored(tuning.load().model_copy(update={"epsilon": team.asking["epsilon"]}), ask)
    if name == "llm" and ask is not None:
        how = team.asking
        return speaker.Asked(ask, repeat=how["repeat"], attempts=how["attempts"], same=how["otherwise"] == "same")
    return speaker.named(name, ask=ask)


def complete(team: Team, thread: Sequence[Message]) -> bool:
    """Whether a graph of which all is followed has nobody left: that is its end, whatever conditions hold."""
    if team.policy != GRAPH or team.graph is None or team.graph["follow"] != "all":
        return False
    context = SelectionContext(candidates=team.candidates, thread=utterances(thread))
    return not _branches(team, team.graph).due(branches.turns(context))


def _starts(team: Team, graph: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(talk.starts(graph)) or team.names[:1]


def _branches(team: Team, graph: Mapping[str, Any]) -> Branches:
    edges = {
        name: tuple(
            Branch(target=edge["to"], contains=edge["contains"], group=edge["group"], any_of=edge["join"] == "any")
            for edge in edges
        )
        for name, edges in graph["edges"].items()
    }
    return Branches(starts=_starts(team, graph), edges=edges)


def _edges(graph: Mapping[str, Any]) -> dict[str, tuple[speaker.Edge, ...]]:
    return {
        name: tuple(speaker.Edge(target=edge["to"], contains=edge["contains"]) for edge in edges)
        for name, edges in graph["edges"].items()
    }


def utterances(thread: Sequence[Message]) -> tuple[Utterance, ...]:
    """The thread as policies read it: what was said, with the tools that were used for it."""
    end = next((place for place in range(len(thread), 0, -1) if thread[place - 1].kind in SPOKEN), 0)
    return tuple(_UTTERANCES.of("", thread[:end]))


def _said(_whose: str, thread: Sequence[Message], before: int) -> list[Utterance]:
    said: list[Utterance] = []
    used: list[ToolEvent] = []
    for message in thread:
        if message.kind is Kind.RESULTS:
            used += [ToolEvent(name=one["name"], ok=one["ok"]) for one in message.body["results"]]
        elif message.kind in SPOKEN:
            said.append(
                Utterance(
                    index=before + len(said),
                    speaker=message.source,
                    text=message.text,
                    tools=tuple(used),
                    handoff=message.body.get("target"),
                )
            )
            used = []
    return said


_UTTERANCES: Final = Grown[Utterance](_said)


def type_of(task: str) -> str:
    """The type of a conversation, by its task."""
    return kind.of_task(task)


def as_kept(selection: Selection) -> dict[str, Any]:
    """A choice as it is kept, and told: what every candidate had, factor by factor."""
    return {
        "speaker": selection.speaker,
        "policy": selection.policy,
        "reason": selection.reason,
        "scores": {name: dict(values) for name, values in selection.scores.items()},
        "totals": dict(selection.totals),
        "margin": selection.margin,
        "asked": selection.asked,
    }
