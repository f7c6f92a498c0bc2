"""A team as a turn needs it: its members with all that is known of them, whoever wrote it down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from convergio.tasks.agents.roster import Roster
from convergio.tasks.agents.spec import DEFAULT_MAX_TOKENS, AgentSpec
from convergio.tasks.conversation.floor import Candidate


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """Who talks, in their order. `candidates`: the same, as policies know them; `policy`: who speaks next; `stop`: when
    it is over (see `graphflow.flow.team`)."""

    members: tuple[AgentSpec, ...]
    candidates: tuple[Candidate, ...]
    policy: str
    stop: Mapping[str, Any]

    @classmethod
    def of(cls, spec: Mapping[str, Any], roster: Roster) -> Team:
        """The team of a conversation step. Raises UnknownAgent, DefinitionRefused."""
        members = tuple(_member(one, roster) for one in spec["agents"])
        return cls(
            members=members, candidates=tuple(_candidates(members, roster)), policy=spec["policy"], stop=spec["stop"]
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names, in the team's order."""
        return tuple(member.name for member in self.members)

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


def _member(written: Mapping[str, Any], roster: Roster) -> AgentSpec:
    script, tools = tuple(written["script"]), tuple(written["tools"])
    if written["role"] is None:
        known = roster.get(written["name"])
        said = {name: written[name] for name in ("model", "max_tokens") if written[name] is not None}
        return replace(known, name=written["name"], script=script, tools=tools or known.tools, **said)
    return AgentSpec(
        name=written["name"],
        description=written["description"],
        system_message=written["role"],
        model=written["model"],
        max_tokens=written["max_tokens"] or DEFAULT_MAX_TOKENS,
        script=script,
        tools=tools,
    )
