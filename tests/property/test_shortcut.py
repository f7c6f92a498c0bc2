"""The shortcut against the long way: COMPLETE leaves the board as ARRIVE, `decide` and COMMIT would have left it."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from collections import Counter
from typing import Any

from convergio.graphflow import decide, shortcut
from convergio.graphflow.board import scripts
from convergio.graphflow.board.scripts import Claimed
from convergio.graphflow.model.outcome import Outcome
from convergio.graphflow.model.states import StepState
from tests.property import clerk, explorer, hands
from tests.property.explorer import Play
from tests.property.model_board import ModelBoard
from tests.property.world import LIST, REF, World

GRAPHS = 4_400


def board_after(world: World) -> dict[str, Any]:
    """What the board holds when nobody is at work; whoever held a lock, and what a commit was called, is forgotten."""
    board: ModelBoard = copy.deepcopy(world.board)
    run = board.runs[REF]
    assert run.inbox == []
    values = {name: value for name, value in run.values.items() if name not in ("@lock", "@commit", "@output")}
    return {
        "values": values,
        "output": json.loads(run.values.get("@output") or "null"),  # CEL gives the keys of an object in any order
        "feed": run.feed,
        "journal": [{**entry, "d": json.loads(entry["d"])} for entry in board.journal],
        "lists": {name: sorted(line) for name, line in board.lists.items()},
        "rung": board.rung,
        "sets": (board.leases, board.timers, board.parked, board.inboxes, board.live, board.done),
    }


def forked(world: World) -> World:
    """The same world with a board of its own; nobody may be at work."""
    assert not world.drainers
    return dataclasses.replace(world, board=copy.deepcopy(world.board), drainers=[])


def drained(world: World) -> None:
    """Every drainer decides and commits."""
    while world.drainers:
        hands.think(world)


def played(play: Play, seed: int, met: Counter[str]) -> None:
    """One run in some order; at every success the shortcut and the long way are taken on a copy each, and compared."""
    nodes = {node.name: node for node in play.nodes}
    draw = random.Random(seed).randrange
    world = World(plan=play.plan, nodes=nodes, given={"n": play.n}, draw=draw, faults=False)
    clerk.start(world)
    drained(world)
    while line := bells_after_all_waits(world):
        step, ring = line.pop(draw(len(line))).decode().split("/")
        held = world.board.claim(REF, step=step, ring=ring, nonce=world.name(), queue_list=LIST)
        if not isinstance(held, Claimed):
            continue
        followers = shortcut.followers(play.plan, step)
        short, long = forked(world), forked(world)
        succeed_by_arrive(long, held)
        met["steps"] += 1
        met.update(f"behind {reason}" for reason in long_ways(play, step))
        assert followers is None or not long_ways(play, step), f"{step} of {play.nodes}"
        if followers is not None:
            succeed_by_complete(short, held, followers, met)
            assert board_after(short) == board_after(long), f"{step} of {play.nodes}, seed {seed}"
        world = long


def bells_after_all_waits(world: World) -> list[bytes]:
    """The bells; if there are none, what waits gets its signal or its time first."""
    for move in (clerk.signal, clerk.pass_time) * 3:
        if world.bells():
            break
        move(world)
        drained(world)
    return world.bells()


def long_ways(play: Play, step: str) -> set[str]:
    """Why what follows from the step's success has to be decided. A join of one edge is none."""
    found: set[str] = set()
    if step in play.plan.loops or "#" in step:
        return {"a loop"}
    for node in play.nodes:
        conditions = [condition for source, condition in node.needs if source == step]
        if not conditions:
            continue
        alone = len(node.needs) == 1
        reasons = {
            "a condition": node.when is not None or conditions != [None],
            f"a join {node.join[0]}": node.join[0] != "all" and not alone,
            "a wait for a time": alone and node.waits > 0,
            "a wait for a signal": alone and node.signal != "",
            "a concurrency key": alone and node.limit > 0,
            "patience with a queue": alone and node.timeout > 0 and node.signal == "",
            "a map": node.items is not None,
            "a loop": node.name in play.plan.loops,
        }
        found |= {reason for reason, given in reasons.items() if given}
    return found


def told(world: World, step: str) -> dict[str, Any]:
    """An outcome as both ways tell it."""
    output = world.node(step).result
    outcome = Outcome(state=StepState.SUCCEEDED, output=output, attempt=1)
    return {"output": json.dumps(output), "outcome": outcome.as_json(), "token": "t"}


def succeed_by_arrive(world: World, held: Claimed) -> None:
    wanted = decide.wanted(world.plan, held.step)
    answer = world.board.arrive(held, **told(world, held.step), state=StepState.SUCCEEDED, durable=False, wanted=wanted)
    assert isinstance(answer, scripts.Locked)
    world.drain(answer)
    drained(world)


def succeed_by_complete(
    world: World, held: Claimed, followers: tuple[shortcut.Follower, ...], met: Counter[str]
) -> None:
    following = [hands.following_of(world.plan, one, f"{held.epoch.number}.1") for one in followers]
    wanted = decide.wanted(world.plan, held.step)
    answer = world.board.complete(held, **told(world, held.step), following=following, wanted=wanted)
    met["short" if answer is None else "refused"] += 1
    met["joins raised"] += sum(one.bell is None for one in following) if answer is None else 0
    met["steps rung"] += sum(one.bell is not None for one in following) if answer is None else 0
    world.drain(answer)
    drained(world)


def test_the_shortcut_leaves_the_board_as_the_long_way_does() -> None:
    met: Counter[str] = Counter()
    draw = random.Random(7).randrange
    for seed in range(GRAPHS):
        played(explorer.make_play(draw), seed, met)
    enough = {"steps": 3_000, "short": 300, "refused": 300, "joins raised": 50, "steps rung": 50}
    enough |= {f"behind a join {kind}": 10 for kind in ("any", "quorum", "tolerate")}
    enough |= {f"behind {what}": 20 for what in ("a wait for a time", "a wait for a signal", "patience with a queue")}
    enough["behind a concurrency key"] = 50
    enough |= {"behind a map": 20, "behind a loop": 20}
    assert {what: met[what] for what, least in enough.items() if met[what] < least} == {}
