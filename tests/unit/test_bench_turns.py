"""The verdict of `convergio bench turns`: each of its bounds can fail, and its figures are of the turns they name."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, Final

import pytest

from convergio.benchmarks import turns
from convergio.benchmarks.turns import Journal, Load, Played, Sample

LOAD: Final = {"overhead_ms_p50": 14.0, "overhead_ms_p99": 59.0, "cpu_ms_per_turn": 4.9}
GOOD: Final[dict[str, Any]] = {
    **LOAD,
    "overhead_turn_500_ratio": 1.2,
    "row_bytes_turn_500_ratio": 1.2,
    "rss_over_imports_mb": 39.0,
    "slow": {**LOAD, "rss_over_imports_mb": 39.0},
}


def test_good_figures_are_accepted() -> None:
    assert turns.judged(GOOD) == []


@pytest.mark.parametrize(
    "worse",
    [
        {"overhead_ms_p50": 15.1},
        {"overhead_ms_p99": 60.1},
        {"cpu_ms_per_turn": 5.1},
        {"overhead_turn_500_ratio": 1.3},
        {"row_bytes_turn_500_ratio": 1.3},
        {"rss_over_imports_mb": 40.1},
        {"slow": {**GOOD["slow"], "overhead_ms_p50": 15.1}},
        {"slow": {**GOOD["slow"], "overhead_ms_p99": 60.1}},
        {"slow": {**GOOD["slow"], "cpu_ms_per_turn": 5.1}},
        {"slow": {**GOOD["slow"], "rss_over_imports_mb": 40.1}},
    ],
    ids=str,
)
def test_each_bound_can_fail(worse: dict[str, Any]) -> None:
    assert len(turns.judged(GOOD | worse)) == 1


def played(samples: list[Sample], runs: tuple[str, ...] = ("r",)) -> Played:
    return Played(load=Load(model_s=0.05, conversations=1, turns=3), runs=runs, samples=samples)


def test_a_turns_overhead_is_the_time_to_the_next_call_less_the_models(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite3"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE model_calls (run_id, iteration, started_ms)")
        rows = [("r", 0, 1_000), ("r", 1, 1_060), ("r", 2, 1_130), ("other", 0, 0), ("other", 1, 900)]
        connection.executemany("INSERT INTO model_calls VALUES (?, ?, ?)", rows)
    assert Journal(path).overheads(played([])) == {0: [10.0], 1: [20.0]}


def test_what_is_spent_is_counted_between_turns_and_not_between_moments() -> None:
    samples = [
        Sample(at=0.0, turns=0, cpu=(1.0, 5.0), written=0),
        Sample(at=9.0, turns=10, cpu=(1.1, 5.0), written=1_000),
        Sample(at=10.0, turns=20, cpu=(1.2, 5.1), written=4_000),
    ]
    assert played(samples).cpu_ms() == pytest.approx([10.0, 5.0])
    assert played(samples).written(0.5, 1.0) == 300


def test_half_of_the_capacity_is_what_so_many_conversations_take() -> None:
    load = Load(model_s=0.05, conversations=10, turns=1)
    assert turns.half(load, 400.0).conversations == 10
    assert turns.half(load, 100.0).conversations == 3
    assert turns.half(load, 1.0).conversations == 1
