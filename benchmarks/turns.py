"""What a turn of a conversation costs beside its model: on two workers, with a scripted model that takes its time.

`convergio bench turns [--quick]`. First the capacity: how many turns a second go through when there are more
conversations than can be served. Then, at half of it, conversations with a model that takes 50 ms, up to turn 500, and
many with one that takes 2 s. A turn's overhead is the time from one call of the model to the next one of the same
conversation, less what the model is to take; calls and their times are the ledger's. Bounds: 15 ms (p50) and 60 ms
(p99), as much at turn 500 as at turn 50; 5 ms of CPU in all processes together; what is written does not grow with the
thread; a worker is at most 40 MB larger than a process that only imports the same libraries.

`cpu_ms_per_turn` is all CPU time, user's and system's, of the two workers, the service process and Valkey, by turn that
is in SQL meanwhile; `cpu_ms_by_process` divides it. In it are Celery, AutoGen's agent and the scripted model, which is
in the workers' loop (it sleeps, joins what it is asked and counts its words), also what these processes do when there
is nothing to do. Not in it: this benchmark's own process, which submits and looks on. `autogen_cpu_ms_turn_1` and
`autogen_cpu_ms_turn_500` are the CPU of an AssistantAgent's turn alone in one process, its context made for it, with a
model that takes no time.

The last line on stdout is one JSON object; exit code 1 if a bound fails.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

from convergio.benchmarks import alone, ours, rig
from convergio.benchmarks.bodies import MODULES
from convergio.benchmarks.engine import quantile
from convergio.graphflow.flow import document
from convergio.graphflow.journal.rows import RunRow
from convergio.graphflow.model.workflow import Workflow

P50_MS: Final = 15.0
P99_MS: Final = 60.0
CPU_MS: Final = 5.0
FLAT: Final = 1.25
"""How much more the last turns of a long conversation may take, or write, than its early ones."""

RSS_MB: Final = 40.0
THREADS: Final = 200
"""A worker's slots: a turn holds one while its model answers."""

PIECES: Final = 2
"""The model's answer comes in so many pieces, in equal times."""

PIECE: Final = "word-by-word-" * 8

SETTLED: Final = 2
"""The first turns of a conversation are left out: they are of its submission."""

TABLES: Final = ("outcomes", "events", "model_calls", "conversation_turns", "conversation_messages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Conversations that go on side by side; each of its turns takes the model so many seconds."""

    model_s: float
    conversations: int
    turns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured. `most`: conversations at once, whatever the capacity is."""

    flood: Load = Load(model_s=0.05, conversations=48, turns=40)
    quick_model: Load = Load(model_s=0.05, conversations=10, turns=500)
    slow_model: Load = Load(model_s=2.0, conversations=200, turns=12)

    @classmethod
    def quick(cls) -> Sizes:
        """Small enough for a test suite: the figures are only shown to exist."""
        return cls(
            flood=Load(model_s=0.01, conversations=4, turns=6),
            quick_model=Load(model_s=0.01, conversations=2, turns=12),
            slow_model=Load(model_s=0.1, conversations=3, turns=5),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What there was at one moment: turns in SQL; CPU seconds and written bytes of all processes so far."""

    at: float
    turns: int
    cpu: tuple[float, ...]
    written: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """A load that has ended: the runs, and samples from its beginning to its end."""

    load: Load
    runs: Sequence[str]
    samples: Sequence[Sample]

    @property
    def per_second(self) -> float:
        """Turns a second, from the first sample in which all conversations go on to the last one."""
        first, last = self.between(0.1, 0.9)
        return (last.turns - first.turns) / (last.at - first.at)

    def between(self, first: float, last: float) -> tuple[Sample, Sample]:
        """The samples nearest to these shares of all turns; the first and the last one if there are too few."""
        start, whole = self.samples[0].turns, self.samples[-1].turns - self.samples[0].turns
        begin, end = (_nearest(self.samples, start + whole * share) for share in (first, last))
        return (begin, end) if begin.turns < end.turns else (self.samples[0], self.samples[-1])

    def cpu_ms(self, first: float = 0.0, last: float = 1.0) -> list[float]:
        """CPU milliseconds a turn, by process, from one share of the turns to another."""
        begin, end = self.between(first, last)
        return [(b - a) * 1000 / (end.turns - begin.turns) for a, b in zip(begin.cpu, end.cpu, strict=True)]

    def written(self, first: float = 0.0, last: float = 1.0) -> float:
        """Bytes written to files a turn, from one share of the turns to another."""
        begin, end = self.between(first, last)
        return (end.written - begin.written) / (end.turns - begin.turns)


def _nearest(samples: Sequence[Sample], turns: float) -> Sample:
    return min(samples, key=lambda one: abs(one.turns - turns))


def talk(load: Load) -> Workflow:
    """Two agents who speak by turns."""
    reply = {"say": " ".join([PIECE] * PIECES), "pace": load.model_s / PIECES}
    script = [reply] * -(-load.turns // 2)
    agents = [{"name": name, "role": "You say what you have to say.", "script": script} for name in ("ann", "bob")]
    step = {"conversation": {"agents": agents, "stop": {"turns": load.turns}}, "prompt": "Talk about the weather."}
    return document.parse_document({"workflow": "talk", "version": 1, "steps": {"talk": step}}, source="talk")


class Journal:
    """The journal's file, read with plain SQL."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=30)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def turns(self) -> int:
        """All turns of all conversations."""
        return int(self.ask("SELECT count(*) FROM conversation_turns")[0][0])

    def overheads(self, played: Played) -> dict[int, list[float]]:
        """Milliseconds, by turn (from 0): from this turn's model call to the next one's, less the model's time."""
        calls: dict[str, list[int]] = {run: [] for run in played.runs}
        for run, started in self.ask("SELECT run_id, started_ms FROM model_calls ORDER BY run_id, iteration"):
            if run in calls:
                calls[run].append(started)
        found: dict[int, list[float]] = {}
        for starts in calls.values():
            for turn, (one, other) in enumerate(pairwise(starts)):
                found.setdefault(turn, []).append(other - one - played.load.model_s * 1000)
        return found

    def rows(self, played: Played) -> dict[int, float]:
        """Bytes of all that a turn adds to the journal's rows, by turn."""
        mine, found = set(played.runs), dict[int, float]()
        for table in TABLES:
            columns = [row[1] for row in self.ask(f"PRAGMA table_info({table})")]
            size = " + ".join(f"coalesce(length({column}), 0)" for column in columns)
            asked = f"SELECT run_id, iteration, sum({size}) FROM {table} WHERE step = 'talk' GROUP BY run_id, iteration"
            for run, turn, size in self.ask(asked):
                if run in mine:
                    found[turn] = found.get(turn, 0.0) + size / len(mine)
        return found


def play(stack: ours.Ours, journal: Journal, load: Load) -> Played:
    """All conversations of a load; they begin one after the other, evenly, within the time of a turn."""
    flow, runs, samples = talk(load), list[RunRow](), list[Sample]()

    def turns() -> int:
        samples.append(_sample(stack, journal))
        return samples[-1].turns

    whole = turns() + load.conversations * load.turns
    for _ in range(load.conversations):
        runs.append(stack.submit(flow))
        time.sleep(load.model_s / load.conversations)
    rig.wait_for(
        lambda: turns() >= whole,
        what=f"{load.conversations} conversations to end",
        timeout=120 + load.turns * (load.model_s + 1.0),
        interval=0.5,
    )
    stack.wait_journaled(runs)
    return Played(load=load, runs=[run.run_id for run in runs], samples=samples)


def _sample(stack: ours.Ours, journal: Journal) -> Sample:
    pids = [*stack.pids, stack.service_pid]
    cpu = tuple(rig.cpu_seconds([pid]) for pid in pids)
    return Sample(at=time.monotonic(), turns=journal.turns(), cpu=cpu, written=sum(map(_written, pids)))


def _written(pid: int) -> int:
    """Bytes that a process wrote to files, as far as they were to be kept."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])


def half(load: Load, capacity: float) -> Load:
    """The load, with as many conversations at most as half of the capacity serves."""
    most = int(capacity / 2 * (load.model_s + P50_MS / 1000))
    return Load(model_s=load.model_s, conversations=max(1, min(load.conversations, most)), turns=load.turns)


def figures(journal: Journal, played: Played) -> dict[str, Any]:
    """What the turns of a load cost."""
    by_turn = journal.overheads(played)
    every = [one for turn, many in by_turn.items() if turn >= SETTLED for one in many]
    cpu, rows = played.cpu_ms(0.02, 0.98), journal.rows(played)
    return {
        "conversations": played.load.conversations,
        "turns_per_s": round(played.per_second, 1),
        "overhead_ms_p50": round(quantile(every, 0.5), 2),
        "overhead_ms_p99": round(quantile(every, 0.99), 2),
        "overhead_turn_500_ratio": round(_late_to_early({turn: median(many) for turn, many in by_turn.items()}), 3),
        "cpu_ms_per_turn": round(sum(cpu), 2),
        "cpu_turn_500_ratio": round(sum(played.cpu_ms(0.8, 1.0)) / sum(played.cpu_ms(0.05, 0.25)), 3),
        "cpu_ms_by_process": dict(
            zip(("worker", "other_worker", "server", "service"), (round(one, 2) for one in cpu), strict=True)
        ),
        "bytes_per_turn": round(played.written(0.02, 0.98)),
        "row_bytes_per_turn": round(median(rows.values())),
        "row_bytes_turn_500_ratio": round(_late_to_early(rows), 3),
    }


def _late_to_early(by_turn: Mapping[int, float]) -> float:
    """The median of the last tenth of the turns, by that of the second tenth."""
    turns = sorted(turn for turn in by_turn if turn >= SETTLED)
    part = max(1, len(turns) // 10)
    early, late = (median(by_turn[turn] for turn in some) for some in (turns[part : 2 * part], turns[-part:]))
    return late / max(early, 1.0)


def rss_over_imports(stack: ours.Ours) -> dict[str, float]:
    """MB of the larger worker, and of a process that only imports the same libraries."""
    path = stack.place.path / "modules"
    step = {"task": MODULES, "with": {"path": f"'{path}'"}}
    stack.wait_journaled([stack.submit(ours.workflow("modules", {"modules": step}, None))])
    command = [sys.executable, "-m", "convergio.benchmarks.imports", str(path)]
    imported = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    worker = max(rig.resident_mb(pid) for pid in stack.pids[:-1])
    over = round(worker - imported, 1)
    return {"rss_over_imports_mb": over, "worker_rss_mb": round(worker, 1), "imports_rss_mb": round(imported, 1)}


def judged(result: Mapping[str, Any]) -> list[str]:
    """The bounds that do not hold, in words."""
    said = [
        f"{name}: {words}" for name, load in (("50 ms", result), ("2 s", result["slow"])) for words in _judged(load)
    ]
    if result["overhead_turn_500_ratio"] > FLAT:
        said.append(f"turn 500 has more than {FLAT:g} times the overhead of turn 50")
    if result["row_bytes_turn_500_ratio"] > FLAT:
        said.append("what a turn writes grows with the thread")
    return said


def _judged(load: Mapping[str, Any]) -> list[str]:
    bounds = [
        (load["overhead_ms_p50"] <= P50_MS, f"a turn's overhead is above {P50_MS:g} ms (p50)"),
        (load["overhead_ms_p99"] <= P99_MS, f"a turn's overhead is above {P99_MS:g} ms (p99)"),
        (load["cpu_ms_per_turn"] <= CPU_MS, f"a turn takes more than {CPU_MS:g} ms of CPU"),
        (load["rss_over_imports_mb"] <= RSS_MB, f"a worker is more than {RSS_MB:g} MB above its imports"),
    ]
    return [words for holds, words in bounds if not holds]


def measured(stack: ours.Ours, journal: Journal, sizes: Sizes, *, capacity: float | None) -> dict[str, Any]:
    """Everything, one after the other."""
    play(stack, journal, Load(model_s=0.01, conversations=8, turns=6))  # imports, definitions, connections: paid once
    if capacity is None:
        capacity = play(stack, journal, sizes.flood).per_second
    rig.say(f"capacity: {capacity:.0f} turns/s")
    quick = figures(journal, play(stack, journal, half(sizes.quick_model, capacity)))
    rig.say(f"50 ms: {quick}")
    memory = rss_over_imports(stack)
    slow = figures(journal, play(stack, journal, half(sizes.slow_model, capacity)))
    del slow["overhead_turn_500_ratio"], slow["cpu_turn_500_ratio"], slow["row_bytes_turn_500_ratio"]
    rig.say(f"2 s: {slow}")
    grown = rss_over_imports(stack)
    return {**quick, **memory, "slow": {**slow, **grown}, "capacity_turns_per_s": round(capacity, 1)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and says whether the bounds hold."""
    arguments = parser().parse_args(argv)
    sizes = Sizes.quick() if arguments.quick else Sizes()
    busy, began = rig.busy_seconds(), time.monotonic()
    with rig.folder() as place, rig.server(place) as url:
        path = place.path / "journal.sqlite3"
        with ours.stack(
            place, url, journal_url=f"sqlite:///{path}", events=False, pool="threads", concurrency=THREADS
        ) as stack:
            result = measured(stack, Journal(path), sizes, capacity=arguments.capacity)
    seconds = time.monotonic() - began
    result |= {
        f"autogen_cpu_ms_turn_{heard}": round(alone.cpu_ms([PIECE] * PIECES, heard=heard), 3) for heard in (1, 500)
    }
    result["machine_busy_share"] = round((rig.busy_seconds() - busy) / (seconds * rig.CPUS), 3)
    failed = judged(result)
    print(json.dumps({**result, "failed": failed, "ok": not failed}))
    return 0 if arguments.quick or not failed else 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="convergio bench turns", description=__doc__)
    made.add_argument("--quick", action="store_true", help="small sizes: shows that everything runs, judges nothing")
    made.add_argument("--capacity", type=float, metavar="TURNS", help="turns/s to take half of (default: measured)")
    made.add_argument("--json", action="store_true", help="the result is JSON in any case")
    return made


if __name__ == "__main__":
    raise SystemExit(main())
