"""The world of one run: the model board, what SQL knows, workers and drainers, and who decides what happens next.

`hands` and `clerk` hold the moves, `explorer` plays them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from convergio.graphflow import decide
from convergio.graphflow.board import fields, scripts
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.board.scripts import Claimed, Locked
from convergio.graphflow.decision import Decision, View
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.model import instance
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.outcome import Outcome
from convergio.graphflow.model.states import TERMINAL_RUN
from tests.property.ledger import Ledger
from tests.property.model_board import ModelBoard
from tests.property.reference import Node

REF: Final = RunRef(tenant="default", run="r1")
LIST: Final = "queue"
LIVES: Final = 2
"""So often a healthy worker may lose its lease in one history, so that only a poisoned step gets to quarantine."""

Draw = Callable[[int], int]
"""A number below the argument: who draws it chooses the history."""

T = TypeVar("T")


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
    budget: int
    frugal: bool = False
    """reads nothing ahead: its decision begins anew for every field that it lacks"""
    decision: Decision | None = None


@dataclass(kw_only=True)
class World:
    """Everything about one run. `met` counts what happened, for who wants to know whether a suite has seen it."""

    plan: Plan
    nodes: Mapping[str, Node]
    given: Any
    draw: Draw
    faults: bool = True
    cancels: bool = False
    pauses: bool = False
    wipes: int = 0
    board: ModelBoard = field(default_factory=lambda: ModelBoard(epoch=Epoch(number=1, server="server")))
    trace: list[str] = field(default_factory=list[str])
    met: Counter[str] = field(default_factory=Counter[str])
    bodies: list[Body] = field(default_factory=list[Body])
    ghosts: list[Body] = field(default_factory=list[Body])
    """workers that do not know that the board heard them"""
    drainers: list[Drainer] = field(default_factory=list[Drainer])
    old_bells: list[str] = field(default_factory=list[str])
    wishes: list[str] = field(default_factory=list[str])
    """what people asked for, and how children ended, as it was put in the inbox"""
    ran: set[str] = field(default_factory=set[str])
    returned: set[str] = field(default_factory=set[str])
    """steps that a worker took and gave back before it ran them"""
    stopped: set[str] = field(default_factory=set[str])
    """steps that a worker was refused, because the run is paused"""
    was_paused: bool = False
    """whether SQL knew the run as paused when the board was made"""
    known: dict[str, Node] = field(default_factory=dict[str, Node])
    """nodes by the instances that were asked for"""
    lives: int = LIVES
    names: int = 0
    persisted: int = -1
    """the last sequence of the board's stream that SQL has"""

    def __post_init__(self) -> None:
        self.limited = any(node.limit for node in self.nodes.values())
        self.ledger = Ledger(REF, self.plan.workflow.document, self.plan.digest, self.given)

    # --- choosing -----------------------------------------------------------------------------------------------------

    def fault(self, what: str, one_in: int) -> bool:
        """A fault, while there are faults."""
        happens = self.faults and self.draw(one_in) == 0
        if happens:
            self.met[what] += 1
        return happens

    def pick(self, options: Sequence[T]) -> T:
        return options[self.draw(len(options))]

    def name(self) -> str:
        """A name for a claim or a lock."""
        self.names += 1
        return f"n-{self.names}"

    # --- what is played -----------------------------------------------------------------------------------------------

    def node(self, step: str) -> Node:
        """What an instance is to come to."""
        known = self.known.get(step)
        if known is None:
            node, index = self.nodes[instance.step_of(step)], instance.index_of(step)
            known = self.known[step] = node if index is None else node.member(index)
        return known

    def beside(self, step: str, at: str) -> str:
        """The instance of `step` that `at` waits for: in a loop, of its round."""
        region = self.plan.loops.get(step)
        inside = region is not None and self.plan.loops.get(instance.step_of(at)) is region
        return instance.named(step, instance.round_of(at)) if inside else step

    # --- looking ------------------------------------------------------------------------------------------------------

    @property
    def on_board(self) -> bool:
        return self.board.run(REF) is not None

    @property
    def over(self) -> bool:
        """Whether SQL knows how the run ended."""
        return self.ledger.state in TERMINAL_RUN

    @property
    def paused(self) -> bool:
        """Whether the run is paused, by what the board told; after a new board by what SQL knew."""
        run = self.board.run(REF)
        told = [entry["type"] for entry in run.feed if entry["type"] in ("run.paused", "run.resumed")] if run else []
        return told[-1] == "run.paused" if told else self.was_paused

    def values(self) -> dict[str, str]:
        """The run's hash, empty if the run is not on the board."""
        run = self.board.run(REF)
        return {} if run is None else run.values

    def word(self, step: str) -> fields.Word:
        """The step's state."""
        return fields.Word.parse(self.values().get(fields.state(step)))

    def bells(self) -> list[bytes]:
        """The queue list."""
        return self.board.lists.setdefault(LIST, [])

    # --- what several have to do --------------------------------------------------------------------------------------

    def post(self, entry: str) -> None:
        """POST by somebody who drains if the lock is free."""
        if self.on_board:
            self.drain(self.board.post(REF, entry=entry, token=self.name(), wanted=[fields.STATE][: self.draw(2)]))

    def drain(self, locked: Locked | None, *, blank: bool = False) -> None:
        """Somebody holds the lock now."""
        if locked is not None:
            budget = self.pick((1, 2, 3, 5, 8, decide.BUDGET)) if self.faults else decide.BUDGET
            frugal = self.faults and self.draw(8) == 0
            self.drainers.append(Drainer(locked, View(dict(locked.values), blank=blank), budget, frugal))

    def ring(
        self, step: str, was: str, *, kind: str, lease: str = "", over: bool = False, timer: str = "",
        sets: dict[str, str] | None = None, data: str = "{}", same: bool = False,
    ) -> None:  # fmt: skip
        """RING of a step whose state is `was`; `same`: under the ring that it has."""
        count = int(self.values().get(fields.rings(step), 0)) + (not same)
        ring = was.removeprefix(fields.ready("")) if same else f"{self.board.epoch.number}.{count}"
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

    def persist(self, upto: int) -> None:
        """SQL takes the stream up to this sequence."""
        for sequence in range(self.persisted + 1, upto + 1):
            self.ledger.take(self.board.journal[sequence], self.board.epoch.number, sequence)
        self.persisted = max(upto, self.persisted)
