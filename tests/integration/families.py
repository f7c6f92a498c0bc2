"""Workflows that start each other, by the names under which who includes this module knows them."""

from __future__ import annotations

from typing import Final

from convergio.graphflow.flow.build import WorkflowBuilder
from convergio.graphflow.model.workflow import Workflow
from tests.integration import engine_bodies

assert engine_bodies.QUICK  # importing the module registers its functions


def _leaf() -> Workflow:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    made = WorkflowBuilder("leaf", version=1, input=schema, output={"value": "work.value"})
    made.task("work", "probe.echo", value="input.n")
    return made.build()


def _held() -> Workflow:
    """Holds until the gate opens."""
    made = WorkflowBuilder("held", version=1)
    made.task("work", "probe.hold", name="input.name")
    return made.build()


def _broken() -> Workflow:
    made = WorkflowBuilder("broken", version=1)
    made.task("work", "probe.raises", kind="'no text'")
    return made.build()


def _endless() -> Workflow:
    """Starts itself."""
    made = WorkflowBuilder("endless", version=1)
    made.workflow("again", "endless")
    return made.build()


def _middle() -> Workflow:
    made = WorkflowBuilder("middle", version=1)
    made.workflow("below", "leaf", n="input.n")
    return made.build()


LEAF: Final = _leaf()
HELD: Final = _held()
BROKEN: Final = _broken()
ENDLESS: Final = _endless()
MIDDLE: Final = _middle()


def parent(child: str = "leaf", /, **fields: object) -> Workflow:
    """first -> call (the child) -> last."""
    made = WorkflowBuilder("parent", version=1, output={"got": "call", "said": "last.value"})
    first = made.task("first", "probe.echo", value="3")
    given = {"with_": {"n": "first.value"}} | fields
    call = made.workflow("call", child, after=first, **given)  # type: ignore[arg-type]
    made.task("last", "probe.echo", after=call, value="call")
    return made.build()
