"""What a run must come to: the same graph executed by a hundred plain lines, in order, without an engine.

Imports nothing of the engine. A node's output is a digest over its name, the run's value and the digests of the parents
whose edges were taken, so a step that saw too little, or something else, has another digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from convergio.benchmarks.graphs import Gate, Graph, Node


class Fate(StrEnum):
    """How a step ends. UNREACHED: what it needs failed, so it never gets its turn."""

    SUCCEEDED = "SUCCEEDED"
    SKIPPED = "SKIPPED"
    FAILED = "FAILED"
    UNREACHED = "UNREACHED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What must become of one step. `parents`: those whose outputs it must have seen."""

    fate: Fate
    digest: str = ""
    attempt: int = 1
    parents: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What must become of one run."""

    state: str
    steps: Mapping[str, Expected]

    def of(self, fate: Fate) -> frozenset[str]:
        """The steps with this fate."""
        return frozenset(name for name, step in self.steps.items() if step.fate is fate)


def digest(step: str, value: int, parents: Mapping[str, str]) -> str:
    """32 hex characters for a step's output: its own name, the run's value, what its parents gave."""
    text = json.dumps([step, value, sorted(parents.items())])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def value_of(text: str) -> int:
    """The number in a digest that conditions are about, below 2**24."""
    return int(text[:6], 16)


def execute(graph: Graph) -> Expectation:
    """Runs the graph. Its nodes are listed after their parents."""
    steps: dict[str, Expected] = {}
    for node in graph.nodes.values():
        steps[node.name] = _step(graph, node, steps)
    failed = any(step.fate is Fate.FAILED for step in steps.values())
    return Expectation(state="FAILED" if failed else "SUCCEEDED", steps=steps)


def _step(graph: Graph, node: Node, done: Mapping[str, Expected]) -> Expected:
    parents = {link.step: done[link.step] for link in node.links}
    if any(parent.fate in (Fate.FAILED, Fate.UNREACHED) for parent in parents.values()):
        return Expected(fate=Fate.UNREACHED)
    succeeded = {name: parent for name, parent in parents.items() if parent.fate is Fate.SUCCEEDED}
    taken = [link for link in node.links if link.step in succeeded and _holds(link.gate, succeeded[link.step])]
    own = node.gate is None or node.gate.holds(graph.value)
    if not own or (node.links and not taken):
        return Expected(fate=Fate.SKIPPED)
    seen = {} if node.approval else {name: parent.digest for name, parent in succeeded.items()}
    return Expected(
        fate=Fate.FAILED if node.fails else Fate.SUCCEEDED,
        digest="" if node.fails else digest(node.name, graph.value, seen),
        attempt=1 if node.approval else min(node.flaws, node.retries) + 1,
        parents=frozenset(seen),
    )


def _holds(gate: Gate | None, parent: Expected) -> bool:
    return gate is None or gate.holds(value_of(parent.digest))
