"""Random graphs, played in random order with faults, come to what the reference executor says."""

from __future__ import annotations

import dataclasses
import os
import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convergio.graphflow.model.states import TERMINAL_RUN, StepState
from tests.property import explorer
from tests.property.explorer import ALLOWED
from tests.property.reference import Cond, Node, expected

SCHEDULES = int(os.environ.get("CONVERGIO_TEST_SCHEDULES", "100000"))
"""How many histories are played: about 4 ms each."""

PARTS = 10
PER_GRAPH = 8

FAULTS = {
    *["a doorbell comes twice", "a doorbell gets lost", "a doorbell is refused: DUPLICATE"],
    *["a doorbell is refused: STOPPED", "a worker dies", "a worker dies before it drains", "a lease is over"],
    *["a claim is asserted after a rebuild", "a claim is not given back after a rebuild", "a fact is recorded"],
    *["a step is given back", "a step is deferred", "an attempt is retried", "an answer to a worker gets lost"],
    *["a stale worker is refused", "a signal had come early", "a drainer dies with the lock"],
    *["a decision is overtaken", "a decision is split", "an answer to a drainer gets lost", "a wake-up gets lost"],
    *["a cancel is asked for", "an entry comes twice", "a step is put in quarantine", "an outcome is released"],
    *["the journaler dies before it releases", "the journaler dies before it drains"],
    *["a board is wiped", "a board is restarted", "a shortcut is taken", "a shortcut is refused"],
    *["run.paused", "run.resumed", "a wish gets lost", "a wish is granted late", "a paused run is rebuilt"],
    *["a run is paused before it starts", "a step is declined", "a join runs before all its needs are resolved"],
    *[f"join {kind}: {end}" for kind in ("all", "any", "quorum", "tolerate") for end in ("started", "skipped")],
    *["a run survives FAILED", "a run survives QUARANTINED", "a signal comes twice"],
    *["a signal is applied", "a signal is kept", "a signal is late", "a signal ends several waits"],
    *["a timer is due: TIMER", "a timer is due: SIGNAL", "a timer is due: QUEUE", "a timer comes too late"],
    *["a drainer dies before it asks for a key", "a grant is not rung", "a step waits for its turn", "a key is shared"],
    *["a key is held again after a rebuild"],
    *["a child ends", "a child fails", "a child's end gets lost"],
    *["a run is undone", "an undone run is cancelled", "an undo fails", "a run has nothing to undo"],
    *[f"an answer: {said}" for said in ("retry", "skip", "fail", "compensate")],
    *["an answer to no question", "a step asks", "a step asks and leaves its key"],
    *["a wait takes its time", "a wait times out", "a queue timeout"],
    *[f"a map succeeds: {kind}" for kind in ("all", "any", "quorum", "tolerate")],
    *["an item waits for its turn", "an item is withdrawn", "a loop goes back", "a loop goes on after all its rounds"],
}
"""What a suite of histories must have seen, each more than once in five hundred of them."""

Move = tuple[StepState, StepState]


def histories(seed: int, count: int) -> tuple[Counter[str], set[int], set[Move]]:
    """So many checked histories, several of each graph: how they ended and what they met, which orders, which moves."""
    met: Counter[str] = Counter()
    orders: set[int] = set()
    moves: set[Move] = set()
    draw = random.Random(seed).randrange
    play = explorer.make_play(draw)
    for index in range(count):
        if index % PER_GRAPH == PER_GRAPH - 1:
            play = explorer.make_play(draw)
        try:
            world = explorer.explore(play, draw, moves=20 + draw(100))
        except AssertionError as error:
            raise AssertionError(f"history {index} of seed {seed}: {error}\n{play.nodes}") from error
        met.update(["histories", world.ledger.state.value, *world.met.elements()])
        orders.add(hash((index // PER_GRAPH, seed, *world.trace)))
        moves |= world.board.moves
    return met, orders, moves


def too_few(met: Counter[str], orders: set[int], moves: set[Move], count: int) -> dict[str, int | set[Move]]:
    """What the histories saw too seldom, or did not do at all; nothing if they were as different as they claim."""
    rare: dict[str, int | set[Move]] = {fault: met[fault] for fault in FAULTS if met[fault] < count / 500}
    rare |= {state: met[state] for state in ("SUCCEEDED", "FAILED", "CANCELLED") if met[state] <= count / 50}
    if len(orders) <= 0.99 * count:
        rare["different histories"] = len(orders)
    if odd := moves ^ (ALLOWED - UNUSED):
        rare["transitions"] = odd
    return rare


UNUSED = {(StepState.WAITING, StepState.CANCELLED)}
"""Transitions of the table that nothing performs yet."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(PARTS))
def test_random_histories_come_to_what_the_reference_says(seed: int) -> None:
    count = SCHEDULES // PARTS
    met, orders, moves = histories(seed, count)
    assert met["histories"] == count
    assert too_few(met, orders, moves, count) == {}


@given(data=st.data())
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
def test_no_small_history_goes_wrong(data: st.DataObject) -> None:
    """The same with choices that hypothesis makes: what it finds it reports by its shortest form."""

    def draw(bound: int) -> int:
        return data.draw(st.integers(0, bound - 1))

    play = explorer.make_play(draw)
    world = explorer.explore(play, draw, moves=draw(30))
    assert world.ledger.state in TERMINAL_RUN


# --- the reference itself ---------------------------------------------------------------------------------------------


def states(*nodes: Node, n: int = 0) -> dict[str, str]:
    return dict(expected(nodes, n).states)


def test_the_reference_skips_dead_paths_and_joins_what_lives() -> None:
    assert states(
        Node(name="a", ok=False),
        Node(name="b", needs=(("a", Cond("ok", "a")),)),
        Node(name="c", needs=(("b", None),)),
        Node(name="d", needs=(("a", Cond("not_ok", "a")), ("c", None))),
    ) == {"a": "SUCCEEDED", "b": "SKIPPED", "c": "SKIPPED", "d": "SUCCEEDED"}


def test_the_reference_reaches_nothing_behind_a_failure_but_what_a_broken_condition_fails() -> None:
    assert states(
        Node(name="a", ends="FAILED"),
        Node(name="b"),
        Node(name="c", needs=(("a", None), ("b", None))),
        Node(name="d", needs=(("a", None), ("b", Cond("boom", "b")))),
    ) == {"a": "FAILED", "b": "SUCCEEDED", "c": "NEVER", "d": "FAILED"}


def test_the_reference_starts_a_join_as_its_policy_says() -> None:
    """a is taken, b is skipped, c fails and the run goes on, d fails and ends it, so that e is never reached."""
    parents = [
        Node(name="a"),
        Node(name="b", when=Cond("big")),
        Node(name="c", ends="FAILED", lenient=True),
        Node(name="d", ends="FAILED"),
        Node(name="e", needs=(("d", None),)),
    ]

    def joined(kind: str, count: int, needs: str) -> str:
        join = Node(name="j", needs=tuple((name, None) for name in needs), join=(kind, count))
        return states(*parents, join)["j"]

    assert [joined("all", 0, needs) for needs in ("ab", "b", "ac", "ae")] == [
        "SUCCEEDED",
        "SKIPPED",
        "SUCCEEDED",
        "NEVER",
    ]
    assert [joined("any", 0, needs) for needs in ("ae", "b", "be", "c")] == [
        "SUCCEEDED",
        "SKIPPED",
        "NEVER",
        "SUCCEEDED",
    ]
    assert [joined("quorum", 2, needs) for needs in ("ace", "abe", "abb")] == ["SUCCEEDED", "NEVER", "SKIPPED"]
    assert [joined("tolerate", 1, needs) for needs in ("abc", "abe", "bbe")] == ["SUCCEEDED", "NEVER", "SKIPPED"]


def test_the_reference_reads_nothing_from_a_failure_that_the_run_survives() -> None:
    assert states(
        Node(name="a", ends="QUARANTINED", lenient=True),
        Node(name="b", needs=(("a", Cond("ok", "a")),)),
        Node(name="c", needs=(("a", Cond("not_ok", "a")),)),
    ) == {"a": "QUARANTINED", "b": "SKIPPED", "c": "SUCCEEDED"}


def test_the_reference_takes_the_end_of_a_race_from_who_saw_it() -> None:
    nodes = [Node(name="a", signal="yes", timeout=2, lenient=True), Node(name="b", needs=(("a", Cond("ok", "a")),))]
    ends = {end: dict(expected(nodes, 0, {"a": end}).states)["b"] for end in ("SUCCEEDED", "FAILED")}
    assert ends == {"SUCCEEDED": "SUCCEEDED", "FAILED": "SKIPPED"}
    assert states(*nodes) == {"a": "NEVER", "b": "NEVER"}


def test_a_history_that_goes_wrong_is_seen() -> None:
    """The checks have teeth: a play that expects something else fails."""
    nodes = [Node(name="a"), Node(name="b", needs=(("a", Cond("ok", "a")),))]
    draw = random.Random(1).randrange
    play = explorer.play_of(nodes, n=0)
    assert explorer.explore(play, draw, moves=40).ledger.outcomes.keys() == {"a", "b"}
    wrong = [Node(name="a", ok=False), nodes[1]]
    with pytest.raises(AssertionError):
        explorer.explore(dataclasses.replace(play, judge=wrong), draw, moves=40)
