"""Every script of the board as a call that has something to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from convergio.graphflow.board import fields, releasing, scripts, turns
from convergio.graphflow.board.adoption import Beginning, adopt
from convergio.graphflow.model.ids import RunRef
from tests.integration.board_stage import LIST, META, Stage, doorbell, joined, ringing, run_ref, rung_next

Call = Callable[[], Any]

LATER: Final = 1_900_000_000_000
"""A time that does not come during these tests (ms)."""


def _claim(stage: Stage) -> Call:
    ref = stage.begun()
    ring, nonce = stage.ready(ref), stage.nonces.next()
    return lambda: stage.claim(ref, "a", ring, nonce=nonce)


def _beat(stage: Stage) -> Call:
    held = stage.running(stage.begun())
    return lambda: scripts.beat(stage.link, held.epoch, [f"{held.ref}/a/{held.fence}"], lease_ms=9_000)


def _arrive_stream(stage: Stage) -> Call:
    held, token = stage.running(stage.begun()), stage.nonces.next()
    return lambda: stage.arrive(held, token=token)


def _arrive_step(stage: Stage) -> Call:
    held, token = stage.running(stage.begun()), stage.nonces.next()
    return lambda: stage.arrive(held, durable=True, token=token)


FOLLOWING: Final = (rung_next("b", "a"), joined("j", 2))
"""Whom the success of these calls' step moves: a step that becomes READY, and a join that waits for one edge more."""


def _complete(stage: Stage) -> Call:
    held, token = stage.running(stage.begun()), stage.nonces.next()
    return lambda: stage.complete(held, FOLLOWING, token=token)


def _complete_join(stage: Stage) -> Call:
    held, token = stage.running(stage.begun()), stage.nonces.next()
    stage.client.hset(stage.key(held.ref), mapping={fields.resolved("j"): "1", fields.taken("j"): "1"})
    return lambda: stage.complete(held, FOLLOWING, token=token)


def _arrive_then_take(stage: Stage) -> Call:
    held, token = stage.running(stage.begun()), stage.nonces.next()
    stage.rung()
    then, _ = stage.next()
    return lambda: stage.arrive(held, token=token, then=then)


def _complete_then_take(stage: Stage) -> Call:
    held, token = stage.running(stage.begun()), stage.nonces.next()
    stage.rung()
    then, _ = stage.next()
    return lambda: stage.complete(held, FOLLOWING, token=token, then=then)


def _post(stage: Stage) -> Call:
    ref, token = stage.begun(), stage.nonces.next()
    return lambda: scripts.post(stage.link, ref, entry='{"t":"x"}', token=token)


def _look(stage: Stage) -> Call:
    ref, token = stage.begun(), stage.nonces.next()
    scripts.post(stage.link, ref, entry='{"t":"x"}', token=token)
    return lambda: scripts.post(stage.link, ref, entry="", token=token, wanted=["@state"])


def rich_batch(ref: RunRef, held: scripts.Claimed, **more: Any) -> scripts.Batch:
    """A COMMIT with one of everything."""
    made: dict[str, Any] = {
        "consumed": 1,
        "writes": [("s:b", "", "READY|1.1"), ("n:b", "", "1"), ("s:a", fields.running(held.fence), "CANCELLED")],
        "posts": ['{"t":"later"}'],
        "leases": [f"a/{held.fence}"],
        "timers": [("c/RETRY", ""), ("b/HOOK", "1700000000000")],
        "bells": [doorbell("b", "1.1")],
        "events": [
            ("step.ready", "b", "", "", "{}"),
            ("step.cancelled", "a", "j", "", '{"state":"CANCELLED"}'),
            ("run.cancelled", "", "jp", f"{ref}/@", "{}"),
        ],
    }
    return scripts.Batch(**{**made, **more})


def _commit(stage: Stage) -> Call:
    held = stage.running(stage.begun())
    locked = stage.lock(held.ref)
    return lambda: scripts.commit(stage.link, locked, submitter="ann", batch=rich_batch(held.ref, held))


def _park(stage: Stage) -> Call:
    held = stage.running(stage.begun())
    return lambda: stage.park(held)


def _park_signalled(stage: Stage) -> Call:
    held = stage.running(stage.begun())
    stage.client.hset(stage.key(held.ref), fields.early("a"), '{"t":"signal","name":"a"}')
    return lambda: stage.park(held, on="SIGNAL", delay_ms=None, look_back="a")


def _decline(stage: Stage) -> Call:
    held = stage.running(stage.begun())
    return lambda: scripts.decline(stage.link, held, delay_ms=2_000, data='{"missing":"x.y"}')


def _ring(stage: Stage) -> Call:
    held = stage.running(stage.begun())
    epoch, call = held.epoch, ringing(held, "1.2", sets={"d:a": "1", "u:a": ""})
    return lambda: scripts.ring(stage.link, epoch, held.ref, submitter="ann", ringing=call)


def _record(stage: Stage) -> Call:
    held = stage.running(stage.begun())
    return lambda: scripts.record(stage.link, held, key="answer", value='{"paid":true}')


def _release(stage: Stage) -> Call:
    ref = stage.begun()
    sequence = stage.parked(ref)
    return lambda: stage.release(ref, "a", up_to=sequence)


def _reach(stage: Stage) -> Call:
    sequence = stage.parked(stage.begun())
    return lambda: releasing.reach(stage.link, stage.epoch, high_water=sequence, limit=10)


def ended(stage: Stage, ref: RunRef) -> int:
    """The run is SUCCEEDED, and SQL does not know it yet; the stream sequence of its end."""
    writes = [("@state", "RUNNING", "SUCCEEDED"), ("@output", "", '{"y":2}')]
    stage.decided(ref, writes=writes, events=[("run.succeeded", "", "jp", f"{ref}/@", '{"output":{"y":2}}')])
    return int(stage.scores(stage.link.keys(stage.epoch).parked)[f"{ref}/@"])


def _release_end(stage: Stage) -> Call:
    ref = stage.begun()
    sequence = ended(stage, ref)
    return lambda: stage.release(ref, "@", up_to=sequence)


def held_step(stage: Stage, ref: RunRef, step: str = "a") -> None:
    """A step as a rebuild leaves it: READY without a doorbell, held."""
    stage.client.hset(stage.key(ref), fields.state(step), fields.ready("1.1"))
    stage.client.zadd(stage.link.keys(stage.epoch).held, {f"{ref}/{step}": stage.now_ms() + 6_000})


def _reassert(stage: Stage) -> Call:
    ref = stage.begun()
    held_step(stage, ref)
    return lambda: scripts.reassert(stage.link, ref, step="a", nonce="old-1")


KEY: Final = "line-one"
"""A concurrency key."""


def limited_step(stage: Stage, ref: RunRef, step: str = "a") -> scripts.Asking:
    """A step that is about to ask for its concurrency key."""
    word = fields.limited(1_700_000_000_000, "1.0")
    stage.client.hset(stage.key(ref), fields.state(step), word)
    return scripts.Asking(step=step, was=word, to=word, limit=1, timer="ASK")


def _ask(stage: Stage) -> Call:
    ref = stage.begun()
    asking = [limited_step(stage, ref, step) for step in ("a", "b")]
    return lambda: turns.ask(stage.link, stage.epoch, ref, key=KEY, asking=asking)


def _leave(stage: Stage) -> Call:
    ref = stage.begun()
    _asked(stage, ref)
    stage.link.client.zadd(stage.link.keys(stage.epoch).timers, {f"{ref}/a/LEAVE": 1})
    return lambda: turns.leave(stage.link, stage.epoch, ref, key=KEY, leaving=[("a", 1)])


def _asked(stage: Stage, ref: RunRef) -> None:
    """a has the key, b waits for it."""
    asking = [limited_step(stage, ref, step) for step in ("a", "b")]
    assert turns.ask(stage.link, stage.epoch, ref, key=KEY, asking=asking) == 2


def _arrive_limited(stage: Stage) -> Call:
    held, token = stage.running(stage.begun()), stage.nonces.next()
    return lambda: stage.arrive(held, token=token, key=KEY)


def _park_limited(stage: Stage) -> Call:
    held = stage.running(stage.begun())
    return lambda: stage.park(held, key=KEY)


def _reassert_limited(stage: Stage) -> Call:
    ref = stage.begun()
    limited_step(stage, ref)
    keys = stage.link.keys(stage.epoch)
    stage.client.zadd(keys.held, {f"{ref}/a": stage.now_ms() + 6_000})
    stage.client.zadd(keys.waiters("default", KEY), {"@": -LATER, f"{ref}/a/1": 1})
    return lambda: scripts.reassert(stage.link, ref, step="a", nonce="old-1", key=KEY, limit=1)


def _start(stage: Stage) -> Call:
    stage.link.epoch()
    return lambda: stage.start(wanted=["@state", "@stop"])


def _start_then_commit(stage: Stage) -> Call:
    stage.link.epoch()
    first = scripts.Batch(
        consumed=1,
        writes=[("s:a", "", "READY|1.1"), ("n:a", "", "1"), ("c:@", "", "x")],
        bells=[doorbell("a", "1.1")],
        events=[("step.ready", "a", "", "", "{}")],
    )
    return lambda: stage.start(wanted=["@state", "@stop"], first=first)


def _adopt(stage: Stage) -> Call:
    epoch, nonce = stage.epoch, stage.nonces.next()
    values = {"@state": "RUNNING", "@meta": META, "s:a": "READY|1.1", "n:a": "1"}
    beginning = Beginning(
        values=values, held=["a"], inbox=['{"t":"x"}'], timers={"b/TIMER": LATER}, events=[("step.skipped", "c", "{}")]
    )
    facts: dict[str, Any] = {"not_after_ms": None, "submitter": "ann", "digest": "digest", "plan": "{}"}
    return lambda: adopt(stage.link, epoch, run_ref(), beginning, nonce=nonce, **facts)


def _hatch(stage: Stage) -> Call:
    epoch = stage.epoch
    return lambda: scripts.hatch(stage.link, epoch, queue_list=LIST, canary="c1", instead_of="", content=b"cheep")


def _eat(stage: Stage) -> Call:
    assert _hatch(stage)()
    return lambda: scripts.eat(stage.link, queue_list=LIST, canary="c1")


CALLS: Final[Mapping[str, Callable[[Stage], Call]]] = {
    "adopt": _adopt,
    "claim": _claim,
    "beat": _beat,
    "arrive (stream)": _arrive_stream,
    "arrive (step)": _arrive_step,
    "arrive (with a concurrency key)": _arrive_limited,
    "ask": _ask,
    "leave": _leave,
    "park (with a concurrency key)": _park_limited,
    "reassert (with a concurrency key)": _reassert_limited,
    "complete": _complete,
    "complete (fires a join)": _complete_join,
    "arrive (then take)": _arrive_then_take,
    "complete (then take)": _complete_then_take,
    "post": _post,
    "post (look)": _look,
    "commit": _commit,
    "park": _park,
    "park (signalled)": _park_signalled,
    "decline": _decline,
    "ring": _ring,
    "record": _record,
    "release": _release,
    "release (run's end)": _release_end,
    "reach": _reach,
    "reassert": _reassert,
    "start": _start,
    "start (then commit)": _start_then_commit,
    "hatch": _hatch,
    "eat": _eat,
}
"""By script: prepares a board on which the call has something to do, and returns the call."""


def scripts_of(name: str) -> tuple[str, str]:
    """The script of a call, and the one that follows it in the same move, or ''."""
    first, _, more = name.partition(" ")
    return first, more[len("(then ") : -1] if more.startswith("(then ") else ""
