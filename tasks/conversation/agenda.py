"""What a conversation has been asked for, and what became of it, as far as its words tell.

The first message's sentences are the items, in their order; later ones that ask add to them or open them anew; a
report closes the item it is about, or the one in focus if its speaker fits it. Nothing is known that was not said.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
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
FEW: Final = 8
"""A turn of so few content words, none of them anybody's, has added nothing."""

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

    def known(self, words: set[str]) -> bool:
        """Whether any of these belongs to anybody."""
        return any(self._owners[word] for word in words)

    def shared(self, name: str, words: frozenset[str]) -> tuple[set[str], set[str]]:
        """Of these words those of this agent, and those of others only."""
        mine = {word for word in words if word in self.of[name]}
        return mine, {word for word in words if word not in mine and self._owners[word]}

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
        return sorted((item for item in self.items if not item.done), key=self._urgency)

    def focus(self) -> Item | None:
        """What is asked for now."""
        return min((item for item in self.items if not item.done), key=self._urgency, default=None)

    def _urgency(self, item: Item) -> tuple[bool, bool, int, int]:
        """What nobody knows a word of comes last: mostly it is no request."""
        return not self.knowledge.known(item.words), item.later, -item.asked, item.place

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
        self._named = self._name(said)

    def _answer(self, said: Utterance, message: Message) -> bool:
        """What this turn did to the agenda; whether it helped."""
        who, focus = said.speaker, self.focus()
        acts = [(self._act(who, sentence), sentence.words) for sentence in message.sentences]
        kinds = {act for act, _ in acts}
        self.retrying = who if "failed" in kinds else None
        if "done" in kinds or "again" in kinds:
            self._progress(who, [words for act, words in acts if act == "done"], focus)
        elif "failed" in kinds:
            self._failed(said, _all(acts, "failed"), focus)
        elif "waiting" not in kinds:
            asked = [self._about(words) for act, words in acts if act == "asking"]
            self._futile(who, focus, asked, declined="declined" in kinds)
        if "waiting" in kinds:
            self._waits(said, _all(acts, "waiting"))
        for act, words in acts:
            if act in ("asking", "again"):
                self._ask(words, said.index)
        silent = sum(len(words) for _, words in acts) <= FEW
        if not kinds & {"done", "again", "failed"} and (kinds & {"declined", "waiting", "asking"} or silent):
            self.idle.add(who)
            return False
        return "failed" not in kinds or "done" in kinds

    def _act(self, who: str, sentence: Sentence) -> str:
        """What a sentence does: by whose words it has, and by its cues."""
        words, cues = sentence.words, sentence.cues
        mine, others = self.knowledge.shared(who, words)
        hit = self._about(words) is not None
        if "again" in cues and "done" not in cues and self._settled(words):
            return "again"
        if mine and ((others and "waiting" in cues) or self._two(who, words)):
            return "waiting"
        if (mine or others or hit) and "asking" in cues and not (mine and cues & {"done", "negation"}):
            return "asking"
        return self._told(cues, hit=hit, own=bool(mine) or not others, known=bool(mine or others or hit))

    def _told(self, cues: frozenset[str], *, hit: bool, own: bool, known: bool) -> str:
        """What a sentence does that asks for nothing. Whoever speaks of somebody else's open item wants it done."""
        if not known:
            return "declined" if cues & {"declined", "negation"} else "plain"
        if "failed" in cues or ("negation" in cues and own):
            return "failed" if own or hit else "plain"
        if "done" in cues:
            return "done"
        return ("done" if own else "asking") if hit else "plain"

    def _settled(self, words: frozenset[str]) -> bool:
        """Whether these words are about something that is done."""
        item = self._about(words, anew=True)
        return item is not None and item.done

    def _two(self, who: str, words: frozenset[str]) -> bool:
        """Whether these words are about something of the speaker's and about something else."""
        own = [self.knowledge.fits(item.words)[who] >= FITS for item in self._touched(words)]
        return any(own) and not all(own)

    def _futile(self, who: str, focus: Item | None, asked: list[Item | None], *, declined: bool) -> None:
        """Nothing came of the turn for what is in focus, unless the speaker points to something that comes first."""
        if focus is not None and (not asked or focus in asked):
            sure = 1.0 if asked and declined else UNSURE
            focus.refused[who] = focus.refused.get(who, 0.0) + sure

    def _failed(self, said: Utterance, words: frozenset[str], focus: Item | None) -> None:
        item = self._about(words) or focus
        if item is not None:
            item.failed[said.speaker] += 1
            item.asked = said.index
            item.later = False
            self.knowledge.learn(said.speaker, item.words | words)

    def _waits(self, said: Utterance, words: frozenset[str]) -> None:
        """Something of the speaker's has to wait for something else, and both are named."""
        fits = self.knowledge.fits
        about = sorted(self._touched(words), key=lambda item: -fits(item.words)[said.speaker])
        own = about[0] if about and fits(about[0].words)[said.speaker] >= FITS else None
        if own is not None:
            own.later = True
            self.knowledge.learn(said.speaker, own.words & words)
        others = [item for item in about if item is not own]
        for item in others:
            item.asked = said.index
        _, foreign = self.knowledge.shared(said.speaker, words - (own.words if own is not None else set()))
        if not others and foreign:
            self._ask(frozenset(foreign), said.index, later=True)

    def _touched(self, words: frozenset[str]) -> list[Item]:
        """Open items of which these words name a good part."""
        return [item for item in self.items if not item.done and len(item.words & words) >= 2]

    def _progress(self, who: str, reports: list[frozenset[str]], focus: Item | None) -> None:
        """Closes what the turn is about: by its words, else what was in focus, if that fits the speaker."""
        self.idle.clear()
        for words in reports:
            item = self._about(words)
            if item is None and focus is not None and self.knowledge.fits(focus.words)[who] >= FITS:
                item = focus
            if item is not None:
                item.done = True
                self.knowledge.learn(who, item.words)
            self.knowledge.learn(who, words)
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
        added = words - item.words if not item.words else {word for word in words - item.words if self._fitting(word)}
        self.knowledge.uses.update(added)
        item.words |= added
        item.asked, item.done, item.later = index, False, item.later and later

    def _fitting(self, word: str) -> bool:
        """Whether a word may be added to an item: somebody knows it, and no item has it."""
        return self.knowledge.known({word}) and not self.knowledge.uses[word]

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


def _all(acts: Iterable[tuple[str, frozenset[str]]], kind: str) -> frozenset[str]:
    return frozenset(word for act, words in acts if act == kind for word in words)
