"""Who chooses speakers in the simulation, ours apart: the baselines, and the oracle that knows the goals.

Round robin, random and last mention see what every selector sees. The oracle sees the hidden goals. `Reader` stands for
a language model that is asked for every turn: it understands every word and every message (never more than they say),
knows what was answered, follows names, does not choose who spoke last (the default of AutoGen's SelectorGroupChat) -
and errs at a rate. The rates are those with which MAST (arXiv 2503.13657) found two faults among failures of
multi-agent systems: a step is repeated (15.7 %), what is done does not follow what was reasoned (13.2 %). These are
shares of failures, not rates per turn: the stand-in is an assumption, so the bench publishes what other rates give.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from convergio.benchmarks.errands import put
from convergio.benchmarks.talk import Meaning, Talk, chance
from convergio.tasks.conversation.floor import USER, SelectionContext

Selector = Callable[[Talk], str]
"""The name of who speaks next. All but the oracle and the reader look at `Talk.view()` alone."""

REPEATS: Final = 0.157
MISMATCHES: Final = 0.132
PATIENCE: Final = 2
"""So often somebody may say of a goal that it is not its field before others than those described as able are tried."""


def round_robin(talk: Talk) -> str:
    """The team in its order."""
    return after(talk.view())


def at_random(talk: Talk) -> str:
    """Anybody."""
    view = talk.view()
    return random.Random(f"random/{talk.errand.key}/{talk.turns}").choice(view.names)


def last_mention(talk: Talk) -> str:
    """Whom the last message names; nobody: who is next in the team's order."""
    view = talk.view()
    return mentioned(view) or after(view)


def oracle(talk: Talk) -> str:
    """The best of all for what can be done now: shows how much there is to win."""
    goals = talk.ready()
    return max(talk.errand.agents, key=lambda agent: max(chance(agent, goal) for goal in goals)).face.name


def after(view: SelectionContext) -> str:
    """Who comes after the last speaker in the team's order."""
    last = view.thread[-1].speaker
    return view.names[0] if last == USER else view.names[(view.names.index(last) + 1) % len(view.names)]


def mentioned(view: SelectionContext) -> str | None:
    """The last name in the last message, its speaker's apart."""
    said = view.thread[-1]
    found = [
        (place.start(), name) for name in view.names for place in re.finditer(rf"\b{re.escape(name)}\b", said.text)
    ]
    return next((name for _, name in sorted(found, reverse=True) if name != said.speaker), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """The simulated model that chooses speakers. `scale`: its errors, in those of MAST."""

    scale: float = 1.0

    def __call__(self, talk: Talk) -> str:
        """Its choice for the next turn."""
        view = talk.view()
        luck = random.Random(f"reader/{talk.errand.key}/{talk.turns}")
        draw = luck.random() / self.scale if self.scale else 1.0
        last = view.thread[-1].speaker
        others = [name for name in view.names if name != last]
        earlier = [said.speaker for said in view.thread[1:] if said.speaker != last]
        if draw < REPEATS and earlier:
            return luck.choice(earlier)
        if draw < REPEATS + MISMATCHES:
            return luck.choice(others)
        return self._understood(talk, others, luck)

    def _understood(self, talk: Talk, others: list[str], luck: random.Random) -> str:
        if (named := talk.meanings[-1].named) and named in others:
            return named
        goal = _open_goal(talk)
        if goal is None:
            reports = _who(talk, lambda meant: meant.done is not None)
            fewest = min(reports[name] for name in others)
            return next(name for name in others if reports[name] == fewest)
        return self._fit(talk, goal, others, luck)

    def _fit(self, talk: Talk, goal: int, others: list[str], luck: random.Random) -> str:
        """Who is described as able, and did not say or show the contrary: words mean what they mean."""
        lexicon = talk.vocabulary.lexicon()
        wanted = _meant(put(talk.errand.goals[goal]), lexicon)
        domain = wanted.most_common(1)[0][0] if wanted else ""
        unable = _who(talk, lambda meant: meant.unable == goal)
        failed = _who(talk, lambda meant: meant.failed == goal)
        faces = {candidate.name: candidate for candidate in talk.view().candidates}
        fit = {name: _meant(faces[name].description, lexicon)[domain] for name in others}
        able = [name for name in others if fit[name] and unable[name] < PATIENCE] or others
        rank = {name: (unable[name], failed[name], -fit[name]) for name in able}
        return luck.choice([name for name in able if rank[name] == min(rank.values())])


def _open_goal(talk: Talk) -> int | None:
    """What was asked for last and not done since; else the first thing of the task that nobody reported."""
    done: set[int] = set()
    for meant in reversed(talk.meanings):
        if meant.asked is not None and meant.asked not in done:
            return meant.asked
        if meant.done is not None:
            done.add(meant.done)
    return next((goal for goal in talk.errand.stated if goal not in done), None)


def _who(talk: Talk, says: Callable[[Meaning], bool]) -> Counter[str]:
    """How often each agent said such a thing."""
    heard = zip(talk.thread, talk.meanings, strict=True)
    return Counter(said.speaker for said, meant in heard if says(meant))


def _meant(text: str, lexicon: Mapping[str, str]) -> Counter[str]:
    """How often the words of each domain stand in a text."""
    return Counter(lexicon[word] for word in re.findall(r"[\w-]+", text.lower()) if word in lexicon)


BASELINES: Final[dict[str, Selector]] = {
    "round_robin": round_robin,
    "random": at_random,
    "last_mention": last_mention,
    "llm_style": Reader(),
}
ORACLE: Final = "oracle"
READERS: Final = {f"llm_errors_x{scale:g}": Reader(scale=scale) for scale in (0.0, 0.5, 1.5)}
"""The same model with fewer and with more errors: how much the result hangs on the assumed rates."""
