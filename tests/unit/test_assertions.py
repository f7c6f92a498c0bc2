"""Whoever reads a test sees what it asserts: a call that only might fail is no assertion."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TESTS = Path(__file__).parents[1]

SAYS: Final = {"raises", "wait_until"}
"""Calls that say what must happen: an error, or something in time."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def found_tests() -> Iterator[tuple[str, Function]]:
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function) and node.name.startswith("test_"):
                yield f"{path.relative_to(TESTS)}::{node.name}", node


def asserts(test: Function) -> bool:
    """Whether it has an `assert`, or one of the calls, itself."""
    return any(isinstance(node, ast.Assert) or called(node) in SAYS for node in ast.walk(test))


def called(node: ast.AST) -> str:
    match node:
        case ast.Call(func=ast.Attribute(attr=name)) | ast.Call(func=ast.Name(id=name)):
            return name
        case _:
            return ""


def test_every_test_asserts_something_that_can_be_seen() -> None:
    found = dict(found_tests())
    assert len(found) > 1_500
    assert [name for name, test in found.items() if not asserts(test)] == []
