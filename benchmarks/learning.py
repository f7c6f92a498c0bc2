"""The weights by which acts are read, learned from simulated teams: prints `acts` of `config/speakers.yaml`.

`python -m convergio.benchmarks.learning [--seed S] [--tasks N] [--without VOCABULARY]`. Every training vocabulary is
read without the cues that only its own phrases have: so what is learned is how far cues are to be trusted in a wording
that nobody has seen, beside whose words a sentence has and what it is about. `--without` leaves a vocabulary out, and
says on stderr how many of its sentences are read rightly then, act by act: what generalises shows there.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from convergio.benchmarks import vocabulary
from convergio.benchmarks.errands import FAMILIES, errands
from convergio.benchmarks.talk import Talk
from convergio.benchmarks.vocabulary import Vocabulary
from convergio.tasks.conversation import tuning
from convergio.tasks.conversation.acts import ACTS, Acts, placed
from convergio.tasks.conversation.minutes import Minutes
from convergio.tasks.conversation.reading import SENTENCE, Reader
from convergio.tasks.conversation.speaker import Scored
from convergio.tasks.conversation.tuning import Cues, Tuning

MEANT: Final = {
    "done": "done",
    "ask": "asking",
    "name": "plain",
    "failed": "failed",
    "decline": "declined",
    "waiting": "waiting",
    "rejected": "again",
    "chatter": "plain",
}
"""What phrases of each kind are meant as."""

SEED: Final = 2
COUNT: Final = 6 * len(FAMILIES)
"""Tasks of each vocabulary that is learned from."""

EPOCHS: Final = 12
RATE: Final = 0.15
MOST: Final = 6.0
"""What a pattern of marks counts at most, however often it was seen."""

Sample = tuple[tuple[str, ...], int]


class Heard(Acts):
    """Reads every sentence as it was meant, and keeps its marks."""

    def __init__(self, words: Vocabulary) -> None:
        super().__init__({})
        self.samples: list[Sample] = []
        self.text = ""
        self._phrases = sorted(_phrases(words), key=lambda one: -len(one[0].pattern))

    def __call__(self, turn: Sequence[frozenset[str]]) -> list[str]:
        """The acts of the turn whose text is at hand."""
        meant = [self._meant(sentence) for sentence in SENTENCE.split(self.text) if sentence]
        for place, (marks, act) in enumerate(zip(turn, meant, strict=True)):
            self.samples.append((tuple(sorted(marks | placed(place, len(turn)))), ACTS.index(act)))
        return meant

    def _meant(self, sentence: str) -> str:
        return next((act for phrase, act in self._phrases if phrase.fullmatch(sentence)), "plain")


def _phrases(words: Vocabulary) -> Iterable[tuple[re.Pattern[str], str]]:
    """Every sentence of every phrase, and what it is meant as; of several, the one with the goal is."""
    for kind, act in MEANT.items():
        for phrase in getattr(words.phrases, kind):
            pieces = [piece for piece in SENTENCE.split(phrase) if piece]
            main = max(pieces, key=lambda piece: ("{goal}" in piece, len(piece)))
            for piece in pieces:
                likeness = ".+".join(re.escape(part) for part in re.split(r"\{\w+\}", piece))
                yield re.compile(likeness), act if piece == main else "plain"


def said_by(words: Vocabulary) -> str:
    """All phrases that agents and tasks are put in."""
    kinds = ("opening", "item", "in_turn", *MEANT)
    return "\n".join(phrase for kind in kinds for phrase in getattr(words.phrases, kind)).lower()


def without_own(full: Tuning, words: Vocabulary, all_words: Sequence[Vocabulary]) -> Tuning:
    """The tuning without cues that nobody but this vocabulary has."""
    mine = said_by(words)
    others = [text for text in map(said_by, all_words) if text != mine]
    shared = len(others) < len(all_words) - 1  # several have the same wording: none is its own

    def kept(cue: str) -> bool:
        like = tuning.pattern([cue])
        return shared or not like.search(mine) or any(like.search(text) for text in others)

    cues = {name: tuple(cue for cue in getattr(full.cues, name) if kept(cue)) for name in Cues.model_fields}
    return full.model_copy(update={"cues": Cues(**cues)})


def samples(words: Vocabulary, read_by: Tuning, *, seed: int, count: int) -> list[Sample]:
    """Sentences of simulated conversations: their marks, and what they were meant as."""
    reader, heard, chooses = Reader(read_by), Heard(words), Scored(read_by)
    reader.acts = heard
    for errand in errands(words, seed=seed, count=count):
        talk, minutes = Talk(errand=errand, vocabulary=words), Minutes(reader, read_by.window)
        while not talk.over:
            heard.text = talk.thread[-1].text
            minutes.of(talk.view())
            talk.speak(chooses(talk.view()).speaker)
    return heard.samples


def learned(found: Sequence[Sample]) -> dict[str, list[float]]:
    """A softmax regression over marks, by stochastic descent: {mark: a weight for every act}."""
    weights = {mark: [0.0] * len(ACTS) for mark in sorted({mark for marks, _ in found for mark in marks})}
    patterns, luck = list(Counter(found).items()), random.Random(0)
    for epoch in range(EPOCHS):
        luck.shuffle(patterns)
        for (marks, meant), times in patterns:
            step = RATE / (1 + epoch / 2) * min(times**0.8, MOST) / (2 * math.sqrt(len(marks)))
            for act, share in enumerate(_shares(weights, marks)):
                change = step * ((act == meant) - share)
                for mark in marks:
                    weights[mark][act] += change
    return weights


def read_anew(*, seed: int = SEED, count: int = COUNT) -> dict[str, Tuning]:
    """For each training vocabulary with a wording of its own the tuning that has never seen it: without the cues that
    only its phrases have, acts weighed by what the other vocabularies teach."""
    full, words = tuning.load(), [vocabulary.load(name) for name in vocabulary.TRAINING]
    own = {one.name: without_own(full, one, words) for one in words}
    found = {one.name: samples(one, own[one.name], seed=seed, count=count) for one in words}
    anew: dict[str, Tuning] = {}
    for one in words:
        if one.phrases != vocabulary.Phrases():
            weights = learned([sample for name, some in found.items() if name != one.name for sample in some])
            acts = {mark: dict(zip(ACTS, row, strict=True)) for mark, row in weights.items()}
            anew[one.name] = own[one.name].model_copy(update={"acts": acts})
    return anew


def _shares(weights: Mapping[str, Sequence[float]], marks: Iterable[str]) -> list[float]:
    totals = [sum(column) for column in zip(*(weights[mark] for mark in marks if mark in weights), strict=True)]
    grown = [math.exp(total - max(totals)) for total in totals]
    return [one / sum(grown) for one in grown]


def rightly(weights: Mapping[str, Sequence[float]], found: Sequence[Sample]) -> dict[str, float]:
    """The share of the sentences of each act that are read rightly, one by one."""
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for marks, meant in found:
        shares = _shares(weights, marks)
        right[ACTS[meant]].append(shares.index(max(shares)) == meant)
    return {act: round(sum(hits) / len(hits), 3) for act, hits in right.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Learns, and prints the table."""
    made = argparse.ArgumentParser(prog="python -m convergio.benchmarks.learning", description=__doc__)
    made.add_argument("--seed", type=int, default=SEED)
    made.add_argument("--tasks", type=int, default=COUNT, help="tasks of each vocabulary")
    made.add_argument("--without", metavar="VOCABULARY", choices=vocabulary.TRAINING)
    given = made.parse_args(argv)
    full, words = tuning.load(), [vocabulary.load(name) for name in vocabulary.TRAINING]
    found = {one.name: samples(one, without_own(full, one, words), seed=given.seed, count=given.tasks) for one in words}
    weights = learned([one for name, some in found.items() if name != given.without for one in some])
    for mark, row in weights.items():
        listed = ", ".join(f"{act}: {weight:.1f}" for act, weight in zip(ACTS, row, strict=True) if abs(weight) >= 0.05)
        print(f'  "{mark}": {{{listed}}}')
    if given.without:
        print(rightly(weights, found[given.without]), file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
