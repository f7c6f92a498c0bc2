"""The verdict of `convergio bench growth`: each of its bounds can fail."""

from __future__ import annotations

from typing import Any, Final

import pytest

from convergio.benchmarks import growth

GOOD: Final[dict[str, Any]] = {
    "steps_per_s": {"10": 1000.0, "10000": 900.0},
    "blocked_mb": 39.0,
    "blocked_leases": 0,
    "blocked_unacked": 0,
    "blocked_messages": 0,
    "signal_ms_p99": 49.0,
    "keys_left": 0,
    "worker_grown_mb": 9.0,
}


def test_good_figures_are_accepted() -> None:
    assert growth.judged(GOOD) == []


@pytest.mark.parametrize(
    "worse",
    [
        {"steps_per_s": {"10": 1000.0, "10000": 800.0}},
        {"blocked_mb": 41.0},
        {"blocked_leases": 1},
        {"blocked_unacked": 1},
        {"blocked_messages": 1},
        {"signal_ms_p99": 51.0},
        {"keys_left": 1},
        {"worker_grown_mb": 11.0},
    ],
    ids=lambda worse: next(iter(worse)),
)
def test_each_bound_can_fail(worse: dict[str, Any]) -> None:
    assert len(growth.judged(GOOD | worse)) == 1
