"""What is done about concurrency keys by whoever comes by: as `engine.limits` does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from convergio.graphflow.board import fields, scripts
from convergio.graphflow.decision import ASK, LEAVE
from convergio.graphflow.model.states import BlockedOn, StepState
from convergio.graphflow.waiting import QUEUE
from tests.property.reference import KEY
from tests.property.world import REF, World

ACTIVE: Final = (StepState.READY.value, StepState.RUNNING.value)
"""How the words of steps begin that have the key: no other state begins so."""


def key_of(world: World, step: str) -> str | None:
    """The key of a step that has one."""
    return world.values().get(fields.key(step))


def follow(world: World, timers: Sequence[tuple[str, str, int | None]]) -> None:
    """What a decision says of keys, unless its maker dies."""
    named = [(step, on) for step, on, due in timers if due is not None and on in (ASK, LEAVE)]
    if not named or world.fault("a drainer dies before it asks for a key", 4):
        return
    for step, on in sorted(named, key=lambda one: one[1] == ASK):
        act(world, step, on)


def act(world: World, step: str, on: str) -> None:
    """A step asks for its key, or leaves it."""
    if on == LEAVE:
        world.board.leave(REF, key=KEY, leaving=[(step, limit_of(world))])
    elif world.word(step).blocked_on is BlockedOn.LIMIT:
        wait_turn(world, step, timer=ASK)
    serve(world)


def wait_turn(world: World, step: str, *, timer: str = "") -> None:
    """The step waits for its key."""
    word, count = world.word(step), world.values().get(fields.rings(step), "0")
    to = fields.limited(world.board.now_ms, f"{world.board.epoch.number}.{count}")
    to = word.text if word.blocked_on is BlockedOn.LIMIT else to
    asking = scripts.Asking(step=step, was=word.text, to=to, limit=limit_of(world), timer=timer)
    world.board.ask(REF, key=KEY, asking=[asking])
    world.met["a step waits for its turn"] += len(world.board.limit(KEY).waiters) > 0
    serve(world)


def serve(world: World) -> None:
    """Who was granted the key is rung, unless who should do it dies."""
    for member in list(world.board.limit(KEY).holders):
        if f"{member}/LIMIT" in world.board.timers and not world.fault("a grant is not rung", 4):
            ring(world, member.rsplit("/", 1)[1])


def ring(world: World, step: str) -> None:
    """Rings a step that has its key."""
    word, node = world.word(step), world.node(step)
    if word.blocked_on is not BlockedOn.LIMIT:
        return
    if node.timeout and fields.rings(step) not in world.values():
        world.board.timers[f"{REF}/{step}/{QUEUE}"] = world.board.now_ms + round(node.timeout * 1000)
    world.ring(step, word.text, kind="step.rung", timer=BlockedOn.LIMIT)


def limit_of(world: World) -> int:
    """How many steps may have the key."""
    return next(node.limit for node in world.nodes.values() if node.limit)


def check(world: World) -> None:
    """Never more steps than the limit."""
    if not world.limited:
        return
    prefix, values = fields.key(""), world.values()
    keyed = [name.removeprefix(prefix) for name in values if name.startswith(prefix)]
    active = [step for step in keyed if values.get(fields.state(step), "").startswith(ACTIVE)]
    assert len(active) <= (limit_of(world) if keyed else 0), f"{active} are too many"
    world.met["a key is shared"] += len(active) > 1
