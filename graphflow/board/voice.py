"""The script by which a step that runs speaks to the readers of its run."""

from __future__ import annotations

from collections.abc import Sequence

from convergio.graphflow.board.connection import Link
from convergio.graphflow.board.messages import Claimed
from convergio.graphflow.model import errors


def speak(
    link: Link, held: Claimed, *, batch: int, anew: str, said: Sequence[tuple[str, str]], until: int | None = None
) -> int | None:
    """SPEAK: events (type, data as JSON) for the run's readers, in order; SQL never sees them. The number of the last.

    `batch`: counts up within a claim, so that the same batch is told once. `anew`: data of the `CUSTOM` event that
    comes first if another claim of the step has spoken before. `until`: None is returned, and nothing is told, if the
    run's last event has a higher number: what was told before may be trimmed soon. Raises StaleFence, BoardRebuilding,
    BoardUnavailable.
    """
    keys = link.keys(held.epoch)
    names = [keys.epoch, keys.run(held.ref), keys.feed(held.ref)]
    words = [word for one in said for word in one]
    args = [held.epoch.number, held.step, held.fence, batch, anew, "" if until is None else until, *words]
    answer = link.call("speak", held.epoch, names, args)
    if answer[0] in ("FENCED", "GONE"):
        raise errors.StaleFence(run=held.ref.run, step=held.step, now=answer[1] if len(answer) > 1 else "gone")
    return None if answer[0] == "STALE" else int(answer[1])
