"""One run, played on the model board by everybody who has a hand in it, in an order that `draw` chooses.

Workers claim, run, die, come back too late; drainers read, decide and commit in separate moves, lose their lock, lose
answers; the journaler lags; doorbells get lost or come twice; the board is wiped. After the chaos everybody does what
is left to do, and the run must have come to what `reference` says.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Final

from convergio.graphflow.decision import LEAVE
from convergio.graphflow.flow import document, values
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.journal.rows import OutcomeRow
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.states import STEP_TRANSITIONS, RunState, StepState
from convergio.graphflow.model.workflow import UNDO
from tests.property import clerk, hands, reference, turns
from tests.property.reference import Cond, Node
from tests.property.undone import check_undone
from tests.property.world import LIST, REF, Draw, World

Move = Callable[[World], None]

MOVES: Final[Sequence[Move]] = [
    *[hands.think] * 6,
    *[hands.deliver] * 4,
    *[hands.work] * 4,
    *[clerk.journal] * 2,
    *[clerk.decision] * 2,
    *[clerk.ring_lost] * 2,
    *[clerk.pass_time, clerk.sweep, clerk.signal, clerk.apply_rows, clerk.tend, clerk.answer],
    *[hands.replay, hands.haunt, clerk.repeat, clerk.cancel, clerk.wipe],
    *[clerk.control] * 2,
]
SETTLING: Final[Sequence[Move]] = [
    *[clerk.resume, clerk.journal, clerk.sweep, clerk.ring_lost, clerk.decision, clerk.signal, clerk.apply_rows],
    *[clerk.tend, clerk.answer, clerk.pass_time],
]
ALLOWED: Final = frozenset((source, target) for (source, _), target in STEP_TRANSITIONS.items())
RUNS: Final = ("SUCCEEDED", "FAILED", "QUARANTINED")


# --- what is played ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Play:
    """A graph, its plan, and the graph that says what a run of it must come to: the same, but in tests of the tests."""

    nodes: Sequence[Node]
    n: int
    plan: Plan
    undone: bool
    judge: Sequence[Node]


def make_play(draw: Draw) -> Play:
    """A random graph of up to seven steps."""
    nodes: list[Node] = []
    limit = (0, 0, 1, 2)[draw(4)]
    for index in range(1 + draw(7)):
        nodes.append(_limited(_node("abcdefg"[index], nodes, draw), limit, draw))
    if draw(3) == 0:
        _loop(nodes, draw)
    once = {node.name for node in nodes} - _repeated(nodes)
    return play_of(
        _undoing([_asking(node, once, draw) for node in nodes], once, draw),
        reference.THRESHOLD - 2 + 5 * draw(2),
        undone=draw(4) == 0,
    )


def play_of(nodes: Sequence[Node], n: int, *, undone: bool = False) -> Play:
    """The graph of `nodes` on the input n; `undone`: the whole run is, when it fails or is cancelled."""
    undone = undone and any(node.undo for node in nodes)
    plan = Plan.of(document.parse_document(reference.document(nodes, undone=undone)))
    return Play(nodes=nodes, n=n, plan=plan, judge=nodes, undone=undone)


def _repeated(nodes: Sequence[Node]) -> set[str]:
    if not any(node.back_to for node in nodes):
        return set()
    return set(Plan.of(document.parse_document(reference.document(nodes))).loops)


def _asking(node: Node, once: Container[str], draw: Draw) -> Node:
    """A step that does something, once, may ask what to do when it fails."""
    idle = node.approval or node.waits or node.signal or node.lenient or node.items is not None
    if idle or node.name not in once or draw(3):
        return node
    return replace(node, asks=True, ends="FAILED" if draw(2) else node.ends)


def _undoing(nodes: Sequence[Node], once: Container[str], draw: Draw) -> Sequence[Node]:
    """In half of the graphs most steps that do something, once, can be undone, and some have the run undone."""
    if draw(2):
        return nodes
    does = [node for node in nodes if not (node.approval or node.waits or node.signal or node.items is not None)]
    plain = {node.name for node in does if node.name in once and draw(4)}
    ends = {node.name for node in nodes if plain and not (node.lenient or node.asks) and draw(2)}
    return [replace(node, undo=node.name in plain, undoing=node.name in ends) for node in nodes]


def _limited(node: Node, limit: int, draw: Draw) -> Node:
    works = not (node.approval or node.waits or node.signal or node.child)
    return replace(node, limit=limit) if works and limit and draw(5) else node


def _loop(nodes: list[Node], draw: Draw) -> None:
    """One loop, if the graph has a place for it: of steps that end the same in each round."""
    place = draw(len(nodes))
    end, rounds = nodes[place], 1 + draw(3)
    looped = replace(end, back_to=nodes[draw(place + 1)].name, rounds=rounds, most=1 + draw(3), goes_on=draw(2) == 0)
    made = [*nodes[:place], looped, *nodes[place + 1 :]]
    try:
        region = _repeated(made)
    except errors.InvalidWorkflow:
        return
    inside = [node for node in nodes if node.name in region]
    if not any(node.approval or node.signal or node.timeout or node.lonely for node in inside):
        nodes[place] = looped


def _node(name: str, nodes: Sequence[Node], draw: Draw) -> Node:
    sources = [node.name for node in nodes[-4:] if draw(2)]
    join = _join(len(sources), draw)
    plain = join[0] == "all"
    return Node(
        name=name,
        needs=tuple((source, _condition(_above(nodes, [source]), draw, boom=plain)) for source in sources),
        join=join,
        when=_condition(_above(nodes, sources) if plain else [], draw) if draw(3) == 0 else None,
        lenient=draw(4) == 0,
        **_kind(draw),
    )


def _join(needs: int, draw: Draw) -> tuple[str, int]:
    if needs < 2 or draw(3):
        return "all", 0
    return [("any", 0), ("quorum", 1 + draw(needs)), ("tolerate", draw(needs + 1))][draw(3)]


def _kind(draw: Draw) -> dict[str, Any]:
    """What a step does. Who waits for the signal `nobody` sends times out; who waits for another one may."""
    kind, fails = draw(16), draw(9) == 0
    if kind < 3 or kind == 13:
        return {"approval": True, "ok": draw(4) > 0, "ends": "FAILED" if fails else "SUCCEEDED"}
    if kind in (3, 4, 5):
        return {"waits": (0.05, 1, 5)[draw(3)]} if kind == 3 else _signalled(draw)
    if kind == 7:
        return {"child": True, "flaky": draw(3), "ends": "FAILED" if fails else "SUCCEEDED", "ok": draw(4) > 0}
    if kind in (14, 15):
        return _map(draw)
    if kind == 6 and draw(2):
        return {"lonely": True, "timeout": 2.0, "ends": "FAILED"}
    timeout = (1.0, 4.0)[draw(2)] if draw(8) == 0 else 0
    ends = ("FAILED", "QUARANTINED", "QUARANTINED")[draw(3)] if fails else "SUCCEEDED"
    flaky = max(0, draw(4) - 2)
    return {"durable": draw(3) == 0, "flaky": flaky, "ends": ends, "ok": draw(4) > 0, "timeout": timeout}


def _map(draw: Draw) -> dict[str, Any]:
    ends = ("SUCCEEDED", "SUCCEEDED", "SUCCEEDED", "SUCCEEDED", "FAILED", "QUARANTINED")
    items = tuple(ends[draw(len(ends)) if draw(2) else 0] for _ in range(draw(5)))
    join = [("all", 0), ("any", 0), ("quorum", 1 + draw(3)), ("tolerate", draw(3))][draw(4)]
    return {"items": items, "items_join": join, "width": draw(4), "durable": draw(3) == 0, "flaky": int(draw(3) == 0)}


def _signalled(draw: Draw) -> dict[str, Any]:
    if draw(5) == 0:
        return {"signal": reference.NOBODY, "timeout": 1.0, "ends": "FAILED"}
    said = draw(3) > 0
    return {"signal": "yes" if said else "no", "ok": said, "timeout": (0, 0, 2.0, 8.0)[draw(4)]}


def _above(nodes: Sequence[Node], names: Sequence[str]) -> list[str]:
    """`names` and all that is known to be resolved when they are.

    What a join did not wait for may still run; so may the needs of a step that a condition failed, if the run goes on.
    """
    found = set(names)
    for node in reversed(nodes):
        hasty = node.lenient and any(when is not None and when.kind == "boom" for _, when in node.needs)
        if node.name in found and node.join[0] == "all" and not hasty:
            found |= {source for source, _ in node.needs}
    return sorted(found - {node.name for node in nodes if node.items is not None})  # a list is neither ok nor not


def _condition(steps: Sequence[str], draw: Draw, *, boom: bool = True) -> Cond | None:
    """Mostly none; seldom one that cannot be evaluated. On no steps it is one of the input."""
    kind = draw(40)
    if kind < 22 or (kind == 39 and not (boom and steps)):
        return None
    if kind < 26 or not steps:
        return Cond("big")
    names = ["ok"] * 8 + ["not_ok"] * 5 + ["boom"]
    return Cond(names[kind - 26], steps[draw(len(steps))])


# --- playing ----------------------------------------------------------------------------------------------------------


def explore(play: Play, draw: Draw, *, moves: int) -> World:
    """One history of the play: so many random moves with faults, then everything that is left, without. Checked."""
    nodes = {node.name: node for node in (*play.nodes, *map(reference.undo_of, filter(_can_be_undone, play.nodes)))}
    world = World(
        plan=play.plan,
        nodes=nodes,
        given={"n": play.n},
        draw=draw,
        cancels=draw(6) == 0,
        pauses=draw(2) == 0,
        wipes=max(0, draw(4) - 1),
    )
    world.ledger.control(pause=world.pauses and draw(8) == 0)
    clerk.start(world)
    for _ in range(moves):
        move = world.pick(MOVES)
        world.trace.append(move.__name__)
        move(world)
        turns.check(world)
    settle(world)
    check(world, play)
    return world


def _can_be_undone(node: Node) -> bool:
    return node.undo


def settle(world: World) -> None:
    """Everybody does what is left, time passes, and so on until the run has ended."""
    world.faults = False
    _settle_wishes(world)
    for _ in range(100):
        if _settled(world):
            return
        for move in SETTLING:
            move(world)
            turns.check(world)
        while world.drainers or world.bells():
            hands.think(world)
            hands.deliver(world)
        for body in list(world.bodies):
            hands.work_on(world, body)
    raise AssertionError(f"the run does not end: {world.board.run(REF)}")


def _settle_wishes(world: World) -> None:
    """What people asked for comes true, while no worker does anything: the run is paused, or goes on, or has ended."""
    for _ in range(10):
        if world.over or not (world.ledger.unsettled or world.ledger.state is RunState.ACCEPTED):
            return
        for move in (clerk.journal, clerk.sweep, clerk.apply_rows):
            move(world)
        while world.drainers:
            hands.think(world)
        world.board.now_ms += 6_100
    raise AssertionError("a wish is not granted")


def _settled(world: World) -> bool:
    busy = world.bodies or world.drainers or world.bells() or world.board.inboxes or world.board.parked
    leaving = any(name.endswith(f"/{LEAVE}") for name in world.board.timers)  # its decider died: the sweeper does it
    return not (busy or leaving) and world.over and str(REF) in world.board.done


# --- checking ---------------------------------------------------------------------------------------------------------


def check(world: World, play: Play) -> None:
    """What must hold at the end of every history."""
    ledger = world.ledger
    play = replace(play, judge=[answered(node, ledger.outcomes.get(node.name)) for node in play.judge])
    races = {node.name: _race(node, ledger.outcomes.get(node.name)) for node in play.judge if node.open_end}
    expected = reference.expected(play.judge, play.n, races)
    if ledger.state is RunState.SUCCEEDED:
        steps = {step: row.state.value for step, row in ledger.outcomes.items() if instance.index_of(step) is None}
        assert steps == _instances(world, play, expected)
        results = {name: _without_number(result) for name, result in ledger.output.items()}
        _check_maps(world, play, results)
        hasty = {node.name for node in play.judge if node.items_join[0] in ("any", "quorum")}
        wanted = {name: expected.results.get(name) for name in expected.states.keys() - hasty}
        assert {name: result for name, result in results.items() if name not in hasty} == wanted
    elif ledger.state is RunState.FAILED:
        assert ledger.error is not None
        assert instance.step_of(ledger.error["step"]) in expected.failing
    else:
        assert ledger.cancel_requested, "nobody asked for the run's end"
    judge = {node.name: node for node in play.judge}
    for step, row in ledger.outcomes.items():
        if step.startswith(UNDO):
            continue
        name, index = instance.step_of(step), instance.index_of(step)
        ends = expected.states[name] if index is None else (judge[name].items or ())[index]
        assert row.state.value in (ends, StepState.CANCELLED.value), f"{step} ended otherwise"
    ran = {instance.step_of(step) for step in world.ran if not step.startswith(UNDO)}
    assert ran <= _may_run(play), "a dead path ran"
    check_undone(world, play.judge, undone=play.undone)
    assert world.board.moves - ALLOWED == frozenset(), f"not in the table: {world.board.moves - ALLOWED}"
    _check_order(world, play)
    _check_waits(world)
    _check_queue(world)
    _check_signals(world, play)
    _check_nothing_is_left(world)
    _count(world, play)


def answered(node: Node, row: OutcomeRow | None) -> Node:
    """A step that asked, as somebody has answered."""
    said = None if row is None else row.error
    answer = "" if said is None else said.get("answer", "")
    if not (answer or node.asks):
        return node
    survived, undoing = node.lenient or answer == "skip", node.undoing or answer == "compensate"
    ends = "FAILED" if node.asks and node.ends == "QUARANTINED" else node.ends
    return replace(node, lenient=survived, undoing=undoing, ends=ends)


def _instances(world: World, play: Play, expected: reference.Expected) -> dict[str, str]:
    """How each round of each step ends in a run that succeeds: each as the first one."""
    rounds: dict[str, int] = {}
    for node in play.judge:
        if node.back_to and expected.states[node.name] == "SUCCEEDED":
            count = min(node.rounds, node.most)
            rounds |= {name: count for name, region in world.plan.loops.items() if region.end == node.name}
            world.met["a loop goes back"] += count > 1
            world.met["a loop goes on after all its rounds"] += node.rounds > node.most
    states = expected.states.items()
    return {instance.named(name, number): state for name, state in states for number in range(rounds.get(name, 1))}


def _check_maps(world: World, play: Play, results: Mapping[str, Any]) -> None:
    """Maps that succeeded did so with enough items, each with its own result, and left nothing at work."""
    for node in play.judge:
        row = world.ledger.outcomes.get(node.name)
        if node.items is None or row is None or row.state is not StepState.SUCCEEDED:
            continue
        assert all(given in (wanted, None) for given, wanted in zip(results[node.name], node.result, strict=True))
        done = [world.ledger.outcomes.get(instance.member(node.name, index)) for index in range(len(node.items))]
        good = sum(one is not None and one.state is StepState.SUCCEEDED for one in done)
        kind, count = node.items_join
        if kind in ("any", "quorum"):
            assert good >= max(1, count) or not node.items
        else:
            assert all(done), "a map ended before its items"
        world.met[f"a map succeeds: {kind}"] += 1
        world.met["an item is withdrawn"] += any(one is not None and one.state is StepState.CANCELLED for one in done)


def _may_run(play: Play) -> set[str]:
    """The steps that run in one of the ways in which all races may end: a wiped board may have seen another one."""
    racing = [(node.name, {node.ends, "FAILED"}) for node in play.judge if node.open_end]
    names = [name for name, _ in racing]
    ways = [dict(zip(names, ends, strict=True)) for ends in product(*(ends for _, ends in racing))]
    states = (reference.expected(play.judge, play.n, way).states for way in ways)
    return {step for found in states for step, state in found.items() if state in RUNS}


def _race(node: Node, row: OutcomeRow | None) -> str:
    """How the race ended: a step times out, or ends as it would without a timeout."""
    if row is None or row.state is StepState.CANCELLED:
        return reference.NEVER
    late = row.state is StepState.FAILED and (row.error or {})["code"] == "STEP_TIMEOUT"
    return row.state.value if late else node.ends


def _without_number(result: Any) -> Any:
    """Which of the signals of one name it was does not matter to what follows."""
    if not values.is_map(result):
        return result
    return {name: value for name, value in result.items() if name != "nr"}


def _check_order(world: World, play: Play) -> None:
    """Outcomes are in SQL after those that they follow from. A condition that fails may fail a join before that."""
    rows = world.ledger.outcomes
    place = {step: (row.epoch, row.stream_seq) for step, row in rows.items()}
    for step in rows:
        whole = rows.get(instance.whole(step))
        if instance.index_of(step) is not None and whole is not None and whole.state is not StepState.CANCELLED:
            assert place[step] < place[whole.instance], f"{step} is in SQL after its map"
    for node in play.nodes:
        row = rows.get(node.name)
        if row is None or row.state is StepState.CANCELLED or (row.error or {}).get("code") == "EXPRESSION_FAILED":
            continue
        before = sum(source in place and place[source] < place[node.name] for source, _ in node.needs)
        hasty = row.state is StepState.SKIPPED and node.join[0] != "all" and node.needs
        assert before >= (1 if hasty else node.least), f"{node.name} is in SQL before what it needs"


def _check_waits(world: World) -> None:
    """Nothing waits shorter than it said."""
    for event in world.ledger.events:
        row = world.ledger.outcomes.get(event.instance)
        if event.type == "step.waiting" and row is not None and event.data["due_ms"] is not None:
            timed_out = row.state is StepState.FAILED or event.data["on"] == "TIMER"
            over = row.state is StepState.CANCELLED or row.finished_ms >= event.data["due_ms"]
            assert over or not timed_out, f"{event.step} waited too short"


def _check_queue(world: World) -> None:
    """No step that a worker took in time fails for want of one. A claim is told to nobody: a wipe forgets it."""
    for step, row in world.ledger.outcomes.items():
        if (row.error or {}).get("code") == "STEP_TIMEOUT" and not world.node(step).signal:
            taken = step in world.ran - world.returned and world.board.epoch.number == 1
            assert not taken, f"{step} was taken in time"


def _check_signals(world: World, play: Play) -> None:
    """A signal that ended one wait does not end another one that began after it."""
    used: dict[str, tuple[str, int]] = {}
    for index, node in enumerate(play.nodes):
        row = world.ledger.outcomes.get(node.name)
        if not node.signal or row is None or row.state is not StepState.SUCCEEDED:
            continue
        used[node.name] = node.signal, row.output["nr"]
        before = [used.get(step) for step in _above(play.nodes[:index], [step for step, _ in node.needs])]
        if node.join[0] == "all":
            assert used[node.name] not in before, f"the signal of {node.name} was used before"


def _count(world: World, play: Play) -> None:
    """What happened, for who wants to know."""
    ledger, met = world.ledger, world.met
    met.update(event.type for event in ledger.events if event.type in ("run.paused", "run.resumed"))
    met.update(f"a signal is {event.data['how']}" for event in ledger.events if event.type == "signal.applied")
    for node in play.nodes:
        row = ledger.outcomes.get(node.name)
        state = StepState.WAITING if row is None else row.state
        met[f"a run survives {state}"] += node.lenient and ledger.state is RunState.SUCCEEDED
        met[f"join {node.join[0]}: {'skipped' if state is StepState.SKIPPED else 'started'}"] += row is not None
        timed_out = row is not None and (row.error or {}).get("code") == "STEP_TIMEOUT"
        met["a wait times out" if node.signal else "a queue timeout"] += timed_out
        met["a wait takes its time"] += node.waits > 0 and state is StepState.SUCCEEDED


def _check_nothing_is_left(world: World) -> None:
    board = world.board
    assert (board.leases, board.parked, board.inboxes) == ({}, {}, {})
    rebuilt = board.epoch.number > 1  # restore leaves timers of waits that had ended; the sweeper drops them when due
    assert {name for name in board.timers if not (rebuilt or name.endswith("/QUEUE"))} == set()
    assert board.lists.get(LIST, []) == []
    assert [(limit.holders, limit.waiters) for limit in board.limits.values()] in ([], [({}, [])])
    run = board.run(REF)
    if run is not None:
        assert run.inbox == []
        assert "@lock" not in run.values
