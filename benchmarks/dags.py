"""Whole graphs of other people's workflows: how near their makespan comes to that of a scheduler that costs nothing.

`convergio bench dags --dir D [--mean-ms M] [--rounds N]`. D holds JSON files: `nodes: [{id, parents, runtime_s}]`, as
WfCommons' instances have them. Every node becomes a step that sleeps its run time, scaled so that the mean is M ms, on
one worker with eight threads. The yardstick is a list schedule on eight machines, the longest remaining path first,
simulated. The last line on stdout is one JSON object; exit code 1 if a graph runs out of order, or if the worst ratio
is over the bound.
"""

from __future__ import annotations

import argparse
import heapq
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from convergio.benchmarks import ours, rig
from convergio.benchmarks.bodies import SLEEP
from convergio.graphflow.journal.rows import OutcomeRow
from convergio.graphflow.model.workflow import Durability, Workflow

MACHINES: Final = 8
BOUND: Final = 1.10


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One task: the seconds it sleeps here, and whom it waits for."""

    name: str
    seconds: float
    parents: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dag:
    """A graph with scaled run times, in topological order."""

    name: str
    nodes: Mapping[str, Node]

    @classmethod
    def of(cls, document: Mapping[str, Any], *, mean_s: float) -> Dag:
        """From a file's content; ValueError if it has a cycle or a parent that is not there."""
        given = {str(node["id"]): node for node in document["nodes"]}
        scale = mean_s / statistics.mean(float(node["runtime_s"]) for node in given.values())
        names = {old: f"n{number}" for number, old in enumerate(given)}
        nodes = {
            names[old]: Node(
                name=names[old],
                seconds=float(node["runtime_s"]) * scale,
                parents=tuple(names[str(parent)] for parent in node["parents"]),
            )
            for old, node in given.items()
        }
        return cls(name=str(document["name"]), nodes=_ordered(nodes))

    def workflow(self) -> Workflow:
        """The graph as a workflow of sleeping steps, whose expected times are known."""
        steps = {
            node.name: {
                "task": SLEEP,
                "with": {"seconds": node.seconds},
                "needs": list(node.parents),
                "expected": max(node.seconds, 1e-6),
            }
            for node in self.nodes.values()
        }
        return ours.workflow("dag", steps, Durability.STREAM)


def _ordered(nodes: Mapping[str, Node]) -> dict[str, Node]:
    done: dict[str, Node] = {}
    while len(done) < len(nodes):
        ready = [node for node in nodes.values() if node.name not in done and all(one in done for one in node.parents)]
        if not ready:
            raise ValueError("the graph has a cycle, or names a parent that is not there")
        done |= {node.name: node for node in ready}
    return done


def list_schedule(dag: Dag, machines: int = MACHINES) -> float:
    """The makespan (seconds) of greedy scheduling by the longest remaining path, where nothing costs time but work."""
    children: dict[str, list[str]] = {name: [] for name in dag.nodes}
    for node in dag.nodes.values():
        for parent in node.parents:
            children[parent].append(node.name)
    rank: dict[str, float] = {}
    for name in reversed(list(dag.nodes)):
        rank[name] = dag.nodes[name].seconds + max((rank[child] for child in children[name]), default=0.0)
    waits = {name: len(node.parents) for name, node in dag.nodes.items()}
    ready = [(-rank[name], name) for name, count in waits.items() if count == 0]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < machines:
            _, name = heapq.heappop(ready)
            heapq.heappush(running, (now + dag.nodes[name].seconds, name))
        now, ended = heapq.heappop(running)
        for child in children[ended]:
            waits[child] -= 1
            if waits[child] == 0:
                heapq.heappush(ready, (-rank[child], child))
    return now


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """One run of a graph: whether the journal shows it in order, each task once; and its makespan in seconds."""

    correct: bool
    makespan_s: float


def replay(stack: ours.Ours, dag: Dag) -> Replay:
    """Runs the graph, and reads from the journal what happened."""
    run = stack.submit(dag.workflow())
    (row,) = stack.wait_journaled([run])
    rows: dict[str, OutcomeRow] = {}
    for outcome in stack.outcomes(run):
        if outcome.step in rows:
            return Replay(correct=False, makespan_s=0.0)
        rows[outcome.step] = outcome
    ends = [outcome.finished_ms or 0 for outcome in rows.values()]
    in_order = rows.keys() == dag.nodes.keys() and all(
        (rows[parent].finished_ms or 0) <= (rows[node.name].started_ms or 0)
        for node in dag.nodes.values()
        for parent in node.parents
    )
    return Replay(correct=in_order, makespan_s=(max(ends) - (row.started_ms or 0)) / 1000)


def measured(stack: ours.Ours, dag: Dag, rounds: int) -> dict[str, Any]:
    """The result fields of one graph; the ratio is the median of the rounds."""
    ideal = list_schedule(dag)
    replay(stack, dag)  # every process knows the definition: that is paid once, not in every run
    runs = [replay(stack, dag) for _ in range(rounds)]
    ratio = statistics.median(run.makespan_s for run in runs) / ideal
    return {
        "tasks": len(dag.nodes),
        "correct": all(run.correct for run in runs),
        "makespan_ratio": round(ratio, 4),
        "makespan_s": round(statistics.median(run.makespan_s for run in runs), 4),
        "list_schedule_s": round(ideal, 4),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Replays every graph, prints, and says whether order and bound hold."""
    arguments = parser().parse_args(argv)
    files = sorted(Path(arguments.dir).glob("*.json"))
    if not files:
        parser().error(f"no *.json in {arguments.dir}")
    dags = [Dag.of(json.loads(file.read_text()), mean_s=arguments.mean_ms / 1000) for file in files]
    graphs: dict[str, dict[str, Any]] = {}
    with rig.folder() as place, rig.server(place) as url:
        journal = f"sqlite:///{place.path}/journal.sqlite3"
        with ours.stack(
            place, url, journal_url=journal, events=False, workers=1, pool="threads", concurrency=MACHINES
        ) as stack:
            for dag in dags:
                rig.say(f"{dag.name}: {len(dag.nodes)} tasks")
                graphs[dag.name] = measured(stack, dag, arguments.rounds)
    worst = max(graph["makespan_ratio"] for graph in graphs.values())
    print(json.dumps({"graphs": graphs, "worst_ratio": worst, "machines": MACHINES, "mean_ms": arguments.mean_ms}))
    return 0 if worst <= arguments.bound and all(graph["correct"] for graph in graphs.values()) else 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="convergio bench dags", description=__doc__)
    made.add_argument("--dir", required=True, metavar="D", help="folder of graphs")
    made.add_argument("--mean-ms", type=float, default=100.0, help="mean of the scaled run times (default 100)")
    made.add_argument("--rounds", type=int, default=3, help="runs of each graph; figures are medians (default 3)")
    made.add_argument("--bound", type=float, default=BOUND, help="worst ratio that is accepted (default 1.10)")
    made.add_argument("--json", action="store_true", help="the result is JSON in any case")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
