"""What a conversation has been asked for, and what became of it, as far as its words tell.

The first message's sentences are the items, in their order; later ones that ask add to them or open them anew; a
report closes the item it is about, or the one in focus if its speaker fits it. Nothing is known that was not said.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final

from convergio.tasks.conversation.floor import USER, Candidate, SelectionContext, Utterance
from convergio.tasks.conversation.reading import Message, Reader, Sentence

SAME: Final = 0.5
"""Share of the smaller one's words that two sentences share when they are about the same."""

LEARNED: Final = 0.6
"""What a word counts that an agent reported with, beside 1 for one of its own description."""

FITS: Final = 0.3
UNSURE: Final = 0.7
"""What a refusal counts when the speaker does not say what it is about."""

FORGIVEN: Final = 0.6
"""What is left of a refusal when something else was done since: it may have been too early."""
NAMES: Final = re.compile(r"[\w-]+")


@dataclass(slots=True)
class Item:
    """Something that was asked for: its words, when last, and who failed at it or refused it."""

    words: set[str]
    place: int
    asked: int = 0
    done: bool = False
    later: bool = False
    failed: Counter[str] = field(default_factory=Counter[str])
    refused: dict[str, float] = field(default_factory=dict[str, float])


class Knowledge:
    """Which words belong to whom: description, tools, name and domains, and what was learned in the thread."""

    def __init__(self, candidates: Sequence[Candidate], reader: Reader) -> None:
        self.of = {candidate.name: dict(reader.known_by(candidate)) for candidate in candidates}
        self.uses: Counter[str] = Counter()
        """In how many items each word is: what is in many tells little."""
        self._owners: Counter[str] = Counter(chain.from_iterable(self.of.values()))

    def learn(self, name: str, words: frozenset[str] | set[str]) -> None:
        """This agent reported something in these words."""
        known = self.of[name]
        for word in words:
            if word not in known:
                known[word] = LEARNED
                self._owners[word] = max(1, self._owners[word])

    def known(self, word: str) -> bool:
        """Whether it belongs to anybody."""
        return bool(self._owners[word])

    def fits(self, words: set[str] | frozenset[str]) -> dict[str, float]:
        """How well each agent knows these words, 0 to 1: rare words count more, unknown ones not at all."""
        weights = {word: 1 / (self._owners[word] * max(1, self.uses[word])) for word in words if self._owners[word]}
        whole = sum(weights.values())
        if not whole:
            return dict.fromkeys(self.of, 0.0)
        return {
            name: sum(weight * known[word] for word, weight in weights.items() if word in known) / whole
            for name, known in self.of.items()
        }


class Agenda:
    """The thread, read from its first message to its last."""

    def __init__(self, context: SelectionContext, reader: Reader, window: int) -> None:
        self.knowledge = Knowledge(context.candidates, reader)
        self.items: list[Item] = []
        self.helped: Counter[str] = Counter()
        self.spoke: Counter[str] = Counter()
        self.names_right = 0
        self.names_seen = 0
        self.idle: set[str] = set()
        self.retrying: str | None = None
        self.closing = False
        self._names = frozenset(context.names)
        self._named: str | None = None
        thread = context.thread
        for said in thread if len(thread) <= window else (thread[0], *thread[-window:]):
            self._hear(said, reader.read(said.text))

    @property
    def named(self) -> str | None:
        """Whom the last message names or hands over to."""
        return self._named

    def open(self) -> list[Item]:
        """What is not done, what was asked for last first; what has to wait comes after the rest."""
        left = [item for item in self.items if not item.done]
        return sorted(left, key=_urgency)

    def focus(self) -> Item | None:
        """What is asked for now."""
        left = (item for item in self.items if not item.done)
        return min(left, key=_urgency, default=None)

    def _hear(self, said: Utterance, message: Message) -> None:
        self.closing = message.closing
        if said.speaker == USER or said.speaker not in self._names:
            self._named = self._name(said)
            for sentence in message.sentences:
                if sentence.words:
                    self._ask(sentence.words, said.index)
            return
        self.spoke[said.speaker] += 1
        helped = self._answer(said, message)
        self.helped[said.speaker] += helped
        if self._named == said.speaker:
            self.names_seen += 1
            self.names_right += helped
        for sentence in message.sentences:
            if sentence.act in ("asking", "again") and sentence.words:
                self._ask(sentence.words, said.index)
        self._named = self._name(said)

    def _answer(self, said: Utterance, message: Message) -> bool:
        """What this turn did to the agenda; whether it helped."""
        acts = {sentence.act for sentence in message.sentences}
        focus = self.focus()
        self.retrying = None
        if "declined" in acts:
            self.idle.add(said.speaker)
            self._declined(said, message, focus)
            return False
        if "again" in acts:
            self.idle.clear()
            return True
        if "failed" in acts:
            self.retrying = said.speaker
            self._failed(said, message, focus)
            return False
        if "waiting" in acts:
            self.idle.add(said.speaker)
            self._waits(said, _words(message, "waiting"))
            return False
        self.idle.clear()
        self._reported(said, [one for one in message.sentences if one.act in ("done", "plain")], focus)
        return True

    def _declined(self, said: Utterance, message: Message, focus: Item | None) -> None:
        """It is the item in focus that was declined, unless the speaker asks for something else that comes first."""
        asked = [self._about(one.words) for one in message.sentences if one.act == "asking" and one.words]
        if focus is not None and (not asked or focus in asked):
            focus.refused[said.speaker] = focus.refused.get(said.speaker, 0.0) + (1.0 if asked else UNSURE)

    def _failed(self, said: Utterance, message: Message, focus: Item | None) -> None:
        words = _words(message, "failed")
        item = self._about(words) or focus
        if item is not None:
            item.failed[said.speaker] += 1
            item.asked = said.index
            item.later = False
            self.knowledge.learn(said.speaker, item.words | words)

    def _waits(self, said: Utterance, words: frozenset[str]) -> None:
        """The speaker's own item has to wait for another: its own words are those that it knows."""
        own = self.knowledge.of[said.speaker]
        others = {word for word in words if word not in own and self.knowledge.known(word)}
        for item in self.items:
            if not item.done and len(item.words & words) >= 2 and not item.words & others:
                item.later = True
        self.knowledge.learn(said.speaker, words - others)
        if others:
            self._ask(others, said.index, later=True)

    def _reported(self, said: Utterance, sentences: list[Sentence], focus: Item | None) -> None:
        """Closes what the turn is about: by its words, else what was in focus, if that fits the speaker."""
        done = [one for one in sentences if one.act == "done"] or sentences
        for sentence in done:
            item = self._about(sentence.words)
            if item is None and focus is not None and self.knowledge.fits(focus.words).get(said.speaker, 0.0) >= FITS:
                item = focus
            if item is not None:
                item.done = True
                self.knowledge.learn(said.speaker, item.words)
            self.knowledge.learn(said.speaker, sentence.words)
        for item in self.items:
            item.later = False
            for name in item.refused:
                item.refused[name] *= FORGIVEN

    def _ask(self, words: frozenset[str] | set[str], index: int, *, later: bool = False) -> None:
        """`later`: an item that has to wait itself keeps waiting."""
        item = self._about(words, anew=True) if index else None
        if item is None:
            item = Item(words=set(), place=len(self.items))
            self.items.append(item)
        self.knowledge.uses.update(words - item.words)
        item.words |= words
        item.asked, item.done, item.later = index, False, item.later and later

    def _about(self, words: frozenset[str] | set[str], *, anew: bool = False) -> Item | None:
        """The item that these words are about; one that is done only if it is asked for `anew`, and no open one is."""
        best: tuple[float, bool, int] | None = None
        found: Item | None = None
        for item in self.items:
            if (item.done and not anew) or not words or not item.words:
                continue
            shared = len(item.words & words) / min(len(item.words), len(words))
            rank = (shared, not item.done, -item.place)
            if shared >= SAME and (best is None or rank > best):
                best, found = rank, item
        return found

    def _name(self, said: Utterance) -> str | None:
        if said.handoff in self._names:
            return said.handoff
        found = [word for word in NAMES.findall(said.text) if word in self._names and word != said.speaker]
        return found[-1] if found else None


def _urgency(item: Item) -> tuple[bool, int, int]:
    return item.later, -item.asked, item.place


def _words(message: Message, act: str) -> frozenset[str]:
    return frozenset(word for one in message.sentences if one.act == act for word in one.words)
