"""A run made from another one: retry, redrive, fork. What ended stays as it is; the new run reuses what still holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from convergio.graphflow.engine import reuse
from convergio.graphflow.engine.reuse import Reuse
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.flow.spelling import did_you_mean
from convergio.graphflow.journal import payload
from convergio.graphflow.journal.rows import RETRIES, Basis, ForkKind, Origin, RunRow
from convergio.graphflow.model import errors, ids
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState
from convergio.graphflow.model.workflow import EMPTY, Workflow, canonical

UNCHANGED: Final = object()
"""Stands where no new input was given: null is an input too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """What somebody wants to do once more. `ref`: the run that it was; `key`: the same key means the same new run.

    `step`: begin with this one and redo all that follows from it, whatever else could be reused. `input`, `definition`:
    what is other than it was. A retry or a redrive changes nothing.
    """

    ref: RunRef
    submitter: str = "anonymous"
    kind: ForkKind = ForkKind.FORK
    step: str | None = None
    input: Any = UNCHANGED
    definition: Workflow | None = None
    run_id: str = field(default_factory=ids.new_run_id)
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """The new run. `created`: False if it was made before, by the same id or key. `reused`: how many of its `steps` it
    has from the other run."""

    run: RunRow
    created: bool
    reused: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The run to accept, and what it has from the other one."""

    workflow: Workflow
    input: Any
    origin: Origin


def planned(fork: Fork, basis: Basis, pins: Mapping[str, str] = EMPTY) -> Planned:
    """What the new run is to be. `pins`: the definitions that its children have.

    Raises RunNotEnded or NothingToRetry (a retry), UnknownStep, InvalidInput.
    """
    old = Plan.from_json(canonical(basis.document))  # pinned: a retry keeps its digest, whatever this version writes
    new = old if fork.definition is None else Plan.of(fork.definition)
    if fork.kind in RETRIES:
        _check_ended(basis.run)
    else:
        _check_edited(fork, old.workflow, new.workflow)
    given = basis.run.input if fork.input is UNCHANGED else fork.input
    found = reuse.of(
        old,
        new,
        basis.ends,
        anew=fork.step,
        input_changed=_text(given) != _text(basis.run.input),
        children_changed=dict(pins) != (basis.run.pins or {}),
    )
    if fork.kind in RETRIES:
        _check_worth(basis.run, old, found)
    origin = Origin(run_id=basis.run.run_id, kind=fork.kind, step=fork.step, reused=found.kept, resumed=found.resumed)
    return Planned(workflow=new.workflow, input=given, origin=origin)


def _text(value: Any) -> str:
    """To Python 1, 1.0 and true are equal; to an expression they are not."""
    return payload.to_text(value, what="the input")


def _check_ended(run: RunRow) -> None:
    if not run.terminal:
        hint = f"wait for its end (convergio runs watch {run.run_id}), or cancel it first"
        raise errors.RunNotEnded(f"run {run.run_id} is {run.state}: only what has ended can be retried", hint=hint)
    if run.state is RunState.SUCCEEDED:
        hint = f"convergio runs fork {run.run_id} --from STEP repeats a part of it"
        raise errors.NothingToRetry(f"run {run.run_id} has succeeded", hint=hint)


def _check_worth(run: RunRow, plan: Plan, found: Reuse) -> None:
    """A run with nothing left to do failed for its result: with the same definition it would fail again."""
    failed = run.error or {}
    if failed.get("code") == errors.LoopExhausted.code and failed.get("step") in found.kept:
        hint = f"allow it more rounds: convergio runs fork {run.run_id} --workflow FILE"
        raise errors.NothingToRetry(f"run {run.run_id} failed for a loop that would end as it did", hint=hint)
    if run.state is RunState.FAILED and found.steps == plan.size and not found.resumed:
        hint = f"mend the definition's output: convergio runs fork {run.run_id} --workflow FILE"
        raise errors.NothingToRetry(f"every step of run {run.run_id} is done; its output failed", hint=hint)


def _check_edited(fork: Fork, old: Workflow, new: Workflow) -> None:
    if fork.step is None and fork.definition is None and fork.input is UNCHANGED:
        hint = "name a step to begin with, a new input or a new definition; what failed is tried again by retry"
        raise errors.InvalidInput(f"a fork of run {fork.ref.run} that changes nothing", hint=hint)
    if fork.step is not None and fork.step not in new.steps:
        hint = did_you_mean(fork.step, new.steps) or f"its steps are {', '.join(new.steps)}"
        raise errors.UnknownStep(f"'{new.name}' has no step '{fork.step}'", hint=hint)
    if new.name != old.name:
        hint = f"give an edited definition of '{old.name}', or start '{new.name}' by itself"
        raise errors.InvalidInput(f"run {fork.ref.run} is of '{old.name}', not of '{new.name}'", hint=hint)
