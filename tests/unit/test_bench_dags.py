"""The yardstick of `convergio bench dags`, and the order in which a plan rings: by the longest way that is left."""

from __future__ import annotations

from typing import Any

import pytest

from convergio.benchmarks.dags import Dag, list_schedule
from convergio.graphflow.flow import document
from convergio.graphflow.flow.plan import Plan


def dag(**nodes: tuple[float, list[str]]) -> Dag:
    """A graph of (run time, parents), whose mean run time stays as it is."""
    given = [{"id": name, "runtime_s": seconds, "parents": parents} for name, (seconds, parents) in nodes.items()]
    mean = sum(seconds for seconds, _ in nodes.values()) / len(nodes)
    return Dag.of({"name": "g", "nodes": given}, mean_s=mean)


def test_a_chain_takes_the_sum_however_many_machines_there_are() -> None:
    chain = dag(a=(1, []), b=(2, ["a"]), c=(3, ["b"]))
    assert list_schedule(chain, 8) == list_schedule(chain, 1) == pytest.approx(6)


def test_independent_tasks_share_the_machines() -> None:
    nobody: list[str] = []
    wide = dag(**{f"t{number}": (1.0, nobody) for number in range(10)})
    assert list_schedule(wide, 8) == pytest.approx(2)
    assert list_schedule(wide, 10) == pytest.approx(1)


def test_the_longest_remaining_path_goes_first() -> None:
    """Two machines: the short task that a long one waits for must not be last."""
    graph = dag(x=(2, []), y=(2, []), first=(1, []), long=(4, ["first"]))
    assert list_schedule(graph, 2) == pytest.approx(5)


def test_run_times_are_scaled_to_the_mean() -> None:
    nodes: list[dict[str, Any]] = [
        {"id": "a", "runtime_s": 10, "parents": []},
        {"id": "b", "runtime_s": 30, "parents": ["a"]},
    ]
    made = Dag.of({"name": "g", "nodes": nodes}, mean_s=0.1)
    assert [node.seconds for node in made.nodes.values()] == pytest.approx([0.05, 0.15])


@pytest.mark.parametrize("parents", [["b"], ["nobody"]])
def test_a_graph_that_has_no_order_is_refused(parents: list[str]) -> None:
    nodes: list[dict[str, Any]] = [{"id": "a", "runtime_s": 1, "parents": parents}]
    nodes += [{"id": "b", "runtime_s": 1, "parents": ["a"]}] if parents == ["b"] else []
    with pytest.raises((ValueError, KeyError)):
        Dag.of({"name": "g", "nodes": nodes}, mean_s=1)


def test_a_plan_rings_the_critical_path_first() -> None:
    graph = dag(
        short=(1, []), root=(1, []), mid=(2, ["root"]), tail=(9, ["mid"]), side=(1, ["root"]), last=(3, ["side"])
    )
    plan = Plan.of(graph.workflow())
    names = dict(
        zip(("short", "root", "mid", "tail", "side", "last"), ("n0", "n1", "n2", "n3", "n4", "n5"), strict=True)
    )
    assert plan.roots == (names["root"], names["short"])
    assert [edge.target for edge in plan.successors[names["root"]]] == [names["mid"], names["side"]]


def test_without_expected_times_the_order_is_that_of_the_document() -> None:
    steps = {name: {"task": "m.f"} for name in ("b", "a", "c")}
    workflow = document.parse_document({"workflow": "w", "version": 1, "steps": steps})
    assert Plan.of(workflow).roots == tuple(workflow.steps)
