"""Whether cost grows faster than work: large runs, many waiting steps, what ended runs leave, what workers keep.

`convergio bench growth [--quick]`. Bounds: steps/s of runs of 10, 100, 1,000 and 10,000 steps within 20 % (medians of
rounds in which the sizes take turns; where others share the machine, of what they leave of it: `others_share`); 10,000
steps that wait hold no slot, no unacknowledged message and at most 40 MB in Valkey, and a signal starts what waits for
it within 50 ms (p99); ended runs leave no key behind; a worker that ran 100,000 steps has not grown by more than 10 MB.
The last line on stdout is one JSON object; exit code 1 if a bound fails.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from convergio.benchmarks import ours, rig
from convergio.benchmarks.bodies import STAMP
from convergio.benchmarks.engine import quantile
from convergio.graphflow.engine.journaler import GRACE_MS
from convergio.graphflow.journal.rows import RunRow
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.workflow import Durability, Workflow

SPREAD: Final = 0.20
BLOCKED_MB: Final = 40.0
SIGNAL_MS: Final = 50.0
GROWN_MB: Final = 10.0
UNACKED: Final = ("unacked", "unacked_index", "convergio.unacked", "convergio.unacked_index")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured. `steps`: of all runs of one size together, in each of the `rounds`."""

    sizes: tuple[int, ...] = (10, 100, 1_000, 10_000)
    steps: int = 10_000
    rounds: int = 5
    blocked_runs: int = 10
    blocked_each: int = 1_000
    signals: int = 300
    lifetime: int = 100_000

    @classmethod
    def quick(cls) -> Sizes:
        """Small enough for a test suite: the figures are only shown to exist."""
        return cls(sizes=(10, 100), steps=200, rounds=2, blocked_runs=2, blocked_each=20, signals=5, lifetime=400)


def waiting(count: int) -> Workflow:
    """So many steps that wait for a signal each, and one behind each of them."""
    steps: dict[str, dict[str, Any]] = {}
    for number in range(count):
        steps[f"w{number}"] = {"wait": {"signal": f"g{number}"}}
        steps[f"s{number}"] = {"task": STAMP, "needs": [f"w{number}"], "durability": Durability.STREAM.value}
    return ours.workflow("waiting", steps, None)


def per_second(stack: ours.Ours, sizes: Sizes) -> dict[str, Any]:
    """Steps/s by the size of the runs: the sizes take turns, so that whatever happens meanwhile happens to all of them.

    Figures are medians of the rounds. `undisturbed`: of the machine that others left to us.
    """
    flows = {size: ours.independent(size, Durability.STREAM) for size in sizes.sizes}
    for flow in flows.values():
        stack.batch(flow, 1)  # every process knows the definition: that is paid once, not per step
    found: dict[int, list[rig.Measure]] = {size: [] for size in sizes.sizes}
    for number in range(sizes.rounds):
        for size in _turned(sizes.sizes, number):
            done = stack.batch(flows[size], max(1, sizes.steps // size))
            rig.say(f"runs of {size}: {done.per_second:.0f} steps/s, {done.disturbance:.0%} of the machine was others'")
            found[size].append(done)
    undisturbed = _medians(found, lambda one: one.undisturbed)
    return {
        "rounds": sizes.rounds,
        "steps_per_s": _medians(found, lambda one: one.per_second),
        "undisturbed_steps_per_s": undisturbed,
        "cpu_us_per_step": _medians(found, lambda one: one.cpu_us),
        "others_share": round(median(one.disturbance for many in found.values() for one in many), 3),
        "spread": round(max(undisturbed.values()) / min(undisturbed.values()) - 1, 3),
    }


def _turned(sizes: Sequence[int], number: int) -> list[int]:
    """Each round begins with another size."""
    start = number % len(sizes)
    return [*sizes[start:], *sizes[:start]]


def _medians(found: Mapping[int, Sequence[rig.Measure]], figure: Callable[[rig.Measure], float]) -> dict[str, float]:
    return {str(size): round(median(map(figure, many)), 1) for size, many in found.items()}


def blocked(stack: ours.Ours, sizes: Sizes) -> dict[str, Any]:
    """What waiting steps hold, and how soon one goes on."""
    client = stack.entrance.link.client
    flow = waiting(sizes.blocked_each)
    before = int(client.info("memory")["used_memory"])
    runs = [stack.submit(flow) for _ in range(sizes.blocked_runs)]
    keys = stack.entrance.link.keys(stack.entrance.link.epoch())
    rig.wait_for(lambda: client.zcard(keys.inboxes) == 0, what="all steps to wait")
    held = (int(client.info("memory")["used_memory"]) - before) / 2**20
    result: dict[str, Any] = {
        "blocked_steps": sizes.blocked_runs * sizes.blocked_each,
        "blocked_mb": round(held, 2),
        "blocked_leases": int(client.zcard(keys.leases)),
        "blocked_unacked": sum(int(client.exists(name)) for name in UNACKED),
        "blocked_messages": sum(int(client.llen(name)) for name in ("steps", "control", "turns", "tools")),
    }
    latencies = [_signal_ms(stack, runs[0], number) for number in range(sizes.signals)]
    result |= {
        "signal_ms_p50": round(quantile(latencies, 0.5), 2),
        "signal_ms_p99": round(quantile(latencies, 0.99), 2),
    }
    for run in runs:
        stack.entrance.cancel(RunRef(tenant=run.tenant, run=run.run_id), by="bench")
    return result


def _signal_ms(stack: ours.Ours, run: RunRow, number: int) -> float:
    """Milliseconds from the call that gives a signal to the body of the step behind the wait."""
    stack.place.take_stamps()
    start = time.time()
    stack.entrance.signal(RunRef(tenant=run.tenant, run=run.run_id), name=f"g{number}", data={}, by="bench")
    stamps = rig.wait_for(stack.place.take_stamps, what="the step behind the signal", interval=0.001)
    return (stamps[0] - start) * 1000


def lifetime(stack: ours.Ours, sizes: Sizes) -> dict[str, Any]:
    """How much the workers' memory grows over so many steps, after they have warmed up."""
    flow = ours.independent(min(1_000, sizes.lifetime), Durability.STREAM)
    stack.batch(flow, max(1, sizes.lifetime // 20 // len(flow.steps)))
    workers = stack.pids[:-1]
    before = [rig.resident_mb(pid) for pid in workers]
    stack.batch(flow, max(1, sizes.lifetime // len(flow.steps)))
    grown = [rig.resident_mb(pid) - was for pid, was in zip(workers, before, strict=True)]
    return {"lifetime_steps": sizes.lifetime, "worker_grown_mb": round(max(grown), 2)}


def left_behind(stack: ours.Ours, *, wait_s: float) -> int:
    """Keys of runs that are still on the board when every run has ended, and its grace tail is over."""
    link = stack.entrance.link
    keys = link.keys(link.epoch())

    def gone() -> bool:
        return not link.client.zcard(keys.runs) and not link.client.zcard(keys.done)

    rig.wait_for(gone, what="ended runs to leave the board", timeout=wait_s, interval=0.5)
    return sum(1 for _ in link.client.scan_iter(match=f"{link.prefix}:{keys.number}:default:*", count=1000))


def judged(result: dict[str, Any]) -> list[str]:
    """The bounds that do not hold, in words."""
    bounds = [
        (result["spread"] <= SPREAD, f"steps/s differ by more than {SPREAD:.0%}"),
        (result["blocked_mb"] <= BLOCKED_MB, f"waiting steps hold more than {BLOCKED_MB:g} MB"),
        (not result["blocked_leases"], "waiting steps hold slots"),
        (not result["blocked_unacked"] and not result["blocked_messages"], "waiting steps hold messages"),
        (result["signal_ms_p99"] <= SIGNAL_MS, f"a signal takes longer than {SIGNAL_MS:g} ms (p99)"),
        (result["keys_left"] == 0, "ended runs leave keys behind"),
        (result["worker_grown_mb"] <= GROWN_MB, f"a worker grew by more than {GROWN_MB:g} MB"),
    ]
    return [said for holds, said in bounds if not holds]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and says whether the bounds hold."""
    arguments = parser().parse_args(argv)
    sizes = Sizes.quick() if arguments.quick else Sizes()
    with rig.folder() as place, rig.server(place) as url:
        journal = f"sqlite:///{place.path}/journal.sqlite3"
        with ours.stack(place, url, journal_url=journal, events=False) as stack:
            result = blocked(stack, sizes)  # first: what ended runs free meanwhile would be counted against it
            result |= per_second(stack, sizes)
            result |= lifetime(stack, sizes)
            result["keys_left"] = left_behind(stack, wait_s=GRACE_MS / 1000 + 60)
    failed = judged(result)
    print(json.dumps({**result, "failed": failed, "ok": not failed}))
    return 0 if arguments.quick or not failed else 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="convergio bench growth", description=__doc__)
    made.add_argument("--quick", action="store_true", help="small sizes: shows that everything runs, judges nothing")
    made.add_argument("--json", action="store_true", help="the result is JSON in any case")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
