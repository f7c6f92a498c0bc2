"""The task of a conversation's turn: one agent speaks, and what follows is decided with it, all in one outcome."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol, cast

from celery import Celery

from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.engine.steps import Steps
from convergio.graphflow.flow import expressions, inputs, values
from convergio.graphflow.flow.team import HUMAN, POLICIES
from convergio.graphflow.flow.termination import Turn
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.outcome import Rows
from convergio.tasks.agents import tables as agent_tables
from convergio.tasks.agents.spec import ModelUsage
from convergio.tasks.agents.step import Ledger
from convergio.tasks.agents.turn import Part, Question, TurnRequest
from convergio.tasks.app import FlowTask
from convergio.tasks.conversation import branches, course, image, review, selector, speaker, tables
from convergio.tasks.conversation.archive import Archive, Place
from convergio.tasks.conversation.floor import STOP, Selection
from convergio.tasks.conversation.team import SELECTOR, Team
from convergio.tasks.conversation.thread import Kind, Message
from convergio.tasks.conversation.voice import Voice
from convergio.tasks.step import DEFAULT_DEADLINE, StepWorker, answer, decline, spend
from convergio.tasks.tools import tool

LONGEST: Final = 16_000
"""Characters of what was said that travel as the step's result; the thread has all of it."""

MODEL: Final = "model."
"""Begins the keys of recorded answers of models."""


class TurnWorker(StepWorker, Protocol):
    """What turns need beside what steps do."""

    archive: Archive


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a turn stands on. `opening`: what begins the conversation, if this is its first turn, whose `speaker` is
    then to be chosen. `before`: messages of `heard` that are of earlier conversations; `overheard`: what other
    conversations of the run said, behind the first of ours; `asked`: answers that a model gave to who speaks next."""

    team: Team
    iteration: int
    heard: Sequence[Message]
    before: int
    overheard: Sequence[Message]
    opening: str | None
    continues: Place | None
    chosen: Selection | None
    speaker: str
    tokens: int
    asked: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """What came of a turn: its messages, why the conversation ends with it, who is next."""

    parts: Sequence[Part]
    stop: dict[str, Any] | None
    following: Selection | None
    asked: int


def register(app: Celery) -> None:
    """Adds the turn's task to the app."""

    @app.task(base=FlowTask, bind=True, shared=False, name="convergio.turn")
    def turn(self: FlowTask, run: str, step: str, ring: str) -> None:
        answer(self, lambda: take(self, cast(TurnWorker, self.worker), self.claim))


def take(task: FlowTask, worker: TurnWorker, claim: Claim) -> None:
    """One turn, from the thread to the outcome that adds to it."""
    ground = ground_of(worker, claim)
    if ground.team.policy not in POLICIES:
        try:
            speaker.POLICIES.get(ground.team.policy)
        except errors.UnknownFunction as error:
            decline(task, error)
    facts = Facts(worker.steps, claim)
    try:
        over = _over_at_once(ground)
        if ground.iteration == 0 and over is None:
            ground = worker.loop.run(_opened(worker, claim, ground, facts), claim)
        if over is None:
            request = request_of(worker, claim, ground)
            spoken = worker.loop.run(_spoken(worker, claim, ground, request, facts), claim)
        else:
            spoken = Spoken(parts=(), stop=over, following=None, asked=ground.asked)
    except errors.ConvergioError as error:
        spend(worker.steps, claim, facts.unrecorded, error)
        raise
    settle(worker, claim, ground, facts, spoken)


def ground_of(worker: TurnWorker, claim: Claim) -> Ground:
    """What was said so far, and whose turn it is. Raises ExpressionFailed, UnknownAgent, UnknownRun,
    ImageRefused, MessageTooLarge, JournalUnavailable."""
    steps, held = worker.steps, claim.held
    definition, (step, iteration) = steps.step(claim), instance.split(held.step)
    names, tenant = steps.names(claim), held.ref.tenant
    team, last = Team.of(definition.spec, worker.agents.roster), names.get(step)
    if iteration == 0:
        continues = _continued(definition.spec["after"], names, step)
        heard = [] if continues is None else worker.archive.before(tenant, continues)
        prompt = inputs.prompt(definition, names)
        body = _shown(definition.spec.get("images"), names, prompt)
        before = len(heard)
        heard.append(Message(iteration=0, seq=0, kind=Kind.TEXT, source=HUMAN, body=body, at_ms=_now()))
        return Ground(
            team=team,
            iteration=0,
            heard=heard,
            before=before,
            overheard=_overheard(worker, claim, definition.spec["hears"]),
            opening=prompt,
            continues=continues,
            chosen=None,
            speaker=HUMAN,
            tokens=0,
            asked=0,
        )
    assert last is not None, "a turn but the first follows one that has succeeded"
    continues = None if last["continues"] is None else Place(**last["continues"])
    earlier = [] if continues is None else worker.archive.before(tenant, continues)
    return Ground(
        team=team,
        iteration=iteration,
        before=len(earlier),
        overheard=_overheard(worker, claim, definition.spec["hears"]),
        heard=[*earlier, *worker.archive.thread(tenant, held.ref.run, step, iteration)],
        opening=None,
        continues=continues,
        chosen=None,
        speaker=last["next"],
        tokens=last["tokens"],
        asked=last["asked"],
    )


def _shown(images: str | None, names: Any, prompt: str) -> dict[str, Any]:
    """What opens a conversation: its text, and the images that go with it."""
    image.check_length(prompt)
    found = None if images is None else expressions.compile_expression(images).evaluate(names)
    given = image.images_of(found)
    return {"text": prompt, "images": given} if given else {"text": prompt}


def _overheard(worker: TurnWorker, claim: Claim, steps: Sequence[str]) -> list[Message]:
    """What was said in these conversations of the run, but for what began them. One that was skipped said nothing,
    and one that goes on (behind a join of kind any) what SQL has of it."""
    ref = claim.held.ref
    said = [message for step in steps for message in worker.archive.whole(ref.tenant, ref.run, step)]
    return [message for message in said if message.source != HUMAN]


def _continued(after: str | None, names: Any, step: str) -> Place | None:
    """The earlier conversation that this one goes on from."""
    found = None if after is None else expressions.compile_expression(after).evaluate(names)
    if found is None:
        return None
    if isinstance(found, str):
        found = {"run": found}
    turn = found.get("turn") if values.is_map(found) else None
    if not values.is_map(found) or not isinstance(found.get("run"), str) or not isinstance(turn, int | None):
        raise errors.InvalidInput(f"`{after}` names no conversation", hint="give {run: id, turn: number}")
    return Place(run=found["run"], step=str(found.get("step") or step), turn=turn)


def request_of(worker: TurnWorker, claim: Claim, ground: Ground) -> TurnRequest:
    """The turn as the agents know it. Raises UnknownFunction for a tool that is not there."""
    held, spec = claim.held, ground.team.member(ground.speaker)
    step, iteration = instance.split(held.step)
    return TurnRequest(
        spec=spec,
        model=worker.agents.model,
        thread=[*ground.heard[: ground.before + 1], *ground.overheard, *ground.heard[ground.before + 1 :]],
        tools=[tool.REGISTERED.get(name) for name in spec.tools],
        handoffs=ground.team.handoffs(ground.speaker),
        key=f"{held.ref.run}:{step}:{iteration}",
        calls=f"call_{held.ref.run[-8:]}_{iteration}",
        attempt=held.attempt,
        deadline_s=worker.steps.step(claim).timeout or DEFAULT_DEADLINE,
    )


class Facts:
    """The records of a turn, and what its model calls cost. Rows of recorded answers are in the records."""

    def __init__(self, steps: Steps, claim: Claim) -> None:
        self._steps = steps
        self._claim = claim
        self._made = 0
        self.unrecorded: Ledger = []
        self.recorded: Ledger = [fact["row"] for key, fact in _sorted(claim) if key.startswith(MODEL)]

    def get(self, key: str) -> Any:
        """What an earlier claim of the turn recorded."""
        return self._claim.held.records.get(key)

    async def keep(self, key: str, fact: Any, *, before_acting: bool) -> None:
        """RECORD: off the loop, and, if something is done because of it, until SQL has it."""
        if key.startswith(MODEL):
            fact = {**fact, "row": self.unrecorded[-1]}
        await asyncio.to_thread(self._steps.guard if before_acting else self._steps.record, self._claim, key, fact)
        if key.startswith(MODEL):
            self.recorded.append(self.unrecorded.pop())

    def book(self, agent: str, usage: ModelUsage) -> None:
        """A model call for this agent has ended, well or not."""
        held, self._made = self._claim.held, self._made + 1
        step, iteration = instance.split(held.step)
        row = agent_tables.usage_row(
            usage,
            call_id=f"{held.ref.run}:{self._claim.nonce}:{self._made}",
            tenant=held.ref.tenant,
            submitter=held.submitter,
            run_id=held.ref.run,
            step=step,
            iteration=iteration,
            attempt=held.attempt,
            agent=agent,
        )
        self.unrecorded.append(row)

    def sum(self, column: str) -> int:
        """Of all calls of this turn that this claim knows of."""
        return sum(int(row[column]) for row in self.rows)

    @property
    def rows(self) -> Ledger:
        """One row for each call of this turn that this claim knows of."""
        return [*self.recorded, *self.unrecorded]


def _sorted(claim: Claim) -> list[tuple[str, Any]]:
    records = claim.held.records
    return [(key, records[key]) for key in sorted(records) if key.startswith(MODEL)]


def _over_at_once(ground: Ground) -> dict[str, Any] | None:
    """Why a conversation ends before anybody speaks: the task alone meets its condition."""
    if ground.opening is None or ground.team.stop["condition"] is None:
        return None
    return review.met(ground.team.stop, review.turns(ground.heard[ground.before :], {}))


async def _spoken(worker: TurnWorker, claim: Claim, ground: Ground, request: TurnRequest, facts: Facts) -> Spoken:
    """The agent speaks, and its readers listen; then the verdict, and who is next."""
    async with Voice(worker.steps.link, claim, speaker=ground.speaker, opening=ground.opening) as voice:
        if ground.chosen is not None:
            voice.custom("speaker.selected", course.as_kept(ground.chosen))
        parts = await worker.agents.speak(
            request, memory=facts, emit=voice.emit, on_usage=partial(facts.book, ground.speaker)
        )
        voice.settle(parts)
        judge = partial(_over, worker, claim, ground, facts, parts)
        # A condition reads SQL, which may take a while: not on the loop that all turns of this process share.
        stop = judge() if ground.team.stop["condition"] is None else await asyncio.to_thread(judge)
        following, asked = None, 0
        if stop is None:
            asking = _asking(worker, claim, ground, facts, "next")
            following, asked = await selector.choose(ground.team, _with(ground, parts), asking, may_stop=True)
            voice.custom("speaker.selected", course.as_kept(following))
            if following.speaker == STOP:
                stop = {"by": "policy", "said": following.reason}
            elif following.speaker == HUMAN:
                stop = {"by": "handoff", "to": HUMAN}
    claim.owe(_pace(claim, ground, facts, voice))
    return Spoken(parts=parts, stop=stop, following=following, asked=ground.asked + asked)


def _pace(claim: Claim, ground: Ground, facts: Facts, voice: Voice) -> Rows:
    """How fast the agent's words came and went."""
    rows = [row for row in facts.rows if row["agent"] == ground.speaker and row["attempt"] == claim.held.attempt]
    figures = voice.pace.row(
        output_tokens=sum(row["output_tokens"] for row in rows), model_ms=sum(row["latency_ms"] for row in rows)
    )
    about = {"step": instance.step_of(claim.held.step), "iteration": ground.iteration, "speaker": ground.speaker}
    model = rows[-1]["model"] if rows else ""
    return {tables.PACES: [{**about, "attempt": claim.held.attempt, "model": model, "at_ms": _now(), **figures}]}


def _over(
    worker: TurnWorker, claim: Claim, ground: Ground, facts: Facts, parts: Sequence[Part]
) -> dict[str, Any] | None:
    """Why the conversation ends with this turn. Only this one is looked at, not those that it goes on from."""

    def recall() -> list[Turn]:
        held = claim.held
        costs = worker.archive.costs(held.ref.tenant, held.ref.run, instance.step_of(held.step))
        now = {ground.iteration: (facts.sum("input_tokens"), facts.sum("output_tokens"))}
        return review.turns(_with(ground, parts)[ground.before :], {**costs, **now})

    if course.complete(ground.team, _with(ground, parts)):
        return {"by": "policy", "said": branches.COMPLETE}
    text = str(parts[-1][1]["text"])
    return review.over(ground.team.stop, number=ground.iteration + 1, said=text, recall=recall)


async def _opened(worker: TurnWorker, claim: Claim, ground: Ground, facts: Facts) -> Ground:
    """The ground of a conversation's first turn, with who begins."""
    asking = _asking(worker, claim, ground, facts, "first")
    chosen, asked = await selector.choose(ground.team, ground.heard, asking, may_stop=False)
    return replace(ground, chosen=chosen, speaker=chosen.speaker, asked=asked)


def _asking(worker: TurnWorker, claim: Claim, ground: Ground, facts: Facts, choice: str) -> selector.Asking:
    """Asks the team's selector, on the ledger; what it answered is recorded."""

    async def asking(place: int, text: str) -> str:
        assert ground.team.selector is not None, "only a policy with a selector asks"
        question = Question(
            spec=ground.team.selector,
            model=worker.agents.model,
            text=text,
            key=f"{MODEL}{choice}.{place}",
            place=ground.asked + place,
            attempt=claim.held.attempt,
            deadline_s=worker.steps.step(claim).timeout or DEFAULT_DEADLINE,
        )
        return await worker.agents.ask(question, memory=facts, on_usage=partial(facts.book, SELECTOR))

    return asking


def settle(worker: TurnWorker, claim: Claim, ground: Ground, facts: Facts, spoken: Spoken) -> None:
    """One outcome: what was said, what it cost, the verdict, and who is next."""
    parts, stop, following = spoken.parts, spoken.stop, spoken.following
    ledger = facts.rows
    spent = {name: facts.sum(name) for name in ("input_tokens", "output_tokens")}
    tokens, text = sum(spent.values()), str(parts[-1][1]["text"]) if parts else ""
    continues = None if ground.continues is None else ground.continues.as_dict()
    claim.owe({agent_tables.MODEL_CALLS: ledger})
    claim.owe(_rows(worker, claim, ground, parts))
    turn = {
        "step": instance.step_of(claim.held.step),
        "iteration": ground.iteration,
        "speaker": ground.speaker,
        "chosen": _text(ground.chosen),
        "next_speaker": None if following is None or stop is not None else following.speaker,
        "next_chosen": _text(following),
        "stop": None if stop is None else json.dumps(stop, ensure_ascii=False),
        "continues": None if continues is None else json.dumps(continues),
        "calls": len(ledger),
        **spent,
        "type": course.type_of(ground.heard[ground.before].text),
    }
    claim.owe({tables.TURNS: [turn]})
    output = {
        "speaker": ground.speaker,
        "text": text[:LONGEST],
        "cut": len(text) > LONGEST,
        "turns": ground.iteration + (1 if parts else 0),
        "tokens": ground.tokens + tokens,
        "asked": spoken.asked,
        "next": turn["next_speaker"],
        "type": turn["type"],
        "stop": stop,
        "continues": continues,
    }
    worker.steps.succeed(claim, output, tokens=tokens)


def _with(ground: Ground, parts: Sequence[Part]) -> list[Message]:
    """The thread with what this turn adds."""
    said = [
        Message(iteration=ground.iteration, seq=seq, kind=kind, source=ground.speaker, body=body, at_ms=_now())
        for seq, (kind, body) in enumerate(parts)
    ]
    return [*ground.heard, *said]


def _now() -> int:
    return time.time_ns() // 1_000_000


def _text(choice: Selection | None) -> str | None:
    return None if choice is None else json.dumps(course.as_kept(choice), ensure_ascii=False)


def _rows(worker: TurnWorker, claim: Claim, ground: Ground, parts: Sequence[Part]) -> Rows:
    """The messages that this turn adds to the thread; a large one is a blob."""
    blobs, now = worker.steps.blobs, _now()
    said = [(kind, ground.speaker, body, now) for kind, body in parts]
    if ground.opening is not None:
        said.insert(0, (Kind.TEXT, HUMAN, ground.heard[-1].body, ground.heard[-1].at_ms))
    rows: list[dict[str, Any]] = []
    for seq, (kind, source, body, at_ms) in enumerate(said):
        assert blobs is not None, "a worker has a place for what is large"
        text = blobs.text_of(body, what="a message")
        kept = blobs.kept(claim.held.ref.tenant, text)
        row = {"step": instance.step_of(claim.held.step), "iteration": ground.iteration, "seq": seq, "at_ms": at_ms}
        rows.append({**row, "kind": kind.value, "source": source, "body": text if kept is None else json.dumps(kept)})
    return {tables.MESSAGES: rows}
