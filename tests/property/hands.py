"""Moves of those who do the work: workers, and drainers of the run's inbox."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from convergio.graphflow import asking, decide, draft, shortcut
from convergio.graphflow.board import fields, scripts
from convergio.graphflow.board.scripts import Claimed, Parked
from convergio.graphflow.decision import START, Decision, Entry, Event, Unloaded
from convergio.graphflow.draft import ALIVE
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.outcome import Outcome
from convergio.graphflow.model.states import StepState
from convergio.graphflow.model.workflow import UNDO
from tests.property import turns
from tests.property.reference import Node
from tests.property.undone import check_may_undo
from tests.property.world import LIST, REF, Body, Drainer, World

# --- doorbells --------------------------------------------------------------------------------------------------------


def deliver(world: World) -> None:
    """A worker pops a doorbell, and claims the step."""
    line = world.bells()
    if line:
        bell = line.pop(world.draw(len(line)) if world.faults else -1).decode()
        if world.node(bell.split("/")[0]).lonely:
            return
        if world.fault("a doorbell comes twice", 4):
            world.old_bells.append(bell)
        killer = world.node(bell.split("/")[0]).ends == "QUARANTINED"  # some of its workers die before they claim it
        if not world.fault("a doorbell gets lost", 2 if killer else 5):
            _claim(world, bell)


def replay(world: World) -> None:
    """An old doorbell comes once more."""
    if world.old_bells:
        _claim(world, world.pick(world.old_bells))


def _claim(world: World, bell: str) -> None:
    step, ring = bell.split("/")
    nonce = world.name()
    held = world.board.claim(REF, step=step, ring=ring, nonce=nonce, queue_list=LIST)
    if isinstance(held, Claimed):
        if step.startswith(UNDO):
            check_may_undo(world, step)
        else:
            assert not world.paused, f"{step} is claimed, and the run is paused"
            _check_may_run(world, step)
        world.bodies.append(Body(held, nonce))
    else:
        world.met[f"a doorbell is refused: {held.why}"] += 1
        world.stopped |= {step} if held.why == "STOPPED" else set()
        if held.why == "STOPPED" and world.node(step).limit:
            world.post(json.dumps({"t": "shelve", "step": step, "was": fields.ready(ring)}))


def _check_may_run(world: World, step: str) -> None:
    """What the step waits for is resolved, and in SQL where that was asked for; no journaled result is paid twice."""
    assert step not in world.ledger.outcomes, f"{step} runs, and SQL has its outcome"
    join, resolved = world.nodes[instance.step_of(step)], 0
    for edge in world.plan.workflow.steps[join.name].needs:
        source, node = world.beside(edge.step, step), world.nodes[edge.step]
        state = world.word(source).state
        ended = state is StepState.SUCCEEDED or (_is_survived(world, node, source) and state in decide.BROKEN)
        resolved += ended or (state is StepState.SKIPPED and join.join[0] in ("all", "tolerate"))
        if (node.durable or node.approval) and state is StepState.SUCCEEDED:
            assert node.items is not None or source in world.ledger.outcomes, f"{step} runs before SQL has {source}"
    assert resolved >= join.least, f"{step} runs, and only {resolved} of its needs are resolved"
    assert (join.waits, join.signal, join.child) == (0, "", False), f"{step} only waits, and a worker has it"
    if join.items is not None:
        _check_width(world, step, join)
    world.met["a join runs before all its needs are resolved"] += resolved < len(join.needs)
    world.ran.add(step)


def _is_survived(world: World, node: Node, source: str) -> bool:
    """Whether the run goes on without the step."""
    kept: Any = json.loads(world.values().get(fields.output(source), "null"))
    return node.lenient or (node.asks and world.word(source).state is StepState.FAILED and kept is None)


def _check_width(world: World, member: str, node: Node) -> None:
    """No more items are at work than may be, and each has what it is to do."""
    whole = instance.whole(member)
    steps = [name[2:] for name in world.values() if name.startswith("s:")]
    alive = [one for one in steps if one != whole and instance.whole(one) == whole and world.word(one).state in ALIVE]
    assert len(alive) <= (node.width or len(node.items or ())), f"{alive} run at once"
    assert world.values()[fields.item(member)] == str(instance.index_of(member)), f"{member} has another's item"
    world.met["an item waits for its turn"] += len(alive) < len(node.items or ())


# --- workers ----------------------------------------------------------------------------------------------------------


def work(world: World) -> None:
    """One worker does the next thing."""
    if world.bodies:
        work_on(world, world.pick(world.bodies))


def work_on(world: World, body: Body) -> None:
    """This worker does the next thing."""
    if not _owns(world, body):
        world.bodies.remove(body)
    elif body.outcome is not None:
        _hand_over(world, body)
    elif world.node(body.held.step).ends == "QUARANTINED":
        world.bodies.remove(body)
    elif world.lives and world.fault("a worker dies", 10):
        world.lives -= 1
        world.bodies.remove(body)
    else:
        _run(world, body)


def _owns(world: World, body: Body) -> bool:
    """After a new epoch a process asserts its claims; what it may not have any more, it drops."""
    if body.held.epoch == world.board.epoch:
        return True
    try:
        step, key = body.held.step, turns.key_of(world, body.held.step)
        limited: dict[str, Any] = {} if key is None else {"key": key, "limit": turns.limit_of(world)}
        epoch, fence = world.board.reassert(REF, step=step, nonce=body.nonce, **limited)
        world.met["a key is held again after a rebuild"] += key is not None
    except errors.StaleFence:
        world.met["a claim is not given back after a rebuild"] += 1
        return False
    world.met["a claim is asserted after a rebuild"] += 1
    body.held = replace(body.held, epoch=epoch, fence=fence)
    body.awaits = None
    return True


def _run(world: World, body: Body) -> None:
    held, node = body.held, world.node(body.held.step)
    wait: dict[str, Any] = {"attempt": held.attempt, "data": '{"seconds":1}', "delay_ms": 1_000}
    wait["key"] = turns.key_of(world, held.step)
    try:
        if world.fault("a fact is recorded", 10):
            world.board.record(held, key=f"k{world.draw(2)}", value="1")
            return
        if world.fault("a step is given back", 12):
            world.returned.add(held.step)
            world.ring(held.step, fields.running(held.fence), kind="step.given_back", lease=held.fence)
        elif world.fault("a step is declined", 16):
            world.returned.add(held.step)
            world.board.decline(held, delay_ms=2_000, data="{}")
        elif world.fault("a step is deferred", 12):
            world.board.park(held, on="HOOK", kind="step.deferred", detail="later", **wait)
        elif node.approval:
            _wait_for_signal(world, body)
        elif held.attempt <= node.flaky:
            world.met["an attempt is retried"] += 1
            wait["attempt"] += 1
            wait["data"] = json.dumps({"seconds": 1, "attempt": wait["attempt"]})
            world.board.park(held, on="RETRY", kind="step.retry", detail="E", **wait)
        else:
            _finish(world, body)
            return
    except errors.StaleFence:
        _check_stale(world, body)
    turns.serve(world)
    _leave(world, body)


def _finish(world: World, body: Body) -> None:
    node, attempt = world.node(body.held.step), body.held.attempt
    if node.asks and node.ends != "SUCCEEDED":
        _ask(world, body)
        return
    if node.ends == "SUCCEEDED":
        body.outcome = Outcome(state=StepState.SUCCEEDED, output=node.result, attempt=attempt)
    else:
        body.outcome = Outcome.failed(errors.Permanent("no"), attempt=attempt)
    _hand_over(world, body)


def _ask(world: World, body: Body) -> None:
    """The step has failed for good, and nobody has said what to do."""
    error, held = errors.Permanent("no").as_dict(), body.held
    data = json.dumps({"error": error, "attempt": held.attempt})
    told: dict[str, Any] = {"kind": asking.ASKED, "data": data, "detail": asking.detail_of(error)}
    world.met["a step asks"] += 1
    try:
        key = turns.key_of(world, held.step)
        world.met["a step asks and leaves its key"] += key is not None
        world.board.park(held, on="SIGNAL", delay_ms=None, attempt=held.attempt, key=key, **told)
    except errors.StaleFence:
        _check_stale(world, body)
    turns.serve(world)
    _leave(world, body)


def _hand_over(world: World, body: Body) -> None:
    """ARRIVE, as often as it takes until SQL has what must be there."""
    held, outcome = body.held, body.outcome
    assert outcome is not None
    if body.awaits is not None and body.awaits <= world.persisted:
        world.bodies.remove(body)
        return
    try:
        answer = _tell(world, held, outcome)
    except errors.StaleFence:
        _check_stale(world, body)
        _leave(world, body)
        return
    if isinstance(answer, Parked):
        body.awaits = answer.sequence
        return
    world.drain(answer)
    _leave(world, body)


def _tell(world: World, held: Claimed, outcome: Outcome) -> scripts.Locked | Parked | None:
    """COMPLETE where the engine would; now and then ARRIVE instead, which must come to the same."""
    durable = world.node(held.step).durable
    kept = draft.kept(world.plan.step(held.step), outcome)
    output = "" if kept is None else json.dumps(kept)
    told: dict[str, Any] = {"output": output, "outcome": outcome.as_json(), "token": world.name()}
    wanted = [] if durable else decide.wanted(world.plan, held.step)
    followers = shortcut.followers(world.plan, held.step) if outcome.state is StepState.SUCCEEDED else None
    if followers is None or world.fault("no shortcut is taken", 4):
        key = turns.key_of(world, held.step)
        told |= {"state": outcome.state, "durable": durable, "wanted": wanted, "key": key}
        answer = world.board.arrive(held, **told)
        turns.serve(world)
        return answer
    following = [following_of(world.plan, follower, f"{held.epoch.number}.1") for follower in followers]
    answer = world.board.complete(held, **told, following=following, wanted=wanted)
    world.met["a shortcut is taken" if answer is None else "a shortcut is refused"] += 1
    return answer


def following_of(plan: Plan, follower: shortcut.Follower, ring: str) -> scripts.Following:
    """A follower as COMPLETE takes it."""
    name = follower.step
    bell = doorbell(name, ring) if follower.edges == 1 else None
    return scripts.Following(step=name, edges=follower.edges, references=plan.references[name], bell=bell)


def doorbell(step: str, ring: str) -> scripts.Doorbell:
    """A doorbell of these tests: it says only for what it is."""
    return scripts.Doorbell(queue_list=LIST, side="L", content=f"{step}/{ring}".encode(), step=step, ring=ring)


def _leave(world: World, body: Body) -> None:
    """The worker is through with it. Sometimes it does not know: its answer got lost."""
    if body in world.bodies:
        world.bodies.remove(body)
        if body.outcome is not None and world.fault("an answer to a worker gets lost", 3):
            world.ghosts.append(body)


def haunt(world: World) -> None:
    """A worker tells again what it told before, however late."""
    if world.ghosts:
        body = world.ghosts.pop(world.draw(len(world.ghosts)))
        if body.held.epoch == world.board.epoch:
            world.bodies.append(body)
            _hand_over(world, body)


def _check_stale(world: World, body: Body) -> None:
    """Nobody is refused who still is the owner."""
    world.met["a stale worker is refused"] += 1
    assert world.word(body.held.step).text != fields.running(body.held.fence), "an owner was refused"


def _wait_for_signal(world: World, body: Body) -> None:
    signalled = world.board.park(
        body.held,
        on="SIGNAL",
        delay_ms=None,
        attempt=body.held.attempt,
        kind="step.blocked",
        data="{}",
        detail=instance.step_of(body.held.step),
        look_back=instance.step_of(body.held.step),
    )
    if signalled:
        world.met["a signal had come early"] += 1
        if not world.fault("a worker dies before it drains", 1):
            world.post("")


# --- drainers ---------------------------------------------------------------------------------------------------------


def think(world: World) -> None:
    """A drainer decides, reads what it lacks, or commits."""
    if not world.drainers:
        return
    drainer = world.pick(world.drainers)
    if drainer.locked.epoch != world.board.epoch or world.fault("a drainer dies with the lock", 20):
        world.drainers.remove(drainer)
    elif drainer.decision is not None:
        _commit(world, drainer, drainer.decision)
    else:
        try:
            drainer.decision = decide.decide(
                world.plan,
                drainer.view,
                drainer.locked.entries,
                epoch=world.board.epoch.number,
                now_ms=drainer.locked.at_ms,
                budget=drainer.budget,
            )
        except Unloaded as missing:
            _read(world, drainer, missing)


def _read(world: World, drainer: Drainer, missing: Unloaded) -> None:
    """What the decision lacks; mostly all else, too, as the engine reads ahead what it will probably need.

    While nothing goes wrong any more it is all that there is: what was not read then is absent.
    """
    view, values = drainer.view, world.values()
    if not world.faults:
        view.values = {**values, **view.values}
        view.complete = view.blank = True
        return
    if missing.everything:
        view.values.update({name: value for name, value in values.items() if name.startswith("s:")})
        view.complete = True
        return
    ahead = set[str]() if drainer.frugal else values.keys()
    view.values.update({name: values.get(name, "") for name in {*missing.names, *ahead} - view.values.keys()})


def _commit(world: World, drainer: Drainer, decision: Decision) -> None:
    world.drainers.remove(drainer)
    left = world.board.commit(drainer.locked, submitter="ann", batch=batch_of(decision))
    if left is not None:
        _count(world, drainer.locked.entries[: decision.consumed], decision)
        turns.follow(world, decision.timers)
    world.met["a decision is overtaken"] += left is None
    world.met["a decision is split"] += bool(decision.consumed < len(drainer.locked.entries) or decision.posts)
    if left is None or (left == [] and world.fault("an answer to a drainer gets lost", 10)):
        if world.on_board:
            world.drain(world.board.post(REF, entry="", token=drainer.locked.token))
    elif left:
        world.drain(replace(drainer.locked, entries=left, values={}))


def _count(world: World, entries: Sequence[Entry], decision: Decision) -> None:
    """What a decision that counts was about."""
    ended = Counter(event.data for event in decision.events if event.kind == "signal.applied")
    world.met["a signal ends several waits"] += any(count > 1 for count in ended.values())
    timers = sum(entry["t"] == "timer" for entry in entries)
    done = sum(event.kind in ("step.succeeded", "step.failed") for event in decision.events)
    world.met["a timer comes too late"] += timers > done


def batch_of(decision: Decision) -> scripts.Batch:
    """A decision as COMMIT takes it."""
    return scripts.Batch(
        consumed=decision.consumed,
        writes=[(name, was, to) for name, (was, to) in decision.writes.items()],
        posts=[json.dumps(entry) for entry in decision.posts],
        leases=[f"{step}/{fence}" for step, fence in decision.leases],
        timers=[(f"{step}/{on}", "" if due is None else str(due)) for step, on, due in decision.timers],
        bells=[doorbell(ring.step, ring.ring) for ring in decision.rings],
        events=[_told(event) for event in decision.events],
    )


def _told(event: Event) -> tuple[str, str, str, str, str]:
    flags = "" if not event.journal else "jp" if event.park else "j"
    return event.kind, event.step, flags, f"{REF}/{event.step or START}", event.data
