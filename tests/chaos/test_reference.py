"""The reference executor, held against expectations written by hand; and the graphs that are drawn for it."""

from __future__ import annotations

from random import Random

import pytest

from convergio.benchmarks import reference, shapes
from convergio.benchmarks.graphs import Gate, Graph, Link, Node
from convergio.benchmarks.reference import Fate
from convergio.graphflow.flow import document
from tests.chaos.histories import graph, random_graph

ALWAYS = Gate(of="input", modulus=2, below=2)
NEVER = Gate(of="input", modulus=2, below=0)


def fates(*nodes: Node) -> dict[str, str]:
    return {name: step.fate.value for name, step in reference.execute(graph(*nodes)).steps.items()}


def test_a_step_whose_condition_is_false_is_skipped_and_a_join_goes_on_without_it() -> None:
    assert fates(
        Node(name="a"),
        Node(name="b", links=(Link(step="a"),), gate=NEVER),
        Node(name="c", links=(Link(step="a"),), gate=ALWAYS),
        Node(name="d", links=(Link(step="b"), Link(step="c"))),
    ) == {"a": "SUCCEEDED", "b": "SKIPPED", "c": "SUCCEEDED", "d": "SUCCEEDED"}


def test_a_join_of_which_no_edge_is_taken_is_skipped_and_so_is_what_follows() -> None:
    assert fates(
        Node(name="a"),
        Node(name="b", links=(Link(step="a"),), gate=NEVER),
        Node(name="c", links=(Link(step="a", gate=NEVER),)),
        Node(name="d", links=(Link(step="b"), Link(step="c"))),
        Node(name="e", links=(Link(step="d"),)),
    ) == {"a": "SUCCEEDED", "b": "SKIPPED", "c": "SKIPPED", "d": "SKIPPED", "e": "SKIPPED"}


def test_what_needs_a_failed_step_is_not_reached() -> None:
    assert fates(
        Node(name="a", flaws=2, retries=1),
        Node(name="b"),
        Node(name="c", links=(Link(step="a"), Link(step="b"))),
        Node(name="d", links=(Link(step="c"),)),
    ) == {"a": "FAILED", "b": "SUCCEEDED", "c": "UNREACHED", "d": "UNREACHED"}


def test_a_step_that_fails_less_often_than_it_may_succeeds_on_a_later_attempt() -> None:
    found = reference.execute(graph(Node(name="a", flaws=2, retries=2)))
    assert (found.state, found.steps["a"].attempt) == ("SUCCEEDED", 3)


def test_a_rejected_approval_fails_the_run() -> None:
    found = reference.execute(graph(Node(name="sign", approval=True, flaws=1)))
    assert (found.state, found.steps["sign"].fate) == ("FAILED", Fate.FAILED)


def test_a_parent_whose_edge_is_not_taken_is_seen_nevertheless() -> None:
    found = reference.execute(
        graph(Node(name="a"), Node(name="b"), Node(name="c", links=(Link(step="a", gate=NEVER), Link(step="b"))))
    )
    assert found.steps["c"].parents.keys() == {"a", "b"}


def test_a_digest_depends_on_every_parent() -> None:
    whole = reference.digest("join", 1, {"a": "x", "b": "y"})
    assert whole != reference.digest("join", 1, {"a": "x"})
    assert whole != reference.digest("join", 1, {"a": "x", "b": "z"})
    assert whole != reference.digest("join", 2, {"a": "x", "b": "y"})
    assert whole == reference.digest("join", 1, {"b": "y", "a": "x"})


@pytest.mark.parametrize("seed", range(40))
def test_every_graph_that_is_drawn_is_a_valid_workflow(seed: int) -> None:
    drawn = random_graph(seed)
    made = document.parse_document(drawn.document())
    assert set(made.steps) == set(drawn.nodes)


def test_the_same_seed_draws_the_same_graphs() -> None:
    first, second = (shapes.draw_many("g", 20, Random(5)) for _ in range(2))
    assert first == second


def test_a_round_has_every_shape_and_every_kind_of_step() -> None:
    drawn: list[Graph] = shapes.draw_many("g", 20, Random(1))
    nodes = [node for one in drawn for node in one.nodes.values()]
    assert {one.shape for one in drawn} == set(shapes.SHAPES)
    assert any(node.approval for node in nodes)
    assert any(node.durable for node in nodes)
    assert any(node.gate for node in nodes)
    assert any(link.gate for node in nodes for link in node.links)
    assert any(0 < node.flaws <= node.retries for node in nodes)
    assert any(node.millis >= 1_000 for node in nodes)
    assert any(node.fails for node in nodes)
