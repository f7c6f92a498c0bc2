"""An error is made where it is raised: one that is kept and raised again keeps the frames of every time before."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from convergio.graphflow.model import errors
from convergio.tasks.agents import replies

ROOT: Final = Path(__file__).parents[2]
PACKAGES: Final = ("config", "graphflow", "tasks", "workers", "benchmarks")


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What of a module runs when it is imported."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_import(child)


def kept_errors(source: str) -> list[int]:
    """The lines where an error of ours is made at import."""
    made = [node for node in at_import(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in made if ast.unparse(call.func).startswith("errors.")]


def test_no_module_keeps_an_error() -> None:
    found = {path: kept_errors(path.read_text()) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert len(found) > 200
    assert {str(path): lines for path, lines in found.items() if lines} == {}
    assert kept_errors("X = {'a': errors.Transient('b')}") == [1]


def test_a_scripted_failure_is_a_new_error_each_time() -> None:
    depths: list[int] = []
    for _ in range(3):
        try:
            raise replies.FAILURES["unavailable"]()
        except errors.ConvergioError as error:
            depth, frames = 0, error.__traceback__
            while frames is not None:
                depth, frames = depth + 1, frames.tb_next
            depths.append(depth)
    assert depths == [1, 1, 1]
