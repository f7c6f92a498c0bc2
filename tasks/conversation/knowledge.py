"""Whose words are whose: what a team's descriptions say, what agents report with, and which words stand together.

A word that nobody is described with belongs to those whose words it stands beside: "the berth and its fenders" says
whose fenders are. Such a word counts as far as it leans to one side; what stands beside everybody's words says nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from convergio.tasks.conversation.floor import Candidate
from convergio.tasks.conversation.reading import Reader

LEARNED: Final = 0.6
"""What a word counts that an agent reported with, beside 1 for one of its own description."""

POOLED: Final = 0.9
"""What a word counts for somebody of the same domains as those who are described with it."""

BESIDE: Final = 0.6
"""What a word counts at most that only stood beside an agent's words."""

SURE: Final = 0.4
NEARLY: Final = 0.8
"""From when on somebody knows words well, and who knows them about as well."""

Shares = Mapping[str, float]
NONE: Final[Shares] = MappingProxyType({})
Words = frozenset[str] | set[str]


class Knowledge:
    """Which words belong to whom: description, tools, name and domains, and what was learned in the thread."""

    def __init__(self, candidates: tuple[Candidate, ...], reader: Reader) -> None:
        self.names = tuple(candidate.name for candidate in candidates)
        self.uses: Counter[str] = Counter()
        """In how many items each word is: what is in many tells little."""
        described, self._owners, self._colleagues = _described(candidates, reader)
        self._of: dict[str, Shares] = dict(described)
        self._telling = {word for word, fields in self._owners.items() if fields == 1}
        self._beside: dict[str, dict[str, float]] = {}

    def learn(self, name: str, words: Words) -> None:
        """This agent reported something in these words: they are of its field."""
        for word in words:
            known = self._of.get(word, NONE)
            if name not in known:
                added = {other: LEARNED * share for other, share in self._colleagues[name].items()}
                self._of[word] = {**added, **known, name: LEARNED}
                if word not in self._owners:
                    self._telling.add(word)

    def heard(self, words: frozenset[str]) -> None:
        """These words stood together in a sentence."""
        strangers = [word for word in words if word not in self._of]
        if not strangers or len(words) < 2:
            return
        for word in strangers:
            beside = self._beside.setdefault(word, {})
            for other in words:
                if other != word:
                    known = self._of.get(other)
                    if known is not None:
                        share = 1 / self._owners.get(other, 1)
                        for name, value in known.items():
                            beside[name] = beside.get(name, 0.0) + value * share

    def known(self, words: Words) -> bool:
        """Whether any of these belongs to one field alone."""
        return not self._telling.isdisjoint(words)

    def told(self, words: Words) -> set[str]:
        """Those of these words that belong to one field alone."""
        return self._telling & words

    def shared(self, name: str, words: frozenset[str]) -> tuple[set[str], set[str]]:
        """Of these words those of this agent, and those of others only; words of several fields are nobody's."""
        told = self.told(words)
        mine = {word for word in told if name in self._of[word]}
        return mine, told - mine

    def fits(self, words: Words) -> dict[str, float]:
        """How well each agent knows these words, 0 to 1: rare words count more, unknown ones not at all."""
        found = dict.fromkeys(self.names, 0.0)
        whole = 0.0
        for word in words:
            known = self._of.get(word)
            if known is not None:
                weight = 1 / (self._owners.get(word, 1) * max(1, self.uses[word]))
            else:
                known, weight = self._leaning(word) if self.uses[word] <= 1 else (NONE, 0.0)
            if weight:
                whole += weight
                for name, value in known.items():
                    found[name] += weight * value
        return {name: value / whole for name, value in found.items()} if whole else found

    def _leaning(self, word: str) -> tuple[Shares, float]:
        """Beside whose words a word stood, and how clearly beside one's."""
        beside = self._beside.get(word)
        if not beside:
            return NONE, 0.0
        most = max(beside.values())
        # Colleagues get the same; so it is the largest share that tells, and not how many have it.
        whole = sum(beside.values())
        clear = most / whole
        return {name: BESIDE * value / most for name, value in beside.items()}, clear * clear

    def field(self, words: Words) -> frozenset[str]:
        """Who knows these words best, if anybody knows them well."""
        found = self.fits(words)
        best = max(found.values())
        return frozenset(name for name, fit in found.items() if fit >= NEARLY * best) if best >= SURE else frozenset()

    def near(self, name: str) -> Shares:
        """Colleagues of the same domains, and how near they are."""
        return self._colleagues[name]


@lru_cache(maxsize=256)
def _described(
    candidates: tuple[Candidate, ...], reader: Reader
) -> tuple[Mapping[str, Shares], Mapping[str, int], Mapping[str, Shares]]:
    """{word: {name: what it counts}}, {word: how many fields have it}, {name: {colleague: how near}}."""
    of: dict[str, dict[str, float]] = {}
    fields: dict[str, set[object]] = {}
    colleagues = {one.name: _near(one, candidates) for one in candidates}
    for one in candidates:
        for word, value in reader.known_by(one).items():
            of.setdefault(word, {})[one.name] = value
            fields.setdefault(word, set()).add(frozenset(one.domains) or one.name)
    for shares in of.values():
        for name, value in list(shares.items()):
            for other, near in colleagues[name].items():
                shares[other] = max(shares.get(other, 0.0), value * near)
    return of, {word: len(found) for word, found in fields.items()}, colleagues


def _near(one: Candidate, candidates: Sequence[Candidate]) -> Shares:
    """Who else has these domains, and how many of them."""
    mine = set(one.domains)
    shares = {other.name: POOLED * _alike(mine, set(other.domains)) for other in candidates if other is not one}
    return {name: share for name, share in shares.items() if share}


def _alike(mine: set[str], theirs: set[str]) -> float:
    return len(mine & theirs) / len(mine | theirs) if mine or theirs else 0.0
