"""The product, measured whole: workers with hooks, claims and leases; journaler and sweeper beside them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, cast

from convergio.benchmarks import rig, stamping
from convergio.benchmarks.bodies import NOOP, STAMP
from convergio.config.settings import Settings, load
from convergio.graphflow.board import fields
from convergio.graphflow.engine.submission import Entrance, Submission, board_time
from convergio.graphflow.flow import document
from convergio.graphflow.journal.history import History
from convergio.graphflow.journal.rows import OutcomeRow, RunRow
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.workflow import Durability, Workflow
from convergio.workers import boot

TOGETHER: Final = 20
"""Runs that are submitted in one move."""


def workflow(name: str, steps: Mapping[str, Mapping[str, Any]], durability: Durability | None) -> Workflow:
    """A workflow of these steps, of one durability if it is given."""
    every = {} if durability is None else {"durability": durability.value}
    body = {step: {**every, **rest} for step, rest in steps.items()}
    return document.parse_document({"workflow": name, "version": 1, "steps": body}, source=name)


def independent(count: int, durability: Durability) -> Workflow:
    """Steps that need nothing."""
    return workflow("independent", {f"s{n}": {"task": NOOP} for n in range(count)}, durability)


def chained(length: int, durability: Durability, task: str = NOOP) -> Workflow:
    """Steps one after the other."""
    steps = {f"s{n}": {"task": task, "needs": [f"s{n - 1}"] if n else []} for n in range(length)}
    return workflow("chained", steps, durability)


def fan(width: int, durability: Durability) -> Workflow:
    """One step, `width` steps after it, one step after all of these."""
    steps: dict[str, Mapping[str, Any]] = {"first": {"task": NOOP}}
    steps |= {f"s{n}": {"task": NOOP, "needs": ["first"]} for n in range(width)}
    steps["last"] = {"task": NOOP, "needs": [f"s{n}" for n in range(width)]}
    return workflow("fan", steps, durability)


def double_diamond(durability: Durability) -> Workflow:
    """Ten steps: a diamond of four parallel steps, and one of two behind it."""
    steps: dict[str, Mapping[str, Any]] = {"a": {"task": NOOP}}
    steps |= {f"b{n}": {"task": NOOP, "needs": ["a"]} for n in range(4)}
    steps["c"] = {"task": NOOP, "needs": [f"b{n}" for n in range(4)]}
    steps |= {f"d{n}": {"task": NOOP, "needs": ["c"]} for n in range(2)}
    steps["e"] = {"task": NOOP, "needs": ["d0", "d1"]}
    steps["f"] = {"task": NOOP, "needs": ["e"]}
    return workflow("double_diamond", steps, durability)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """A running stack of ours, and the doors to it."""

    settings: Settings
    entrance: Entrance
    history: History
    place: rig.Folder
    pids: list[int]
    service_pid: int

    def batch(self, flow: Workflow, copies: int) -> rig.Measure:
        """`copies` runs of `flow`, from the first submit to the last run's end on the board."""
        runs: list[RunRow] = []

        def work() -> None:
            runs.extend(self.submit_many(flow, copies))
            self.wait(runs)

        done = rig.measured(work, items=copies * len(flow.steps), pids=[*self.pids, self.service_pid])
        self.wait_journaled(runs)
        return done

    def submit_many(self, flow: Workflow, copies: int) -> Iterator[RunRow]:
        """As `convergio run --each` does it: so many together as it takes to keep the workers busy meanwhile."""
        for start in range(0, copies, TOGETHER):
            wanted = [_submission(flow) for _ in range(start, min(copies, start + TOGETHER))]
            yield from self.entrance.submit_many(wanted)

    def submit(self, flow: Workflow, given: Any = None) -> RunRow:
        return self.entrance.submit(_submission(flow, given))

    def wait(self, runs: Sequence[RunRow]) -> None:
        """Until every run has ended on the board."""
        link = self.entrance.link
        keys = link.keys(link.epoch())
        for run in runs:
            key = keys.run(RunRef(tenant=run.tenant, run=run.run_id))

            def ended(key: str = key) -> bool:
                return link.client.hget(key, fields.STATE) not in ("RUNNING", None)

            rig.wait_for(ended, what=f"run {run.run_id} to end", interval=0.01)

    def wait_journaled(self, runs: Sequence[RunRow]) -> list[RunRow]:
        """Until every run has ended in SQL. Raises RuntimeError if one did not succeed."""
        rows = [self._journaled(run) for run in runs]
        failed = [row for row in rows if row.state != "SUCCEEDED"]
        if failed:
            raise RuntimeError(
                f"{len(failed)} runs of {failed[0].workflow} ended as {failed[0].state}: {failed[0].error}"
            )
        return rows

    def _journaled(self, run: RunRow) -> RunRow:
        def ended() -> RunRow | None:
            row = self.history.run(run.tenant, run.run_id)
            return row if row.terminal else None

        return cast(RunRow, rig.wait_for(ended, what=f"run {run.run_id} in SQL", interval=0.02))

    def latencies(self, flow: Workflow, copies: int) -> tuple[rig.Measure, list[float]]:
        """`copies` runs at once: the batch, and each run's time from submit to end, in seconds."""
        runs: list[RunRow] = []

        def work() -> None:
            runs.extend(self.submit_many(flow, copies))
            self.wait(runs)

        done = rig.measured(work, items=copies * len(flow.steps), pids=[*self.pids, self.service_pid])
        rows = self.wait_journaled(runs)
        return done, [((row.finished_ms or 0) - row.created_ms) / 1000 for row in rows]

    def hops(self, length: int, durability: Durability) -> list[float]:
        """Seconds from step to step of a chain, by timestamps of the bodies."""
        run = self.submit(chained(length, durability, STAMP))
        self.wait_journaled([run])
        stamps = self.place.take_stamps()
        return [later - earlier for earlier, later in pairwise(stamps)]

    def publish_us(self, flow: Workflow) -> float:
        """CPU microseconds per step that submitting costs the submitter, doorbells of all first steps included."""
        before = time.process_time()
        run = self.submit(flow)
        spent = time.process_time() - before
        self.wait_journaled([run])
        return spent / len(flow.steps) * 1e6

    def outcomes(self, run: RunRow) -> list[OutcomeRow]:
        timeline = self.history.timeline(run.tenant, run.run_id)
        return [row for row in timeline if isinstance(row, OutcomeRow)]

    def service_cpu(self) -> float:
        return rig.cpu_seconds([self.service_pid])


def _submission(flow: Workflow, given: Any = None) -> Submission:
    return Submission(workflow=flow, input=given, submitter="bench")


@contextmanager
def stack(
    place: rig.Folder,
    url: str,
    *,
    journal_url: str,
    events: bool = True,
    workers: int = 2,
    pool: str = "solo",
    concurrency: int = 1,
    env: Mapping[str, str] | None = None,
) -> Generator[Ours]:
    """Workers, two solo ones by default, and the service process, on an emptied server and a migrated journal. `env`:
    more settings of theirs."""
    settled = {
        "CONVERGIO_HOME": str(place.path),
        "CONVERGIO_REDIS_URL": url,
        "CONVERGIO_JOURNAL_URL": journal_url,
        "CONVERGIO_INCLUDE": "convergio.benchmarks.bodies",
        "CONVERGIO_MODEL_NAME": "scripted",
        "CONVERGIO_POOL": pool,
        "CONVERGIO_CONCURRENCY": str(concurrency),
        "CONVERGIO_LOG_LEVEL": "WARNING",
        "CONVERGIO_TASK_EVENTS": "true" if events else "false",
        stamping.VARIABLE: str(place.stamps),
        **(env or {}),
    }
    settings = load(redis_url=url, journal_url=journal_url, home=place.path)
    boot.migrate(journal_url)
    entrance = boot.entrance(settings)
    entrance.link.client.flushall()
    worker = [sys.executable, "-m", "convergio.benchmarks.ours", "worker"]
    service = [sys.executable, "-m", "convergio.benchmarks.ours", "service"]
    with rig.processes(place, [service, *[worker] * workers], settled) as pids:
        rig.wait_for(lambda: _up(entrance), what="the board")
        history = boot.history(settings)
        ours = Ours(
            settings=settings,
            entrance=entrance,
            history=history,
            place=place,
            pids=[*pids[1:], rig.server_pid(entrance.link.client)],
            service_pid=pids[0],
        )
        warm = [ours.submit(independent(20, Durability.STREAM)) for _ in range(4)]
        ours.wait_journaled(warm)
        yield ours
    entrance.link.close()


def _up(entrance: Entrance) -> bool:
    try:
        entrance.link.refresh()
        return board_time(entrance.link) > 0
    except Exception:  # noqa: BLE001  # not up yet, whatever the reason: the waiting has an end
        return False


def main() -> None:
    """One process of the stack: `python -m convergio.benchmarks.ours worker|service`."""
    settings = load()
    if sys.argv[1] == "service":
        boot.service(settings).run()
    else:
        boot.worker(settings, name=f"bench-{os.getpid()}").run()


if __name__ == "__main__":
    main()
