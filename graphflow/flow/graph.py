"""Directed graphs as `needs`: which names each name waits for. Loops, never recursion: graphs may be 10,000 deep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

Needs = Mapping[str, Sequence[str]]


def levels(needs: Needs) -> dict[str, int]:
    """The length of the longest way from a root to each name; names on a cycle or behind one are left out.

    The mapping's order is topological. Needs that are not themselves keys are ignored.
    """
    followers = _followers(needs)
    open_needs = {name: sum(need in needs for need in wanted) for name, wanted in needs.items()}
    found = {name: 0 for name, count in open_needs.items() if count == 0}
    ready = list(found)
    while ready:
        wave = ready
        ready = list[str]()
        for name in wave:
            for follower in followers[name]:
                open_needs[follower] -= 1
                if open_needs[follower] == 0:
                    found[follower] = found[name] + 1
                    ready.append(follower)
    return found


def order(needs: Needs) -> list[str]:
    """All names, each after what it needs: by level, then by name. The same for equal graphs, however they were
    written."""
    level = levels(needs)
    return sorted(level, key=lambda name: (level[name], name))


def cycles(needs: Needs) -> Iterator[list[str]]:
    """Cycles, each once as [a, b, c] where a needs b, b needs c and c needs a; at least one of every knot of cycles."""
    suspects = needs.keys() - levels(needs).keys()
    done: set[str] = set()
    for start in (name for name in needs if name in suspects):
        if start in done:
            continue
        path, place = [start], {start: 0}
        pending = [iter(needs[start])]
        while pending:
            need = next((need for need in pending[-1] if need in suspects), None)
            if need is None:
                pending.pop()
                done.add(place.popitem()[0])
                path.pop()
            elif need in place:
                yield path[place[need] :]
            elif need not in done:
                place[need] = len(path)
                path.append(need)
                pending.append(iter(needs[need]))


class Ancestry:
    """Who needs whom, directly or not, for every name that is on no cycle and behind none."""

    def __init__(self, needs: Needs) -> None:
        self._place = {name: place for place, name in enumerate(needs)}
        # one bit per name: 10,000 names take 12 MB where sets would take gigabytes
        self._above: dict[str, int] = {}
        for name in levels(needs):
            above = 0
            for need in needs[name]:
                if need in self._above:
                    above |= self._above[need] | 1 << self._place[need]
            self._above[name] = above

    def mask(self, names: Iterable[str]) -> int:
        """The bits of `names`."""
        return sum(1 << self._place[name] for name in names)

    def above(self, name: str) -> int | None:
        """The bits of everything `name` waits for, directly or not; None on a cycle or behind one."""
        return self._above.get(name)


def _followers(needs: Needs) -> dict[str, list[str]]:
    followers: dict[str, list[str]] = {name: [] for name in needs}
    for name, wanted in needs.items():
        for need in wanted:
            if need in followers:
                followers[need].append(name)
    return followers
