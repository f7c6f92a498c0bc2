"""What must hold of runs that are undone: each step that succeeded once, the last one first, and not too early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from convergio.graphflow.model import instance
from convergio.graphflow.model.states import TERMINAL_STEP, RunState, StepState
from convergio.graphflow.model.workflow import UNDO
from tests.property.reference import Node
from tests.property.world import World

BEGUN: Final = "run.compensating"


def check_may_undo(world: World, undo: str) -> None:
    """SQL knows that the run is being undone, the step has succeeded, and whatever came later is undone."""
    step = undo.removeprefix(UNDO)
    assert world.ledger.state is RunState.COMPENSATING, f"{undo} runs, and SQL does not know that the run is undone"
    assert undo not in world.ledger.outcomes, f"{undo} runs, and SQL has its outcome"
    assert world.word(step).state is StepState.SUCCEEDED, f"{undo} runs, and {step} has not succeeded"
    undone = world.plan.undone
    for later in undone[: undone.index(step)]:
        waits = world.word(later).state is StepState.SUCCEEDED and f"{UNDO}{later}" not in world.ledger.outcomes
        assert not waits, f"{undo} runs before {UNDO}{later}"
    world.ran.add(undo)


def check_undone(world: World, nodes: Sequence[Node], *, undone: bool) -> None:
    """The run was undone if that was asked for, wholly if nobody cancelled it meanwhile, and in order."""
    ledger = world.ledger
    begun = [event for event in ledger.events if event.type == BEGUN]
    undos = {step: row for step, row in ledger.outcomes.items() if step.startswith(UNDO)}
    done = {step for step, row in ledger.outcomes.items() if row.state is StepState.SUCCEEDED}
    can_be = [node.name for node in nodes if node.undo and node.name in done]
    if ledger.state is RunState.FAILED:
        ends = {node.name: node for node in nodes}.get(instance.step_of((ledger.error or {}).get("step", "")))
        wanted = any(node.undo for node in nodes) and (undone or (ends is not None and ends.undoing))
        assert bool(begun) == wanted, "it was to be undone" if wanted else "nobody wanted it undone"
    assert begun or not undos
    cut = ledger.state is RunState.CANCELLED and begun and begun[-1].data["state"] == RunState.FAILED
    assert undos.keys() <= {f"{UNDO}{name}" for name in can_be}
    if begun and not cut:
        assert undos.keys() == {f"{UNDO}{name}" for name in can_be}, "something is not undone"
    order = [step.removeprefix(UNDO) for step in sorted(undos, key=lambda step: _place(world, step))]
    assert order == [name for name in world.plan.undone if name in order], "undone in another order"
    assert all(row.state in TERMINAL_STEP for row in undos.values())
    world.met["a run is undone"] += bool(begun)
    world.met["an undone run is cancelled"] += bool(begun) and ledger.state is RunState.CANCELLED
    world.met["an undo fails"] += any(row.state is StepState.FAILED for row in undos.values())
    world.met["a run has nothing to undo"] += bool(begun) and not can_be


def _place(world: World, step: str) -> tuple[int, int]:
    row = world.ledger.outcomes[step]
    return row.epoch, row.stream_seq
