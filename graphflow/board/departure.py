"""Taking ended runs off the board, when their readers have had time to see the end."""

from __future__ import annotations

from collections.abc import Sequence

from convergio.graphflow.board import fields
from convergio.graphflow.board.connection import Link
from convergio.graphflow.board.keys import Keys
from convergio.graphflow.model.ids import RunRef


def forget(link: Link, keys: Keys, refs: Sequence[RunRef], *, keep_s: float = 0) -> None:
    """Take ended runs off the board, after their grace tail. `keep_s`: seconds for which the events of those in which
    somebody spoke stay for readers."""
    with link.client.pipeline(transaction=False) as pipe:
        for ref in refs:
            pipe.hexists(keys.run(ref), fields.SPOKE)
        spoke = pipe.execute() if keep_s > 0 else [False] * len(refs)
    with link.client.pipeline(transaction=False) as pipe:
        for ref, talked in zip(refs, spoke, strict=True):
            pipe.unlink(keys.run(ref), keys.inbox(ref), *([] if talked else [keys.feed(ref)]))
            if talked:
                pipe.pexpire(keys.feed(ref), round(keep_s * 1000))
            pipe.zrem(keys.done, str(ref))
            pipe.zrem(keys.inboxes, str(ref))
        pipe.execute()
