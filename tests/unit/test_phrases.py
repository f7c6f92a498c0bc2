"""Words and phrases are found as whole words, in whichever way they are put."""

from __future__ import annotations

import pytest

from convergio.tasks.conversation.phrases import Phrases

LISTS = Phrases({"failed": ("gave up", "didn't work", "error"), "again": ("re-do", "gave it back"), "done": ("up",)})


@pytest.mark.parametrize(
    ("text", "lists"),
    [
        ("We GAVE UP.", {"failed", "done"}),
        ("It didn’t work: error!", {"failed"}),
        ("She gave it back; re-do all.", {"again"}),
        ("He gave. Terrors, upper, redo", set[str]()),
        ("", set[str]()),
    ],
)
def test_phrases_are_found_by_all_their_words(text: str, lists: set[str]) -> None:
    assert LISTS.of(text) == lists
