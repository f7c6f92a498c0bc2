"""What a step costs, beside what a bare Celery task costs: everything in one run, on one server, taking turns.

`convergio bench engine [--rounds N] [--quick] [--postgres [URL]] [--bound RATIO]`. Bare is at its best of prefetch 1, 4
and 64; ours is the full product. Figures are medians of the rounds. The last line on stdout is one JSON object; exit
code 1 if a bound does not hold: `failed` says which.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from convergio.benchmarks import bare, ours, postgres, rig
from convergio.graphflow.model.workflow import Durability

PREFETCHES: Final = (1, 4, 64)
CREWS: Final = {
    "prefork": bare.Crew(processes=1, pool="prefork", concurrency=2),
    "threads": bare.Crew(processes=1, pool="threads", concurrency=8),
}
"""Other kinds of workers; the headline is two solo ones."""
STEPS_PER_RUN: Final = 300
FANS: Final = 3
"""Fans of a definition that all processes have read, in each round."""

BOUND: Final = 1.5
"""Least `ratio_to_bare`."""
STEP_BOUND: Final = 1.0
DRAIN_BOUND: Final = 1.0
CPU_BOUND: Final = 0.75
"""CPU of a step by that of a bare task."""
HOP_BOUND: Final = 0.7
"""A hop of a chain by that of a task that enqueues the next."""
FAN_IN_BOUND: Final = 1.2
MESH_BOUND: Final = 0.6
JOURNAL_US: Final = 60
EMBEDDED: Final = "embedded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much one round does."""

    independent: int = 3000
    chain: int = 200
    chains: int = 50
    chain_length: int = 20
    width: int = 1000
    meshes: int = 200

    @classmethod
    def quick(cls) -> Sizes:
        """Small enough for a test suite: the figures are only shown to exist."""
        return cls(independent=300, chain=20, chains=5, chain_length=5, width=50, meshes=10)


@dataclass(slots=True)
class Figures:
    """All figures of all rounds, by name."""

    values: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def median(self, name: str) -> float | None:
        values = self.values.get(name)
        return statistics.median(values) if values else None

    def best(self, names: Sequence[str]) -> float:
        return max(value for name in names if (value := self.median(name)) is not None)

    def ratio(self, upper: str, lower: Sequence[str]) -> float:
        """The median over rounds of `upper` divided by the best of `lower` in the same round: neighbours in time."""
        rounds = zip(self.values[upper], *(self.values[name] for name in lower), strict=True)
        return float(statistics.median(first / max(rest) for first, *rest in rounds))


def bare_round(figures: Figures, place: rig.Folder, url: str, sizes: Sizes, *, prefetch: int) -> None:
    """Bare Celery with one prefetch count; the canvas and the re-enqueueing task only with 4."""
    with bare.workers(place, url, prefetch=prefetch) as celery:
        done = celery.independent(sizes.independent)
        figures.add(f"bare_{prefetch}_per_s", done.per_second)
        figures.add(f"bare_{prefetch}_cpu_us", done.cpu_us)
        if prefetch != 4:
            return
        hops = celery.hops(sizes.chain)
        figures.add("reenqueue_hop_ms_p50", quantile(hops, 0.5) * 1e3)
        figures.add("celery_chain_hop_ms_p50", quantile(celery.chain_hops(sizes.chain), 0.5) * 1e3)
        figures.add("celery_chord_1000_s", celery.chord_seconds(sizes.width))


def beside_round(figures: Figures, place: rig.Folder, url: str, sizes: Sizes) -> None:
    """Bare Celery in other ways: every message sent before the workers start; a queue without books; with events."""
    figures.add("bare_drain_per_s", bare.drain(place, url, count=sizes.independent).per_second)
    with bare.workers(place, url, prefetch=4, no_ack=True) as celery:
        figures.add("bare_no_ack_per_s", celery.independent(sizes.independent).per_second)
    with bare.workers(place, url, prefetch=4, events=True) as celery:
        figures.add("bare_events_per_s", celery.independent(sizes.independent).per_second)


def events_round(figures: Figures, place: rig.Folder, url: str, sizes: Sizes, *, journal_url: str) -> None:
    """The product with events for Flower."""
    with ours.stack(place, url, journal_url=journal_url, events=True) as stack:
        flow = ours.independent(min(STEPS_PER_RUN, sizes.independent), Durability.STREAM)
        done = stack.batch(flow, max(1, sizes.independent // STEPS_PER_RUN))
        figures.add("stream_events_per_s", done.per_second)


def our_round(figures: Figures, place: rig.Folder, url: str, sizes: Sizes, *, journal_url: str, prefix: str) -> None:
    """The product on one database: every shape, both durabilities."""
    with ours.stack(place, url, journal_url=journal_url, events=False) as stack:
        copies = max(1, sizes.independent // STEPS_PER_RUN)
        for durability in Durability:
            flow = ours.independent(min(STEPS_PER_RUN, sizes.independent), durability)
            service = stack.service_cpu()
            done = stack.batch(flow, copies)
            figures.add(f"{prefix}{durability}_per_s", done.per_second)
            figures.add(f"{prefix}{durability}_cpu_us", done.cpu_us)
            figures.add(f"{prefix}{durability}_journal_cpu_us", (stack.service_cpu() - service) / done.items * 1e6)
        hops = stack.hops(sizes.chain, Durability.STREAM)
        figures.add(f"{prefix}hop_p50_ms", quantile(hops, 0.5) * 1e3)
        figures.add(f"{prefix}hop_p99_ms", quantile(hops, 0.99) * 1e3)
        chains = stack.batch(ours.chained(sizes.chain_length, Durability.STREAM), sizes.chains)
        figures.add(f"{prefix}chains_per_s", chains.per_second)
        fan = ours.fan(sizes.width, Durability.STREAM)
        figures.add(f"{prefix}fan_cold_s", stack.batch(fan, 1).seconds)  # every process reads the definition first
        warm = [stack.batch(fan, 1) for _ in range(FANS)]
        figures.add(f"{prefix}fan_s", statistics.median(done.seconds for done in warm))
        figures.add(f"{prefix}fan_per_s", statistics.median(done.per_second for done in warm))
        mesh, latencies = stack.latencies(ours.double_diamond(Durability.STREAM), sizes.meshes)
        figures.add(f"{prefix}mesh_per_s", mesh.per_second)
        figures.add(f"{prefix}mesh_latency_ratio", statistics.median(latencies) / mesh.seconds)
        figures.add(f"{prefix}publish_us", stack.publish_us(flow))


def crew_round(figures: Figures, place: rig.Folder, url: str, sizes: Sizes, *, kind: str, journal_url: str) -> None:
    """Both sides with another kind of workers: independent steps, and a chain."""
    crew = CREWS[kind]
    with bare.workers(place, url, prefetch=4, crew=crew) as celery:
        done = celery.independent(sizes.independent)
        figures.add(f"{kind}_bare_per_s", done.per_second)
        figures.add(f"{kind}_bare_cpu_us", done.cpu_us)
        figures.add(f"{kind}_reenqueue_hop_ms_p50", quantile(celery.hops(sizes.chain), 0.5) * 1e3)
    with ours.stack(
        place,
        url,
        journal_url=journal_url,
        events=False,
        workers=crew.processes,
        pool=crew.pool,
        concurrency=crew.concurrency,
    ) as stack:
        flow = ours.independent(min(STEPS_PER_RUN, sizes.independent), Durability.STREAM)
        done = stack.batch(flow, max(1, sizes.independent // STEPS_PER_RUN))
        figures.add(f"{kind}_per_s", done.per_second)
        figures.add(f"{kind}_cpu_us", done.cpu_us)
        figures.add(f"{kind}_hop_ms_p50", quantile(stack.hops(sizes.chain, Durability.STREAM), 0.5) * 1e3)


def crew_fields(figures: Figures, kind: str) -> dict[str, Any]:
    """The fields of one kind of workers."""
    names = ("bare_per_s", "bare_cpu_us", "reenqueue_hop_ms_p50", "per_s", "cpu_us", "hop_ms_p50")
    fields = {name: rounded(figures.median(f"{kind}_{name}")) for name in names}
    return {"ratio_to_bare": rounded(figures.ratio(f"{kind}_per_s", [f"{kind}_bare_per_s"])), **fields}


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which `part` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def report(figures: Figures, *, rounds: int, sizes: Sizes, on_postgres: bool) -> dict[str, Any]:
    """The fields of the result; everything measured is nested under `medians`."""
    bares = [f"bare_{prefetch}_per_s" for prefetch in PREFETCHES]
    best = max(PREFETCHES, key=lambda prefetch: figures.median(f"bare_{prefetch}_per_s") or 0)
    result: dict[str, Any] = {
        "bare_tasks_per_s": figures.best(bares),
        "bare_prefetch": best,
        "steps_per_s": figures.median("stream_per_s"),
        "ratio_to_bare": figures.ratio("stream_per_s", bares),
        "ratio_to_bare_step_durability": figures.ratio("step_per_s", bares),
        "ratio_to_drain": figures.ratio("stream_per_s", ["bare_drain_per_s"]),
        "cpu_us_per_step": figures.median("stream_cpu_us"),
        "bare_cpu_us_per_task": figures.median(f"bare_{best}_cpu_us"),
        "chain_hop_ms_p50": figures.median("hop_p50_ms"),
        "chain_hop_ms_p99": figures.median("hop_p99_ms"),
        "reenqueue_hop_ms_p50": figures.median("reenqueue_hop_ms_p50"),
        "celery_chain_hop_ms_p50": figures.median("celery_chain_hop_ms_p50"),
        "fanin_1000_s": figures.median("fan_s"),
        "fanin_1000_cold_s": figures.median("fan_cold_s"),
        "fanin_1000_ratio": figures.ratio("fan_per_s", bares),
        "celery_chord_1000_s": figures.median("celery_chord_1000_s"),
        "mesh_steps_per_s": figures.median("mesh_per_s"),
        "mesh_latency_ratio_p50": figures.median("mesh_latency_ratio"),
        "publish_us_per_step": figures.median("publish_us"),
        "journal_cpu_us_per_step": figures.median("stream_journal_cpu_us"),
        "ratio_to_bare_with_events": figures.ratio("stream_events_per_s", ["bare_events_per_s"]),
        "ratio_to_bare_no_ack": figures.ratio("stream_per_s", ["bare_no_ack_per_s"]),
    }
    result = {name: rounded(value) for name, value in result.items()}
    result |= {kind: crew_fields(figures, kind) for kind in CREWS}
    if on_postgres:
        result["postgres"] = {
            "ratio_to_bare": rounded(figures.ratio("pg_stream_per_s", bares)),
            "ratio_to_bare_step_durability": rounded(figures.ratio("pg_step_per_s", bares)),
        } | {name[3:]: rounded(figures.median(name)) for name in figures.values if name.startswith("pg_")}
    medians = {name: rounded(figures.median(name)) for name in sorted(figures.values)}
    return {**result, "rounds": rounds, "sizes": asdict(sizes), "medians": medians}


def rounded(value: Any) -> Any:
    """Four digits behind the point are more than enough."""
    return round(value, 4) if isinstance(value, float) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One measurement: where it takes place, and what it has found so far."""

    place: rig.Folder
    url: str
    sizes: Sizes
    postgres: str
    figures: Figures = field(default_factory=Figures)

    def round(self, number: int) -> None:
        """All parts once; every other round goes backwards, so that nobody always goes first."""
        parts = [
            "ours",
            "events",
            "beside",
            *(str(prefetch) for prefetch in PREFETCHES),
            *CREWS,
            *(["postgres"] if self.postgres else []),
        ]
        for part in parts if number % 2 == 0 else reversed(parts):
            rig.say(f"round {number + 1}: {part}")
            self.part(part, number)

    def part(self, name: str, number: int) -> None:
        match name:
            case "ours":
                journal = f"sqlite:///{self.place.path}/journal{number}.sqlite3"
                our_round(self.figures, self.place, self.url, self.sizes, journal_url=journal, prefix="")
            case "postgres":
                our_round(self.figures, self.place, self.url, self.sizes, journal_url=self.postgres, prefix="pg_")
            case "events":
                journal = f"sqlite:///{self.place.path}/events{number}.sqlite3"
                events_round(self.figures, self.place, self.url, self.sizes, journal_url=journal)
            case kind if kind in CREWS:
                journal = f"sqlite:///{self.place.path}/{kind}{number}.sqlite3"
                crew_round(self.figures, self.place, self.url, self.sizes, kind=kind, journal_url=journal)
            case "beside":
                beside_round(self.figures, self.place, self.url, self.sizes)
            case prefetch:
                bare_round(self.figures, self.place, self.url, self.sizes, prefetch=int(prefetch))


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and says whether the bound holds."""
    arguments = parser().parse_args(argv)
    sizes = Sizes.quick() if arguments.quick else Sizes()
    with rig.folder() as place, rig.server(place) as url, database(arguments.postgres, place) as postgres_url:
        bench = Bench(place=place, url=url, sizes=sizes, postgres=postgres_url)
        for number in range(arguments.rounds):
            bench.round(number)
    result = report(bench.figures, rounds=arguments.rounds, sizes=sizes, on_postgres=bool(arguments.postgres))
    failed = judged(result, least=arguments.bound)
    print(json.dumps({**result, "failed": failed, "ok": not failed}))
    return 0 if arguments.quick or not failed else 1


@contextmanager
def database(wanted: str, place: rig.Folder) -> Generator[str]:
    """The PostgreSQL database to measure on, too; "" if none is."""
    if wanted != EMBEDDED:
        yield wanted
        return
    place.path.chmod(0o711)  # it may run under another account
    with postgres.server(place.path / "postgres", durable=True) as server:
        yield server.url


def judged(result: Mapping[str, Any], *, least: float = BOUND) -> list[str]:
    """Which bounds do not hold, in words."""
    cpu = result["cpu_us_per_step"] / result["bare_cpu_us_per_task"]
    hop = result["chain_hop_ms_p50"] / result["reenqueue_hop_ms_p50"]
    bounds = [
        (result["ratio_to_bare"] >= least, f"ratio_to_bare is below {least:g}"),
        (result["ratio_to_bare_step_durability"] >= STEP_BOUND, f"with durability step it is below {STEP_BOUND:g}"),
        (result["ratio_to_drain"] >= DRAIN_BOUND, f"ratio_to_drain is below {DRAIN_BOUND:g}"),
        (cpu <= CPU_BOUND, f"a step takes more than {CPU_BOUND:g} of a bare task's CPU"),
        (hop <= HOP_BOUND, f"a hop takes more than {HOP_BOUND:g} of a task's that enqueues the next"),
        (result["fanin_1000_ratio"] >= FAN_IN_BOUND, f"fanin_1000_ratio is below {FAN_IN_BOUND:g}"),
        (result["mesh_latency_ratio_p50"] <= MESH_BOUND, f"mesh_latency_ratio_p50 is above {MESH_BOUND:g}"),
        (result["journal_cpu_us_per_step"] <= JOURNAL_US, f"the journal takes more than {JOURNAL_US} us of CPU a step"),
    ]
    return [said for holds, said in bounds if not holds]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="convergio bench engine", description=__doc__)
    made.add_argument("--rounds", type=int, default=5, help="rounds; figures are medians (default 5)")
    made.add_argument("--quick", action="store_true", help="small sizes: shows that everything runs, measures nothing")
    made.add_argument(
        "--postgres",
        nargs="?",
        default="",
        const=EMBEDDED,
        metavar="URL",
        help="measure on PostgreSQL, too: a server of its own, or this database",
    )
    made.add_argument("--bound", type=float, default=BOUND, help=f"least ratio_to_bare (default {BOUND:g})")
    made.add_argument("--json", action="store_true", help="the result is JSON in any case")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
