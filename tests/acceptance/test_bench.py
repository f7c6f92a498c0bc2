"""The benchmark's command: that it runs whole, and that its bound can fail. What it measures is in docs/proof.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from convergio.benchmarks import engine

FIELDS = {
    "bare_tasks_per_s", "steps_per_s", "ratio_to_bare", "ratio_to_bare_step_durability", "cpu_us_per_step",
    "bare_cpu_us_per_task", "chain_hop_ms_p50", "chain_hop_ms_p99", "reenqueue_hop_ms_p50", "celery_chain_hop_ms_p50",
    "fanin_1000_s", "fanin_1000_cold_s", "fanin_1000_ratio", "celery_chord_1000_s", "mesh_steps_per_s",
    "mesh_latency_ratio_p50", "publish_us_per_step", "journal_cpu_us_per_step", "ratio_to_drain",
}  # fmt: skip
TURN_FIELDS = {
    "overhead_ms_p50", "overhead_ms_p99", "overhead_turn_500_ratio", "cpu_ms_per_turn", "bytes_per_turn",
    "rss_over_imports_mb", "capacity_turns_per_s", "autogen_cpu_ms_turn_1", "autogen_cpu_ms_turn_500",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_engine_benchmark_ends_with_one_json_object_and_says_what_is_below_its_bound() -> None:
    command = [sys.executable, "-m", "convergio.benchmarks.engine", "--quick", "--rounds", "1", "--bound", "1000000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    *before, last = done.stdout.splitlines()
    assert before == []
    result = json.loads(last)
    assert result.keys() >= FIELDS
    assert all(result[name] > 0 for name in FIELDS)
    assert "ratio_to_bare is below 1e+06" in result["failed"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ratio_to_bare", 1.49),
        ("ratio_to_bare_step_durability", 0.99),
        ("ratio_to_drain", 0.99),
        ("cpu_us_per_step", 76),
        ("chain_hop_ms_p50", 0.71),
        ("fanin_1000_ratio", 1.19),
        ("mesh_latency_ratio_p50", 0.61),
        ("journal_cpu_us_per_step", 61),
    ],
)
def test_each_bound_of_the_engine_is_looked_at(name: str, value: float) -> None:
    held = {
        "ratio_to_bare": 1.5, "ratio_to_bare_step_durability": 1.0, "ratio_to_drain": 1.0, "cpu_us_per_step": 75,
        "bare_cpu_us_per_task": 100, "chain_hop_ms_p50": 0.7, "reenqueue_hop_ms_p50": 1.0, "fanin_1000_ratio": 1.2,
        "mesh_latency_ratio_p50": 0.6, "journal_cpu_us_per_step": 60,
    }  # fmt: skip
    assert engine.judged(held) == []
    assert len(engine.judged({**held, name: value})) == 1


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_graph_is_replayed_in_order_and_its_makespan_compared(tmp_path: Path) -> None:
    nodes: list[dict[str, Any]] = [
        {"id": "a", "runtime_s": 3, "parents": []},
        {"id": "b", "runtime_s": 1, "parents": ["a"]},
    ]
    (tmp_path / "two.json").write_text(json.dumps({"name": "two", "nodes": nodes}))
    command = [sys.executable, "-m", "convergio.benchmarks.dags", "--dir", str(tmp_path), "--rounds", "1"]
    done = subprocess.run([*command, "--mean-ms", "100", "--bound", "0.5"], capture_output=True, text=True, check=False)
    assert done.returncode == 1, "nothing is faster than work itself"
    result = json.loads(done.stdout.splitlines()[-1])
    graph = result["graphs"]["two"]
    assert (graph["tasks"], graph["correct"]) == (2, True)
    assert graph["list_schedule_s"] == pytest.approx(0.2)
    assert 1 < graph["makespan_ratio"] == result["worst_ratio"]


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_what_a_turn_costs_is_measured_on_two_workers() -> None:
    command = [sys.executable, "-m", "convergio.benchmarks.turns", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert all(result[name] > 0 for name in TURN_FIELDS)
    assert all(result["slow"][name] > 0 for name in ("overhead_ms_p50", "cpu_ms_per_turn", "rss_over_imports_mb"))
    assert result["ok"] is not bool(result["failed"]), "what it says is what it found, whatever that is here"


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_streams_benchmark_measures_from_the_provider_to_a_reader_and_fails_above_its_bound() -> None:
    command = [sys.executable, "-m", "convergio.benchmarks.stream", "--quick", "--bound", "0.001"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["turns"] == 4
    names = ("first_token", "chunk", "chunk_gap", "first_told", "bare_first_token", "bare_chunk")
    assert all(0 < result[f"{name}_ms_p50"] <= result[f"{name}_ms_p99"] for name in names)
    assert result["tokens_per_s"] > 0
