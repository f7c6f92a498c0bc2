"""Who speaks next where all that a graph leads to have a turn: branches, joins and loops, from the thread alone.

Every turn passes a token along each of its edges that hold. A join of kind `any` has its turn with the first token, one
of kind `all` as soon as no other of its edges can still be taken: an edge is dead once nobody who is to come, or who
waits, leads to where it begins. Each agent has one turn in a round of the loops that it is in: the token of a further
edge in the same round is used up by that turn. Tokens know their round: they count the edges that lead back.

AutoGen's GraphFlow counts edges instead: a join behind a branch that is not taken never fires, and one of kind `any`
fires again for each branch. It also holds everybody until the slowest of a step has spoken; here turns follow each
other, and nothing is held. Nothing is kept beside the thread, so a conversation that is resumed goes on exactly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from convergio.tasks.conversation.floor import STOP, USER, Selection, SelectionContext, Utterance

Group = tuple[str, str]
"""Edges that are one join: whom they lead to, and the name of their group."""

COMPLETE: Final = "nobody is left whom an edge leads to"


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """An edge. `contains`: only if what was said has this in it; `any_of`: the first edge of its group is enough."""

    target: str
    contains: str | None = None
    group: str = ""
    any_of: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Branches:
    """Follows all edges that hold."""

    starts: tuple[str, ...]
    edges: Mapping[str, tuple[Branch, ...]]

    def __call__(self, context: SelectionContext) -> Selection:
        """The one who is next of those whose turn has come; STOP if there is nobody."""
        said = turns(context)
        found = self.due(said)
        if not found:
            return Selection(speaker=STOP, policy="graph", reason=COMPLETE)
        reason = "follows" if said else "is where the graph begins"
        return Selection(speaker=found[0], policy="graph", reason=reason)

    def due(self, said: Sequence[Utterance]) -> list[str]:
        """Whose turn has come, in their order, after these turns."""
        course = _Course(self)
        for one in said:
            course.hear(one)
        return [turn.speaker for turn in course.queue]


def turns(context: SelectionContext) -> list[Utterance]:
    """The turns since the people outside spoke last: what they say begins the graph anew."""
    names, found = frozenset(context.names), list[Utterance]()
    for one in context.thread:
        if one.speaker == USER:
            found = []
        elif one.speaker in names:
            found.append(one)
    return found


Rounds = frozenset[tuple[str, int]]
"""How often tokens went back to where a loop begins, by that."""


@dataclass(frozen=True, slots=True, eq=False)
class _Turn:
    """A turn that is due, or was taken: whose, and in which rounds."""

    speaker: str
    rounds: Rounds = frozenset()


@dataclass(slots=True)
class _Last:
    """Somebody's last turn: in which rounds of the loops that it is in, and which edges' tokens it has used up."""

    rounds: Rounds
    used: set[str]


class _Course:
    """The graph on its way."""

    def __init__(self, graph: Branches) -> None:
        self._graph = graph
        self._sources: dict[Group, set[str]] = {}
        for source, edges in graph.edges.items():
            for edge in edges:
                self._sources.setdefault((edge.target, edge.group), set()).add(source)
        self._back, self._around = _loops(graph)
        self._waiting: dict[Group, dict[str, Rounds]] = {}
        self._last: dict[str, _Last] = {}
        self.queue: deque[_Turn] = deque()
        for name in graph.starts:
            self._call(name, {})

    def hear(self, said: Utterance) -> None:
        """A turn was taken. One that was not due, by another policy of an earlier time, counts as if it had been."""
        turn = next((one for one in self.queue if one.speaker == said.speaker), None) or _Turn(said.speaker)
        if turn in self.queue:
            self.queue.remove(turn)
        for edge in self._graph.edges.get(said.speaker, ()):
            if edge.contains is None or edge.contains in said.text:
                self._pass(edge, turn)
        self._settle()

    def _pass(self, edge: Branch, turn: _Turn) -> None:
        """A token goes along an edge."""
        rounds, last = turn.rounds, self._last.get(edge.target)
        if (turn.speaker, edge.target) in self._back:
            counts = dict(rounds)
            rounds = frozenset({**counts, edge.target: counts.get(edge.target, 0) + 1}.items())
        if last is not None and turn.speaker not in last.used and self._seen_by(edge.target, rounds) == last.rounds:
            last.used.add(turn.speaker)
        elif edge.any_of:
            self._call(edge.target, {turn.speaker: rounds})
        else:
            self._waiting.setdefault((edge.target, edge.group), {})[turn.speaker] = rounds

    def _settle(self) -> None:
        """Calls those whose joins wait for nobody; where joins wait for each other only, the first of them."""
        while (ready := next(self._resolved(), None)) is not None or (not self.queue and self._waiting):
            group = ready or next(iter(self._waiting))
            self._call(group[0], self._waiting[group])

    def _resolved(self) -> Iterator[Group]:
        for group, tokens in self._waiting.items():
            missing = self._sources[group] - tokens.keys()
            if not missing & self._alive(group[0]):
                yield group

    def _alive(self, but: str) -> set[str]:
        """Who may still have a turn before this one has."""
        first = {turn.speaker for turn in self.queue} | {target for target, _ in self._waiting}
        return _led_to(first - {but}, self._graph.edges, but)

    def _call(self, name: str, tokens: Mapping[str, Rounds]) -> None:
        """Its turn comes; whatever waits for it in other groups is of the same round."""
        counts: dict[str, int] = {}
        for rounds in tokens.values():
            counts = {**counts, **{loop: max(count, counts.get(loop, 0)) for loop, count in rounds}}
        turn = _Turn(name, frozenset(counts.items()))
        self.queue.append(turn)
        self._last[name] = _Last(self._seen_by(name, turn.rounds), set(tokens))
        for group in [group for group in self._waiting if group[0] == name]:
            del self._waiting[group]

    def _seen_by(self, name: str, rounds: Rounds) -> Rounds:
        """The rounds of the loops that somebody is in."""
        return frozenset(one for one in rounds if one[0] in self._around.get(name, ()))


def _led_to(first: Iterable[str], edges: Mapping[str, Sequence[Branch]], but: str) -> set[str]:
    """These, and all that edges lead to from them, except through one."""
    found = set(first)
    further = list(found)
    while further:
        for edge in edges.get(further.pop(), ()):
            if edge.target != but and edge.target not in found:
                found.add(edge.target)
                further.append(edge.target)
    return found


def _loops(graph: Branches) -> tuple[set[tuple[str, str]], dict[str, set[str]]]:
    """The edges that lead back to where a loop begins, and for each agent the loops that it is in, by their
    beginnings."""
    back = set[tuple[str, str]]()
    done, path = set[str](), dict[str, Iterator[Branch]]()
    for start in (*graph.starts, *graph.edges):
        if start in done:
            continue
        path[start] = iter(graph.edges.get(start, ()))
        while path:
            here = next(reversed(path))
            edge = next(path[here], None)
            if edge is None:
                done.add(here)
                del path[here]
            elif edge.target in path:
                back.add((here, edge.target))
            elif edge.target not in done:
                path[edge.target] = iter(graph.edges.get(edge.target, ()))
    around: dict[str, set[str]] = {}
    for source, loop in back:
        for name in graph.edges:
            if name == loop or (source != loop and source in _led_to([name], graph.edges, loop)):
                around.setdefault(name, set()).add(loop)
    return back, around
