"""The task of a conversation's turn: one agent speaks, and what follows is decided with it, all in one outcome."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NoReturn, Protocol, cast

from celery import Celery

from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.flow import expressions, inputs, values
from convergio.graphflow.flow.team import HUMAN, POLICIES
from convergio.graphflow.flow.termination import Turn
from convergio.graphflow.model import errors, instance
from convergio.graphflow.model.outcome import Rows
from convergio.tasks.agents import tables as agent_tables
from convergio.tasks.agents.spec import AgentSpec
from convergio.tasks.agents.turn import Question, TurnRequest
from convergio.tasks.app import FlowTask
from convergio.tasks.conversation import branches, compaction, course, image, people, review, selector, speaker, tables
from convergio.tasks.conversation.archive import Archive, Place
from convergio.tasks.conversation.facts import MODEL, Facts
from convergio.tasks.conversation.floor import STOP, Selection
from convergio.tasks.conversation.team import Team
from convergio.tasks.conversation.thread import Kind, Message, answers_of
from convergio.tasks.conversation.voice import Voice
from convergio.tasks.step import DEFAULT_DEADLINE, Settled, StepWorker, answer, decline, spend
from convergio.tasks.tools import tool

LONGEST: Final = 16_000
"""Characters of what was said that travel as the step's result; the thread has all of it."""

FIRST: Final[Mapping[str, Any]] = {"next": None, "turns": 0, "tokens": 0, "asked": 0}
"""What a conversation has come to before its first turn."""


class TurnWorker(StepWorker, Protocol):
    """What turns need beside what steps do."""

    archive: Archive


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a turn stands on. `added`: what it adds to `heard` before anybody speaks: what begins the conversation,
    whose `speaker` is then to be chosen; a compaction. `earlier`: messages of `heard` that are of earlier
    conversations; `before`: those before what people said last; `overheard`: what other conversations of the run said,
    behind the first of ours; `turns`: how many agents had; `asked`: answers that a model gave to who speaks next;
    `words`: what people said to this turn, which is theirs."""

    team: Team
    iteration: int
    heard: Sequence[Message]
    earlier: int
    before: int
    overheard: Sequence[Message]
    added: tuple[Message, ...]
    continues: Place | None
    chosen: Selection | None
    speaker: str
    turns: int
    tokens: int
    asked: int
    words: Sequence[people.Words] = ()

    @property
    def number(self) -> int:
        """Which turn this is since people said something, from 1."""
        return people.turns(self.heard[self.before + 1 : len(self.heard) - len(self.added)]) + 1

    def adding(self, message: Message) -> Ground:
        """The same with one message more, of this turn."""
        return replace(self, heard=[*self.heard, message], added=(*self.added, message))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """What came of a turn: its messages, why the conversation ends with it, who is next."""

    said: Sequence[Message]
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
    if ground.iteration > 0 and ground.speaker == HUMAN and not ground.words:
        await_people(task, claim, ground)
    facts = Facts(worker.steps, claim)
    try:
        over = _over_at_once(ground)
        if ground.words:
            spoken = worker.loop.run(_heard(worker, claim, ground, facts), claim)
        elif over is not None:
            spoken = Spoken(said=(), stop=over, following=None, asked=ground.asked)
        else:
            if ground.iteration == 0:
                ground = worker.loop.run(_opened(worker, claim, ground, facts), claim)
            if compaction.due(ground.team.compaction, ground.heard) is not None:
                ground = worker.loop.run(_compacted(worker, claim, ground, facts), claim)
            request = request_of(worker, claim, ground)
            spoken = worker.loop.run(_spoken(worker, claim, ground, request, facts), claim)
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
        last, prompt = FIRST, inputs.prompt(definition, names)
        opening = _opening(definition.spec.get("images"), names, prompt, continues)
    else:
        assert last is not None, "a turn but the first follows one that has succeeded"
        continues = None if last["continues"] is None else Place(**last["continues"])
        opening = None
    earlier = [] if continues is None else worker.archive.before(tenant, continues)
    heard = [*earlier, *people.standing(worker.archive.thread(tenant, held.ref.run, step, iteration))]
    ground = Ground(
        team=team,
        iteration=iteration,
        heard=heard,
        earlier=len(earlier),
        before=people.last_words(heard),
        overheard=_overheard(worker, claim, definition.spec["hears"]),
        added=(),
        continues=continues,
        chosen=None,
        speaker=last["next"] or "",
        turns=last["turns"],
        tokens=last["tokens"],
        asked=last["asked"],
        words=people.words_of(held.records),
    )
    if opening is None:
        return ground
    said = Message(iteration=0, seq=0, kind=Kind.TEXT, source=HUMAN, body=opening, at_ms=_now())
    return replace(ground.adding(said), before=len(heard))


def _opening(images: str | None, names: Any, prompt: str, continues: Place | None) -> dict[str, Any] | None:
    """What opens a conversation: its text, and the images that go with it. One that goes on may do so without a word.
    Raises MessageTooLarge, ImageRefused."""
    image.check_length(prompt)
    found = None if images is None else expressions.compile_expression(images).evaluate(names)
    given = image.images_of(found)
    if not given and continues is not None and not prompt.strip():
        return None
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
    turn, edit = (found.get("turn"), found.get("edit")) if values.is_map(found) else (None, None)
    right = values.is_map(found) and isinstance(found.get("run"), str) and isinstance(turn, int | None)
    if not right or not isinstance(edit, str | None):
        raise errors.InvalidInput(f"`{after}` names no conversation", hint="give {run: id, turn: number, edit: text}")
    return Place(run=found["run"], step=str(found.get("step") or step), turn=turn, edit=edit or None)


def request_of(worker: TurnWorker, claim: Claim, ground: Ground) -> TurnRequest:
    """The turn as the agents know it. Raises UnknownFunction for a tool that is not there."""
    held, spec = claim.held, ground.team.member(ground.speaker)
    step, iteration = instance.split(held.step)
    whole = [*ground.heard[: ground.earlier + 1], *ground.overheard, *ground.heard[ground.earlier + 1 :]]
    thread = compaction.context(whole)
    return TurnRequest(
        spec=spec,
        model=worker.agents.model,
        thread=thread,
        untold=_untold(ground.speaker, whole, thread),
        tools=[tool.REGISTERED.get(name) for name in spec.tools],
        handoffs=ground.team.handoffs(ground.speaker),
        key=f"{held.ref.run}:{step}:{iteration}",
        calls=f"call_{held.ref.run[-8:]}_{iteration}",
        attempt=held.attempt,
        deadline_s=worker.steps.step(claim).timeout or DEFAULT_DEADLINE,
    )


def _untold(speaker: str, whole: Sequence[Message], told: Sequence[Message]) -> int:
    """How many answers of the speaker's model are in the thread and are not told to it any more."""
    return 0 if len(told) == len(whole) else answers_of(speaker, whole) - answers_of(speaker, told)


def _over_at_once(ground: Ground) -> dict[str, Any] | None:
    """Why a conversation ends before anybody speaks: the task alone meets its condition."""
    if ground.iteration > 0 or not ground.added or ground.team.stop["condition"] is None:
        return None
    return review.met(ground.team.stop, review.turns(ground.heard[ground.before :], {}))


async def _spoken(worker: TurnWorker, claim: Claim, ground: Ground, request: TurnRequest, facts: Facts) -> Spoken:
    """The agent speaks, and its readers listen; then the verdict, and who is next."""
    async with Voice(worker.steps.link, claim, speaker=ground.speaker, added=ground.added) as voice:
        if ground.chosen is not None:
            voice.custom("speaker.selected", course.as_kept(ground.chosen))
        parts = await worker.agents.speak(
            request, memory=facts, emit=voice.emit, on_usage=partial(facts.book, ground.speaker)
        )
        said = _messages(ground, [(ground.speaker, *part) for part in parts])
        voice.settle([*ground.added, *said])
        judge = partial(_over, worker, claim, ground, facts, said)
        # A condition reads SQL, which may take a while: not on the loop that all turns of this process share.
        stop = judge() if ground.team.stop["condition"] is None else await asyncio.to_thread(judge)
        following, asked = None, 0
        if stop is None:
            following, asked = await _next(worker, claim, ground, facts, said)
            voice.custom("speaker.selected", course.as_kept(following))
            if following.speaker == STOP:
                stop = {"by": "policy", "said": following.reason}
            elif following.speaker == HUMAN and ground.team.people == "end":
                stop = {"by": "handoff", "to": HUMAN}
    claim.owe(_pace(claim, ground, facts, voice))
    return Spoken(said=said, stop=stop, following=following, asked=ground.asked + asked)


async def _heard(worker: TurnWorker, claim: Claim, ground: Ground, facts: Facts) -> Spoken:
    """People have said something: the turn is theirs, and somebody answers it. What was cut for it is told as far as
    it had come."""
    records, cut = claim.held.records, ground.speaker
    if ground.iteration == 0 and f"{MODEL}1" in records:
        cut = (await _opened(worker, claim, ground, facts)).speaker
    said = _messages(ground, people.parts(ground.words, records, ground.heard[ground.earlier :], cut=cut))
    async with Voice(worker.steps.link, claim, speaker=HUMAN, added=[*ground.added, *said]) as voice:
        voice.settle([*ground.added, *said])
        following, asked = await _next(worker, claim, ground, facts, said)
        voice.custom("speaker.selected", course.as_kept(following))
    return Spoken(said=said, stop=None, following=following, asked=ground.asked + asked)


async def _next(
    worker: TurnWorker, claim: Claim, ground: Ground, facts: Facts, said: Sequence[Message]
) -> tuple[Selection, int]:
    """Who speaks after this turn. A handoff to people is one whatever the policy; what they say is answered."""
    last, words = said[-1], len(ground.words)
    if last.kind is Kind.HANDOFF and last.body["target"] == HUMAN:
        return Selection(speaker=HUMAN, policy=ground.team.policy, reason=f"handed over by {last.source}"), 0
    thread = [*ground.heard[: ground.earlier], *people.standing([*ground.heard[ground.earlier :], *said])]
    asking = _asking(worker, claim, ground, facts, f"answer{words}" if words else "next")
    return await selector.choose(ground.team, thread, asking, may_stop=not words)


def await_people(task: FlowTask, claim: Claim, ground: Ground) -> NoReturn:
    """The turn is somebody's who is no agent: it waits for the words, and holds no worker."""
    asks, question = people.question(ground.heard)
    data = {"description": f"{asks}: {question}", "asks": asks}
    task.worker.steps.block(claim, signal=instance.step_of(claim.held.step), data=data)
    task.send_event("task-blocked", reason="SIGNAL")
    raise Settled


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
    worker: TurnWorker, claim: Claim, ground: Ground, facts: Facts, said: Sequence[Message]
) -> dict[str, Any] | None:
    """Why the conversation ends with this turn. What came before people said something last does not count."""

    def recall() -> list[Turn]:
        held = claim.held
        costs = worker.archive.costs(held.ref.tenant, held.ref.run, instance.step_of(held.step))
        now = {ground.iteration: (facts.sum("input_tokens"), facts.sum("output_tokens"))}
        return review.turns([*ground.heard, *said][ground.before :], {**costs, **now})

    if course.complete(ground.team, [*ground.heard, *said]):
        return {"by": "policy", "said": branches.COMPLETE}
    return review.over(ground.team.stop, number=ground.number, said=said[-1].text, recall=recall)


async def _opened(worker: TurnWorker, claim: Claim, ground: Ground, facts: Facts) -> Ground:
    """The ground of a conversation's first turn, with who begins."""
    asking = _asking(worker, claim, ground, facts, "first")
    chosen, asked = await selector.choose(ground.team, ground.heard, asking, may_stop=False)
    return replace(ground, chosen=chosen, speaker=chosen.speaker, asked=asked)


async def _compacted(worker: TurnWorker, claim: Claim, ground: Ground, facts: Facts) -> Ground:
    """The ground of a turn before which the thread is compacted: its agent is told less, and a summary."""
    policy, heard = ground.team.compaction, ground.heard
    kept, text = compaction.due(policy, heard), ""
    assert policy is not None, "somebody said that a compaction is due"
    assert kept is not None, "somebody said that a compaction is due"
    if policy.summarizer is not None:
        asked, place = compaction.question(heard, kept), compaction.made(heard)
        text = await _ask(worker, claim, facts, policy.summarizer, asked, key="compaction", place=place)
    seq, body = len(ground.added), {"text": text.strip(), "kept": kept}
    iteration, source = ground.iteration, compaction.SUMMARIZER
    said = Message(iteration=iteration, seq=seq, kind=Kind.COMPACTED, source=source, body=body, at_ms=_now())
    return ground.adding(said)


def _asking(worker: TurnWorker, claim: Claim, ground: Ground, facts: Facts, choice: str) -> selector.Asking:
    """Asks the team's selector, on the ledger; what it answered is recorded."""

    async def asking(place: int, text: str) -> str:
        spec = ground.team.selector
        assert spec is not None, "only a policy with a selector asks"
        return await _ask(worker, claim, facts, spec, text, key=f"{choice}.{place}", place=ground.asked + place)

    return asking


async def _ask(
    worker: TurnWorker, claim: Claim, facts: Facts, spec: AgentSpec, text: str, *, key: str, place: int
) -> str:
    """Asks a model one question, on the ledger; what it answered is recorded."""
    question = Question(
        spec=spec,
        model=worker.agents.model,
        text=text,
        key=f"{MODEL}{key}",
        place=place,
        attempt=claim.held.attempt,
        deadline_s=worker.steps.step(claim).timeout or DEFAULT_DEADLINE,
    )
    return await worker.agents.ask(question, memory=facts, on_usage=partial(facts.book, spec.name))


def settle(worker: TurnWorker, claim: Claim, ground: Ground, facts: Facts, spoken: Spoken) -> None:
    """One outcome: what was said, what it cost, the verdict, and who is next."""
    said, stop, following = spoken.said, spoken.stop, spoken.following
    speaker = said[-1].source if said else HUMAN
    ledger = facts.rows
    spent = {name: facts.sum(name) for name in ("input_tokens", "output_tokens")}
    tokens, text = sum(spent.values()), said[-1].text if said else ""
    continues = None if ground.continues is None else ground.continues.as_dict()
    claim.owe({agent_tables.MODEL_CALLS: ledger})
    claim.owe(_rows(worker, claim, ground, said))
    turn = {
        "step": instance.step_of(claim.held.step),
        "iteration": ground.iteration,
        "speaker": speaker,
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
        "speaker": speaker,
        "text": text[:LONGEST],
        "cut": len(text) > LONGEST,
        "turns": ground.turns + (speaker != HUMAN),
        "tokens": ground.tokens + tokens,
        "asked": spoken.asked,
        "next": turn["next_speaker"],
        "type": turn["type"],
        "stop": stop,
        "continues": continues,
    }
    worker.steps.succeed(claim, output, tokens=tokens)


def _messages(ground: Ground, parts: Sequence[people.Part]) -> list[Message]:
    """What is said in this turn."""
    first, now = len(ground.added), _now()
    return [
        Message(iteration=ground.iteration, seq=seq, kind=kind, source=source, body=body, at_ms=now)
        for seq, (source, kind, body) in enumerate(parts, first)
    ]


def _now() -> int:
    return time.time_ns() // 1_000_000


def _text(choice: Selection | None) -> str | None:
    return None if choice is None else json.dumps(course.as_kept(choice), ensure_ascii=False)


def _rows(worker: TurnWorker, claim: Claim, ground: Ground, said: Sequence[Message]) -> Rows:
    """The messages that this turn adds to the thread; a large one is a blob."""
    blobs = worker.steps.blobs
    assert blobs is not None, "a worker has a place for what is large"
    rows: list[dict[str, Any]] = []
    for one in (*ground.added, *said):
        text = blobs.text_of(one.body, what="a message")
        kept = blobs.kept(claim.held.ref.tenant, text)
        row = {"step": instance.step_of(claim.held.step), "iteration": one.iteration, "seq": one.seq}
        about = {"kind": one.kind.value, "source": one.source, "at_ms": one.at_ms}
        rows.append({**row, **about, "body": text if kept is None else json.dumps(kept)})
    return {tables.MESSAGES: rows}
