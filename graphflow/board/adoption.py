"""Putting a run on the board that has outcomes before its first step runs: made aside, then put there by one script.

Its fields may be many megabytes, more than a script should carry. So they are written to a key that nobody reads, and
ADOPT gives that key the run's name. Of several who do this at once, one succeeds, and what the others made expires.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef

CHUNK: Final = 400
"""Fields that one command writes."""

KEPT_S: Final = 60
"""Seconds after which what nobody adopted is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What a run begins with. `values`: the fields of its hash. `held`: READY steps, which are rung next.

    `inbox`: entries (JSON). `timers`: step/ON -> due (ms). `events`: (type, step, data). `started`: the data (JSON) of
    `run.started`.
    """

    values: Mapping[str, str]
    held: Sequence[str] = ()
    inbox: Sequence[str] = ()
    timers: Mapping[str, int]
    events: Sequence[tuple[str, str, str]] = ()
    started: str = "{}"


def adopt(
    link: Link,
    epoch: Epoch,
    ref: RunRef,
    beginning: Beginning,
    *,
    not_after_ms: int | None,
    submitter: str,
    digest: str,
    plan: str,
    nonce: str,
) -> bool:
    """ADOPT: put an accepted run on the board as it begins. False: it was there before. Raises SubmitTooLate."""
    keys = link.keys(epoch)
    made = keys.made(ref, nonce)
    _make(link, made, beginning.values)
    names = [keys.epoch, keys.run(ref), made, keys.runs, keys.plan(digest), keys.journal, keys.feed(ref)]
    names += [keys.inbox(ref), keys.inboxes, keys.held, keys.timers]
    args: list[Any] = [epoch.number, "" if not_after_ms is None else not_after_ms, str(ref), submitter, plan]
    args += [beginning.started, len(beginning.inbox), *beginning.inbox, len(beginning.held), *beginning.held]
    args += [len(beginning.timers), *_flat(beginning.timers.items())]
    args += [len(beginning.events), *_flat(beginning.events)]
    match link.call("adopt", epoch, names, args)[0]:
        case "LATE":
            raise errors.SubmitTooLate(run=ref.run)
        case "LOST":
            raise errors.BoardUnavailable("what was made of the run is gone; it is made again")
        case answer:
            return bool(answer == "OK")


def _make(link: Link, key: str, values: Mapping[str, str]) -> None:
    """Writes the fields, all or nothing: none of them may stay for ever."""
    rows = list(values.items())
    try:
        with link.client.pipeline(transaction=True) as pipe:
            for start in range(0, len(rows), CHUNK):
                pipe.hset(key, mapping=dict(rows[start : start + CHUNK]))
            pipe.expire(key, KEPT_S)
            pipe.execute()
    except UNREACHABLE as error:
        raise unavailable(error) from error


def _flat(rows: Iterable[Sequence[Any]]) -> Iterable[Any]:
    return (value for row in rows for value in row)
