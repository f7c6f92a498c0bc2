"""Every definition that a run may need: its own, and those of its children, theirs, and so on. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from convergio.graphflow.model import errors
from convergio.graphflow.model.workflow import Workflow

Find = Callable[[str], Workflow]
"""The workflow of a name. Raises UnknownWorkflow."""


def family(workflow: Workflow, find: Find) -> Mapping[str, Workflow]:
    """The definitions of all children by name. A workflow that starts itself means the definition that is given.

    UnknownWorkflow names the workflow that wants a child nobody knows.
    """
    found: dict[str, Workflow] = {}
    pending = [(workflow, name) for name in sorted(workflow.children)]
    while pending:
        parent, name = pending.pop()
        if name in found:
            continue
        found[name] = workflow if name == workflow.name else _child(parent, name, find)
        pending += [(found[name], one) for one in sorted(found[name].children)]
    return found


def nobody(name: str) -> Workflow:
    """Where there is no catalog, no child is known."""
    raise errors.UnknownWorkflow(f"no workflow is called '{name}'", hint="this door knows no workflows by their names")


def _child(parent: Workflow, name: str, find: Find) -> Workflow:
    try:
        return find(name)
    except errors.UnknownWorkflow as error:
        raise errors.UnknownWorkflow(f"{error.message}, which '{parent.name}' starts", hint=error.hint) from None
