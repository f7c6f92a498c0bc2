"""Taking ended runs off the board, when their readers have had time to see the end."""

from __future__ import annotations

from collections.abc import Sequence

from convergio.graphflow.board.connection import Link
from convergio.graphflow.board.keys import Keys
from convergio.graphflow.model.ids import RunRef


def forget(link: Link, keys: Keys, refs: Sequence[RunRef]) -> None:
    """Take ended runs off the board, after their grace tail."""
    with link.client.pipeline(transaction=False) as pipe:
        for ref in refs:
            pipe.unlink(keys.run(ref), keys.inbox(ref), keys.feed(ref))
            pipe.zrem(keys.done, str(ref))
            pipe.zrem(keys.inboxes, str(ref))
        pipe.execute()
