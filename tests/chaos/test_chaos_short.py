"""The chaos command itself: every kind of fault once, and what makes a run of it fail."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from convergio.benchmarks import chaos, kinds
from convergio.benchmarks.violations import Fault, Violation

COMMAND = [sys.executable, "-m", "convergio.workers.cli", "chaos"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_fault_once_and_nothing_is_lost_doubled_or_out_of_order() -> None:
    arguments = ["--seed", "11", "--rounds", str(len(kinds.KINDS)), "--runs", str(chaos.LEAST_RUNS), "--json"]
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert found["faults"] == dict.fromkeys(kinds.KINDS, 1)
    assert {name: found[name] for name in Fault} == dict.fromkeys(Fault, 0)
    assert found["runs"] >= chaos.LEAST_RUNS * len(kinds.KINDS)
    assert found["fenced"] > 0
    assert found["flushes"] > 0
    assert found["recovery_p99_s"] <= chaos.RECOVERY_S


def wanted(**changes: object) -> chaos.Options:
    given = {"seed": 1, "rounds": len(kinds.KINDS), "runs": 20, "kinds": tuple(kinds.KINDS), **changes}
    return chaos.Options(**given, database="sqlite", keep=False)  # type: ignore[arg-type]


def good() -> chaos.Tally:
    """A tally within the bound."""
    return chaos.Tally(
        rounds=len(kinds.KINDS), runs=20, steps=100, fenced=1, flushes=1, rollbacks=1, kills=1, samples=[1.0, 2.0]
    )


def said(tally: chaos.Tally, options: chaos.Options) -> list[str]:
    return chaos.failures(options, tally, chaos.report(options, tally, 1.0))


def test_a_run_within_the_bound_does_not_fail() -> None:
    assert said(good(), wanted()) == []


@pytest.mark.parametrize("fault", list(Fault))
def test_a_single_violation_fails_the_run(fault: Fault) -> None:
    tally = good()
    tally.violations.append(Violation(fault=fault, run="r", step="s", said="is wrong"))
    assert said(tally, wanted()) == [f"{fault} = 1"]


def test_a_fault_that_hit_nothing_fails_the_run() -> None:
    tally = good()
    tally.missed.append("flushed: there was nothing to wipe")
    assert said(tally, wanted()) == ["a fault hit nothing: flushed: there was nothing to wipe"]


def test_a_healthy_step_that_ran_twice_fails_the_run() -> None:
    tally = good()
    tally.healthy_run_twice = 1
    assert said(tally, wanted()) == ["healthy_run_twice = 1"]


@pytest.mark.parametrize("samples", [[], [1.0, 15.1]])
def test_slow_or_unmeasured_recovery_fails_the_run(samples: list[float]) -> None:
    tally = good()
    tally.samples = samples
    assert [line.split(" = ")[0] for line in said(tally, wanted())] == ["recovery_p99_s"]


@pytest.mark.parametrize("name", ["fenced", "flushes", "rollbacks", "kills"])
def test_a_full_cycle_without_refusals_or_faults_fails_the_run(name: str) -> None:
    tally = good()
    setattr(tally, name, 0)
    assert said(tally, wanted()) == [f"{name} = 0 over a full cycle"]
    tally.rounds = 3
    assert said(tally, wanted(rounds=3)) == []


def test_a_run_that_broke_off_fails_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_wanted: chaos.Options, _tally: chaos.Tally) -> None:
        raise RuntimeError("not within 60 s: the board")

    monkeypatch.setattr(chaos, "play_all", broken)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert chaos.main(["--json"]) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    found = json.loads(capsys.readouterr().out)
    assert "broke off in round 1: RuntimeError: not within 60 s: the board" in found["failed"]
    assert not found["ok"]


def test_a_run_that_gave_up_fails() -> None:
    tally = good()
    tally.rounds, tally.bad_rounds = 5, chaos.HOPELESS
    assert said(tally, wanted()) == [f"gave up after 5 of {len(kinds.KINDS)} rounds: runs were lost in 3 of them"]


@pytest.mark.parametrize("arguments", [["--runs", "19"], ["--rounds", "0"], ["--kinds", "lightning"]])
def test_a_wrong_option_is_refused_before_anything_starts(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        chaos.options(arguments)
    assert caught.value.code == 2
