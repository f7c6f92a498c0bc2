"""Runs that steps of other runs start: from the rows, row first, as often as it takes.

Nothing here remembers anything. A child is started from the row that its journaled event made, and its parent is told
how it ended from the rows of both: after every crash the next look does what was not done. Doing it twice is harmless:
a child's id is derived from its run, step and attempt, and a parent hears only of the attempt that it waits for.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Collection, Mapping
from typing import Any, Final

from convergio.graphflow.board.connection import UNREACHABLE, Link
from convergio.graphflow.engine.claims import AWAY
from convergio.graphflow.engine.drain import Drain
from convergio.graphflow.engine.starter import Starter
from convergio.graphflow.engine.submission import START_WITHIN_MS, board_time, cancel_entry, wake_once
from convergio.graphflow.flow import inputs, loops
from convergio.graphflow.flow.plan import Plan
from convergio.graphflow.journal.blobs import Blobs, Opened
from convergio.graphflow.journal.children import Children as Rows
from convergio.graphflow.journal.doors import Doors
from convergio.graphflow.journal.history import History
from convergio.graphflow.journal.rows import ChildRow, NewRun, Parent, RunRow
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.ids import Nonces
from convergio.graphflow.model.states import RunState, StepState
from convergio.graphflow.model.workflow import Workflow

logger = logging.getLogger(__name__)

BATCH: Final = 200
DEEPEST: Final = 10
"""So many runs may be above a run: a workflow that starts itself comes to an end."""


class Children:
    """Starts children, tells their parents how they ended, and cancels those that nobody waits for."""

    def __init__(
        self,
        link: Link,
        rows: Rows,
        doors: Doors,
        history: History,
        starter: Starter,
        drain: Drain,
        nonces: Nonces,
        blobs: Blobs,
    ) -> None:
        self.link = link
        self.rows = rows
        self.doors = doors
        self.history = history
        self.starter = starter
        self.drain = drain
        self.nonces = nonces
        self.blobs = blobs
        self._offset = 0
        self.news = threading.Event()
        """set by who knows that there is something to do"""

    def tend(self) -> int:
        """Does all that is to be done now; how much that was. Raises JournalUnavailable, BoardUnavailable."""
        found = self.rows.open_business(BATCH, self._offset)
        settled: list[str] = []
        for row in found:
            try:
                if self._is_settled(row):
                    settled.append(row.ref.run)
            except (*UNREACHABLE, *AWAY, errors.JournalUnavailable):
                raise
            except Exception:  # one child must not keep the others from their parents
                logger.exception("child %s is left for the next look", row.ref)
        self.rows.settle(settled)
        # What stays to be done stays at the head: with the next look come those behind it, and then the head again.
        self._offset = self._offset + BATCH if len(found) == BATCH else 0
        return len(found)

    def _is_settled(self, row: ChildRow) -> bool:
        """Does what is due for one child. True: that was the last of it."""
        ended = row.state in (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED)
        if row.left:
            if row.state is not None and not ended:
                self._cancel(row)
            return row.state is None or ended
        if ended:
            self._tell(row)
        elif row.state is None:
            self._start(row)
        return False

    # --- starting -------------------------------------------------------------------------------------------------

    def _start(self, row: ChildRow) -> None:
        """Accepts the child, if that can be, and puts it on the board; else its step has failed."""
        parent = self.history.run(row.parent.tenant, row.parent.run)
        try:
            run = self._new_run(row, parent)
            accepted = self.doors.accept(run).run
        except (errors.JournalUnavailable, *AWAY):
            raise
        except errors.ConvergioError as error:
            logger.info("child %s cannot be started: %s", row.ref, error)
            self._fail(row, {**error.as_dict(), "retryable": False})
            return
        try:
            self.starter.start(accepted, Plan.of(run.workflow), not_after_ms=run.not_after_ms)
        except (*AWAY, errors.SubmitTooLate) as error:
            logger.warning("child %s is accepted; the sweeper starts it: %s", row.ref, error)

    def _new_run(self, row: ChildRow, parent: RunRow) -> NewRun:
        depth = (parent.depth or 0) + 1
        if depth > DEEPEST:
            said = f"{DEEPEST} runs are above it already: does a workflow start itself without an end?"
            raise errors.ChildTooDeep(said, hint="give the step a condition (when), or repeat inside one run")
        workflow = self._definition(row, parent)
        value = self._input(row, parent)
        inputs.check_input(workflow, value)
        text = self.blobs.text_of(value, what="the child's input")
        reference = self.blobs.kept(parent.tenant, text)
        now = board_time(self.link)
        return NewRun(
            run_id=row.ref.run,
            tenant=parent.tenant,
            submitter=parent.submitter,
            workflow=workflow,
            input_json=text if reference is None else json.dumps(reference),
            not_after_ms=now + START_WITHIN_MS,
            created_ms=now,
            priority=parent.priority,
            pins=parent.pins or {},
            parent=Parent(run_id=parent.run_id, step=row.step, depth=depth),
        )

    def _definition(self, row: ChildRow, parent: RunRow) -> Workflow:
        """The one that was pinned when the run at the top was submitted."""
        digest = (parent.pins or {}).get(row.workflow)
        if digest is None:
            raise errors.UnknownWorkflow(f"run {parent.run_id} was submitted without a workflow '{row.workflow}'")
        return self.starter.plans.get(digest).workflow

    def _input(self, row: ChildRow, parent: RunRow) -> dict[str, Any]:
        """The values of the step's `with`: what they read is in SQL, as the event that wants the child came after."""
        plan = self.starter.plans.get(parent.digest)
        steps = plan.references[instance.step_of(row.step)]
        ended = {one.instance: one for one in self.history.outcomes(parent.run_id, steps)}
        seen = {_seen(plan, step, row.step, ended) for step in steps}
        outputs = {name: one.output for name, one in ended.items() if name in seen and one.state is StepState.SUCCEEDED}
        names = {**inputs.seen(plan, row.step, outputs), "input": parent.input}
        return inputs.arguments(plan.step(row.step), Opened(self.blobs, parent.tenant, names))

    # --- telling, cancelling --------------------------------------------------------------------------------------

    def _tell(self, row: ChildRow) -> None:
        """The child's end is in SQL: its parent goes on."""
        if row.state is RunState.SUCCEEDED:
            entry = {"state": StepState.SUCCEEDED.value, "output": row.output}
            self._post(row, entry)
        else:
            self._fail(row, _failure(row))

    def _fail(self, row: ChildRow, error: Mapping[str, Any]) -> None:
        self._post(row, {"state": StepState.FAILED.value, "error": error})

    def _post(self, row: ChildRow, facts: Mapping[str, Any]) -> None:
        entry = {"t": "child", "step": row.step, "attempt": row.attempt, **facts}
        wake_once(self.link, self.drain, self.nonces, row.parent, entry)

    def _cancel(self, row: ChildRow) -> None:
        by, reason = f"run {row.parent.run}", f"its step {row.step} does not wait for it any more"
        run = self.doors.request_cancel(row.ref.run, row.ref.tenant, by, reason, board_time(self.link))
        if not run.terminal:
            wake_once(self.link, self.drain, self.nonces, row.ref, cancel_entry(run))


def _seen(plan: Plan, step: str, at: str, ended: Collection[str]) -> str | None:
    """Which instance of `step` the instance `at` reads."""
    rounds = [instance.round_of(one) for one in ended if instance.step_of(one) == step]
    return loops.seen(plan.loops, step, at, lambda _: max(rounds, default=0))


def _failure(row: ChildRow) -> dict[str, Any]:
    """Why the step has no result. One that a person cancelled is not tried again."""
    facts = row.error or {}
    said = f"run {row.ref.run} of '{row.workflow}' ended as {row.state}"
    why = " ".join(str(facts[name]) for name in ("code", "step", "message") if facts.get(name))
    kind = errors.ChildCancelled if row.state is RunState.CANCELLED else errors.ChildFailed
    error = kind(f"{said}: {why}" if why else said, hint=f"convergio runs show {row.ref.run}")
    return {**error.as_dict(), "child": row.ref.run, "cause": facts.get("code", "")}
