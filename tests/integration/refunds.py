"""Runs that fail until a test mends what is broken, and are then retried or forked. Counts how often each body ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final
from unittest import mock

from convergio.graphflow.engine.fork import Fork, Forked
from convergio.graphflow.engine.starter import Starter
from convergio.graphflow.flow import document
from convergio.graphflow.flow.registry import step
from convergio.graphflow.journal.rows import ForkKind
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState
from convergio.graphflow.model.workflow import Workflow
from tests.integration.engine_rig import Stage

LATE: Final = 10.1
"""Seconds after which the submitter may not start its run any more."""

EFFECTS: Final[Counter[str]] = Counter()
"""How often each step's body ran."""

BROKEN: Final[set[str]] = set()
"""Bodies that fail now."""


@step(name="forks.work")
def work(name: str, value: Any = None) -> dict[str, Any]:
    EFFECTS[name] += 1
    if name in BROKEN:
        raise errors.Permanent(f"{name} is broken")
    return {"by": name, "value": value}


@step(name="forks.large")
def large() -> dict[str, Any]:
    EFFECTS["left"] += 1
    return {"value": "y" * 40_000}


STEPS: Final[Mapping[str, Any]] = {
    "load": {"task": "forks.work", "with": {"name": "'load'", "value": "input.id"}},
    "left": {"task": "forks.work", "with": {"name": "'left'", "value": "load.value"}, "needs": ["load"]},
    "right": {"task": "forks.work", "with": {"name": "'right'"}, "needs": ["load"], "durability": "step"},
    "never": {"task": "forks.work", "with": {"name": "'never'"}, "needs": ["load"], "when": "load.value < 0"},
    "pay": {"task": "forks.work", "with": {"name": "'pay'", "value": "left.value"}, "needs": ["left", "right"]},
    "tell": {"task": "forks.work", "with": {"name": "'tell'", "value": "pay.value"}, "needs": ["pay", "never"]},
}


def flow(output: Mapping[str, str] | None = None, **changed: Any) -> Workflow:
    """load -> left, right (and never) -> pay -> tell."""
    head = {"workflow": "refund", "version": 1, "steps": {**STEPS, **changed}}
    return document.parse_document({**head, "output": output or {"told": "tell.value"}})


def nothing_happened() -> None:
    """No body ran, and nothing is broken."""
    EFFECTS.clear()
    BROKEN.clear()


def driven(stage: Stage, ref: RunRef) -> RunState:
    """Answers doorbells and journals until nothing comes any more; no time passes."""
    while stage.answer_all() + stage.journal():
        stage.worker.pulse()  # it learns what SQL has by now
    return stage.row(ref).state


def failed(stage: Stage, workflow: Workflow | None = None, **given: Any) -> RunRef:
    """A run that failed at `pay`; by now the reason is gone."""
    BROKEN.add("pay")
    ref = stage.submit(workflow or flow(), {"id": 7}, **given)
    assert driven(stage, ref) is RunState.FAILED
    BROKEN.clear()
    EFFECTS.clear()
    return ref


def forked(stage: Stage, ref: RunRef, kind: ForkKind = ForkKind.RETRY, **given: Any) -> Forked:
    return stage.worker.process.entrance.fork(Fork(ref=ref, submitter="bob", kind=kind, **given))


def ref_of(made: Forked) -> RunRef:
    return RunRef(tenant=made.run.tenant, run=made.run.run_id)


def retried(stage: Stage, ref: RunRef, **given: Any) -> RunRef:
    return ref_of(forked(stage, ref, **given))


def accepted_only(stage: Stage, ref: RunRef, **given: Any) -> RunRef:
    """The retry is in SQL, and then who asked for it died."""
    with mock.patch.object(Starter, "start", side_effect=errors.BoardUnavailable):
        return retried(stage, ref, **given)


def succeeded(stage: Stage) -> RunRef:
    ref = stage.submit(flow(), {"id": 7})
    assert driven(stage, ref) is RunState.SUCCEEDED
    EFFECTS.clear()
    return ref


def fork(stage: Stage, ref: RunRef, **given: Any) -> RunRef:
    return ref_of(forked(stage, ref, ForkKind.FORK, **given))
