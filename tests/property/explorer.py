"""One run, played on the model board by everybody who has a hand in it, in an order that `draw` chooses.

Workers claim, run, die, come back too late; drainers read, decide and commit in separate moves, lose their lock, lose
answers; the journaler lags; doorbells get lost or come twice; the board is wiped. After the chaos everybody does what
is left to do, and the run must have come to what `reference` says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from convergio.graphflow.flow import document
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model.states import STEP_TRANSITIONS, RunState, StepState
from tests.property import clerk, hands, reference
from tests.property.reference import Cond, Expected, Node
from tests.property.world import LIST, REF, Draw, World

Move = Callable[[World], None]

MOVES: Final[Sequence[Move]] = [
    *[hands.think] * 6,
    *[hands.deliver] * 4,
    *[hands.work] * 4,
    *[clerk.journal] * 2,
    *[clerk.pass_time, clerk.sweep, clerk.ring_lost, clerk.signal, clerk.apply_rows],
    *[hands.replay, hands.haunt, clerk.repeat, clerk.cancel, clerk.wipe],
]
SETTLING: Final[Sequence[Move]] = [
    *[clerk.journal, clerk.sweep, clerk.ring_lost, clerk.signal, clerk.apply_rows, clerk.pass_time]
]
ALLOWED: Final = frozenset((source, target) for (source, _), target in STEP_TRANSITIONS.items())
RUNS: Final = ("SUCCEEDED", "FAILED", "QUARANTINED")


# --- what is played ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Play:
    """A graph, its plan and what a run of it must come to."""

    nodes: Sequence[Node]
    n: int
    plan: Plan
    expected: Expected


def make_play(draw: Draw) -> Play:
    """A random graph of up to seven steps."""
    nodes: list[Node] = []
    for index in range(1 + draw(7)):
        nodes.append(_node("abcdefg"[index], nodes, draw))
    return play_of(nodes, reference.THRESHOLD - 2 + 5 * draw(2))


def play_of(nodes: Sequence[Node], n: int) -> Play:
    """The graph of `nodes` on the input n."""
    plan = Plan.of(document.parse_document(reference.document(nodes)))
    return Play(nodes=nodes, n=n, plan=plan, expected=reference.expected(nodes, n))


def _node(name: str, nodes: Sequence[Node], draw: Draw) -> Node:
    sources = [node.name for node in nodes[-4:] if draw(2)]
    approval, ends = draw(6) == 0, "SUCCEEDED"
    if draw(12) == 0:
        ends = "FAILED" if approval or draw(3) == 0 else "QUARANTINED"
    return Node(
        name=name,
        needs=tuple((source, _condition(_above(nodes, [source]), draw)) for source in sources),
        when=_condition(_above(nodes, sources), draw) if draw(3) == 0 else None,
        approval=approval,
        durable=not approval and draw(3) == 0,
        flaky=0 if approval else max(0, draw(4) - 2),
        ends=ends,
        ok=draw(4) > 0,
    )


def _above(nodes: Sequence[Node], names: Sequence[str]) -> list[str]:
    """`names` and all that they need."""
    found = set(names)
    for node in reversed(nodes):
        if node.name in found:
            found |= {source for source, _ in node.needs}
    return sorted(found)


def _condition(steps: Sequence[str], draw: Draw) -> Cond | None:
    """Mostly none; seldom one that cannot be evaluated."""
    kind = draw(40)
    if kind < 22 or not steps:
        return None
    step = steps[draw(len(steps))]
    names = ["big"] * 4 + ["ok"] * 8 + ["not_ok"] * 5 + ["boom"]
    return Cond(names[kind - 22], step)


# --- playing ----------------------------------------------------------------------------------------------------------


def explore(play: Play, draw: Draw, *, moves: int) -> World:
    """One history of the play: so many random moves with faults, then everything that is left, without. Checked."""
    nodes = {node.name: node for node in play.nodes}
    world = World(
        plan=play.plan, nodes=nodes, given={"n": play.n}, draw=draw, cancels=draw(6) == 0, wipes=max(0, draw(4) - 1)
    )
    clerk.start(world)
    for _ in range(moves):
        move = world.pick(MOVES)
        world.trace.append(move.__name__)
        move(world)
    settle(world)
    check(world, play)
    return world


def settle(world: World) -> None:
    """Everybody does what is left, time passes, and so on until the run has ended."""
    world.faults = False
    for _ in range(100):
        if _settled(world):
            return
        for move in SETTLING:
            move(world)
        while world.drainers or world.bells():
            hands.think(world)
            hands.deliver(world)
        for body in list(world.bodies):
            hands.work_on(world, body)
    raise AssertionError(f"the run does not end: {world.board.run(REF)}")


def _settled(world: World) -> bool:
    busy = world.bodies or world.drainers or world.bells() or world.board.inboxes or world.board.parked
    return not busy and world.over and str(REF) in world.board.done


# --- checking ---------------------------------------------------------------------------------------------------------


def check(world: World, play: Play) -> None:
    """What must hold at the end of every history."""
    ledger, expected = world.ledger, play.expected
    if ledger.state is RunState.SUCCEEDED:
        assert {step: row.state.value for step, row in ledger.outcomes.items()} == expected.states
        assert ledger.output == {name: expected.results.get(name) for name in expected.states}
    elif ledger.state is RunState.FAILED:
        assert ledger.error is not None
        assert ledger.error["step"] in expected.failing
    else:
        assert ledger.cancel_requested, "nobody asked for the run's end"
    for step, row in ledger.outcomes.items():
        assert row.state.value in (expected.states[step], StepState.CANCELLED.value), f"{step} ended otherwise"
    assert world.ran <= {step for step, state in expected.states.items() if state in RUNS}, "a dead path ran"
    assert world.board.moves - ALLOWED == frozenset(), "a transition that the table does not have"
    _check_order(world, play)
    _check_nothing_is_left(world)


def _check_order(world: World, play: Play) -> None:
    """Outcomes are in SQL after those that they follow from. A condition that fails may fail a join before that."""
    rows = world.ledger.outcomes
    place = {step: (row.epoch, row.stream_seq) for step, row in rows.items()}
    for node in play.nodes:
        row = rows.get(node.name)
        if row is None or row.state is StepState.CANCELLED or (row.error or {}).get("code") == "EXPRESSION_FAILED":
            continue
        for source, _ in node.needs:
            assert place[source] < place[node.name], f"{node.name} is in SQL before {source}"


def _check_nothing_is_left(world: World) -> None:
    board = world.board
    assert (board.leases, board.timers, board.parked, board.inboxes) == ({}, {}, {}, {})
    assert board.lists.get(LIST, []) == []
    run = board.run(REF)
    if run is not None:
        assert run.inbox == []
        assert "@lock" not in run.values
