"""Code stays small enough to be read: no function over 60 lines, no module over 450."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FUNCTION_LINES = 60
MODULE_LINES = 450
TEST_MODULE_LINES = 500
LUA_LINES = 60


def sources() -> Iterator[Path]:
    for folder in ("benchmarks", "config", "graphflow", "tasks", "workers", "tests"):
        yield from sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(ROOT)}:{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_function_is_long() -> None:
    lengths = dict(pair for path in sources() for pair in functions(path))
    assert lengths
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}, "name their parts"


def test_no_module_is_long() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in sources()}
    limits = {path: TEST_MODULE_LINES if "tests" in path.parts else MODULE_LINES for path in lengths}
    long = {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > limits[path]}
    assert long == {}, "split them by their nouns"


def test_a_lua_script_is_small() -> None:
    lengths = {path.name: code_lines(path) for path in sorted((ROOT / "graphflow" / "board" / "lua").rglob("*.lua"))}
    assert lengths
    assert {name: length for name, length in lengths.items() if length > LUA_LINES} == {}


def code_lines(path: Path) -> int:
    """Lines that are neither blank nor a comment: a script's header may be as long as it must."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return sum(1 for line in lines if line and not line.startswith("--"))
