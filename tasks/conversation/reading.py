"""What a message says, by its words: sentences, their content words, their cues. No model, no state.

Reading is by whole words, cut to their stems: "now" is not in "know", "cash flow" is found as its two words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from convergio.tasks.conversation.acts import Acts
from convergio.tasks.conversation.floor import Candidate
from convergio.tasks.conversation.tuning import Tuning, pattern

WORD: Final = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
NAME: Final = re.compile(r"[\w-]+")
SENTENCE: Final = re.compile(r"(?<=[.!?])\s+|\n+")
STEM_LENGTH: Final = 8
FIELD: Final = 0.7
"""What a word counts that belongs to one of an agent's domains by the configuration, beside 1 for its own."""

ENDINGS: Final = ("ings", "ing", "ies", "ed", "es", "s", "y", "e")
COMMON_WORDS: Final = """
a about after again all also am an and any anyone are as at be been before but by can cannot charge could did do does
done every expert finished first following for from get give had has have he her here him his how i if in into is it
its just know let look looks make may me more must my need needs new next no not now of off on one only open or our
out over please put ready responsible result see she should so some somebody someone still than that the their them
then there these they thing things this those to too under up us use was we well were what when where which while who
whom whose why will with without would yet you your
"""
COMMON: Final = frozenset(COMMON_WORDS.split())
"""Words that say nothing about a field of work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """Its content words as stems, and what cues are in it: `asking` is a question mark, too, `naming` a name."""

    words: frozenset[str]
    cues: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A text, read. `closing`, `in_turn`, `together`: such a cue is in it; `urgent`: how pressing it is, 0 to 1."""

    sentences: tuple[Sentence, ...]
    closing: bool
    in_turn: bool
    together: bool
    urgent: float


KEPT_LENGTH: Final = 4_000
"""Characters of a text that is remembered with what it says: a worker must not grow with what it has read."""


def stem(word: str) -> str:
    """A word without its ending, not longer than eight letters: "analysing", "analyse" and "analysis" share one."""
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    return word[:STEM_LENGTH]


def stems(text: str) -> frozenset[str]:
    """The content words of a text."""
    return _kept_stems(text) if len(text) <= KEPT_LENGTH else _stems(text)


def _stems(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in WORD.findall(text.lower().replace("_", " ")) if word not in COMMON)


_kept_stems = lru_cache(maxsize=2048)(_stems)


class Reader:
    """Reads messages by the cues of a tuning, each text once, but for long ones."""

    def __init__(self, tuning: Tuning) -> None:
        self._cues = tuning.phrases
        self._alarms = tuning.alarms
        self.acts = Acts(tuning.acts)
        self.domains = {name: frozenset[str]().union(*map(stems, words)) for name, words in tuning.domains.items()}
        self.phases = {name: frozenset[str]().union(*map(stems, one.words)) for name, one in tuning.phases.items()}
        self._phase_domains = {name: frozenset(one.domains) for name, one in tuning.phases.items()}
        self._kinds = {name: pattern(kind.words) for name, kind in tuning.kinds.items() if kind.words}
        self._kept = lru_cache(maxsize=1024)(self._read)
        self.known_by = lru_cache(maxsize=1024)(self._known_by)
        self.phases_of = lru_cache(maxsize=1024)(self._phases_of)

    def read(self, text: str, names: frozenset[str] = frozenset()) -> Message:
        """What a text says to a team: its members' names are no words."""
        return (self._kept if len(text) <= KEPT_LENGTH else self._read)(text, names)

    def _read(self, text: str, names: frozenset[str]) -> Message:
        found = self._cues.of(text)
        return Message(
            sentences=tuple(self._sentence(one, names) for one in SENTENCE.split(text) if one),
            closing="closing" in found,
            in_turn="in_turn" in found,
            together="collaboration" in found,
            urgent=min(1.0, sum(added for added, alarm in self._alarms if alarm.search(text))),
        )

    def names_kind(self, kind: str, text: str) -> bool:
        """Whether words of this type of conversation are in the text."""
        return kind in self._kinds and bool(self._kinds[kind].search(text))

    def _known_by(self, candidate: Candidate) -> Mapping[str, float]:
        """The words of a candidate: 1 for those of its description, name, tools and domains, less for its fields'."""
        known: dict[str, float] = {}
        for domain in candidate.domains:
            known |= dict.fromkeys(self.domains.get(domain, ()), FIELD) | dict.fromkeys(stems(domain), 1.0)
        own = " ".join((candidate.description, candidate.name.replace("-", " "), *candidate.tools))
        return known | dict.fromkeys(stems(own), 1.0)

    def _phases_of(self, candidate: Candidate) -> frozenset[str]:
        """What a candidate is good at: what it says, else what its domains are good at."""
        fields = set(candidate.domains)
        return frozenset(candidate.phases) or frozenset(
            name for name, domains in self._phase_domains.items() if domains & fields
        )

    def _sentence(self, text: str, names: frozenset[str]) -> Sentence:
        naming = any(word in names for word in NAME.findall(text))
        if naming:
            text = NAME.sub(lambda word: " " if word.group() in names else word.group(), text)
        cues = self._cues.of(text)
        if text.rstrip().endswith("?"):
            cues.add("asking")
        if naming:
            cues.add("naming")
        return Sentence(words=stems(text), cues=frozenset(cues))
