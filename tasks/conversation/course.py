"""The course of a conversation: who speaks next, and whether it is over. Pure functions over what is persisted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Who speaks next, by which policy, and why. `scores`: what each candidate had, by factor."""

    speaker: str
    policy: str
    reason: str
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])

    def as_dict(self) -> dict[str, Any]:
        """As it is kept."""
        scores = {name: dict(one) for name, one in self.scores.items()}
        return {"speaker": self.speaker, "policy": self.policy, "reason": self.reason, "scores": scores}


def round_robin(names: Sequence[str], last: str | None) -> Choice:
    """One after the other, in the team's order."""
    if last not in names:
        return Choice(speaker=names[0], policy="round_robin", reason="is the first")
    chosen = names[(names.index(last) + 1) % len(names)]
    return Choice(speaker=chosen, policy="round_robin", reason=f"comes after {last}")


def over(stop: Mapping[str, Any], *, turns: int, said: str) -> dict[str, Any] | None:
    """Why the conversation ends with this turn; None if it goes on. `turns`: how many there were, with this one."""
    for word in stop["mention"]:
        if word in said:
            return {"by": "mention", "said": word}
    return {"by": "turns", "turns": turns} if turns >= stop["turns"] else None
