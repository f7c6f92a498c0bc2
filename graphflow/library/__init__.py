"""Workflows that ship, and the catalog in which a process looks workflows up by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from functools import cached_property
from importlib import resources
from pathlib import Path

from convergio.graphflow.flow import document
from convergio.graphflow.flow.known import Known
from convergio.graphflow.model import errors
from convergio.graphflow.model.workflow import Workflow
from convergio.graphflow.trust import SHIPPED, Definition, Trust


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

    Files are read when the first workflow is asked for. A name in a later directory replaces the one before. Whether a
    file's definition counts is looked at whenever it is asked for; what ships, or is built, is code.
    """

    def __init__(
        self, directories: Iterable[Path] = (), built: Iterable[Workflow] = (), trust: Trust | None = None
    ) -> None:
        self.directories = tuple(directories)
        self.built = tuple(built)
        self._trust = trust or Trust()

    @cached_property
    def _by_name(self) -> dict[str, tuple[Workflow, Definition]]:
        theirs = [load(path) for folder in self.directories for path in files(folder)]
        ours = [(workflow, SHIPPED) for workflow in map(document.load, shipped())]
        built = [(workflow, SHIPPED) for workflow in self.built]
        return {found[0].name: found for found in [*ours, *theirs, *built]}

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._by_name)

    def get(self, name: str) -> Workflow:
        """The workflow. Raises UnknownWorkflow with the nearest name, and DefinitionRefused."""
        found = self.look(name)
        self._trust.check(self._by_name[name][1])
        return found

    def look(self, name: str) -> Workflow:
        """The workflow, whether it counts or not. Raises UnknownWorkflow with the nearest name."""
        if name not in self._by_name:
            near = get_close_matches(name, self._by_name, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(self.names())}"
            raise errors.UnknownWorkflow(f"no workflow is called '{name}'", hint=hint)
        return self._by_name[name][0]


def load(path: Path, *, known: Known | None = None) -> tuple[Workflow, Definition]:
    """The workflow in a file, and what its signature is of: the same bytes. Raises as `document.load`."""
    content = path.read_bytes()
    return document.parse_content(content, path, known=known), Definition.of(path, content)


def files(folder: Path) -> list[Path]:
    """The workflow files of a directory. Raises InvalidSetting if it is none."""
    if not folder.is_dir():
        raise errors.InvalidSetting(f"CONVERGIO_WORKFLOWS names '{folder}', which is not a directory")
    return sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
