"""The load of one round: runs that are submitted one after the other, and what people say to them."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final, TypeVar

import psycopg

from convergio.benchmarks import evidence, reference
from convergio.benchmarks.graphs import Graph
from convergio.config.settings import Settings
from convergio.graphflow.engine.submission import Entrance, Submission
from convergio.graphflow.flow import document
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import DEFAULT_TENANT, RunRef
from convergio.graphflow.model.workflow import Workflow
from convergio.workers import boot

T = TypeVar("T")

PATIENCE: Final = 0.1
"""Seconds between two tries of a call that was refused because a store is away."""

LONGEST: Final = 45.0
"""Seconds after which a store that is away counts as gone."""

AWAY: Final = (errors.BoardUnavailable, errors.BoardRebuilding, errors.JournalUnavailable)

LOOK: Final = 0.3
"""Seconds between two looks at which steps ask what to do."""

AGAIN: Final = 3.0
"""Seconds after which a question that still stands is answered once more: the answer may have come too early."""

LATEST: Final = 3.5
"""Seconds after the start within which the last signal and the last cancel are sent."""

CANCELLED: Final = 0.08
"""Share of the runs that somebody cancels."""

SUBMITTER: Final = "chaos"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A signal to send: the answer to one approval, `delay` seconds after its run was accepted."""

    run: str
    step: str
    data: Mapping[str, Any]
    delay: float

    @property
    def id(self) -> str:
        return f"{self.run}-{self.step}"


class Traffic:
    """Submits `graphs` within `spread` seconds, each under the id `PREFIX-number`, and answers their approvals.

    Callers repeat what a store that is away refused, under the same id, as real ones do. `accepted` has the runs whose
    submit has returned, `cancelled` those that somebody tried to cancel. Nothing is sent before `start`.
    """

    def __init__(
        self, settings: Settings, prefix: str, graphs: Sequence[Graph], random: Random, *, spread: float
    ) -> None:
        self.prefix = prefix
        self.graphs = {f"{prefix}-{index}": graph for index, graph in enumerate(graphs)}
        self.accepted: dict[str, Graph] = {}
        self.cancelled: set[str] = set()
        self.failure: BaseException | None = None
        self.withhold = threading.Event()
        """Set: decisions wait, so that a fault can take some of them out of `pending` and bring them in its own way."""
        self._entrance = boot.entrance(settings)
        self._entrance.find = self._workflow
        self._journal = evidence.Journal(settings.journal_url)
        self._children = {child.name: child for graph in graphs for child in graph.children}
        self._answered: dict[tuple[str, str], float] = {}
        self._times = sorted(random.uniform(0, spread) for _ in graphs)
        decisions = [decision for run, graph in self.graphs.items() for decision in _decisions(run, graph, random)]
        self.pending = sorted(decisions, key=lambda decision: decision.delay)
        chosen = [run for run in self.graphs if random.random() < CANCELLED]
        self._cancels = sorted((random.uniform(0.0, LATEST), run) for run in chosen)
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=work.__name__, daemon=True)
            for work in (self._submit_all, self._decide_all, self._cancel_all)
        ]
        self._answering = threading.Thread(target=self._guarded, args=(self._answer_all,), name="answer", daemon=True)

    def start(self) -> None:
        for thread in (*self._threads, self._answering):
            thread.start()

    def finish(self, timeout: float) -> None:
        """Waits until everything is sent. Raises what a caller met, or RuntimeError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if self.failure is not None:
            raise self.failure
        if any(thread.is_alive() for thread in self._threads):
            raise RuntimeError(f"not everything could be sent within {timeout:g} s")

    def close(self) -> None:
        """Stops sending."""
        self._stop.set()
        for thread in (*self._threads, self._answering):
            if thread.ident is not None:
                thread.join(timeout=10)
        self._entrance.link.close()

    def add(self, graph: Graph) -> Submission:
        """One more run, which the caller brings in itself. It counts as accepted; its approvals are not answered."""
        run = f"{self.prefix}-x{len(self.accepted)}"
        self.accepted[run] = graph
        return _submission(run, graph)

    @property
    def entrance(self) -> Entrance:
        """The doors this load goes through."""
        return self._entrance

    # --- sending --------------------------------------------------------------------------------------------------

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # it is raised in `finish`
            self.failure = error

    def _submit_all(self) -> None:
        began = time.monotonic()
        for (run, graph), moment in zip(self.graphs.items(), self._times, strict=True):
            self._stop.wait(began + moment - time.monotonic())
            submission = _submission(run, graph)
            self._insist(lambda submission=submission: self._entrance.submit(submission))  # type: ignore[misc]
            self.accepted[run] = graph

    def _decide_all(self) -> None:
        began = time.monotonic()
        while not self._stop.is_set():
            if self.withhold.is_set():
                self._stop.wait(PATIENCE)
            elif not self.pending:
                return
            elif time.monotonic() < began + self.pending[0].delay or self.pending[0].run not in self.accepted:
                self._stop.wait(PATIENCE / 2)
            else:
                decision = self.pending.pop(0)
                self._insist(lambda decision=decision: self.decide(decision))  # type: ignore[misc]

    def _cancel_all(self) -> None:
        began = time.monotonic()
        for moment, run in self._cancels:
            self._stop.wait(began + moment - time.monotonic())
            while run not in self.accepted and not self._stop.is_set():
                self._stop.wait(PATIENCE)
            if self._stop.is_set():
                return
            self.cancelled.add(run)
            ref = RunRef(tenant=DEFAULT_TENANT, run=run)
            self._insist(lambda ref=ref: self._entrance.cancel(ref, by=SUBMITTER))  # type: ignore[misc]

    def _answer_all(self) -> None:
        """Answers every step that asks, until `close`; what stands, and was not heard, once more."""
        while not self._stop.wait(LOOK):
            for (run, step), count in self._questions().items():
                last = self._answered.get((run, step), -AGAIN)
                if run in self.accepted and not self.withhold.is_set() and time.monotonic() - last >= AGAIN:
                    self._answered[run, step] = time.monotonic()
                    data = {"decision": self.accepted[run].nodes[step].answer, "question": count}
                    self._insist(lambda run=run, step=step, data=data: self._say(run, step, data))  # type: ignore[misc]

    def _questions(self) -> Mapping[tuple[str, str], int]:
        try:
            return self._journal.questions(f"{self.prefix}-")
        except (sqlite3.Error, psycopg.Error):  # the journal may be away, which is one of the faults
            return {}

    def _say(self, run: str, step: str, data: Mapping[str, Any]) -> bool:
        ref = RunRef(tenant=DEFAULT_TENANT, run=run)
        return self._entrance.signal(ref, name=step, data=dict(data), by=SUBMITTER)

    def _workflow(self, name: str) -> Workflow:
        """The definition of a child."""
        return _definition(self._children[name])

    def decide(self, decision: Decision) -> bool:
        """Sends one signal. False: it was sent before."""
        ref = RunRef(tenant=DEFAULT_TENANT, run=decision.run)
        return self._entrance.signal(
            ref, name=decision.step, data=dict(decision.data), by=SUBMITTER, signal_id=decision.id
        )

    def _insist(self, call: Callable[[], T]) -> T:
        deadline = time.monotonic() + LONGEST
        while True:
            try:
                return call()
            except AWAY:
                if self._stop.is_set() or time.monotonic() > deadline:
                    raise
                self._stop.wait(PATIENCE)


def _submission(run: str, graph: Graph) -> Submission:
    return Submission(
        workflow=_definition(graph), input={"run": run, "value": graph.value}, run_id=run, submitter=SUBMITTER
    )


def _definition(graph: Graph) -> Workflow:
    return document.parse_document(graph.document(), source=graph.name)


def _decisions(run: str, graph: Graph, random: Random) -> list[Decision]:
    """One for each approval: early ones come before the step waits, late ones long after."""
    return [
        Decision(run=run, step=name, data=_answer(graph, name), delay=random.uniform(0.0, LATEST))
        for name in graph.approvals
    ]


def _answer(graph: Graph, step: str) -> dict[str, Any]:
    if graph.nodes[step].fails:
        return {"decision": "reject", "reason": "by design"}
    text = reference.digest(step, graph.value, {})
    return {"decision": "approve", "digest": text, "value": reference.value_of(text)}
