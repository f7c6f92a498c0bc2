"""The scripts by which steps ask for their concurrency key, and leave it. Others free it as they go: see `scripts`."""

from __future__ import annotations

from collections.abc import Sequence

from convergio.graphflow.board.connection import Link
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.board.messages import Asking
from convergio.graphflow.model.ids import RunRef


def ask(link: Link, epoch: Epoch, ref: RunRef, *, key: str, asking: Sequence[Asking]) -> int:
    """ASK: steps of one run wait for their concurrency key. How many of them do, or may run."""
    keys = link.keys(epoch)
    names = [keys.epoch, keys.run(ref), keys.timers, keys.held, *keys.limit(ref.tenant, key)]
    rows = [value for one in asking for value in (one.step, one.was, one.to, one.timer, one.limit)]
    return int(link.call("ask", epoch, names, [str(ref), *rows])[1])


def leave(link: Link, epoch: Epoch, ref: RunRef, *, key: str, leaving: Sequence[tuple[str, int]]) -> None:
    """LEAVE: steps of one run, each with its limit, need their concurrency key no more, if a timer still says so."""
    keys = link.keys(epoch)
    rows = [value for one in leaving for value in one]
    link.call("leave", epoch, [keys.epoch, keys.timers, *keys.limit(ref.tenant, key)], [str(ref), *rows])
