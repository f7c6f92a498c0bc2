"""Random graphs, played in random order with faults, must come to what the reference executor says."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convergio.graphflow.flow import document
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model.states import STEP_TRANSITIONS, RunState, StepState
from tests.property import reference
from tests.property.explorer import LIST, REF, Explorer
from tests.property.reference import Cond, Expected, Node

Draw = Callable[[int], int]

SCHEDULES = int(os.environ.get("CONVERGIO_TEST_SCHEDULES", "4000"))
"""How many histories the fast suite plays; `make prove` plays a hundred thousand."""

PER_GRAPH = 8
MOVES_OF_THE_TABLE = {(source, target) for (source, _), target in STEP_TRANSITIONS.items()}


@dataclass(frozen=True, kw_only=True)
class Play:
    """A graph, its plan and what a run of it must come to."""

    nodes: list[Node]
    n: int
    plan: Plan
    expected: Expected


def make_play(draw: Draw) -> Play:
    """A random graph of up to seven steps."""
    nodes: list[Node] = []
    for index in range(1 + draw(7)):
        nodes.append(make_node("abcdefg"[index], [node.name for node in nodes], nodes, draw))
    n = 3 + 5 * draw(2)
    plan = Plan.of(document.parse_document(reference.document(nodes)))
    return Play(nodes=nodes, n=n, plan=plan, expected=reference.expected(nodes, n))


def make_node(name: str, before: list[str], nodes: list[Node], draw: Draw) -> Node:
    sources = [source for source in before[-4:] if draw(2)]
    ancestors = above(nodes, sources)
    needs = tuple((source, condition([source, *above(nodes, [source])], draw)) for source in sources)
    approval = draw(6) == 0
    ends = ["FAILED", "QUARANTINED"][draw(2)] if draw(12) == 0 else "SUCCEEDED"
    return Node(
        name=name,
        needs=needs,
        when=condition(sorted(ancestors), draw) if draw(3) == 0 else None,
        approval=approval,
        durable=not approval and draw(3) == 0,
        flaky=0 if approval else max(0, draw(4) - 2),
        ends="FAILED" if approval and ends != "SUCCEEDED" else ends,
        ok=draw(4) > 0,
    )


def above(nodes: list[Node], names: list[str]) -> list[str]:
    """`names` and all that they need."""
    found = set(names)
    for node in reversed(nodes):
        if node.name in found:
            found |= {source for source, _ in node.needs}
    return sorted(found)


def condition(steps: list[str], draw: Draw) -> Cond | None:
    """Mostly none; seldom one that cannot be evaluated."""
    kind = draw(40)
    if kind < 22 or not steps:
        return None
    step = steps[draw(len(steps))]
    return Cond("big") if kind < 26 else Cond("ok", step) if kind < 34 else Cond("not_ok" if kind < 39 else "boom", step)


def explore(play: Play, draw: Draw, *, moves: int) -> Explorer:
    """One history of the play, checked."""
    world = Explorer(
        plan=play.plan,
        nodes={node.name: node for node in play.nodes},
        given={"n": play.n},
        draw=draw,
        cancels=draw(6) == 0,
        wipes=draw(3),
    )
    world.play(moves)
    check(world, play)
    return world


def check(world: Explorer, play: Play) -> None:
    """What must hold at the end of every history."""
    ledger, expected = world.ledger, play.expected
    if ledger.state is RunState.SUCCEEDED:
        assert not expected.failing
        assert {step: row.state.value for step, row in ledger.outcomes.items()} == expected.states
        results = {name: expected.results.get(name) for name in expected.states}
        assert ledger.output == results
    elif ledger.state is RunState.FAILED:
        assert ledger.error is not None
        assert ledger.error["step"] in expected.failing
    else:
        assert ledger.cancel_requested
    for step, row in ledger.outcomes.items():
        assert row.state.value in (expected.states[step], StepState.CANCELLED.value), step
        if row.state is StepState.CANCELLED:
            assert ledger.state is not RunState.SUCCEEDED
    assert world.ran <= {step for step, state in expected.states.items() if state in RUNS}
    assert world.board.moves - MOVES_OF_THE_TABLE == set()
    check_order(world, play)
    check_nothing_is_left(world)


RUNS = ("SUCCEEDED", "FAILED", "QUARANTINED")


def check_order(world: Explorer, play: Play) -> None:
    """Outcomes are in SQL after those that they follow from, and the run's end is last."""
    rows = world.ledger.outcomes
    place = {step: (row.epoch, row.stream_seq) for step, row in rows.items()}
    for node in play.nodes:
        if node.name in rows and rows[node.name].state is not StepState.CANCELLED:
            for source, _ in node.needs:
                early = rows[node.name].state is StepState.FAILED and node.name not in world.ran
                assert early or place[source] < place[node.name], f"{node.name} before {source}"


def check_nothing_is_left(world: Explorer) -> None:
    board = world.board
    assert board.leases == {}
    assert board.timers == {}
    assert board.parked == {}
    assert board.inboxes == {}
    assert board.lists.get(LIST, []) == []
    run = board.run(REF)
    if run is not None:
        assert run.inbox == []
        assert "@lock" not in run.values


def histories(count: int, seed: int) -> Iterator[Explorer]:
    """So many histories, several of each graph."""
    draw = random.Random(seed).randrange
    for index in range(count):
        if index % PER_GRAPH == 0:
            play = make_play(draw)
        yield explore(play, draw, moves=20 + draw(100))


def test_random_histories_come_to_what_the_reference_says() -> None:
    seen: Counter[str] = Counter()
    for world in histories(SCHEDULES, seed=20261123):
        seen[world.ledger.state.value] += 1
    assert seen.total() == SCHEDULES
