"""Definitions that no run on the board needs are taken off it: SQL has them, and who starts a run brings its own.

They have no TTL, as nothing that a run needs may end by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast

import redis

from convergio.graphflow.board import fields
from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.engine.submission import board_time
from convergio.graphflow.model.ids import RunRef

CHUNK: Final = 500


def drop_unused(link: Link, epoch: Epoch) -> int:
    """How many were dropped. A run that starts meanwhile keeps its own; then none may go before the next call.

    Raises BoardUnavailable.
    """
    keys, client = link.keys(epoch), link.client
    began = board_time(link)
    try:
        names = cast("Iterable[str]", client.scan_iter(match=f"{keys.plan('')}*", count=1000))
        known = {name for name in names if name.startswith(keys.plan(""))}
        # `runs` first: a run that ends meanwhile goes from there to `done`.
        needed = _needed(link, epoch, cast("list[str]", client.zrange(keys.runs, 0, -1)))
        needed |= _needed(link, epoch, cast("list[str]", client.zrange(keys.done, 0, -1)))
        if not known - needed:
            return 0
        with client.pipeline() as pipe:
            cast(Any, pipe).watch(keys.runs)
            fresh = cast("list[str]", client.zrangebyscore(keys.runs, began, "+inf"))
            unused = sorted(known - needed - _needed(link, epoch, fresh))
            pipe.multi()
            for start in range(0, len(unused), CHUNK):
                pipe.unlink(*unused[start : start + CHUNK])
            pipe.execute()
            return len(unused)
    except redis.WatchError:
        return 0
    except UNREACHABLE as error:
        raise unavailable(error) from error


def _needed(link: Link, epoch: Epoch, runs: Sequence[str]) -> set[str]:
    """The keys of the definitions of these runs (tenant/run)."""
    keys, found = link.keys(epoch), set[str]()
    for start in range(0, len(runs), CHUNK):
        with link.client.pipeline(transaction=False) as pipe:
            for run in runs[start : start + CHUNK]:
                pipe.hget(keys.run(RunRef.parse(run)), fields.META)
            metas = cast("list[str | None]", pipe.execute())
        found |= {keys.plan(json.loads(meta)["digest"]) for meta in metas if meta is not None}
    return found
