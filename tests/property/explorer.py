"""One run, played on the model board by everybody who has a hand in it, in an order that `draw` chooses.

Workers claim, run, die, come back too late; drainers read, decide and commit in separate moves, lose their lock, lose
answers; the journaler lags; doorbells get lost or come twice; the board is wiped. After the chaos everybody does what is
left to do, and the run must have come to what `reference` says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from convergio.graphflow import decide
from convergio.graphflow.board import fields, scripts
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.board.scripts import Claimed, Locked, Parked
from convergio.graphflow.decide import Decision, Unloaded, View
from convergio.graphflow.engine.restore import restore
from convergio.graphflow.engine.submission import meta_of, signal_entry
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.outcome import Outcome
from convergio.graphflow.model.states import TERMINAL_RUN, TERMINAL_STEP, RunState, StepState
from convergio.graphflow.model.workflow import canonical
from tests.property.ledger import Ledger
from tests.property.model_board import ModelBoard, ModelRun
from tests.property.reference import Node

REF: Final = RunRef(tenant="default", run="r1")
LIST: Final = "queue"
DELIVERIES: Final = 3
"""Lost deliveries in a row after which a step is put in quarantine; smaller than the engine's, to get there."""

LIVES: Final = 2
"""So often a healthy worker may lose its lease in one history, so that only a poisoned step gets to quarantine."""

Draw = Callable[[int], int]


@dataclass(slots=True)
class Body:
    """A worker with a step in its hands, or one that believes so."""

    held: Claimed
    nonce: str
    outcome: Outcome | None = None
    """what it told the board, until SQL has it"""
    awaits: int | None = None


@dataclass(slots=True)
class Drainer:
    """A holder of the run's lock, between two moves."""

    locked: Locked
    view: View
    decision: Decision | None = None
    budget: int = decide.BUDGET


@dataclass(kw_only=True)
class Explorer:
    """The world of one run."""

    plan: Plan
    nodes: dict[str, Node]
    given: Any
    draw: Draw
    faults: bool = True
    cancels: bool = False
    wipes: int = 0
    trace: list[str] = field(default_factory=list[str])
    bodies: list[Body] = field(default_factory=list[Body])
    ghosts: list[Body] = field(default_factory=list[Body])
    drainers: list[Drainer] = field(default_factory=list[Drainer])
    old_bells: list[str] = field(default_factory=list[str])
    ran: set[str] = field(default_factory=set[str])
    lives: int = LIVES
    names: int = 0
    persisted: int = -1
    """the last sequence of the board's stream that SQL has"""

    def __post_init__(self) -> None:
        self.board = ModelBoard(epoch=Epoch(number=1, server="server"))
        self.ledger = Ledger(REF, self.plan.workflow.document, self.plan.digest, self.given)

    # --- playing ------------------------------------------------------------------------------------------------------

    def play(self, moves: int) -> None:
        """So many random moves with faults, then everything that is left, without."""
        self.start()
        for _ in range(moves):
            move = MOVES[self.draw(len(MOVES))]
            self.trace.append(move.__name__)
            move(self)
        self.faults = False
        for _ in range(100):
            if self.settled():
                return
            self.settle()
        raise AssertionError(f"the run does not end: {self.board.runs[REF].values} {self.board.runs[REF].inbox}")

    def settle(self) -> None:
        """Everybody does what is left, and then time passes."""
        for move in SETTLING:
            move(self)
        while self.drainers or self.board.lists.get(LIST):
            self.think()
            self.deliver()
        for _ in range(len(self.bodies)):
            self.work()

    def settled(self) -> bool:
        """Whether nothing is left to do."""
        busy = self.bodies or self.drainers or self.board.lists.get(LIST) or self.board.inboxes or self.board.parked
        return not busy and self.ledger.state in TERMINAL_RUN and str(REF) in self.board.done

    def chance(self, one_in: int) -> bool:
        """A fault, while there are faults."""
        return self.faults and self.draw(one_in) == 0

    def pick(self, options: Sequence[Any]) -> Any:
        return options[self.draw(len(options))]

    def name(self) -> str:
        self.names += 1
        return f"n-{self.names}"

    def values(self) -> dict[str, str]:
        """The run's hash, empty if the run is not on the board."""
        run = self.board.run(REF)
        return {} if run is None else run.values

    def word(self, step: str) -> fields.Word:
        return fields.Word.parse(self.values().get(fields.state(step)))

    # --- doors --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """START by the submitter, or by the sweeper if the board has lost the run before SQL heard of its start."""
        if self.board.run(REF) is not None or self.ledger.state is not RunState.ACCEPTED:
            return
        locked = self.board.start(
            REF,
            submitter="ann",
            digest=self.plan.digest,
            plan=canonical(self.plan.workflow.document),
            meta=json.dumps(meta_of(self.ledger.run())),
            given=json.dumps(self.given),
            size=self.plan.size,
            token=self.name(),
            wanted=[fields.STATE, fields.STOP, fields.cursor(decide.START)],
        )
        self.drain(locked, blank=True)

    def signal(self) -> None:
        """A person decides: early, in time, late, or once more."""
        waiting = [node for node in self.nodes.values() if node.approval]
        if not self.faults:
            waiting = [node for node in waiting if f"signal-{node.name}" not in self.ledger.signals]
        if not waiting:
            return
        node = self.pick(waiting)
        decision = {**node.result, "decision": "approve" if node.ends == "SUCCEEDED" else "reject"}
        row = self.ledger.signal(node.name, decision, self.board.now_ms)
        if not self.chance(4):  # its wake-up gets lost
            self.post(json.dumps(signal_entry(row)))

    def cancel(self) -> None:
        """Somebody asks for the run's end."""
        if self.cancels and self.draw(4) == 0:
            self.ledger.cancel_requested = self.ledger.cancel_requested or self.ledger.state not in TERMINAL_RUN
            self.apply_cancel()

    def apply_cancel(self) -> None:
        if self.ledger.cancel_requested and self.ledger.state not in TERMINAL_RUN:
            self.post('{"t":"cancel","by":"ann","reason":"enough"}')

    def repeat(self) -> None:
        """An entry of the inbox comes once more."""
        done = [name for name in self.nodes if self.word(name).state in TERMINAL_STEP]
        entries = ['{"t":"start"}', *(json.dumps({"t": "arrived", "step": name}) for name in done)]
        self.post(self.pick(entries))

    def post(self, entry: str) -> None:
        if self.board.run(REF) is not None:
            self.drain(self.board.post(REF, entry=entry, token=self.name(), wanted=[fields.STATE][: self.draw(2)]))

    # --- workers ------------------------------------------------------------------------------------------------------

    def deliver(self) -> None:
        """A worker pops a doorbell, and claims the step."""
        line = self.board.lists.get(LIST)
        if line:
            bell = line.pop(self.draw(len(line)) if self.faults else -1).decode()
            if self.chance(4):
                self.old_bells.append(bell)
            if not self.chance(8):
                self.claim(bell)

    def replay(self) -> None:
        """An old doorbell comes once more."""
        if self.old_bells:
            self.claim(self.pick(self.old_bells))

    def claim(self, bell: str) -> None:
        step, ring = bell.split("/")
        nonce = self.name()
        held = self.board.claim(REF, step=step, ring=ring, nonce=nonce, queue_list=LIST)
        if isinstance(held, Claimed):
            self.may_run(step)
            self.bodies.append(Body(held, nonce))

    def may_run(self, step: str) -> None:
        """All that the step waits for is resolved, and in SQL where that was asked for."""
        for edge in self.plan.workflow.steps[step].needs:
            state = self.word(edge.step).state
            assert state in (StepState.SUCCEEDED, StepState.SKIPPED), f"{step} runs, {edge.step} is {state}"
            node = self.nodes[edge.step]
            if (node.durable or node.approval) and state is StepState.SUCCEEDED:
                assert edge.step in self.ledger.outcomes, f"{step} runs before SQL has {edge.step}"
        self.ran.add(step)

    def work(self) -> None:
        """One worker does the next thing."""
        if not self.bodies:
            return
        body = self.pick(self.bodies)
        if not self.owns(body):
            self.bodies.remove(body)
        elif body.outcome is not None:
            self.hand_over(body)
        elif self.nodes[body.held.step].ends == "QUARANTINED" or (self.lives and self.chance(10)):
            self.lives -= self.nodes[body.held.step].ends != "QUARANTINED"
            self.bodies.remove(body)  # it dies
        else:
            self.run_body(body)

    def owns(self, body: Body) -> bool:
        """After a new epoch a process asserts its claims; what it may not have any more, it drops."""
        if body.held.epoch == self.board.epoch:
            return True
        try:
            epoch, fence = self.board.reassert(REF, step=body.held.step, nonce=body.nonce)
        except errors.StaleFence:
            return False
        body.held = replace(body.held, epoch=epoch, fence=fence)
        body.awaits = None
        return True

    def run_body(self, body: Body) -> None:
        held, node = body.held, self.nodes[body.held.step]
        wait: dict[str, Any] = {"attempt": held.attempt, "data": '{"seconds":1}', "delay_ms": 1_000}
        try:
            if self.chance(10):
                self.board.record(held, key=f"k{self.draw(2)}", value="1")
                return
            if self.chance(12):
                self.give_back(body)
            elif self.chance(12):
                self.board.park(held, on="HOOK", kind="step.deferred", detail="later", **wait)
            elif node.approval:
                self.wait_for_signal(body)
            elif held.attempt <= node.flaky:
                wait |= {"attempt": held.attempt + 1}
                wait["data"] = json.dumps({"seconds": 1, "attempt": held.attempt + 1})
                self.board.park(held, on="RETRY", kind="step.retry", detail="E", **wait)
            else:
                self.finish(body)
                return
        except errors.StaleFence:
            self.check_stale(body)
        self.leave(body)

    def finish(self, body: Body) -> None:
        node = self.nodes[body.held.step]
        if node.ends == "SUCCEEDED":
            body.outcome = Outcome(state=StepState.SUCCEEDED, output=node.result, attempt=body.held.attempt)
        else:
            body.outcome = Outcome.failed(errors.Permanent("no"), attempt=body.held.attempt)
        self.hand_over(body)

    def hand_over(self, body: Body) -> None:
        """ARRIVE, as often as it takes until SQL has what must be there."""
        held, outcome = body.held, body.outcome
        assert outcome is not None
        if body.awaits is not None and body.awaits <= self.persisted:
            self.bodies.remove(body)
            return
        durable = self.nodes[held.step].durable
        kept = outcome.output if outcome.error is None else outcome.error
        try:
            answer = self.board.arrive(
                held,
                state=outcome.state,
                output=json.dumps(kept),
                outcome=outcome.as_json(),
                durable=durable,
                token=self.name(),
                wanted=[] if durable else decide.wanted(self.plan, held.step),
            )
        except errors.StaleFence:
            self.check_stale(body)
            self.leave(body)
            return
        if isinstance(answer, Parked):
            body.awaits = answer.sequence
            return
        self.drain(answer)
        self.leave(body)

    def leave(self, body: Body) -> None:
        """The worker is through with it. Sometimes it does not know: its answer got lost."""
        if body in self.bodies:
            self.bodies.remove(body)
            if body.outcome is not None and self.chance(3):
                self.ghosts.append(body)

    def haunt(self) -> None:
        """A worker tells again what it told before, however late."""
        if self.ghosts:
            body = self.ghosts.pop(self.draw(len(self.ghosts)))
            if body.held.epoch == self.board.epoch:
                self.bodies.append(body)
                self.hand_over(body)

    def check_stale(self, body: Body) -> None:
        """Nobody is refused who still is the owner."""
        word = self.word(body.held.step)
        assert word.text != fields.running(body.held.fence), "an owner was refused"

    def give_back(self, body: Body) -> None:
        step, fence = body.held.step, body.held.fence
        self.ring(step, fields.running(fence), kind="step.given_back", lease=fence)

    def wait_for_signal(self, body: Body) -> None:
        signalled = self.board.park(
            body.held,
            on="SIGNAL",
            delay_ms=None,
            attempt=body.held.attempt,
            kind="step.blocked",
            data="{}",
            detail=body.held.step,
            look_back=body.held.step,
        )
        if signalled and not self.chance(3):
            self.post("")

    # --- drainers -----------------------------------------------------------------------------------------------------

    def drain(self, locked: Locked | None, *, blank: bool = False) -> None:
        if locked is not None:
            self.drainers.append(Drainer(locked, View(dict(locked.values), blank=blank), budget=self.some_budget()))

    def some_budget(self) -> int:
        return self.pick((1, 2, 3, 5, 8, decide.BUDGET)) if self.faults else decide.BUDGET

    def think(self) -> None:
        """A drainer decides, or reads what it lacks."""
        if not self.drainers:
            return
        drainer = self.pick(self.drainers)
        if drainer.decision is not None:
            self.commit(drainer)
            return
        if drainer.locked.epoch != self.board.epoch or self.chance(15):
            self.drainers.remove(drainer)  # it is told REBUILD, or it dies with the lock in its hands
            return
        try:
            drainer.decision = decide.decide(
                self.plan,
                drainer.view,
                drainer.locked.entries,
                epoch=self.board.epoch.number,
                budget=drainer.budget,
            )
        except Unloaded as missing:
            self.read(drainer.view, missing)

    def read(self, view: View, missing: Unloaded) -> None:
        values = self.values()
        if missing.everything:
            view.values.update({name: value for name, value in values.items() if name.startswith("s:")})
            view.complete = True
        else:
            view.values.update({name: values.get(name, "") for name in missing.names})

    def commit(self, drainer: Drainer) -> None:
        decision = drainer.decision
        assert decision is not None
        self.drainers.remove(drainer)
        if drainer.locked.epoch != self.board.epoch or self.chance(15):
            return
        left = self.board.commit(drainer.locked, submitter="ann", batch=batch_of(decision))
        if left is None or (left == [] and self.chance(10)):  # refused, or the answer got lost
            if self.board.run(REF) is not None:
                self.drain(self.board.post(REF, entry="", token=drainer.locked.token))
        elif left:
            again = replace(drainer.locked, entries=left, values={})
            self.drain(again)

    # --- service process ------------------------------------------------------------------------------------------------

    def sweep(self) -> None:
        """Inboxes that wait; signals and cancels that SQL knows and the run may have missed."""
        self.start()
        if str(REF) in self.board.inboxes:
            self.post("")

    def apply_rows(self) -> None:
        """Signals and cancels that SQL knows and the run may have missed."""
        for row in self.ledger.signals.values():
            if row.signal_id not in self.ledger.applied and self.ledger.state not in TERMINAL_RUN:
                self.post(json.dumps(signal_entry(row)))
        self.apply_cancel()

    def time(self) -> None:
        """Time passes; leases, timers and held steps become due."""
        self.board.now_ms += self.pick((100, 1_100, 2_100, 6_100))
        if self.lives == 0 or self.draw(2):
            members = [f"{REF}/{body.held.step}/{body.held.fence}" for body in self.bodies]
            self.board.beat(members)
        now = self.board.now_ms
        for member in [name for name, due in self.board.leases.items() if due <= now]:
            self.expire(member)
        for member in [name for name, due in self.board.timers.items() if due <= now]:
            _, _, step, on = member.split("/")
            assert self.word(step).blocked_on == on, f"a timer for a step that does not wait: {member}"
            self.ring(step, self.word(step).text, kind="step.rung", timer=on)
        for member in [name for name, due in self.board.held.items() if due <= now]:
            step = member.rsplit("/", 1)[1]
            if self.word(step).state is StepState.READY:
                self.ring(step, self.word(step).text, kind="step.rung")
            self.board.held.pop(member, None)

    def expire(self, member: str) -> None:
        _, _, step, fence = member.split("/")
        assert self.word(step).text == fields.running(fence), f"a lease of nobody: {member}"
        owner = [body for body in self.bodies if body.held.fence == fence]
        if owner and self.lives == 0:
            return
        self.lives -= bool(owner)
        lost = int(self.values().get(fields.deliveries(step), 0)) + 1
        if lost >= DELIVERIES and self.nodes[step].ends == "QUARANTINED":
            entry = {"t": "quarantine", "step": step, "was": fields.running(fence), "reason": "3 workers died"}
            self.post(json.dumps(entry))
            return
        sets = {fields.deliveries(step): str(lost)}
        data = json.dumps({"deliveries": lost})
        self.ring(step, fields.running(fence), kind="step.expired", lease=fence, over=True, sets=sets, data=data)

    def ring_lost(self) -> None:
        """Doorbells that are proven lost."""
        line = {content.decode() for content in self.board.lists.get(LIST, [])}
        for member in list(self.board.rung.get(LIST, {})):
            _, _, step, ring = member.split("/")
            if f"{step}/{ring}" not in line and self.word(step).text == fields.ready(ring):
                self.ring(step, fields.ready(ring), kind="step.rung")

    def ring(
        self, step: str, was: str, *, kind: str, lease: str = "", over: bool = False, timer: str = "",
        sets: dict[str, str] | None = None, data: str = "{}",
    ) -> None:  # fmt: skip
        count = int(self.values().get(fields.rings(step), 0)) + 1
        ring = f"{self.board.epoch.number}.{count}"
        bell = scripts.Doorbell(queue_list=LIST, side="R", content=f"{step}/{ring}".encode(), step=step, ring=ring)
        ringing = scripts.Ringing(
            was=was,
            bell=bell,
            count=count,
            kind=kind,
            data=data,
            lease=lease,
            lease_must_be_over=over,
            timer=timer,
            sets=sets or {},
        )
        self.board.ring(REF, submitter="ann", ringing=ringing)

    def journal(self) -> None:
        """SQL takes on some of the stream; what waited for it goes on, unless the journaler dies in between."""
        last = len(self.board.journal) - 1
        if last > self.persisted:
            self.persist(self.persisted + 1 + self.draw(last - self.persisted) if self.faults else last)
        if self.chance(6):
            return
        self.board.released = self.persisted
        parked = [name for name, sequence in self.board.parked.items() if sequence <= self.persisted]
        steps = [member.rsplit("/", 1)[1] for member in parked]
        moved, _ = self.board.release(REF, steps=steps, grace_ms=60_000, high_water=self.persisted)
        if moved and not self.chance(3):
            self.post("")

    def persist(self, upto: int) -> None:
        for sequence in range(self.persisted + 1, upto + 1):
            self.ledger.take(self.board.journal[sequence], self.board.epoch.number, sequence)
        self.persisted = max(upto, self.persisted)

    # --- the board is gone ----------------------------------------------------------------------------------------------

    def wipe(self) -> None:
        """A new board, made from what SQL knows; sometimes the old stream could still be read."""
        if self.wipes == 0 or self.draw(4) or self.board.run(REF) is None:
            return
        self.wipes -= 1
        if self.draw(2):
            self.persist(len(self.board.journal) - 1)
        old, self.persisted = self.board, 0
        rebuilt = {"t": "board.rebuilt", "r": "-/-", "s": "", "q": "0", "a": "0", "d": "{}"}
        self.board = ModelBoard(epoch=Epoch(number=old.epoch.number + 1, server="server"), now_ms=old.now_ms)
        self.board.journal, self.board.moves = [rebuilt], old.moves
        if self.ledger.state in TERMINAL_RUN:
            self.board.done[str(REF)] = 0
            return
        made = restore(self.ledger.facts(), self.plan, epoch=self.board.epoch.number, now_ms=self.board.now_ms)
        run = ModelRun(values={**made.values, "@seq": "0"}, inbox=[json.dumps(entry) for entry in made.inbox])
        self.board.runs[REF] = run
        self.board.held.update({f"{REF}/{step}": self.board.now_ms + scripts.LEASE_MS for step in made.held})
        self.board.timers.update({f"{REF}/{name}": float(due) for name, due in made.timers.items()})
        if run.inbox:
            self.board.inboxes[str(REF)] = self.board.now_ms
        for event in made.events:
            self.board._tell(REF, event.kind, event.step, event.data, "ann")


def batch_of(decision: Decision) -> scripts.Batch:
    """A decision as COMMIT takes it."""
    return scripts.Batch(
        consumed=decision.consumed,
        writes=[(name, was, to) for name, (was, to) in decision.writes.items()],
        posts=[json.dumps(entry) for entry in decision.posts],
        leases=[f"{step}/{fence}" for step, fence in decision.leases],
        timers=[(f"{step}/{on}", "") for step, on in decision.timers],
        bells=[
            scripts.Doorbell(
                queue_list=LIST, side="L", content=f"{ring.step}/{ring.ring}".encode(), step=ring.step, ring=ring.ring
            )
            for ring in decision.rings
        ],
        events=[
            (event.kind, event.step, "" if not event.journal else "jp" if event.park else "j",
             f"{REF}/{event.step or '@'}", event.data)
            for event in decision.events
        ],
    )  # fmt: skip


MOVES: Final[Sequence[Callable[[Explorer], None]]] = [
    *[Explorer.think] * 6,
    *[Explorer.deliver] * 4,
    *[Explorer.work] * 4,
    *[Explorer.journal] * 2,
    *[Explorer.time, Explorer.sweep, Explorer.ring_lost, Explorer.signal, Explorer.apply_rows],
    *[Explorer.replay, Explorer.haunt, Explorer.repeat, Explorer.cancel, Explorer.wipe],
]

SETTLING: Final[Sequence[Callable[[Explorer], None]]] = [
    *[Explorer.journal, Explorer.sweep, Explorer.ring_lost, Explorer.signal, Explorer.apply_rows, Explorer.time]
]
