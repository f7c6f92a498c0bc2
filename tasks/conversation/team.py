"""A team as a turn needs it: its members with all that is known of them, whoever wrote it down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from convergio.graphflow.flow.team import HUMAN, SelectorForm
from convergio.tasks.agents.roster import Roster
from convergio.tasks.agents.spec import DEFAULT_MAX_TOKENS, AgentSpec
from convergio.tasks.conversation import compaction
from convergio.tasks.conversation.floor import Candidate

SELECTOR: Final = "(selector)"
"""Who asks for the next speaker, in the ledger: no agent has this name."""

LONGEST_NAME: Final = 64
"""Tokens of an answer that is a name."""

UNASKED: Final[Mapping[str, Any]] = {**SelectorForm.model_validate({}).model_dump(), "epsilon": 0.0}
"""Of a team without a selector."""

ROLE: Final = (
    "You lead a conversation: you choose who speaks next, and say nothing else. Answer with one name of the list, "
    "exactly as it is written there."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """Who talks, in their order. `candidates`: the same, as policies know them; `policy`: who speaks next;
    `graph`: who may follow whom, for the policy of this name; `selector`: the model that is asked, by `scored` about
    those who are close, and `asking`: how (see `graphflow.flow.team.SelectorForm`); `stop`: when it is over; `people`:
    what a handoff to them does; `compaction`: when agents are told less than everything (see `graphflow.flow.team`)."""

    members: tuple[AgentSpec, ...]
    candidates: tuple[Candidate, ...]
    policy: str
    graph: Mapping[str, Any] | None
    selector: AgentSpec | None
    asking: Mapping[str, Any]
    stop: Mapping[str, Any]
    people: str
    compaction: compaction.Policy | None

    @classmethod
    def of(cls, spec: Mapping[str, Any], roster: Roster) -> Team:
        """The team of a conversation step. Raises UnknownAgent, DefinitionRefused."""
        members = tuple(_member(one, roster) for one in spec["agents"])
        return cls(
            members=members,
            candidates=tuple(_candidates(members, roster)),
            policy=spec["policy"],
            graph=spec["graph"],
            selector=_selector(spec),
            asking=spec["selector"] or UNASKED,
            stop=spec["stop"],
            people=spec["people"],
            compaction=compaction.Policy.of(spec["compaction"]),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names, in the team's order."""
        return tuple(member.name for member in self.members)

    def handoffs(self, name: str) -> dict[str, str]:
        """To whom a member may hand over, and what it is told of them."""
        others = {member.name: member.description for member in self.members} | {HUMAN: "the people outside"}
        return {other: others[other] for other in self.member(name).handoffs}

    def member(self, name: str) -> AgentSpec:
        """The member of this name."""
        return next(member for member in self.members if member.name == name)


def _candidates(members: Sequence[AgentSpec], roster: Roster) -> Iterator[Candidate]:
    """The members as policies know them. A profile's partners have real names, and a team may use others."""
    profiles = {one.name: roster.profile(one.name) if one.name in roster else None for one in members}
    called = {known.spec.name: name for name, known in profiles.items() if known is not None}
    for member in members:
        known = profiles[member.name]
        if known is None:
            yield Candidate(name=member.name, description=member.description, tools=member.tools)
            continue
        yield Candidate(
            name=member.name,
            description=member.description,
            domains=known.domains,
            tools=member.tools,
            phases=known.phases,
            partners=tuple(called[name] for name in known.partners if name in called),
            depth=known.depth,
            seconds=known.seconds,
        )


def _selector(spec: Mapping[str, Any]) -> AgentSpec | None:
    written, among = spec["selector"], (spec["graph"] or {}).get("among")
    if written is None and "llm" not in (spec["policy"], among):
        return None
    model, script = (None, ()) if written is None else (written["model"], tuple(written["script"]))
    return AgentSpec(
        name=SELECTOR, description="", system_message=ROLE, model=model, max_tokens=LONGEST_NAME, script=script
    )


def _member(written: Mapping[str, Any], roster: Roster) -> AgentSpec:
    script, tools, handoffs = (tuple(written[name]) for name in ("script", "tools", "handoffs"))
    if written["role"] is None:
        known = roster.get(written["name"])
        said = {name: written[name] for name in ("model", "max_tokens", "temperature") if written[name] is not None}
        given = {"name": written["name"], "script": script, "tools": tools or known.tools, "handoffs": handoffs}
        given |= {"rounds": written["rounds"], "reflect": written["reflect"]}
        return replace(known, **{**given, **said})
    return AgentSpec(
        name=written["name"],
        description=written["description"],
        system_message=written["role"],
        model=written["model"],
        max_tokens=written["max_tokens"] or DEFAULT_MAX_TOKENS,
        temperature=written["temperature"],
        rounds=written["rounds"],
        reflect=written["reflect"],
        script=script,
        tools=tools,
        handoffs=handoffs,
    )
