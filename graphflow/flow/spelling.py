"""Suggestions for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Final

BUDGET: Final = 50
"""Suggestions one `Spelling` makes: a document of 10,000 typos is answered in seconds, not in minutes."""


class Spelling:
    """Suggests the nearest of some known names, a bounded number of times."""

    def __init__(self, names: Collection[str]) -> None:
        """`names`: the names that would have been right."""
        self._names = names
        self._left = BUDGET

    def hint(self, name: str) -> str:
        """`did you mean 'sign'?`, or nothing if no known name is near."""
        if self._left == 0:
            return ""
        self._left -= 1
        near = difflib.get_close_matches(name[:64], self._names, n=1, cutoff=0.6)
        return f"did you mean '{near[0]}'?" if near else ""


def did_you_mean(name: str, names: Collection[str]) -> str:
    """The hint for one misspelt name."""
    return Spelling(names).hint(name)
