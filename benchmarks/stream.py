"""How soon a reader of a run's stream has what a model's provider sends, beside a socket that reads the provider alone.

`convergio bench stream [--conversations N] [--turns N] [--quick] [--bound MS]`. A real HTTP server streams; two worker
processes, the service and Valkey are those of the product; each conversation has a reader of its own, which blocks on
the Redis Stream as any client does. The last line on stdout is one JSON object; exit code 1 if `first_token_ms_p50` is
above the bound.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import redis

from convergio.benchmarks import ours, provider, rig
from convergio.benchmarks.engine import quantile
from convergio.graphflow.board.connection import pool
from convergio.graphflow.client.feed import Feed
from convergio.graphflow.flow import document
from convergio.graphflow.journal.rows import RunRow
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.workflow import Workflow
from convergio.tasks.conversation import tables

BOUND: Final = 25.0
WORKERS: Final = 2
ROUND_ROBIN: Final = ("ann", "bob", "cid")


@dataclass(slots=True)
class Turn:
    """What a reader noted of one turn: when it began there, and each piece of text: (sent, arrived) in seconds."""

    began: float = 0.0
    pieces: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    arrivals: list[float] = field(default_factory=list[float])


def talking(turns: int) -> Workflow:
    """A team of three that talks for so many turns."""
    agents = [{"name": name, "role": f"You are {name}."} for name in ROUND_ROBIN]
    talk = {"conversation": {"agents": agents, "policy": "round_robin", "stop": {"turns": turns}}, "prompt": "Go on"}
    return document.parse_document({"workflow": "streamed", "version": 1, "steps": {"talk": talk}})


def read(url: str, run: RunRow) -> list[Turn]:
    """A reader of the run's stream: what it has of each turn."""
    client = redis.Redis(connection_pool=pool(url))
    turns: dict[int, Turn] = {}
    for event in Feed(client, RunRef(tenant=run.tenant, run=run.run_id), lambda: None).events():
        now = time.monotonic()
        if event is None:
            continue
        turn = turns.setdefault(event.iteration, Turn())
        if event.type == "STEP_STARTED":
            turn.began = now
        elif event.type == "TEXT_MESSAGE_CONTENT":
            turn.arrivals.append(now)
            turn.pieces += [(int(sent) / 1e9, now) for sent in event.data["delta"].split()]
        elif event.final and event.data["state"] != "SUCCEEDED":
            raise RuntimeError(f"run {run.run_id} ended as {event.data}")
    client.connection_pool.disconnect()
    return [turn for turn in turns.values() if turn.pieces]


def batch(stack: ours.Ours, conversations: int, turns: int) -> tuple[list[RunRow], list[Turn]]:
    """So many conversations at once, each with a reader."""
    url, runs = stack.settings.redis_url, [stack.submit(talking(turns)) for _ in range(conversations)]
    with ThreadPoolExecutor(conversations) as readers:
        found = [turn for heard in readers.map(read, [url] * conversations, runs) for turn in heard]
    stack.wait_journaled(runs)
    return runs, found


def figures(
    turns: Sequence[Turn], bare: Sequence[provider.Heard], paces: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """All figures, in milliseconds."""
    first = [turn.pieces[0][1] - turn.pieces[0][0] for turn in turns]
    every = [arrived - sent for turn in turns for sent, arrived in turn.pieces]
    gaps = [after - before for turn in turns for before, after in zip(turn.arrivals, turn.arrivals[1:], strict=False)]
    alone = statistics.median(one.seconds for one in bare)
    over = [turn.arrivals[-1] - turn.began - alone for turn in turns]
    seconds = sum(turn.arrivals[-1] - turn.arrivals[0] for turn in turns)
    told = [row["first_told_us"] / 1e6 for row in paces if row["first_told_us"] is not None]
    made = {
        **_both("first_token_ms", first),
        **_both("chunk_ms", every),
        **_both("chunk_gap_ms", gaps),
        **_both("overhead_ms", over),
        **_both("first_told_ms", told),
        **_both("bare_first_token_ms", [one.delays[0] for one in bare]),
        **_both("bare_chunk_ms", [delay for one in bare for delay in one.delays]),
    }
    pieces = sum(len(turn.pieces) for turn in turns)
    return {**made, "tokens_per_s": round(pieces / seconds, 1) if seconds else None, "turns": len(turns)}


def _both(name: str, seconds: Sequence[float]) -> dict[str, float]:
    return {f"{name}_p{of}": round(quantile(list(seconds), of / 100) * 1000, 3) for of in (50, 99)}


def measure(conversations: int, turns: int, pace: provider.Pace) -> dict[str, Any]:
    """The whole measurement, on servers and processes of its own."""
    with rig.folder() as place, rig.server(place) as url, provider.running(place, pace) as base:
        bare = [provider.heard(base) for _ in range(5)]
        rig.say(f"bare: {bare[0].seconds:.2f} s an answer")
        env = {
            "CONVERGIO_MODEL_NAME": provider.NAME,
            "CONVERGIO_MODEL_BASE_URL": base,
            "CONVERGIO_MODEL_API_KEY": "none",
        }
        journal = f"sqlite:///{place.path / 'journal.sqlite3'}"
        with ours.stack(
            place, url, journal_url=journal, events=False, workers=WORKERS, pool="threads", concurrency=8, env=env
        ) as stack:
            batch(stack, 2 * WORKERS, 3)  # AutoGen is imported with the first turn of a process
            rig.say("warm")
            runs, found = batch(stack, conversations, turns)
            paces = [row for run in runs for row in tables.paced(stack.history.database, run.tenant, run.run_id)]
            return figures(found, bare, paces)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="convergio bench stream", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--conversations", type=int, default=4, help="at once")
    parser.add_argument("--turns", type=int, default=12, help="of each conversation")
    parser.add_argument("--quick", action="store_true", help="a few short turns: figures that are only shown to exist")
    parser.add_argument("--bound", type=float, default=BOUND, help="milliseconds for first_token_ms_p50")
    parser.add_argument("--json", action="store_true", help="nothing but the result on stdout (it is JSON anyway)")
    options = parser.parse_args(argv)
    pace = provider.Pace(first_s=0.02, chunks=8, gap_s=0.01) if options.quick else provider.Pace()
    conversations, turns = int(options.conversations), int(options.turns)
    if options.quick:
        conversations, turns = 2, 2
    found = measure(conversations, turns, pace)
    good = found["first_token_ms_p50"] <= options.bound
    print(
        json.dumps({"bench": "stream", "conversations": conversations, **found, "bound_ms": options.bound, "ok": good})
    )
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
