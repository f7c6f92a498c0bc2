"""Simulated tasks: a hidden graph of goals, and a team of which only names, descriptions and domains are seen.

Ten families of tasks. In `rotation` and `standup` the team's own order is the best one; `wrong_handoff`, `misleading`
and `drift` are made against whoever trusts names, descriptions or words. Everything follows from (seed, number): the
same seed gives the same tasks, and the same luck to every selector.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Literal

from convergio.benchmarks.vocabulary import Vocabulary
from convergio.tasks.conversation.floor import Candidate

MAIN_SKILL: Final = 0.9
SECOND_SKILL: Final = 0.45

Shape = Literal["chain", "wide", "dag", "review", "rotation", "standup"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How tasks of a kind are made. Probabilities: `stated`, a goal stands in the task; `ask`, an agent says what is
    next; `named`, it names somebody for it, who is `right`; `misled`, a description is another domain's; `drift`,
    a word is replaced by another of its domain; `chatter`, an agent talks of other things; `reject`, a review fails.
    """

    shape: Shape
    agents: tuple[int, int]
    goals: tuple[int, int]
    stated: float = 0.85
    ask: float = 0.6
    named: float = 0.2
    right: float = 0.8
    misled: float = 0.0
    drift: float = 0.15
    chatter: float = 0.2
    reject: float = 0.0


FAMILIES: Final[dict[str, Family]] = {
    "query": Family(shape="dag", agents=(6, 9), goals=(1, 2)),
    "pipeline": Family(shape="chain", agents=(7, 9), goals=(4, 7), named=0.3, right=0.9),
    "rotation": Family(shape="rotation", agents=(4, 7), goals=(4, 12), stated=0.0, ask=0.0, named=0.0),
    "standup": Family(shape="standup", agents=(4, 8), goals=(4, 8), stated=0.0, ask=0.0, named=0.25, right=0.5),
    "specialist": Family(shape="dag", agents=(14, 17), goals=(3, 5)),
    "handoff": Family(shape="chain", agents=(8, 11), goals=(4, 7), ask=0.95, named=0.9, right=0.95),
    "wrong_handoff": Family(shape="dag", agents=(8, 11), goals=(4, 7), named=0.7, right=0.3),
    "review": Family(shape="review", agents=(6, 9), goals=(4, 6), reject=0.3),
    "misleading": Family(shape="dag", agents=(8, 11), goals=(4, 7), misled=0.35),
    "drift": Family(shape="dag", agents=(8, 11), goals=(4, 7), drift=0.6, ask=0.4),
    "crowd": Family(shape="wide", agents=(14, 17), goals=(8, 12), chatter=0.4),
}
ROUND_ROBIN_IS_BEST: Final = ("rotation", "standup")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A piece of work. `needs`: goals before it; `owner`: who alone can do it; `checks`: the goal it may send back."""

    number: int
    domain: str
    words: tuple[str, ...]
    verb: str
    needs: frozenset[int] = frozenset()
    owner: str | None = None
    checks: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """What is true of an agent, beside the `face` that selectors see: its domain and how good it is there."""

    face: Candidate
    domain: str
    skill: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """One task."""

    key: str
    family: str
    seed: int
    agents: tuple[Agent, ...]
    goals: tuple[Goal, ...]
    statement: str
    stated: tuple[int, ...]

    @property
    def kind(self) -> str:
        """Its type of conversation, by the number of goals."""
        bounds = ((2, "simple_query"), (4, "analysis"), (7, "strategy"))
        return next((kind for most, kind in bounds if len(self.goals) <= most), "complex_workflow")


def errands(vocabulary: Vocabulary, *, seed: int, count: int) -> list[Errand]:
    """`count` tasks, the families in turn."""
    names = list(FAMILIES)
    return [errand(vocabulary, names[number % len(names)], seed=seed, number=number) for number in range(count)]


def errand(vocabulary: Vocabulary, family: str, *, seed: int, number: int) -> Errand:
    """One task of a family."""
    key = f"{vocabulary.name}/{seed}/{number}"
    luck = random.Random(key)
    like = FAMILIES[family]
    goals = _goals(vocabulary, like, luck)
    agents = _agents(vocabulary, like, goals, luck)
    if like.shape in ("rotation", "standup"):
        goals = _owned(vocabulary, goals, agents, like.shape, luck)
    said = [goal.number for goal in goals if luck.random() < like.stated]
    if like.shape not in ("chain", "review") and luck.random() < 0.5:
        luck.shuffle(said)
    statement = _statement(vocabulary, goals, said, luck)
    return Errand(
        key=key, family=family, seed=seed, agents=agents, goals=goals, statement=statement, stated=tuple(said)
    )


def _goals(vocabulary: Vocabulary, like: Family, luck: random.Random) -> tuple[Goal, ...]:
    count = luck.randint(*like.goals)
    domains = luck.sample(sorted(vocabulary.domains), min(len(vocabulary.domains), max(2, like.agents[0] - 2)))
    made: list[Goal] = []
    for number in range(count):
        domain = luck.choice([one for one in domains if not made or one != made[-1].domain])
        words = tuple(luck.sample(vocabulary.domains[domain].words, luck.choice((2, 2, 3))))
        checks = number - 1 if like.shape == "review" and number % 2 else None
        verb = "check" if checks is not None else luck.choice(vocabulary.phrases.verbs)
        needs = _needs(like.shape, number, count, luck)
        made.append(Goal(number=number, domain=domain, words=words, verb=verb, needs=needs, checks=checks))
    return tuple(made)


def _needs(shape: Shape, number: int, count: int, luck: random.Random) -> frozenset[int]:
    match shape:
        case "chain" | "review" | "rotation":
            return frozenset({number - 1} if number else ())
        case "wide":
            return frozenset(range(number) if number == count - 1 else ())
        case "dag":
            return frozenset(other for other in range(max(0, number - 3), number) if luck.random() < 0.5)
        case "standup":
            return frozenset()


def _agents(vocabulary: Vocabulary, like: Family, goals: tuple[Goal, ...], luck: random.Random) -> tuple[Agent, ...]:
    """One able agent for every domain that is needed, then others: second in the same domains, or from elsewhere."""
    wanted = sorted({goal.domain for goal in goals})
    free = [(domain, place) for domain in sorted(vocabulary.domains) for place in (0, 1)]
    taken = [(domain, 0) for domain in wanted]
    rest = [one for one in free if one not in taken]
    luck.shuffle(rest)
    size = max(len(taken), luck.randint(*like.agents))
    taken = (taken + rest)[:size]
    luck.shuffle(taken)
    return tuple(_agent(vocabulary, like, domain, place, luck) for domain, place in taken)


def _agent(vocabulary: Vocabulary, like: Family, domain: str, place: int, luck: random.Random) -> Agent:
    shown = domain
    if luck.random() < like.misled:
        shown = luck.choice([other for other in sorted(vocabulary.domains) if other != domain])
    words = vocabulary.domains[shown].words
    listed = ", ".join(luck.sample(words, min(5, len(words))))
    face = Candidate(
        name=vocabulary.domains[domain].roles[place],
        description=luck.choice(vocabulary.phrases.describe).format(words=listed),
        domains=(shown,),
    )
    return Agent(face=face, domain=domain, skill=SECOND_SKILL if place else MAIN_SKILL)


def _owned(
    vocabulary: Vocabulary, goals: tuple[Goal, ...], agents: tuple[Agent, ...], shape: Shape, luck: random.Random
) -> tuple[Goal, ...]:
    """In `rotation` whole rounds of the team in its order, in `standup` one goal for each of the team."""
    rounds = max(1, len(goals) // len(agents)) if shape == "rotation" else 1
    owners = [agent for _ in range(rounds) for agent in agents]
    return tuple(
        Goal(
            number=place,
            domain=owner.domain,
            words=tuple(luck.sample(vocabulary.domains[owner.domain].words, 2)),
            verb=luck.choice(vocabulary.phrases.verbs),
            needs=frozenset({place - 1} if place and shape == "rotation" else ()),
            owner=owner.face.name,
        )
        for place, owner in enumerate(owners)
    )


def _statement(vocabulary: Vocabulary, goals: tuple[Goal, ...], said: list[int], luck: random.Random) -> str:
    phrases = vocabulary.phrases
    opening = luck.choice(phrases.opening)
    if not said:
        return f"{opening} {luck.choice(phrases.in_turn)}" if goals[0].owner else opening
    items = [luck.choice(phrases.item).format(goal=put(goals[number])) for number in said]
    return " ".join([opening, *items])


def put(goal: Goal) -> str:
    """A goal in its own words."""
    *most, last = goal.words
    return f"{goal.verb} {', '.join(most)} and {last}"
