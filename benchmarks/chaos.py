"""`convergio chaos`: kill, wipe and cut things while runs go on, and hold what is left against a reference.

Every round submits random workflows and strikes once; the kinds of faults take turns. Progress goes to stderr, the
result is one JSON object on stdout, and the exit code is 1 when the bound fails:

* nothing lost, committed twice or out of order, every fan-in complete, every outcome as the reference has it, all that
  is to be undone undone, no more steps of a concurrency key at once than may,
* every thread as the reference has it, no effect of its tools twice, its ledger exact,
* nothing ran twice on a healthy worker because a store blinked,
* recovery p99 within 15 s,
* every fault hit something; over a full cycle of kinds, stale owners were refused and boards were wiped.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from types import FrameType
from typing import Any, Final

from convergio.benchmarks import checker, faults, kinds, recovery, shapes
from convergio.benchmarks.arena import Arena, arena
from convergio.benchmarks.evidence import History
from convergio.benchmarks.rig import level, say, wait_for
from convergio.benchmarks.traffic import Traffic
from convergio.benchmarks.violations import Fault, Violation

RECOVERY_S: Final = 15.0
"""Bound of the 99th percentile of recovery."""

ROUND_S: Final = 75.0
"""Seconds after which a run of a round that has not ended counts as lost."""

HOPELESS: Final = 3
"""Rounds with lost runs after which no more are played: each waits long for runs that never end."""

LEAST_RUNS: Final = 20


@dataclass(slots=True)
class Tally:
    """What all rounds came to."""

    rounds: int = 0
    bad_rounds: int = 0
    runs: int = 0
    steps: int = 0
    executions: int = 0
    turns: int = 0
    fenced: int = 0
    healthy_run_twice: int = 0
    unknown_outcomes: int = 0
    rerung: int = 0
    flushes: int = 0
    rollbacks: int = 0
    kills: int = 0
    samples: list[float] = field(default_factory=list[float])
    faults: Counter[str] = field(default_factory=Counter[str])
    violations: list[Violation] = field(default_factory=list[Violation])
    missed: list[str] = field(default_factory=list[str])
    broke: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for."""

    seed: int
    rounds: int
    runs: int
    kinds: Sequence[str]
    database: str
    keep: bool


def options(argv: Sequence[str] | None) -> Options:
    """The options. Exits with 2 on a wrong one."""
    parser = argparse.ArgumentParser(prog="convergio chaos", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--seed", type=int, default=1, help="what is drawn: workflows, moments, victims")
    parser.add_argument("--rounds", type=int, default=len(kinds.KINDS), help="rounds, each with one fault")
    parser.add_argument("--runs", type=int, default=LEAST_RUNS + 4, help="workflow runs in every round")
    parser.add_argument("--kinds", default=",".join(kinds.KINDS), help="kinds of faults, in turn (default: all)")
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite", help="where the journal is")
    parser.add_argument("--keep", action="store_true", help="leave the folder with logs and journal behind")
    parser.add_argument("--json", action="store_true", help="the result is one JSON object on stdout in any case")
    given = parser.parse_args(argv)
    chosen = [kind for kind in given.kinds.split(",") if kind]
    if unknown := [kind for kind in chosen if kind not in kinds.KINDS]:
        parser.error(f"no such kind: {', '.join(unknown)}; there are {', '.join(kinds.KINDS)}")
    if given.runs < LEAST_RUNS or given.rounds < 1 or not chosen:
        parser.error(f"a round has at least {LEAST_RUNS} runs, and there is at least one round of one kind")
    return Options(
        seed=given.seed, rounds=given.rounds, runs=given.runs, kinds=chosen, database=given.database, keep=given.keep
    )


# --- rounds -------------------------------------------------------------------------------------------------------


def play(here: Arena, wanted: Options, number: int, tally: Tally) -> None:
    """One round: load, one fault, quiet, and the checks."""
    kind = wanted.kinds[number % len(wanted.kinds)]
    random = Random(f"{wanted.seed}-{number}")
    prefix = f"c{number:03d}"
    often = "approval" if kind in kinds.NEED_APPROVALS else ""
    graphs = shapes.draw_many(prefix, wanted.runs, random, often=often)
    traffic = Traffic(here.settings, prefix, graphs, random, spread=2.5)
    if kind in kinds.NEED_APPROVALS:
        traffic.withhold.set()
    began = time.monotonic()
    try:
        traffic.start()
        time.sleep(random.uniform(0.3, 2.5))  # the moment is drawn; the fault then waits for something to hit
        turn = number // len(wanted.kinds)
        hit = _strike(kind, faults.Field(arena=here, traffic=traffic, random=random, turn=turn), tally)
        traffic.withhold.clear()
        traffic.finish(ROUND_S)
        _wait_for_quiet(here, traffic)
    finally:
        traffic.close()
    _settle(here, traffic, prefix, hit, tally)
    said, seconds = hit.said if hit else "MISSED", time.monotonic() - began
    say(f"round {number + 1}/{wanted.rounds}  {kind}: {said}; {len(traffic.accepted)} runs, {seconds:.1f} s")


def _strike(kind: str, where: faults.Field, tally: Tally) -> faults.Hit | None:
    try:
        hit = kinds.KINDS[kind](where)
    except RuntimeError as error:
        tally.missed.append(f"{kind}: {error}")
        return None
    tally.faults[kind] += 1
    tally.kills += hit.kills
    tally.flushes += hit.flushes
    tally.rollbacks += hit.rollbacks
    return hit


def _wait_for_quiet(here: Arena, traffic: Traffic) -> None:
    """Until every run has ended and no body runs. What has not by then is for the checker to report."""
    with suppress(RuntimeError):
        wait_for(
            lambda: not here.journal.unfinished(traffic.accepted), what="the runs to end", timeout=ROUND_S, interval=0.1
        )
        wait_for(lambda: not any(here.busy().values()), what="bodies to end", timeout=10, interval=0.1)
    with suppress(RuntimeError):
        wait_for(here.settled, what="every process to run again", timeout=30, interval=0.1)


def _settle(here: Arena, traffic: Traffic, prefix: str, hit: faults.Hit | None, tally: Tally) -> None:
    history = here.journal.history(f"{prefix}-")
    mine = {run.run for run in history.runs}
    executions = [one for one in here.effects.all() if one.run in mine or one.run in traffic.accepted]
    gone, notes = frozenset(traffic.cancelled), here.effects.notes()
    violations = checker.check(traffic.accepted, history, executions, cancelled=gone, notes=notes)
    for violation in violations[:20]:
        say(f"  {violation}")
    tally.violations += violations
    tally.bad_rounds += any(violation.fault is Fault.LOST for violation in violations)
    tally.runs += len(traffic.accepted)
    tally.steps += len(history.outcomes)
    tally.executions += len(executions)
    tally.turns += len(history.talked.taken)
    tally.rerung += _rerung(history)
    if hit is None:
        return
    cost = recovery.cost(traffic.accepted, history, executions, hit.disturbance)
    tally.samples += cost.samples
    tally.fenced += cost.fenced
    tally.healthy_run_twice += cost.healthy_run_twice
    tally.unknown_outcomes += cost.unknown_outcomes
    worst = max(cost.samples, default=0.0)
    say(f"  {len(cost.samples)} steps touched, slowest {worst:.1f} s; fenced {cost.fenced}, "
        f"twice {cost.healthy_run_twice}, unknown {cost.unknown_outcomes}")  # fmt: skip


def _rerung(history: History) -> int:
    """Doorbells that the sweeper rang again because they were lost, or because their claim was."""
    repairs = [event for event in history.events if event.type in ("step.rung", "step.expired")]
    return sum(1 for event in repairs if event.type == "step.expired" or event.data.get("why") == "lost")


# --- the verdict --------------------------------------------------------------------------------------------------


def report(wanted: Options, tally: Tally, seconds: float) -> dict[str, Any]:
    """The JSON object."""
    wrong = Counter(violation.fault for violation in tally.violations)
    p50, p99 = (recovery.percentile(tally.samples, share) for share in (0.50, 0.99))
    return {
        "seed": wanted.seed,
        "rounds": tally.rounds,
        "runs": tally.runs,
        "steps": tally.steps,
        "executions": tally.executions,
        "turns": tally.turns,
        **{fault.value: wrong[fault] for fault in Fault},
        "healthy_run_twice": tally.healthy_run_twice,
        "unknown_outcomes": tally.unknown_outcomes,
        "fenced": tally.fenced,
        "flushes": tally.flushes,
        "rollbacks": tally.rollbacks,
        "kills": tally.kills,
        "rerung": tally.rerung,
        "recovery_p50_s": p50,
        "recovery_p99_s": p99,
        "recovery_max_s": max(tally.samples, default=None),
        "touched_steps": len(tally.samples),
        "faults": dict(tally.faults),
        "missed": tally.missed,
        "violations": [str(violation) for violation in tally.violations[:50]],
        "database": wanted.database,
        "seconds": round(seconds, 1),
    }


def failures(wanted: Options, tally: Tally, found: dict[str, Any]) -> list[str]:
    """Which parts of the bound do not hold, in words."""
    said = [f"{name} = {found[name]}" for name in Fault if found[name]]
    if tally.broke:
        said.append(tally.broke)
    elif tally.rounds < wanted.rounds:
        said.append(
            f"gave up after {tally.rounds} of {wanted.rounds} rounds: runs were lost in {tally.bad_rounds} of them"
        )
    said += [f"a fault hit nothing: {missed}" for missed in tally.missed]
    if tally.healthy_run_twice:
        said.append(f"healthy_run_twice = {tally.healthy_run_twice}")
    p99 = found["recovery_p99_s"]
    if p99 is None or p99 > RECOVERY_S:
        said.append(f"recovery_p99_s = {p99}, the bound is {RECOVERY_S:g}")
    if set(kinds.KINDS) <= set(wanted.kinds) and wanted.rounds >= len(wanted.kinds):
        said += [
            f"{name} = 0 over a full cycle" for name in ("fenced", "flushes", "rollbacks", "kills") if not found[name]
        ]
    return said


def play_all(wanted: Options, tally: Tally) -> None:
    """All rounds in one arena."""
    with arena("postgres" if wanted.database == "postgres" else "sqlite", keep=wanted.keep) as here:
        say(f"chaos with seed {wanted.seed}: {wanted.rounds} rounds in {here.folder}")
        while tally.rounds < wanted.rounds and tally.bad_rounds < HOPELESS:
            play(here, wanted, tally.rounds, tally)
            tally.rounds += 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if the bound holds, 1 if not."""
    wanted = options(argv)
    signal.signal(signal.SIGTERM, _leave)
    tally, began = Tally(), time.monotonic()
    try:
        with level(logging.ERROR, "convergio"):  # stores that are away are what callers here are used to
            play_all(wanted, tally)
    except Exception as error:  # whatever broke, there is a result, and it says so
        logging.getLogger(__name__).exception("broke off in round %d", tally.rounds + 1)
        tally.broke = f"broke off in round {tally.rounds + 1}: {type(error).__name__}: {error}"
    found = report(wanted, tally, time.monotonic() - began)
    said = failures(wanted, tally, found)
    for line in said:
        say(f"FAILED (seed {wanted.seed}): {line}")
    print(json.dumps({**found, "failed": said, "ok": not said}, indent=None))
    return 1 if said else 0


def _leave(number: int, _frame: FrameType | None) -> None:
    """Ends through the `with` statements, which stop all that was started."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
