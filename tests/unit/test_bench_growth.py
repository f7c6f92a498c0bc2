"""The verdict of `convergio bench growth`: each of its bounds can fail."""

from __future__ import annotations

from typing import Any, Final

import pytest

from convergio.benchmarks import growth, rig

GOOD: Final[dict[str, Any]] = {
    "spread": 0.19,
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
        {"spread": 0.21},
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


def test_what_others_took_of_the_machine_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    alone = rig.Measure(seconds=10.0, cpu=18.0, items=1000, others=0.0)
    shared = rig.Measure(seconds=20.0, cpu=18.0, items=1000, others=20.0)
    assert (alone.per_second, alone.undisturbed) == (100.0, 100.0)
    assert (shared.per_second, shared.undisturbed) == (50.0, 100.0)


def test_every_round_begins_with_another_size() -> None:
    assert [growth._turned((1, 2, 3), number) for number in range(3)] == [[1, 2, 3], [2, 3, 1], [3, 1, 2]]  # pyright: ignore[reportPrivateUsage]
