"""Lists of words and phrases, found in texts as whole words: all lists at once, by each phrase's first word.

A search takes time for the words of the text, and not for those of the lists: these may be long.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

WORD: Final = re.compile(r"[^\W_]+(?:['-][^\W_]+)*")
APOSTROPHE: Final = str.maketrans("’", "'")

Words = tuple[str, ...]


class Phrases:
    """{list: its phrases}, made ready for searching. Case does not count."""

    def __init__(self, lists: Mapping[str, Iterable[str]]) -> None:
        found: defaultdict[Words, set[str]] = defaultdict(set)
        for name, phrases in lists.items():
            for phrase in phrases:
                found[words_of(phrase)].add(name)
        self._begun: defaultdict[str, list[tuple[Words, frozenset[str]]]] = defaultdict(list)
        for words, names in found.items():
            self._begun[words[0]].append((words, frozenset(names)))

    def of(self, text: str) -> set[str]:
        """The lists of which something is in a text."""
        words, found = words_of(text), set[str]()
        for place, word in enumerate(words):
            for phrase, names in self._begun.get(word, ()):
                if len(phrase) == 1 or words[place : place + len(phrase)] == phrase:
                    found |= names
        return found


def words_of(text: str) -> Words:
    """Words as they stand there, in small letters; "can't" and "re-do" are one each."""
    return tuple(WORD.findall(text.lower().translate(APOSTROPHE)))
