"""Workflows that ship, and the catalog in which a process looks workflows up by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cached_property
from importlib import resources
from pathlib import Path

from convergio.graphflow.flow import document
from convergio.graphflow.model import errors
from convergio.graphflow.model.workflow import Workflow


def shipped() -> Iterator[Path]:
    """Files of the workflows that ship."""
    folder = resources.files("convergio.graphflow.library")
    with resources.as_file(folder) as path:
        yield from sorted(path.glob("*.yaml"))


def brief(name: str) -> Path | None:
    """The file of the input that ships with a workflow, if there is one."""
    with resources.as_file(resources.files("convergio.graphflow.library")) as folder:
        path = folder / "briefs" / f"{name}.json"
        return path if path.exists() else None


class Catalog:
    """Workflows by name: those that ship, those in the directories given, and those that Python modules built.

    Files are read when the first workflow is asked for. A name in a later directory replaces the one before.
    """

    def __init__(self, directories: Iterable[Path] = (), built: Iterable[Workflow] = ()) -> None:
        self.directories = tuple(directories)
        self.built = tuple(built)

    @cached_property
    def _by_name(self) -> dict[str, Workflow]:
        files = [*shipped(), *(path for folder in self.directories for path in _files(folder))]
        workflows = [*(document.load(path) for path in files), *self.built]
        return {workflow.name: workflow for workflow in workflows}

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._by_name)

    def get(self, name: str) -> Workflow:
        """The workflow. Raises UnknownWorkflow with the nearest name."""
        workflow = self._by_name.get(name)
        if workflow is None:
            near = get_close_matches(name, self._by_name, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(self.names())}"
            raise errors.UnknownWorkflow(f"no workflow is called '{name}'", hint=hint)
        return workflow


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise errors.InvalidSetting(f"CONVERGIO_WORKFLOWS names '{folder}', which is not a directory")
    return sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
