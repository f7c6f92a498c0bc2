"""What a conversation has been asked for, and what became of it, as far as its words tell.

The first message's sentences are the items, in their order; later ones that ask add to them or open them anew; a
report closes the item it is about, or the one in focus if its speaker fits it. Nothing is known that was not said.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from convergio.tasks.conversation.floor import USER, Candidate, Utterance
from convergio.tasks.conversation.knowledge import Knowledge
from convergio.tasks.conversation.reading import Message, Reader, Sentence

SAME: Final = 0.5
"""Share of the smaller one's words that two sentences share when they are about the same."""

FITS: Final = 0.3
FEW: Final = 8
"""A turn of so few content words, none of them anybody's, has added nothing."""

UNSURE: Final = 0.7
"""What a refusal counts when the speaker does not say what it is about."""

FORGIVEN: Final = 0.6
"""What is left of a refusal when something else was done since: it may have been too early."""
REPORTED: Final = 3
"""Content words of a report, at least."""
CLEAR: Final = 0.5
"""Share of its words that are of somebody's field in a sentence that is meant for it: one may be there by chance."""
HEARD: Final = frozenset(("declined", "waiting", "failed", "again", "negation", "asking", "done", "naming"))
NAMES: Final = re.compile(r"[\w-]+")


@dataclass(slots=True, eq=False)
class Item:
    """Something that was asked for: its words, when last, and who failed at it or refused it."""

    words: set[str]
    place: int
    asked: int = 0
    done: bool = False
    waits: list[Item] = field(default_factory=list["Item"])
    failed: Counter[str] = field(default_factory=Counter[str])
    refused: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def later(self) -> bool:
        """Whether something has to be done before."""
        return any(not item.done for item in self.waits)


class Agenda:
    """The thread, read from its first message to its last."""

    def __init__(self, candidates: tuple[Candidate, ...], reader: Reader) -> None:
        self.knowledge = Knowledge(candidates, reader)
        self.items: list[Item] = []
        self.helped: Counter[str] = Counter()
        self.spoke: Counter[str] = Counter()
        self.names_right = 0
        self.names_seen = 0
        self.idle: set[str] = set()
        self.retrying: str | None = None
        self.closing = False
        self.in_turn = False
        self._reader = reader
        self._names = frozenset(self.knowledge.names)
        self._named: str | None = None

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

    def hear(self, said: Utterance) -> None:
        """The next message of the thread."""
        message = self._reader.read(said.text, self._names)
        self.closing = message.closing
        for sentence in message.sentences:
            self.knowledge.heard(sentence.words)
        if said.speaker == USER or said.speaker not in self._names:
            self._named = self._name(said)
            # Whoever asks for something of somebody's field, too, does not want all of them.
            meant = (len(self.knowledge.told(one.words)) >= CLEAR * len(one.words) > 0 for one in message.sentences)
            self.in_turn = message.in_turn and not any(meant)
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
        marks = [self._marks(who, sentence, focus) for sentence in message.sentences]
        acts = list(zip(self._reader.acts(marks), (sentence.words for sentence in message.sentences), strict=True))
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
            self._waits(said, _all(acts, "waiting"), focus)
        for act, words in acts:
            if act in ("asking", "again"):
                self._ask(words, said.index)
        silent = sum(len(words) for _, words in acts) <= FEW
        if not kinds & {"done", "again", "failed"} and (kinds & {"declined", "waiting", "asking"} or silent):
            self.idle.add(who)
            return False
        return "failed" not in kinds or "done" in kinds

    def _marks(self, who: str, sentence: Sentence, focus: Item | None) -> frozenset[str]:
        """What tells which act a sentence is: whose words it has, what it is about, its cues, its length."""
        words = sentence.words
        mine, others = self.knowledge.shared(who, words)
        marks = {f"cue:{cue}" for cue in sentence.cues & HEARD}
        marks.add("both" if mine and others else "own" if mine else "others" if others else "strange")
        if len(mine) > 1:
            marks.add("own, clearly")
        if len(others) > 1:
            marks.add("others, clearly")
        if self._two(who, words):
            marks.add("two items")
        item = self._about(words, anew=True)
        if item is not None:
            fits = self.knowledge.fits(item.words)
            whose = "own" if fits[who] >= FITS else "others'" if any(fits.values()) else "nobody's"
            marks.add("settled item" if item.done else f"{whose} item")
            if item is focus:
                marks.add("focus")
        marks.add(
            "few words" if len(words) < REPORTED else "some words" if len(words) <= 2 * REPORTED else "many words"
        )
        return frozenset(marks)

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
            item.waits.clear()
            self.knowledge.learn(said.speaker, item.words | words)

    def _waits(self, said: Utterance, words: frozenset[str], focus: Item | None) -> None:
        """Something of the speaker's has to wait for something else, and both are named."""
        fits = self.knowledge.fits
        about = sorted(self._touched(words), key=lambda item: -fits(item.words)[said.speaker])
        own = about[0] if about and fits(about[0].words)[said.speaker] >= FITS else None
        others = [item for item in about if item is not own]
        if own is not None:
            self.knowledge.learn(said.speaker, own.words & words)
        if not others:
            _, foreign = self.knowledge.shared(said.speaker, words - (own.words if own is not None else set()))
            others = [self._ask(frozenset(foreign), said.index)] if foreign else []
        for item in others:
            item.asked = said.index
            if own is not None and own not in item.waits:
                own.waits.append(item)
        if focus is not None and focus is not own and focus not in others:
            focus.refused[said.speaker] = focus.refused.get(said.speaker, 0.0) + UNSURE

    def _touched(self, words: frozenset[str]) -> list[Item]:
        """Open items of which these words name a good part."""
        return [item for item in self.items if not item.done and len(item.words & words) >= 2]

    def _progress(self, who: str, reports: list[frozenset[str]], focus: Item | None) -> None:
        """Closes what the turn is about: by its words, else what was in focus, if that fits the speaker."""
        self.idle.clear()
        for words in reports:
            item = self._about(words) or self._own(who, focus)
            if item is not None:
                item.done = True
                self.knowledge.learn(who, item.words)
            self.knowledge.learn(who, words)
        for item in self.items:
            for name in item.refused:
                item.refused[name] *= FORGIVEN

    def _own(self, who: str, focus: Item | None) -> Item | None:
        """What an agent has most likely done: what was in focus or else comes next of what fits it, or nobody."""
        fits = self.knowledge.fits
        for item in self.open():
            known = fits(item.words)
            if known[who] >= FITS or (item is focus and not any(known.values())):
                return item
        return None

    def _ask(self, words: frozenset[str] | set[str], index: int) -> Item:
        """The item for these words, asked for now: a new one, or one that is there."""
        item = (self._about(words, anew=True) or self._akin(words)) if index else None
        if item is None:
            item = Item(words=set(), place=len(self.items))
            self.items.append(item)
        field = self.knowledge.field(item.words)
        added = words - item.words if not item.words else {word for word in words if self._fitting(word, field)}
        self.knowledge.uses.update(added)
        item.words |= added
        item.asked, item.done = index, False
        return item

    def _akin(self, words: frozenset[str] | set[str]) -> Item | None:
        """Something open that is for the same people as these words: it is put in other words."""
        field = self.knowledge.field(words)
        if not field:
            return None
        open_items = [item for item in self.open() if self.knowledge.known(item.words)]
        return next((item for item in open_items if self.knowledge.field(item.words) & field), None)

    def _fitting(self, word: str, field: frozenset[str]) -> bool:
        """Whether a word may be added to an item: it is of the same people, and no item has it."""
        return not self.knowledge.uses[word] and bool(self.knowledge.field({word}) & field)

    def _about(self, words: frozenset[str] | set[str], *, anew: bool = False) -> Item | None:
        """The item that these words are about; one that is done only if it is asked for `anew`, and no open one is."""
        best: tuple[float, bool, int] | None = None
        found: Item | None = None
        for item in self.items:
            if (item.done and not anew) or not words or not item.words:
                continue
            both = item.words & words
            shared = len(both) / min(len(item.words), len(words))
            if len(both) < 2 and not self.knowledge.known(both):
                continue  # one word of no field: how things are put, and not what is meant
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
