"""Looking at a run: from the board while it lives there, from the journal for all that is over. Changes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

from convergio.graphflow import talking
from convergio.graphflow.asking import ASKED
from convergio.graphflow.board import fields
from convergio.graphflow.board.connection import UNREACHABLE, Link, unavailable
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.engine import reason
from convergio.graphflow.engine.bell import LADDER, LISTS, Route, canary_route
from convergio.graphflow.engine.reason import RunView, StepView, Tally, Turn, span
from convergio.graphflow.engine.submission import board_time
from convergio.graphflow.flow import document, loops
from convergio.graphflow.journal.history import History
from convergio.graphflow.journal.rows import EventRow, OutcomeRow, RunRow
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.ids import RunRef, child_of
from convergio.graphflow.model.states import TERMINAL_RUN, BlockedOn, RunState, StepState
from convergio.graphflow.model.workflow import Step, StepKind, Workflow

RECENT: Final = 2_000
"""Events of the feed that are looked at for since when, and on which worker, steps run."""

CHUNK: Final = 200

SHOWN: Final = 3
"""Holders of a concurrency key, and failed items of a map, that are named."""


@dataclass(slots=True)
class _Live:
    """What the board says of a run."""

    epoch: Epoch
    now_ms: int
    values: dict[str, str]
    instances: dict[str, str] = field(default_factory=dict[str, str])
    """every step's instance of the last round"""
    inbox_ms: int | None = None
    lag: int = 0
    seen: dict[str, tuple[int, str, str]] = field(default_factory=dict[str, tuple[int, str, str]])
    """Per step: when its last event was, the worker if that was `step.running`, why if it was `step.declined`."""


class Inquiry:
    """Answers for people: where a run is and why."""

    def __init__(
        self, link: Link | None, history: History, list_of: Callable[[Route], str] = lambda route: route.queue
    ) -> None:
        """`link` None: there is no board to look at. `list_of`: the Redis list of a route's doorbells."""
        self._link = link
        self.history = history
        self.list_of = list_of

    @property
    def link(self) -> Link:
        """The way to the board. Raises BoardUnavailable if there is none."""
        if self._link is None:
            raise errors.BoardUnavailable("no Redis is configured", hint="start one with `convergio up`")
        return self._link

    def view(self, ref: RunRef) -> RunView:
        """The run as it is now. Raises UnknownRun, JournalUnavailable."""
        run = self.history.run(ref.tenant, ref.run)
        workflow = self._workflow(run.digest)
        live: _Live | None = None
        board = "left"
        everyone = _everyone(workflow)
        if not run.terminal:
            try:
                live = self._live(ref, everyone)
                board = "live" if live is not None else "absent"
            except errors.BoardRebuilding:
                board = "rebuilding"
            except errors.BoardUnavailable:
                board = "away"
        steps = {name: self._from_journal(step, run) for name, step in everyone.items()}
        self._add_history(run, everyone, steps)
        if live is not None:
            steps = {name: self._from_board(ref, step, live) for name, step in steps.items()}
        begun = {name: step for name, step in steps.items() if name in workflow.steps or _has_begun(step)}
        return _assembled(run, workflow, board, live, self._with_children(ref, begun))

    def _workflow(self, digest: str) -> Workflow:
        found = self.history.definition(digest)
        assert found is not None, "a run's definition is pinned in the same transaction"
        return document.parse_document(found, source="the stored definition")

    # --- the journal ----------------------------------------------------------------------------------------------

    def _from_journal(self, step: Step, run: RunRow) -> StepView:
        body = step if step.map is None else step.map.each
        return StepView(
            name=step.name,
            kind=step.kind,
            does=does(step),
            queue=step.queue,
            state=StepState.WAITING,
            needs=tuple(edge.step for edge in step.needs),
            attempts=body.retry.max + 1,
            priority=body.priority or run.priority,
            limit=None if body.concurrency is None else body.concurrency.limit,
        )

    def _add_history(self, run: RunRow, everyone: Mapping[str, Step], steps: dict[str, StepView]) -> None:
        """Outcomes, and the last error, reason or question that made a step wait: of its last round."""
        for row in self.history.timeline(run.tenant, run.run_id):
            if row.step not in steps:
                continue
            number, now = instance.round_of(row.instance), steps[row.step].iteration
            if number < now:
                continue
            if number > now:
                steps[row.step] = _with_turn(steps[row.step], self._from_journal(everyone[row.step], run), number)
            if instance.index_of(row.instance) is not None:
                steps[row.step] = _with_item(steps[row.step], row)
            elif row.type == "step.mapped" and isinstance(row, EventRow):
                tally = steps[row.step].tally or Tally(items=0)
                steps[row.step] = replace(steps[row.step], tally=replace(tally, items=row.data["items"]))
            elif isinstance(row, OutcomeRow):
                steps[row.step] = _with_outcome(steps[row.step], row)
            elif row.type in ("step.retry", ASKED):
                steps[row.step] = replace(steps[row.step], error=row.data.get("error"))
            elif row.type == "step.deferred":
                note, awaits = (str(row.data.get(name, "")) for name in ("reason", "awaits"))
                steps[row.step] = replace(steps[row.step], note=note, awaits=awaits)
            elif row.type == "step.blocked":
                steps[row.step] = replace(steps[row.step], note=str(row.data.get("description", "")))

    def _with_children(self, ref: RunRef, steps: Mapping[str, StepView]) -> Mapping[str, StepView]:
        """Steps that are runs name them, and say how those are."""
        children = {name: child for name, step in steps.items() if (child := _child(ref, step))}
        rows = {row.run_id: row for row in self.history.runs_of(list(children.values()))} if children else {}
        found = {name: rows[child] for name, child in children.items() if child in rows}
        named = {name: replace(steps[name], child=row.run_id, child_state=row.state) for name, row in found.items()}
        return {**steps, **named}

    # --- the board ------------------------------------------------------------------------------------------------

    def _live(self, ref: RunRef, everyone: Mapping[str, Step]) -> _Live | None:
        """None if the run is not on the board. Raises BoardUnavailable, BoardRebuilding."""
        try:
            epoch = self.link.refresh()
            keys, client = self.link.keys(epoch), self.link.client
            ends = [fields.round_of(name) for name, step in everyone.items() if step.loop is not None]
            instances = _instances(everyone, self._read(epoch, ref, ends))
            names = [fields.STATE, fields.STOP]
            for name, one in instances.items():
                names += [fields.state(one), fields.attempt(one), fields.deliveries(one)]
                if everyone[name].map is not None:
                    names.append(fields.progress(one))
            values = self._read(epoch, ref, names)
            if fields.STATE not in values:
                return None
            live = _Live(epoch=epoch, now_ms=board_time(self.link), values=values, instances=instances)
            inbox = client.zscore(keys.inboxes, str(ref))
            live.inbox_ms = None if inbox is None else int(inbox)
            live.lag = self._lag(epoch)
            live.seen = self._seen(ref, epoch)
        except UNREACHABLE as error:
            raise unavailable(error) from error
        return live

    def _read(self, epoch: Epoch, ref: RunRef, names: list[str]) -> dict[str, str]:
        """The fields of the run's hash that are there."""
        run, values = self.link.keys(epoch).run(ref), dict[str, str]()
        for part in _chunks(names):
            found = cast("list[str | None]", self.link.client.hmget(run, part))
            values |= {name: value for name, value in zip(part, found, strict=True) if value is not None}
        return values

    def _lag(self, epoch: Epoch) -> int:
        """Events that the board has told and SQL does not have."""
        keys = self.link.keys(epoch)
        newest = cast("list[tuple[str, Any]]", self.link.client.xrevrange(keys.journal, count=1))
        released = cast("str | None", self.link.client.get(keys.released))
        last = int(newest[0][0].rsplit("-", 1)[1]) if newest else 0
        return max(0, last - int(released or 0))

    def _seen(self, ref: RunRef, epoch: Epoch) -> dict[str, tuple[int, str, str]]:
        feed = self.link.keys(epoch).feed(ref)
        entries = cast("list[tuple[str, dict[str, str]]]", self.link.client.xrevrange(feed, count=RECENT))
        seen: dict[str, tuple[int, str, str]] = {}
        for _, values in reversed(entries):
            worker = values["data"] if values["type"] == "step.running" else ""
            missing = _declined(values["data"]) if values["type"] == "step.declined" else ""
            seen[values["step"]] = (int(values["at"]), worker, missing)
        return seen

    def _from_board(self, ref: RunRef, step: StepView, live: _Live) -> StepView:
        one = live.instances[step.name]
        if instance.round_of(one) > step.iteration:
            step = replace(step, iteration=instance.round_of(one), state=StepState.WAITING, error=None, note="")
            spent = step.tokens if step.kind is StepKind.CONVERSATION else 0
            step = replace(step, worker=None, started_ms=None, finished_ms=None, tokens=spent, tally=None, awaits="")
            step = replace(step, reused_from=None, cached_from=None, failures=())
        word = fields.Word.parse(live.values.get(fields.state(one)))
        if word.state is StepState.WAITING and step.state is not StepState.WAITING:
            return step  # SQL is ahead for a moment only on a new board
        at_ms, worker, missing = live.seen.get(one, (None, "", ""))
        now = replace(
            step,
            state=word.state,
            on=word.blocked_on,
            asks_people=step.kind is StepKind.CONVERSATION and talking.waits_for_people(word, one),
            parked=word.parked.state if word.parked is not None else None,
            since_ms=word.since_ms if word.since_ms is not None else at_ms,
            attempt=int(live.values.get(fields.attempt(one), 1)),
            deliveries=int(live.values.get(fields.deliveries(one), 0)),
            worker=worker or step.worker,
            missing=missing,
            tally=_tally(word, live.values.get(fields.progress(one), "")) or step.tally,
        )
        if word.state is StepState.RUNNING:
            return replace(now, started_ms=now.since_ms)
        try:
            return self._waiting_facts(ref, now, word, live)
        except UNREACHABLE as error:
            raise unavailable(error) from error

    def _waiting_facts(self, ref: RunRef, step: StepView, word: fields.Word, live: _Live) -> StepView:
        """What the sorted sets know of a step that waits."""
        keys, client, member = self.link.keys(live.epoch), self.link.client, f"{ref}/{step.label}"
        if step.on is BlockedOn.LIMIT:
            return replace(step, turn=self._turn(ref, step, live))
        if step.on not in (None, BlockedOn.JOURNAL):
            due = client.zscore(keys.timers, f"{member}/{step.on}")
            return replace(step, due_ms=None if due is None else int(due))
        if step.state is not StepState.READY:
            return step
        held = client.zscore(keys.held, member)
        if held is not None:
            return replace(step, held_ms=int(held))
        last = max(LADDER[step.priority])
        lists = [self.list_of(canary_route(step.queue, number)) for number in LISTS if number <= last]
        scores = [client.zscore(keys.rung(name), f"{member}/{word.rest}") for name in lists]
        rung = next((int(score) for score in scores if score is not None), None)
        ahead = sum(int(client.llen(name)) for name in lists)
        return replace(step, since_ms=rung if rung is not None else step.since_ms, ahead=ahead)

    def _turn(self, ref: RunRef, step: StepView, live: _Live) -> Turn | None:
        """Who has the step's concurrency key, and how many wait before it."""
        keys, client = self.link.keys(live.epoch), self.link.client
        key = cast("str | None", client.hget(keys.run(ref), fields.key(step.label)))
        if key is None or step.limit is None:
            return None
        place = client.zrank(keys.waiters(ref.tenant, key), f"{ref}/{step.label}/{step.limit}")
        holders = cast("list[str]", client.zrange(keys.holders(ref.tenant, key), 0, SHOWN - 1))
        return Turn(
            key=key,
            limit=step.limit,
            holders=tuple(map(_holder, holders)),
            held=int(client.zcard(keys.holders(ref.tenant, key))),
            before=cast("int | None", place),
        )


def _holder(member: str) -> str:
    """Who has a key, for people: run/step."""
    _, run, step = member.split("/")
    return f"{run}/{instance.label(step)}"


def _assembled(
    run: RunRow, workflow: Workflow, board: str, live: _Live | None, steps: Mapping[str, StepView]
) -> RunView:
    stop = live.values.get(fields.STOP) if live is not None else None
    state = RunState(live.values[fields.STATE]) if live is not None else run.state
    return RunView(
        id=run.run_id,
        tenant=run.tenant,
        submitter=run.submitter,
        workflow=workflow,
        state=state,
        board=board,
        now_ms=live.now_ms if live is not None else time.time_ns() // 1_000_000,
        created_ms=run.created_ms,
        started_ms=run.started_ms,
        finished_ms=run.finished_ms,
        stopping=RunState(stop) if stop and state not in TERMINAL_RUN else None,
        inbox_ms=live.inbox_ms if live is not None else None,
        lag=live.lag if live is not None else 0,
        output=run.output,
        error=run.error,
        cancel_reason=run.cancel_reason,
        forked_from=run.forked_from,
        fork_kind=run.fork_kind,
        fork_step=run.fork_step,
        paused_ms=run.paused_ms,
        paused_by=run.paused_by,
        parent_run=run.parent_run,
        parent_step=run.parent_step,
        steps=steps,
    )


def _everyone(workflow: Workflow) -> dict[str, Step]:
    """The steps, and those that undo them, the last one first."""
    undo = [step.compensate for step in workflow.steps.values() if step.compensate is not None]
    return {**workflow.steps, **{step.name: step for step in reversed(undo)}}


def _has_begun(step: StepView) -> bool:
    """An undo that never began is no news."""
    return step.state is not StepState.WAITING


def _child(ref: RunRef, step: StepView) -> str | None:
    """The run that the step's last attempt is, or was, if it is of that kind and has begun."""
    if step.kind is not StepKind.WORKFLOW or step.state is StepState.WAITING:
        return None
    parent = ref if step.reused_from is None else RunRef(tenant=ref.tenant, run=step.reused_from)
    return child_of(parent, step.label, step.attempt).run


def _declined(data: str) -> str:
    facts = json.loads(data)
    if "journal" in facts:
        return f"{reason.JOURNAL}{facts['journal']}"
    return f"worker {facts['worker']} cannot do it: {facts['missing']}"


def _with_outcome(step: StepView, row: OutcomeRow) -> StepView:
    return replace(
        step,
        state=row.state,
        attempt=row.attempt,
        error=row.error,
        worker=row.worker,
        started_ms=step.started_ms or row.started_ms,
        finished_ms=row.finished_ms,
        tokens=step.tokens + row.tokens,
        reused_from=row.reused_from,
        cached_from=row.cached_from,
    )


def _with_turn(step: StepView, fresh: StepView, number: int) -> StepView:
    """Another round of a loop begins anew; a turn of a conversation goes on with what the others took."""
    if step.kind is not StepKind.CONVERSATION:
        return replace(fresh, iteration=number)
    return replace(fresh, iteration=number, tokens=step.tokens, started_ms=step.started_ms)


def _with_item(step: StepView, row: OutcomeRow | EventRow) -> StepView:
    """One more item of a map has ended."""
    if not isinstance(row, OutcomeRow) or row.state is StepState.CANCELLED:
        return step
    tally, good = step.tally or Tally(items=0), row.state is StepState.SUCCEEDED
    tally = replace(tally, done=tally.done + 1, good=tally.good + good)
    if not good and len(step.failures) < SHOWN:
        why = " ".join(str(row.error[name]) for name in ("code", "message") if row.error and row.error.get(name))
        step = replace(step, failures=(*step.failures, f"{instance.label(row.instance)} {why or row.state}"))
    return replace(step, tally=tally, tokens=step.tokens + row.tokens)


def _tally(word: fields.Word, text: str) -> Tally | None:
    """How far a map at work is, by the board."""
    if word.blocked_on is not BlockedOn.ITEMS:
        return None
    progress = fields.Progress.parse(text)
    return Tally(
        items=int(word.rest.split("|")[2]), done=progress.done, good=progress.good, active=max(0, progress.active)
    )


def _instances(steps: Mapping[str, Step], rounds: Mapping[str, str]) -> dict[str, str]:
    """Every step's instance of the last round that began."""
    regions = loops.regions(steps)
    return {
        name: instance.named(name, int(rounds.get(fields.round_of(regions[name].end), 0))) if name in regions else name
        for name in steps
    }


def waits_for(spec: Mapping[str, Any]) -> str:
    """What a `wait` step is for, in words."""
    if spec["signal"] is not None:
        return f"signal '{spec['signal']}'"
    return f"until {spec['until']}" if spec["for"] is None else f"for {span(spec['for'] * 1000)}"


def does(step: Step) -> str:
    """The agent, the function or the question, for a table."""
    match step.kind:
        case StepKind.AGENT | StepKind.WORKFLOW:
            return str(step.spec[step.kind.value])
        case StepKind.TASK:
            return str(step.spec["function"])
        case StepKind.WAIT:
            return waits_for(step.spec)
        case StepKind.MAP:
            assert step.map is not None, "a map step has its map"
            return f"{does(step.map.each)} for each of {step.map.over}"
        case StepKind.CONVERSATION:
            return ", ".join(member["name"] for member in step.spec["agents"])
        case StepKind.APPROVAL:
            return str(step.spec.get("title") or "approval")


def _chunks(names: list[str]) -> Iterable[list[str]]:
    return (names[start : start + CHUNK] for start in range(0, len(names), CHUNK))
