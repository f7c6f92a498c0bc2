"""What a run must come to: the same graph executed by plain lines, in order, without an engine.

Imports nothing of the engine. A step's output is a digest over its name, the run's value and the digests of what it was
given, so a step that saw too little, or something else, has another digest. A step in a loop has an outcome for each
round, a talk one for each turn, a map one for each item, under names like `s2#1` and `s2#4000` (see `instance`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from convergio.benchmarks.graphs import Gate, Graph, Items, Node
from convergio.benchmarks.talks import Talk


class Fate(StrEnum):
    """How a step ends. UNREACHED: what it needs failed, so it never gets its turn."""

    SUCCEEDED = "SUCCEEDED"
    SKIPPED = "SKIPPED"
    FAILED = "FAILED"
    UNREACHED = "UNREACHED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What must become of one instance of a step.

    `after`: the instances that end before it begins. `parents`: what it must have seen, by the names under which bodies
    write that down, and the instances that it is of. `gives`: the same of those who see it. `exhausted`: its loop ends
    the run.
    """

    node: Node
    fate: Fate
    digest: str = ""
    attempt: int = 1
    after: tuple[str, ...] = ()
    parents: Mapping[str, str] = field(default_factory=dict[str, str])
    gives: Mapping[str, str] = field(default_factory=dict[str, str])
    members: tuple[str, ...] = ()
    member: bool = False
    exhausted: bool = False

    @property
    def ends_the_run(self) -> bool:
        """Whether the run fails with it."""
        failed = self.fate is Fate.FAILED and not self.node.lenient and not self.member
        return failed or self.exhausted


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What must become of one run; `steps` are instances, each after those it needs."""

    state: str
    steps: Mapping[str, Expected]

    def of(self, fate: Fate) -> frozenset[str]:
        """The instances with this fate."""
        return frozenset(name for name, step in self.steps.items() if step.fate is fate)


def instance(step: str, turn: int = 0, place: int = -1) -> str:
    """The name of a step in a round of its loop, both from 0, or for an item of its map, from 0 as well."""
    number = (place + 1) * 1000 + turn
    return f"{step}#{number}" if number else step


def digest(step: str, value: int, parents: Mapping[str, str]) -> str:
    """32 hex characters for a step's output: its own name, the value it is given, what its parents gave."""
    text = json.dumps([step, value, sorted(parents.items())])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def value_of(text: str) -> int:
    """The number in a digest that conditions are about, below 2**24."""
    return int(text[:6], 16)


def numbers(text: str, count: int) -> list[int]:
    """What a step gives for a map."""
    return [value_of(text) + place for place in range(count)]


def seen(output: Any) -> tuple[str, Mapping[str, str]]:
    """The digest of what a step gave, and by whom: "" for a step, "[3]" for an item. Of a child: its last step's; of a
    talk that of what was said last, by nobody's claim."""
    if isinstance(output, list):
        items: Sequence[Any] = output  # pyright: ignore[reportUnknownVariableType]
        there = {f"[{place}]": str(one["by"]) for place, one in enumerate(items) if one is not None}
        return digest("", 0, {str(place): one["digest"] for place, one in enumerate(items) if one is not None}), there
    if "out" in output:
        return seen(output["out"]) if output["out"] is not None else ("", {})
    if "speaker" in output:
        return said(output["text"]), {"": ""}
    return str(output["digest"]), {"": str(output.get("by", ""))}


def said(text: str) -> str:
    """The digest of a turn: of what was said in it."""
    return digest("", 0, {"text": text})


def execute(graph: Graph) -> Expectation:
    """Runs the graph. Its nodes are listed after their parents."""
    made = _Execution(graph)
    regions = {end.loop.back_to: graph.region(end) for end in graph.nodes.values() if end.loop is not None}
    looped = graph.looped
    for node in graph.nodes.values():
        if node.name in regions:
            made.loop(regions[node.name])
        elif node.talk is not None:
            made.talk(node, node.talk)
        elif node.name not in looped:
            made.step(node)
    failed = any(step.ends_the_run for step in made.steps.values())
    return Expectation(state="FAILED" if failed else "SUCCEEDED", steps=made.steps)


class _Execution:
    def __init__(self, graph: Graph) -> None:
        self.value = graph.value
        self.steps: dict[str, Expected] = {}
        self.last: dict[str, str] = {}
        """of each step, the instance that others see"""

    def loop(self, region: Sequence[Node]) -> None:
        end, turn = region[-1], 0
        assert end.loop is not None
        while True:
            for node in region:
                self.step(node, turn, since=self.last.get(end.name, "") if node is region[0] else "")
            name = self.last[end.name]
            turn, done = turn + 1, self.steps[name]
            if done.fate is not Fate.SUCCEEDED or _holds(end.loop.until, done):
                return
            if turn == end.loop.most:
                self.steps[name] = replace(done, exhausted=not end.loop.goes_on)
                return

    def talk(self, node: Node, talk: Talk) -> None:
        """Its turns, one after the other."""
        for turn, speech in enumerate(talk.turns):
            self.step(node, turn, since=self.last.get(node.name, ""))
            name = self.last[node.name]
            if self.steps[name].fate is not Fate.SUCCEEDED:
                return
            attempt = 2 if speech.failure else 1
            self.steps[name] = replace(self.steps[name], digest=said(speech.text), attempt=attempt, parents={})

    def step(self, node: Node, turn: int = 0, since: str = "") -> None:
        """One instance, which begins after `since`. What it sees of the last round is there already."""
        name = instance(node.name, turn)
        parents = {link.step: self.last[link.step] for link in node.links}
        back = {node.sees: self.last[node.sees]} if node.sees in self.last else {}
        after = tuple(dict.fromkeys([*parents.values(), *back.values(), *([since] if since else [])]))
        self.steps[name] = replace(self._outcome(name, node, {**parents, **back}), after=after)
        self.last[node.name] = name

    def _outcome(self, name: str, node: Node, parents: Mapping[str, str]) -> Expected:
        found = {parent: self.steps[one] for parent, one in parents.items()}
        if any(one.fate is Fate.UNREACHED or one.ends_the_run for one in found.values()):
            return Expected(node=node, fate=Fate.UNREACHED)
        passed = {parent: one for parent, one in found.items() if one.fate is not Fate.SKIPPED}
        taken = [link for link in node.links if link.step in passed and _holds(link.gate, passed[link.step])]
        own = node.gate is None or node.gate.holds(self.value)
        if not own or (node.links and not taken):
            return Expected(node=node, fate=Fate.SKIPPED)
        given = {parent: one for parent, one in found.items() if one.fate is Fate.SUCCEEDED}
        if node.child is not None:
            return self._child(node, node.child)
        digests = {} if node.approval else {parent: one.digest for parent, one in given.items()}
        seen_by = {} if node.approval else _seen_by(given)
        if node.items is not None:
            return self._map(node, node.items, given[node.items.over].digest, digests, seen_by)
        text = "" if node.fails else digest(name, self.value, digests)
        gives = {} if node.fails else {"": name}
        return Expected(
            node=node,
            fate=Fate.FAILED if node.fails else Fate.SUCCEEDED,
            digest=text,
            attempt=_attempts(node, node.flaws),
            parents=seen_by,
            gives=gives,
        )

    def _map(
        self, node: Node, items: Items, dealt: str, digests: Mapping[str, str], seen_by: Mapping[str, str]
    ) -> Expected:
        """Its items are instances of their own; what it gives is what those gave that succeeded."""
        given = numbers(dealt, len(items.flaws))
        gives: dict[str, str] = {}
        for place, (flaws, value) in enumerate(zip(items.flaws, given, strict=True)):
            name, fails = instance(node.name, 0, place), flaws > node.retries
            self.steps[name] = Expected(
                node=node,
                fate=Fate.FAILED if fails else Fate.SUCCEEDED,
                digest="" if fails else digest(name, value, digests),
                attempt=_attempts(node, flaws),
                after=tuple(self.last[link.step] for link in node.links),
                parents=seen_by,
                member=True,
            )
            if not fails:
                gives[f"[{place}]"] = name
        bad = len(items.flaws) - len(gives)
        whole = digest("", 0, {place[1:-1]: self.steps[name].digest for place, name in gives.items()})
        fate = Fate.SUCCEEDED if bad <= items.tolerate else Fate.FAILED
        members = tuple(instance(node.name, 0, place) for place in range(len(items.flaws)))
        return Expected(node=node, fate=fate, digest=whole, gives=gives, members=members)

    def _child(self, node: Node, graph: Graph) -> Expected:
        """A run of its own; what it gives is what its last step gave, whose name stands behind the child's."""
        found = execute(replace(graph, value=self.value))
        if found.state == "FAILED":
            return Expected(node=node, fate=Fate.FAILED)
        last = [one for name, one in found.steps.items() if not one.member and one.node.name == graph.end.name][-1]
        gives = {place: f"{node.name}/{name}" for place, name in last.gives.items()}
        return Expected(node=node, fate=Fate.SUCCEEDED, digest=last.digest, gives=gives)


def _seen_by(given: Mapping[str, Expected]) -> dict[str, str]:
    """The names under which bodies write down what they saw, and of which instance it is."""
    return {f"{parent}{place}": name for parent, one in given.items() for place, name in one.gives.items()}


def _attempts(node: Node, flaws: int) -> int:
    return 1 if node.approval else min(flaws, node.retries if node.answer != "retry" else flaws) + 1


def _holds(gate: Gate | None, parent: Expected) -> bool:
    return gate is None or gate.holds(value_of(parent.digest))
