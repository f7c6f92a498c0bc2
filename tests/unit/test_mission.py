"""docs/mission.md has a row for every line that was asked for, and names only what exists."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINES = {
    "C": 10,
    "T1": 4,
    "T2": 5,
    "T3": 4,
    "T4": 5,
    "T5": 5,
    "T6": 5,
    "T7": 3,
    "T8": 4,
    "T9": 4,
    "T10": 4,
    "K1": 5,
    "K2": 4,
    "K3": 5,
    "M1": 3,
    "M2": 4,
    "M3": 4,
    "U1": 3,
    "U2": 4,
    "U3": 3,
    "P1": 4,
    "P2": 4,
    "P3": 4,
    "N1": 3,
    "N2": 3,
    "N3": 4,
}
"""How many lines each part of the document and of the design card (C) has; a row's number is PART.LINE."""

STATES = {"built", "part", "planned"}


@dataclass(frozen=True, kw_only=True)
class Row:
    number: str
    line: str
    module: str
    test: str
    state: str


def rows() -> list[Row]:
    text = (ROOT / "docs" / "mission.md").read_text()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:2] == "| "]
    found = [cell for cell in cells if re.fullmatch(r"[A-Z]\d*\.\d+", cell[0])]
    return [Row(number=a, line=b, module=c, test=d, state=e) for a, b, c, d, e in found]


def paths(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def test_every_line_that_was_asked_for_has_one_row() -> None:
    asked = [f"{part}.{line}" for part, count in LINES.items() for line in range(1, count + 1)]
    assert [row.number for row in rows()] == asked


def test_rows_name_only_what_exists() -> None:
    named = [(row.number, path) for row in rows() for path in paths(row.module) + paths(row.test)]
    assert [(number, path) for number, path in named if not (ROOT / path).exists()] == []


def test_every_row_names_a_module_and_a_known_state() -> None:
    assert [row.number for row in rows() if not row.line or not row.module or row.state not in STATES] == []


def test_only_a_row_with_a_module_and_a_test_says_that_it_is_built() -> None:
    claimed = [row for row in rows() if row.state != "planned"]
    unproven = [row for row in claimed if not paths(row.module) or not paths(row.test)]
    assert [row.number for row in unproven] == []
    assert [path for row in claimed for path in paths(row.test) if not path.startswith("tests/")] == []
