"""Steps that a worker gives back because it cannot do them: what it says of that, and when they are rung again."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Final

from convergio.graphflow.board import scripts
from convergio.graphflow.board.connection import Link
from convergio.graphflow.engine import bounded
from convergio.graphflow.model import errors

logger = logging.getLogger(__name__)

LONGEST_PATIENCE: Final = 15.0
"""Seconds after which a step that no worker knows is rung again, at most: it doubles from ring to ring up to there."""


def patience(held: scripts.Claimed) -> float:
    """Seconds until a step is rung again that a worker does not know: the ring's count is in its fence."""
    count = int(held.fence.split(".")[1])
    return min(LONGEST_PATIENCE, 2.0 ** min(count, 10))


def tell(link: Link, held: scripts.Claimed, *, worker: str, seconds: float, why: Mapping[str, str]) -> None:
    """DECLINE, and what `worker` says of it. Raises StaleFence, BoardUnavailable, BoardRebuilding."""
    data = json.dumps({"worker": worker, **why, "seconds": seconds}, ensure_ascii=False)
    scripts.decline(link, held, delay_ms=round(seconds * 1000), data=data)


def disown(link: Link, held: scripts.Claimed, worker: str, missing: str) -> None:
    """Gives a step back that cannot even become a claim of this process. Raises BoardUnavailable, BoardRebuilding."""
    why = {"missing": bounded.text(missing)}
    try:
        tell(link, held, worker=worker, seconds=patience(held), why=why)
    except errors.StaleFence as stale:
        logger.info("%s", stale)
