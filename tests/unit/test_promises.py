"""The page of promises names tests that exist, one at least for each rule."""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "promises.md"

RULES = 220
"""So many rules are on the page today. Raise it with the page; who takes a rule off has to lower it, and say why."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One rule: its name, the rule itself, the test that fails without it, and how that was shown."""

    name: str
    rule: str
    test: str
    shown: str


def rows_of(page: str) -> list[Row]:
    """The rows of every table of four columns, without heads and lines below them."""
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in page.splitlines() if line.startswith("|")]
    body = [row for row in cells if len(row) == 4 and row[0] != "rule" and not set(row[0]) <= {"-"}]
    return [Row(name=name.strip("*"), rule=rule, test=test.strip("`"), shown=shown) for name, rule, test, shown in body]


@cache
def known_in(path: Path) -> frozenset[str]:
    """Test functions of a module, and methods of its classes as `Class::method`."""
    if not path.is_file():
        return frozenset()
    body = ast.parse(path.read_text()).body
    classes = [node for node in body if isinstance(node, ast.ClassDef)]
    methods = {f"{node.name}::{name}" for node in classes for name in functions(node.body)}
    return frozenset(methods | functions(body))


def functions(body: list[ast.stmt]) -> set[str]:
    """Names of the tests among these statements."""
    made = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {name for name in made if name.startswith("test_")}


def exists(test: str) -> bool:
    """Whether `path::name` or `path::Class::name` is a test of this repository."""
    path, _, name = test.partition("::")
    return path.startswith("tests/") and name in known_in(ROOT / path)


def test_every_test_that_a_promise_names_exists() -> None:
    rows = rows_of(PAGE.read_text())
    assert {row.name: row.test for row in rows if not exists(row.test)} == {}


def test_no_rule_is_without_a_test_or_without_a_word_on_how_it_was_shown() -> None:
    assert [row for row in rows_of(PAGE.read_text()) if not (row.name and row.rule and row.test and row.shown)] == []


def test_no_line_of_a_table_is_anything_but_a_rule() -> None:
    """A row with a cell too few would not be read as one."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {5}


def test_every_rule_is_named_once_and_none_was_taken_off() -> None:
    names = Counter(row.name for row in rows_of(PAGE.read_text()))
    assert [name for name, count in names.items() if count > 1] == []
    assert len(names) >= RULES > 0


def test_a_row_that_names_no_test_of_ours_is_found() -> None:
    """What these tests rest on."""
    page = (
        "| rule | what | test | shown |\n|---|---|---|---|\n| **a** | A. | `tests/unit/test_promises.py::{}` | by |\n"
    )
    here, gone = page.format("test_every_test_that_a_promise_names_exists"), page.format("test_of_old")
    assert [exists(row.test) for row in rows_of(here + gone)] == [True, False]
    assert rows_of("| **a** |  |  |  |") == [Row(name="a", rule="", test="", shown="")]
    for other in (
        "",
        "tests/unit/test_promises.py",
        "tests/unit/test_promises.py::rows_of",
        "tests/unit/none.py::test_a",
    ):
        assert not exists(other)
