"""A simulated conversation: who is chosen does what it can, and says so in text; the goals stay hidden.

Luck is drawn by (task, what happens, how often it was tried), never in order: two selectors that try the same get the
same, whatever they tried before. A conversation ends when every goal is done (a verified success) or at the cap.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from convergio.benchmarks.errands import FAMILIES, Agent, Errand, Family, Goal, put
from convergio.benchmarks.vocabulary import Vocabulary
from convergio.tasks.conversation.floor import USER, SelectionContext, Utterance

CAP: Final = 60
"""Turns after which a conversation has failed; it counts with so many turns."""

OWNED_SKILL: Final = 1.0
REDIRECT: Final = 0.5
CANDID: Final = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What a message says, for whoever understands every word: never more than stands in its text."""

    done: int | None = None
    asked: int | None = None
    named: str | None = None
    failed: int | None = None
    unable: int | None = None
    """What was asked for last, when the speaker says that it is not its field."""


@dataclass(slots=True, kw_only=True)
class Talk:
    """One conversation as it goes."""

    errand: Errand
    vocabulary: Vocabulary
    done: set[int] = field(default_factory=set[int])
    thread: list[Utterance] = field(default_factory=list[Utterance])
    meanings: list[Meaning] = field(default_factory=list[Meaning])
    tried: Counter[str] = field(default_factory=Counter[str])
    turns: int = 0
    useful: int = 0

    def __post_init__(self) -> None:
        self.thread.append(Utterance(index=0, speaker=USER, text=self.errand.statement))
        self.meanings.append(Meaning())

    @property
    def family(self) -> Family:
        """How tasks like this one are made."""
        return FAMILIES[self.errand.family]

    @property
    def solved(self) -> bool:
        """Whether every goal is done."""
        return len(self.done) == len(self.errand.goals)

    @property
    def over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.solved or self.turns >= CAP

    def view(self) -> SelectionContext:
        """What a selector sees."""
        return SelectionContext(candidates=tuple(agent.face for agent in self.errand.agents), thread=tuple(self.thread))

    def ready(self) -> list[Goal]:
        """Goals that can be worked on."""
        return [goal for goal in self.errand.goals if goal.number not in self.done and goal.needs <= self.done]

    def speak(self, name: str) -> None:
        """A turn of this agent."""
        agent = next(agent for agent in self.errand.agents if agent.face.name == name)
        self.turns += 1
        goal = max(self.ready(), key=lambda one: (chance(agent, one), -one.number))
        if chance(agent, goal):
            said, meant = self._work(agent, goal)
        else:
            said, meant = self._idle(agent)
        self.thread.append(Utterance(index=len(self.thread), speaker=name, text=" ".join(said)))
        self.meanings.append(meant)

    def _work(self, agent: Agent, goal: Goal) -> tuple[list[str], Meaning]:
        phrases = self.vocabulary.phrases
        attempt = self._count(f"{goal.number}/{agent.face.name}")
        luck = self._luck("work", goal.number, agent.face.name, attempt)
        succeeds = luck.random() < chance(agent, goal)
        rejects = goal.checks is not None and attempt <= 2 and luck.random() < self.family.reject
        chat = self._chatter(agent, luck)
        if not succeeds:
            return [*chat, luck.choice(phrases.failed).format(goal=self._worded(goal, luck))], Meaning(
                failed=goal.number
            )
        self.useful += 1
        if rejects and goal.checks is not None:
            self.done.discard(goal.checks)
            again = self.errand.goals[goal.checks]
            return [*chat, luck.choice(phrases.rejected).format(goal=self._worded(again, luck))], Meaning(
                asked=again.number
            )
        self.done.add(goal.number)
        said = [*chat, luck.choice(phrases.done).format(goal=self._worded(goal, luck))]
        asked, named, more = self._next(agent, luck, self.family.ask)
        return [*said, *more], Meaning(done=goal.number, asked=asked, named=named)

    def _idle(self, agent: Agent) -> tuple[list[str], Meaning]:
        """Nothing to do for this agent: too early, or not its field."""
        phrases = self.vocabulary.phrases
        luck = self._luck("idle", len(self.done), agent.face.name, self._count(f"idle/{agent.face.name}"))
        unable = self._last_asked()
        later = [goal for goal in self.errand.goals if goal.number not in self.done and chance(agent, goal)]
        chat = self._chatter(agent, luck)
        if later and luck.random() < CANDID:
            first = next(goal for goal in self.errand.goals if goal.number in later[0].needs - self.done)
            text = luck.choice(phrases.waiting)
            waits = text.format(goal=self._worded(later[0], luck), first=self._worded(first, luck))
            return [*chat, waits], Meaning(asked=first.number)
        said = [*chat, luck.choice(phrases.decline)]
        asked, named, more = self._next(agent, luck, REDIRECT)
        return [*said, *more], Meaning(asked=asked, named=named, unable=unable)

    def _next(self, agent: Agent, luck: random.Random, ask: float) -> tuple[int | None, str | None, list[str]]:
        """What the speaker says about what comes next: maybe the goal, maybe a name, maybe the wrong one."""
        goals = self.ready()
        asks, names, right = luck.random() < ask, luck.random() < self.family.named, luck.random() < self.family.right
        if not goals or not (asks or names):
            return None, None, []
        goal = goals[0]
        said = [luck.choice(self.vocabulary.phrases.ask).format(goal=self._worded(goal, luck))] if asks else []
        others = [other for other in self.errand.agents if other is not agent]
        best = max(others, key=lambda one: chance(one, goal))
        named = (best if right else luck.choice(others)).face.name if names else None
        if named:
            said.append(luck.choice(self.vocabulary.phrases.name).format(name=named))
        return (goal.number if asks else None), named, said

    def _chatter(self, agent: Agent, luck: random.Random) -> list[str]:
        if luck.random() >= self.family.chatter:
            return []
        domain = luck.choice(sorted(self.vocabulary.domains))
        words = luck.sample(self.vocabulary.domains[domain].words, 2)
        goal = f"{luck.choice(self.vocabulary.phrases.verbs)} {words[0]} and {words[1]}"
        return [luck.choice(self.vocabulary.phrases.chatter).format(goal=goal)]

    def _worded(self, goal: Goal, luck: random.Random) -> str:
        """The goal, some of its words replaced by others of its domain."""
        words = self.vocabulary.domains[goal.domain].words
        drift = self.family.drift
        drifted = [luck.choice(words) if luck.random() < drift else word for word in goal.words]
        return put(Goal(number=goal.number, domain=goal.domain, words=tuple(drifted), verb=goal.verb))

    def _last_asked(self) -> int | None:
        return next((meant.asked for meant in reversed(self.meanings) if meant.asked is not None), None)

    def _count(self, what: str) -> int:
        self.tried[what] += 1
        return self.tried[what]

    def _luck(self, *parts: object) -> random.Random:
        return random.Random("/".join(map(str, (self.errand.key, *parts))))


def chance(agent: Agent, goal: Goal) -> float:
    """How probable it is that this agent does this goal in one turn."""
    if goal.owner is not None:
        return OWNED_SKILL if goal.owner == agent.face.name else 0.0
    return agent.skill if agent.domain == goal.domain else 0.0


def words_of(thread: Iterable[Utterance]) -> int:
    """Length of these messages, in words."""
    return sum(len(said.text.split()) for said in thread)
