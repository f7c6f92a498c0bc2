"""Moves of those around the work: people at the doors, time, sweeper, journaler, and a board that is wiped."""

from __future__ import annotations

import json
from typing import Any, Final

from convergio.graphflow.board import fields, scripts
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.decision import ASK, LEAVE
from convergio.graphflow.engine.restore import restore
from convergio.graphflow.engine.starter import START_NEEDS
from convergio.graphflow.engine.submission import control_entry, granted_version, meta_of, signal_entry
from convergio.graphflow.journal.rows import SignalRow
from convergio.graphflow.model import errors
from convergio.graphflow.model.states import TERMINAL_STEP, BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import canonical
from convergio.graphflow.nested import WANTED
from convergio.graphflow.waiting import QUEUE, is_verdict
from tests.property import turns
from tests.property.model_board import ModelBoard
from tests.property.model_run import ModelRun
from tests.property.reference import KEY, NOBODY
from tests.property.world import LIST, REF, World

DELIVERIES: Final = 3
"""Lost deliveries in a row after which a step is put in quarantine; fewer than the engine's, to get there."""

UNCLAIMED: Final = 2
"""The same for lost doorbells."""

SIGNALS: Final = 4
"""Different signals of one name in one history, before everybody does what is left to do."""

# --- doors ------------------------------------------------------------------------------------------------------------


def start(world: World) -> None:
    """START by the submitter, or by the sweeper if the board has lost the run before SQL heard of its start."""
    if world.on_board or world.ledger.state is not RunState.ACCEPTED:
        return
    locked = world.board.start(
        REF,
        submitter="ann",
        digest=world.plan.digest,
        plan=canonical(world.plan.workflow.document),
        meta=json.dumps(meta_of(world.ledger.run())),
        given=json.dumps(world.given),
        size=world.plan.size,
        control=granted_version(world.ledger.run()),
        token=world.name(),
        wanted=START_NEEDS,
    )
    if locked is not None and world.ledger.pause_wanted:
        world.met["a run is paused before it starts"] += 1
        wish = json.dumps(control_entry(world.ledger.run()))
        locked = world.board.post(REF, entry=wish, token=locked.token, wanted=START_NEEDS)
    world.drain(locked, blank=True)


def decision(world: World) -> None:
    """A person decides: early, in time, late, or once more."""
    waiting = [node for node in world.nodes.values() if node.approval]
    if not world.faults:
        waiting = [node for node in waiting if f"signal-{node.name}" not in world.ledger.signals]
    if waiting:
        node = world.pick(waiting)
        said: dict[str, Any] = {**(node.result or {}), "decision": "approve" if node.ends == "SUCCEEDED" else "reject"}
        _send(world, world.ledger.signal(node.name, said, world.board.now_ms))


def signal(world: World) -> None:
    """A signal that a `wait` step waits for: early, in time, late, or once more."""
    waiting = [node for node in world.nodes.values() if node.signal not in ("", NOBODY)]
    if not world.faults:
        waiting = [node for node in waiting if world.word(node.name).blocked_on is BlockedOn.SIGNAL]
    if waiting:
        node = world.pick(waiting)
        number = world.draw(SIGNALS) if world.faults else len(world.ledger.signals) + SIGNALS
        data = {"ok": node.ok, "nr": number}
        id = f"signal-{node.signal}-{number}"
        world.met["a signal comes twice"] += id in world.ledger.signals
        _send(world, world.ledger.signal(node.signal, data, world.board.now_ms, id=id))


def answer(world: World) -> None:
    """Somebody says what to do about a step that asks; also when it does not, or not any more."""
    asking = [node for node in world.nodes.values() if node.asks]
    if not world.faults:
        asking = [node for node in asking if world.word(node.name).blocked_on is BlockedOn.SIGNAL]
    if not asking or (world.faults and world.draw(2)):
        return
    node, number = world.pick(asking), len(world.ledger.signals)
    said = ["skip", "skip", "fail", *(["compensate"] if world.plan.undone else [])]
    if world.faults and not node.lonely:  # a person's retry waits for a worker as long as it takes
        said += ["retry"] * 3
    decision = world.pick(said)
    blocked = world.word(node.name).blocked_on is BlockedOn.SIGNAL
    world.met[f"an answer: {decision}" if blocked else "an answer to no question"] += 1
    id = f"answer-{node.name}-{number}"
    _send(world, world.ledger.signal(node.name, {"decision": decision}, world.board.now_ms, id=id))


def _send(world: World, row: SignalRow) -> None:
    if not world.fault("a wake-up gets lost", 4):
        world.post(json.dumps(signal_entry(row)))


def cancel(world: World) -> None:
    """Somebody asks for the run's end."""
    if world.cancels and world.draw(4) == 0:
        world.met["a cancel is asked for"] += 1
        world.ledger.cancel()
        _apply_cancel(world)


def control(world: World) -> None:
    """Somebody pauses the run, or lets it go on."""
    if world.pauses and world.draw(2) == 0:
        _wish(world, pause=world.draw(3) > 0)


def resume(world: World) -> None:
    """A run that is paused in the end goes on."""
    if world.ledger.pause_wanted:
        _wish(world, pause=False)


def _wish(world: World, *, pause: bool) -> None:
    world.ledger.control(pause=pause)
    if not world.over:
        wish = json.dumps(control_entry(world.ledger.run()))
        world.wishes.append(wish)
        if not world.fault("a wish gets lost", 3):
            world.post(wish)


def _apply_cancel(world: World) -> None:
    if world.ledger.cancel_requested and not world.over:
        world.post('{"t":"cancel","by":"ann","reason":"enough"}')


def repeat(world: World) -> None:
    """An entry of the inbox comes once more."""
    begun = [name[2:] for name in world.values() if name.startswith("s:")]
    done = [name for name in begun if world.word(name).state in TERMINAL_STEP]
    maps = [name for name in begun if world.word(name).blocked_on is BlockedOn.ITEMS]
    entries = ['{"t":"start"}', *(json.dumps({"t": "arrived", "step": name}) for name in done), *world.wishes]
    entries += [json.dumps({"t": kind, "step": name}) for name in maps for kind in ("deal", "fold")]
    world.met["an entry comes twice"] += 1
    world.post(world.pick(entries))


def tend(world: World) -> None:
    """Children that SQL knows to be wanted, and that still are, end: their parent is told; and again by `repeat`."""
    wanted = [event for event in world.ledger.events if event.type == WANTED]
    last = {event.instance: event.data["attempt"] for event in wanted}
    for event in wanted:
        step, attempt = event.instance, event.data["attempt"]
        if world.over or step in world.ledger.outcomes or attempt < last[step]:
            continue
        node = world.node(step)
        good = attempt > node.flaky and node.ends == "SUCCEEDED"
        error = {**errors.ChildFailed("no").as_dict(), "retryable": attempt <= node.flaky}
        facts = {"state": "SUCCEEDED", "output": node.result} if good else {"state": "FAILED", "error": error}
        world.met["a child ends" if good else "a child fails"] += 1
        told = json.dumps({"t": "child", "step": step, "attempt": attempt, **facts})
        world.wishes.append(told)
        if not world.fault("a child's end gets lost", 4):
            world.post(told)


# --- sweeper ----------------------------------------------------------------------------------------------------------


def sweep(world: World) -> None:
    """Runs that were accepted and did not start; inboxes that wait."""
    start(world)
    if str(REF) in world.board.inboxes:
        world.post("")


def apply_rows(world: World) -> None:
    """Signals and cancels that SQL knows and the run may have missed."""
    for row in world.ledger.signals.values():
        if row.signal_id not in world.ledger.applied and not world.over:
            world.post(json.dumps(signal_entry(row)))
    if world.ledger.unsettled:
        world.met["a wish is granted late"] += 1
        world.post(json.dumps(control_entry(world.ledger.run())))
    _apply_cancel(world)


def ring_lost(world: World) -> None:
    """Doorbells that are proven lost."""
    line = {content.decode() for content in world.bells()}
    for member in list(world.board.rung.get(LIST, {})):
        _, _, step, ring = member.split("/")
        gone = f"{step}/{ring}" not in line and not world.node(step).lonely
        if gone and world.word(step).text == fields.ready(ring):
            lost = int(world.values().get(fields.unclaimed(step), 0)) + 1
            if lost >= UNCLAIMED and world.node(step).ends == "QUARANTINED":
                _quarantine(world, step, fields.ready(ring))
            else:
                sets = {fields.unclaimed(step): str(lost)}
                world.ring(step, fields.ready(ring), kind="step.rung", sets=sets, same=True)


def pass_time(world: World) -> None:
    """Time passes; leases, timers and held steps become due."""
    board = world.board
    board.now_ms += world.pick((100, 1_100, 2_100, 6_100)) if world.faults else 6_100
    if not world.faults or world.lives == 0 or world.draw(2):
        board.beat([f"{REF}/{body.held.step}/{body.held.fence}" for body in world.bodies])
    for member in [name for name, due in board.leases.items() if due <= board.now_ms]:
        _expire(world, member)
    for member in [name for name, due in board.timers.items() if due <= board.now_ms]:
        _, _, step, on = member.split("/")
        verdict = is_verdict(world.plan.step(step), on)
        if on in (ASK, LEAVE, BlockedOn.LIMIT) or (world.node(step).limit and not verdict):
            _turn(world, member, step, on)
            continue
        if verdict:
            _verdict(world, member, step, on)
            continue
        assert world.word(step).blocked_on == on, f"a timer for a step that does not wait: {member}"
        world.ring(step, world.word(step).text, kind="step.rung", timer=on)
    for member in [name for name, due in board.held.items() if due <= board.now_ms]:
        step = member.rsplit("/", 1)[1]
        if world.word(step).blocked_on is BlockedOn.LIMIT:
            turns.wait_turn(world, step)
        elif world.word(step).state is StepState.READY:
            world.ring(step, world.word(step).text, kind="step.rung")
        board.held.pop(member, None)


def _turn(world: World, member: str, step: str, on: str) -> None:
    """A timer of a step with a concurrency key: whoever should have done it has died, or it is a retry's."""
    if member not in world.board.timers:
        return  # it was done by the way
    word = world.word(step)
    if on == LEAVE:
        turns.act(world, step, on)
    elif word.blocked_on != (BlockedOn.LIMIT if on == ASK else on):
        world.board.timers.pop(member)
    elif on == BlockedOn.LIMIT:
        turns.ring(world, step)
    else:
        turns.wait_turn(world, step, timer=on)


def _verdict(world: World, member: str, step: str, on: str) -> None:
    """A timer whose time is an entry of the inbox; the decision drops it. One that nobody waits for is dropped here."""
    word = world.word(step)
    if word.state is StepState.READY if on == QUEUE else word.blocked_on == on:
        world.met[f"a timer is due: {on}"] += 1
        world.post(json.dumps({"t": "timer", "step": step, "on": on, "was": word.text}))
    else:
        world.board.timers.pop(member)


def _expire(world: World, member: str) -> None:
    _, _, step, fence = member.split("/")
    assert world.word(step).text == fields.running(fence), f"a lease of nobody: {member}"
    owned = any(body.held.fence == fence for body in world.bodies)
    if owned and world.lives == 0:
        return
    world.lives -= owned
    world.met["a lease is over"] += 1
    lost = int(world.values().get(fields.deliveries(step), 0)) + 1
    if lost >= DELIVERIES and world.node(step).ends == "QUARANTINED":
        _quarantine(world, step, fields.running(fence))
        return
    sets, data = {fields.deliveries(step): str(lost)}, json.dumps({"deliveries": lost})
    world.ring(step, fields.running(fence), kind="step.expired", lease=fence, over=True, sets=sets, data=data)


def _quarantine(world: World, step: str, was: str) -> None:
    world.met["a step is put in quarantine"] += 1
    world.post(json.dumps({"t": "quarantine", "step": step, "was": was, "reason": "too often"}))


# --- journaler --------------------------------------------------------------------------------------------------------


def journal(world: World) -> None:
    """SQL takes on some of the stream; what waited for it goes on, unless the journaler dies in between."""
    board, last = world.board, len(world.board.journal) - 1
    if last > world.persisted:
        world.persist(world.persisted + 1 + world.draw(last - world.persisted) if world.faults else last)
    if world.fault("the journaler dies before it releases", 6):
        return
    board.released = world.persisted
    parked = [name for name, sequence in board.parked.items() if sequence <= world.persisted]
    steps = [member.rsplit("/", 1)[1] for member in parked]
    moved, _ = board.release(REF, steps=steps, grace_ms=60_000, high_water=world.persisted)
    world.met["an outcome is released"] += moved
    if moved and not world.fault("the journaler dies before it drains", 3):
        world.post("")


# --- the board is gone ------------------------------------------------------------------------------------------------


def wipe(world: World) -> None:
    """A new board, made from what SQL knows; sometimes the old stream could still be read."""
    if world.wipes == 0 or world.draw(4) or not world.on_board:
        return
    world.wipes -= 1
    if world.draw(2):
        world.persist(len(world.board.journal) - 1)
        world.met["a board is restarted"] += 1
    else:
        world.met["a board is wiped"] += 1
    world.met["a paused run is rebuilt"] += world.paused
    world.was_paused = world.ledger.state is RunState.PAUSED
    old, world.persisted = world.board, 0
    rebuilt = {"t": "board.rebuilt", "r": "-/-", "s": "", "q": "0", "a": "0", "d": "{}"}
    world.board = ModelBoard(epoch=Epoch(number=old.epoch.number + 1, server="server"), now_ms=old.now_ms)
    world.board.journal, world.board.moves = [rebuilt], old.moves
    if world.over:
        world.board.done[str(REF)] = 0
    else:
        _rebuild(world)


def _rebuild(world: World) -> None:
    board = world.board
    made = restore(world.ledger.facts(), world.plan, epoch=board.epoch.number, now_ms=board.now_ms)
    due = {f"{e.instance}/{e.data['on']}": e.data["due_ms"] for e in world.ledger.events if e.type == "step.waiting"}
    open_waits = {name: at for name, at in due.items() if name.split("/")[0] not in world.ledger.outcomes}
    ending = any(entry["t"] in ("start", "arrived") for entry in made.inbox)  # what follows there ends the run
    assert ending or open_waits == {name: made.timers.get(name) for name in open_waits}, "a wait begins anew"
    run = ModelRun(values={**made.values, "@seq": "0"}, inbox=[json.dumps(entry) for entry in made.inbox])
    board.runs[REF] = run
    board.held.update({f"{REF}/{step}": board.now_ms + scripts.LEASE_MS for step in made.held})
    board.timers.update({f"{REF}/{name}": float(due) for name, due in made.timers.items()})
    if made.limited:
        limit = board.limit(KEY)
        limit.closed_ms = board.now_ms + scripts.LEASE_MS
        ordered = sorted(made.limited, key=lambda step: made.limited[step])
        limit.waiters = [f"{REF}/{step}/{turns.limit_of(world)}" for step in ordered]
    if run.inbox:
        board.inboxes[str(REF)] = board.now_ms
    for event in made.events:
        board.tell(REF, event.kind, event.step, event.data, "ann")
        board.journal[-1]["a"] = str(event.at_ms or board.now_ms)
