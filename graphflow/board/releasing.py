"""What the journaler tells the board: up to where SQL has everything, and that whoever waited for that goes on."""

from __future__ import annotations

from collections.abc import Sequence

from convergio.graphflow.board import scripts
from convergio.graphflow.board.connection import Call, Link
from convergio.graphflow.board.keys import Epoch, Keys
from convergio.graphflow.board.messages import Released, Waiting


def release(link: Link, epoch: Epoch, waiting: Sequence[Waiting], *, grace_ms: int, high_water: int) -> list[Released]:
    """RELEASE what waited up to `high_water`, run by run; whose inbox is asked for is POSTed to in the same move."""
    keys = link.keys(epoch)
    calls = [_release(keys, epoch, one, grace_ms=grace_ms, high_water=high_water) for one in waiting]
    return [
        Released(
            outcomes=int(answer[1]),
            ended=answer[2],
            locked=None if one.token is None else scripts.lock_of(posted, epoch, one.ref, one.token, one.wanted),
        )
        for one, (answer, posted) in zip(waiting, link.call_each(epoch, calls), strict=True)
    ]


def _release(keys: Keys, epoch: Epoch, one: Waiting, *, grace_ms: int, high_water: int) -> tuple[Call, Call | None]:
    ref = one.ref
    names = [
        keys.epoch,
        keys.run(ref),
        keys.inbox(ref),
        keys.inboxes,
        keys.parked,
        keys.runs,
        keys.done,
        keys.feed(ref),
    ]
    call = Call("release", names, [epoch.number, str(ref), grace_ms, high_water, *one.steps])
    return call, None if one.token is None else scripts.posting(keys, ref, entry="", token=one.token, wanted=one.wanted)


def reach(link: Link, epoch: Epoch, *, high_water: int, limit: int) -> tuple[list[str], int]:
    """REACH: SQL has everything up to `high_water`.

    Up to `limit` members of what may be released now, and how many wait in all.
    """
    keys = link.keys(epoch)
    answer = link.call("reach", epoch, [keys.epoch, keys.released, keys.parked], [high_water, limit])
    return answer[1], int(answer[2])
