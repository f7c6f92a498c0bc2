"""What the sentences of a turn do: a report, a request, talk. Weighed by marks of each, and read as a whole.

Wording differs from team to team, and cue words are never all known. So whose words a sentence has, and what it is
about, weigh beside them; and who has the floor says in one sentence at least what became of it: if none reads like
that, the likeliest one does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

REPORTS: Final = ("done", "failed", "waiting", "again", "declined")
"""What a turn was: something done, tried in vain, too early, sent back, or left to others."""

ACTS: Final = (*REPORTS, "asking", "plain")
"""A report, a request, or neither."""


class Acts:
    """Reads by a table of weights: {mark: {act: weight}}."""

    def __init__(self, weights: Mapping[str, Mapping[str, float]]) -> None:
        self._weights = {mark: tuple(row.get(act, 0.0) for act in ACTS) for mark, row in weights.items()}

    def __call__(self, turn: Sequence[frozenset[str]]) -> list[str]:
        """The act of each sentence of a turn, by its marks and its place."""
        rows = [self._weighed(marks | placed(place, len(turn))) for place, marks in enumerate(turn)]
        acts = [max(range(len(ACTS)), key=row.__getitem__) for row in rows]
        if rows and all(act >= len(REPORTS) for act in acts):
            nearest = max(range(len(rows)), key=lambda place: max(rows[place][: len(REPORTS)]) - max(rows[place]))
            acts[nearest] = max(range(len(REPORTS)), key=rows[nearest].__getitem__)
        return [ACTS[act] for act in acts]

    def _weighed(self, marks: Iterable[str]) -> list[float]:
        """How well each act fits."""
        rows = [self._weights[mark] for mark in sorted(marks) if mark in self._weights]
        return [sum(column) for column in zip(*rows, strict=True)] if rows else [0.0] * len(ACTS)


def placed(place: int, count: int) -> frozenset[str]:
    """Where in its turn a sentence stands."""
    if count == 1:
        return frozenset(("alone",))
    return frozenset(("first" if not place else "last" if place == count - 1 else "between",))
