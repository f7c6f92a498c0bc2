"""A graph of agents in steps of sixty lines: as it should go, and with AutoGen's defects, each by its own switch.

A difference between AutoGen and us counts as documented only if this model, with as few of the defects as it takes,
comes to AutoGen's turns and its reason to stop, and, without any, to ours. It shares no code with the policy that
runs graphs (`tasks/conversation/branches.py`).

The defects, by their letters in our study of AutoGen 0.7.5:
 a  a join counts the edges that were taken; one behind a branch that was not never fires
 b  a node's `activation: any` is never read
 c  a join of kind any fires again for each branch that arrives after its turn has begun
 d  a step ends when all of its agents have spoken; conditions are asked only then, and told the last one's words only
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Final

from convergio.benchmarks.scripts import COMPLETE, Line, Turn
from convergio.graphflow.flow import termination
from convergio.graphflow.flow.termination import Condition, Said

DEFECTS: Final = "abcd"
Lines = Mapping[Turn, Sequence[Line]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The turns in their order, and why it stopped. `None`: a turn was due that nobody ever took."""

    turns: tuple[Turn, ...]
    stop: str | None


@dataclass(slots=True, eq=False)
class _Node:
    """A turn that is due: whose, how often edges led back to each node on the way here, and whose edges led here."""

    name: str
    times: Counter[str] = field(default_factory=Counter[str])
    by: set[str] = field(default_factory=set[str])


class Steps:
    """One conversation of a graph. `document`: AutoGen's, of the team; `lines`: what is said in each turn."""

    def __init__(
        self, document: Mapping[str, Any], task: str, lines: Lines, defects: str, order: Sequence[Turn]
    ) -> None:
        config = document["config"]
        self._lines, self._defects, self._order = lines, frozenset(defects), order
        nodes = config["graph"]["nodes"]
        self._edges = {name: [dict(edge) for edge in node["edges"]] for name, node in nodes.items()}
        for edge in (edge for edges in self._edges.values() for edge in edges):
            if nodes[edge["target"]]["activation"] == "any" and "b" not in self._defects:
                edge["activation_condition"] = "any"
        given = config.get("termination_condition")
        self._condition: Condition | None = None if given is None else termination.read(given)
        self._most = config.get("max_turns")
        self._heard = [[Line(source="user", kind="TextMessage", said=task).as_said()]]
        targets = {edge["target"] for edges in self._edges.values() for edge in edges}
        start = config["graph"].get("default_start_node")
        self._queue = [_Node(start)] if start else [_Node(name) for name in nodes if name not in targets]
        self._returns = self._found_returns()
        self._spoken: Counter[str] = Counter()
        self._latest: dict[str, _Node] = {node.name: node for node in self._queue}
        self._tokens: dict[tuple[str, str], dict[str, Counter[str]]] = {}
        self._taken: Counter[tuple[str, str]] = Counter()
        self._armed: set[tuple[str, str]] = set()

    def run(self) -> Outcome:
        """From the task to the end."""
        turns: list[Turn] = []
        stop = self._asked(0)
        while stop is None:
            step, self._queue = (self._queue, []) if "d" in self._defects else (self._queue[:1], self._queue[1:])
            for node in step:
                self._begin(node.name)
            last: Sequence[Line] = ()
            for node in self._as_they_ended(step, len(turns)):
                turn = (node.name, self._spoken[node.name])
                self._spoken[node.name] += 1
                turns.append(turn)
                if turn not in self._lines:
                    return Outcome(turns=tuple(turns), stop=None)
                last = self._lines[turn]
                self._arrive(node, last[-1].text)
            self._settle()
            self._heard.append([line.as_said() for line in last])
            stop = COMPLETE if not self._queue else self._asked(len(self._heard) - 1)
        return Outcome(turns=tuple(turns), stop=stop)

    def _begin(self, name: str) -> None:
        """A turn begins: only now what made it due is counted anew."""
        for key in [key for key in self._armed if key[0] == name]:
            self._armed.discard(key)
            self._taken[key] = 0

    def _asked(self, steps: int) -> str | None:
        if self._condition is not None:
            turns = [termination.Turn(said=tuple[Said, ...](said)) for said in self._heard]
            met = self._condition.met(turns)
            if met is not None:
                return met.content
        if self._most is not None and steps >= self._most:
            return f"Maximum number of turns {self._most} reached."
        return None

    def _as_they_ended(self, step: list[_Node], done: int) -> list[_Node]:
        """Those of one step, in the order in which they were seen to end: nothing else says who was first."""
        seen = [name for name, _ in self._order[done : done + len(step)]]
        if Counter(seen) != Counter(node.name for node in step):
            return step
        left = list(step)
        return [left.pop(next(place for place, node in enumerate(left) if node.name == name)) for name in seen]

    def _found_returns(self) -> dict[tuple[str, str], set[str]]:
        """Edges that close a cycle, as a walk from the starts finds them, and the nodes of these cycles."""
        returns: dict[tuple[str, str], set[str]] = {}
        left: set[str] = set()

        def walk(name: str, above: tuple[str, ...]) -> None:
            for target in (edge["target"] for edge in self._edges[name]):
                if target in (*above, name):
                    returns[name, target] = {
                        node for node in self._edges if node == target or name in self._beyond({node}, target)
                    }
                elif target not in left:
                    walk(target, (*above, name))
            left.add(name)

        for name in [*(node.name for node in self._queue), *self._edges]:
            if name not in left:
                walk(name, ())
        return returns

    def _arrive(self, node: _Node, text: str) -> None:
        """A turn is over: its edges are taken, or not."""
        for edge in self._edges[node.name]:
            if edge["condition"] and edge["condition"] not in text:
                continue
            key, eager = (edge["target"], edge["activation_group"]), edge["activation_condition"] == "any"
            times = node.times + Counter([key[0]] if (node.name, key[0]) in self._returns else [])
            if eager and "c" in self._defects:
                if key not in self._armed:
                    self._armed.add(key)
                    self._due(key[0], {node.name: times})
            elif not eager and "a" in self._defects:
                self._taken[key] += 1
                if self._taken[key] == len(self._sources(key)):
                    self._armed.add(key)
                    self._due(key[0], {node.name: times})
            elif self._same_round(key[0], node.name, times):
                self._latest[key[0]].by.add(node.name)
            elif eager:
                self._due(key[0], {node.name: times})
            else:
                self._tokens.setdefault(key, {})[node.name] = times

    def _same_round(self, target: str, source: str, times: Counter[str]) -> bool:
        """Whether the target's last turn was for this token, too."""
        last = self._latest.get(target)
        loops = {loop for (_, loop), nodes in self._returns.items() if target in nodes}
        return last is not None and source not in last.by and all(last.times[loop] == times[loop] for loop in loops)

    def _due(self, target: str, tokens: Mapping[str, Counter[str]]) -> None:
        times: Counter[str] = Counter()
        for one in tokens.values():
            times |= one
        made = _Node(target, times, set(tokens))
        self._latest[target] = made
        self._queue.append(made)
        for key in [key for key in self._tokens if key[0] == target]:
            del self._tokens[key]

    def _sources(self, key: tuple[str, str]) -> list[str]:
        return [
            source
            for source, edges in self._edges.items()
            for edge in edges
            if (edge["target"], edge["activation_group"]) == key
        ]

    def _settle(self) -> None:
        """Joins fire that nobody can still add to."""
        while self._tokens:
            ready = [key for key, tokens in self._tokens.items() if not self._expected(key, tokens)]
            if not ready and self._queue:
                return
            key = (ready or list(self._tokens))[0]
            self._due(key[0], self._tokens[key])

    def _expected(self, key: tuple[str, str], tokens: Mapping[str, object]) -> bool:
        """Whether a source that is missing can still have a turn before the target has its own."""
        first = {node.name for node in self._queue} | {target for target, _ in self._tokens}
        return bool((set(self._sources(key)) - set(tokens)) & self._beyond(first - {key[0]}, key[0]))

    def _beyond(self, first: set[str], but: str) -> set[str]:
        """What can be reached from these, not through one of them."""
        found, size = set(first), -1
        while size != len(found):
            size = len(found)
            found |= {edge["target"] for name in found if name != but for edge in self._edges[name]} - {but}
        return found


def explained(run: Callable[[str], Outcome], turns: Sequence[Turn], stop: str) -> str | None:
    """The fewest defects with which the model comes to these turns and this stop; None if none do."""
    for count in range(len(DEFECTS) + 1):
        for defects in combinations(DEFECTS, count):
            found = run("".join(defects))
            if found.stop == stop and Counter(found.turns) == Counter(turns):
                return "".join(defects)
    return None
