"""Who speaks next: policies over a persisted thread. The same context gives the same choice, whoever asks and when.

`scored` weighs what every candidate has to offer and keeps it all; `llm` asks a model; `round_robin`, `handoff` and
`graph` follow the team's order, what agents say, and given edges; others are functions that were registered with
`@policy`. No policy calls a model itself: what asks one is given to it, and so its cost is the caller's to book.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol, TypeVar

from convergio.graphflow.flow.registry import Registered, Registry
from convergio.graphflow.model import errors
from convergio.tasks.conversation import tuning as tunings
from convergio.tasks.conversation.factors import Scene, factors
from convergio.tasks.conversation.floor import STOP, USER, Selection, SelectionContext
from convergio.tasks.conversation.minutes import Minutes
from convergio.tasks.conversation.reading import Reader
from convergio.tasks.conversation.tuning import Tuning

Ask = Callable[[SelectionContext, Sequence[str]], str]
"""Asks a model which of these should speak, and gives its answer as it is."""

Chooser = TypeVar("Chooser", bound=Callable[[SelectionContext], str])

POLICIES: Final = Registry()
"""Policies of users, by name: only what an included module registered may be named."""

ATTEMPTS: Final = 3
"""So often a model is asked that names nobody, or more than one."""


SURE: Final = 0.55
CERTAIN: Final = 0.02
"""How well the first one's words have to fit so that its field is known: of epsilon, that share is left then, and where
nothing is open."""


class Policy(Protocol):
    """A way to choose. `context.candidates` has one at least."""

    def __call__(self, context: SelectionContext) -> Selection:
        """The choice for this moment."""
        ...


def policy(function: Chooser) -> Chooser:
    """Registers a policy under its dotted name: it takes a SelectionContext and gives a name, or STOP."""
    POLICIES.add(Registered(name=f"{function.__module__}.{function.__qualname__}", function=function))
    return function


def select(context: SelectionContext, *, by: str | Policy = "scored", ask: Ask | None = None) -> Selection:
    """Who speaks next. `by`: a policy or its name; `ask`: what asks a model, for those that want one.

    Raises: errors.UnknownFunction for a name that is no policy, errors.UnknownAgent if a policy names nobody of the
    team, errors.InvalidSetting if `llm` has no model to ask.
    """
    return checked(context, (named(by, ask=ask) if isinstance(by, str) else by)(context))


def checked(context: SelectionContext, chosen: Selection) -> Selection:
    """A choice that may be made in this context. Raises errors.UnknownAgent for another one."""
    allowed = {*context.names, *((STOP,) if context.may_stop else ()), *((USER,) if chosen.policy == "handoff" else ())}
    if chosen.speaker not in allowed:
        hint = f"the team is: {', '.join(context.names)}"
        raise errors.UnknownAgent(f"policy '{chosen.policy}' chose '{chosen.speaker}'", hint=hint)
    return chosen


def named(name: str, *, ask: Ask | None = None) -> Policy:
    """The policy of this name; `graph` needs its edges, and so is made with `Graph`. Raises: as `select`."""
    match name:
        case "scored":
            return scored() if ask is None else Scored(tunings.load(), ask)
        case "round_robin":
            return round_robin
        case "handoff":
            return handoff
        case "llm":
            if ask is None:
                raise errors.InvalidSetting(
                    "the policy 'llm' has no model to ask", hint="use 'scored', which needs none"
                )
            return Asked(ask)
        case _:
            return _Registered(POLICIES.get(name))


class Scored:
    """Every candidate's factors, weighed. Stop is one of them where it may be chosen.

    A model is asked, if there is one, when the first is ahead of the second by less than epsilon. It is offered the
    whole team, and followed if the one whom it names is that close, too: its answer is evidence beside the words.
    """

    def __init__(self, tuning: Tuning, ask: Ask | None = None) -> None:
        self._tuning = tuning
        self._reader = Reader(tuning)
        self._minutes = Minutes(self._reader, tuning.window)
        self._weights = tuple(tuning.weights.items())
        self._ask = ask

    def __call__(self, context: SelectionContext) -> Selection:
        """The candidate with the highest total; the earlier in the team of two equals."""
        scene = Scene.of(context, self._tuning, self._reader, self._minutes)
        scores = factors(scene)
        totals = {
            name: sum(weight * values[factor] for factor, weight in self._weights) for name, values in scores.items()
        }
        if context.may_stop:
            scores[STOP] = _stopping(scene)
            totals[STOP] = self._tuning.stop * min(scores[STOP].values())
        ranked = sorted(totals, key=lambda name: -totals[name])
        first, margin = ranked[0], totals[ranked[0]] - totals[ranked[1]] if len(ranked) > 1 else 0.0
        asked = self._ask is not None and len(ranked) > 1 and self._unsure(scene, first, margin, scores)
        answer = self._answer(context, totals) if asked else None
        return Selection(
            speaker=first if answer is None else answer,
            policy="scored",
            reason=self._reason(scores[first]) if answer is None else "the model's choice, and close to the first",
            scores=scores,
            totals=totals,
            margin=margin if len(ranked) > 1 else None,
            asked=asked,
        )

    def _unsure(self, scene: Scene, first: str, margin: float, scores: Mapping[str, Mapping[str, float]]) -> bool:
        """Whether an answer may change the choice; where the words tell, the second has to be nearer for that."""
        sure = not scene.agenda.open() or scores[first].get("expertise", 0.0) >= SURE
        return margin < self._tuning.epsilon * (CERTAIN if sure else 1.0)

    def _answer(self, context: SelectionContext, totals: Mapping[str, float]) -> str | None:
        """Whom a model names of the whole team, if that one is close to the first: models err, too."""
        assert self._ask is not None, "nobody else is asked"
        named = _mentioned(self._ask(context, context.names), context.names)
        if named is None or max(totals.values()) - totals[named] >= self._tuning.epsilon:
            return None
        return named

    def _reason(self, values: Mapping[str, float]) -> str:
        """The factor that weighs most."""
        shares = {factor: weight * values.get(factor, 0.0) for factor, weight in self._weights}
        most = max(shares, key=lambda factor: shares[factor])
        return f"mostly by {most}" if shares[most] > 0 else "all that was asked for is done"


def _stopping(scene: Scene) -> dict[str, float]:
    """Whether all that was asked for is done (or somebody closes), and something was done at all."""
    agenda = scene.agenda
    return {
        "settled": float(agenda.closing or not agenda.open()),
        "begun": float(any(agenda.helped.values())),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """After whom somebody may speak; `contains`: only if the last message has this text in it."""

    target: str
    contains: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Who may follow whom. Of several, `among` chooses; after somebody without an edge that holds, it is over."""

    start: str
    edges: Mapping[str, tuple[Edge, ...]]
    among: Policy

    def __call__(self, context: SelectionContext) -> Selection:
        """The start for the first turn, then one that an edge leads to."""
        last = _last_speaker(context)
        if last is None:
            return Selection(speaker=self.start, policy="graph", reason="is where the graph begins")
        text = context.thread[-1].text
        edges = self.edges.get(last, ())
        targets = {edge.target for edge in edges if edge.contains is None or edge.contains in text}
        if not targets:
            return Selection(speaker=STOP, policy="graph", reason=f"no edge leads on from {last}")
        if len(targets) == 1:
            return Selection(speaker=targets.pop(), policy="graph", reason=f"follows {last}")
        allowed = tuple(one for one in context.candidates if one.name in targets)
        found = self.among(SelectionContext(candidates=allowed, thread=context.thread))
        return Selection(
            speaker=found.speaker,
            policy="graph",
            reason=f"of {len(targets)} that may follow {last}: {found.reason}",
            scores=found.scores,
            totals=found.totals,
            margin=found.margin,
            asked=found.asked,
        )


@dataclass(frozen=True, slots=True)
class _Registered:
    entry: Registered

    def __call__(self, context: SelectionContext) -> Selection:
        found = self.entry.function(context)
        if not isinstance(found, str):
            raise errors.UnknownAgent(f"policy '{self.entry.name}' gave no name but {type(found).__name__}")
        return Selection(speaker=found, policy=self.entry.name, reason="its own")


@dataclass(frozen=True, slots=True)
class Asked:
    """A model chooses, among all but the last speaker unless it may `repeat`. What does not name one is asked again,
    at most so many `attempts`; then `scored` decides or, with `same`, it is who spoke last, if that may be.

    (AutoGen then takes the last speaker even if that may not be, who may so speak for ever.)
    """

    ask: Ask
    repeat: bool = False
    attempts: int = ATTEMPTS
    same: bool = False

    def __call__(self, context: SelectionContext) -> Selection:
        """The one whom the answer names, and nobody else of the team."""
        last = _last_speaker(context)
        names = [name for name in context.names if self.repeat or name != last] or list(context.names)
        if len(names) == 1:
            return Selection(speaker=names[0], policy="llm", reason="nobody else is there")
        for _ in range(self.attempts):
            if (named := _mentioned(self.ask(context, names), context.names)) in names:
                return Selection(speaker=str(named), policy="llm", reason="the model's choice", asked=True)
        nobody = f"{self.attempts} answers of the model named nobody"
        if self.same:
            same = last if last is not None and last in names else names[0]
            return Selection(speaker=same, policy="llm", reason=nobody, asked=True)
        found = scored()(SelectionContext(candidates=context.candidates, thread=context.thread))
        reason = f"{nobody}; {found.reason}"
        return Selection(speaker=found.speaker, policy="llm", reason=reason, scores=found.scores, asked=True)


def round_robin(context: SelectionContext) -> Selection:
    """One after the other, in the team's order, whoever else spoke in between."""
    last = _last_speaker(context)
    if last is None:
        return Selection(speaker=context.names[0], policy="round_robin", reason="is the first")
    chosen = context.names[(context.names.index(last) + 1) % len(context.names)]
    return Selection(speaker=chosen, policy="round_robin", reason=f"comes after {last}")


def handoff(context: SelectionContext) -> Selection:
    """Whom the last handoff names; before any, the team's first. A handoff to USER leaves the team, and the answer is
    for who handed over."""
    answered = False
    for said in reversed(context.thread):
        answered = answered or said.speaker == USER
        if said.handoff == USER and answered and said.speaker in context.names:
            return Selection(speaker=said.speaker, policy="handoff", reason=f"is answered by {USER}")
        if said.handoff in context.names or said.handoff == USER:
            return Selection(speaker=str(said.handoff), policy="handoff", reason=f"handed over by {said.speaker}")
    return Selection(speaker=context.names[0], policy="handoff", reason="is the first")


def _last_speaker(context: SelectionContext) -> str | None:
    names = frozenset(context.names)
    return next((said.speaker for said in reversed(context.thread) if said.speaker in names), None)


def _mentioned(answer: str, names: Sequence[str]) -> str | None:
    """The one of these that an answer names, as a whole word; None if it names none, or more than one."""
    found = [name for name in names if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", answer)]
    return found[0] if len(found) == 1 else None


@lru_cache(maxsize=1)
def scored() -> Scored:
    """The scored policy as it ships."""
    return Scored(tunings.load())
