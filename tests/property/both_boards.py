"""The board and its model side by side: one random call at a time on both, answers and whole states compared."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import pytest

from convergio.graphflow.board import departure, scripts, turns
from convergio.graphflow.board.connection import Link
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.board.scripts import Claimed, Locked
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from tests.integration.board_stage import LIST, NEXT, Stage, doorbell, message, published, released, run_ref, timeless
from tests.property.model_board import ModelBoard

STEPS = ("a", "b", "c", "d")
RUNS = ("r1", "r2")
NONCES = ("n-1", "n-2", "m-1")
TOKENS = ("t1", "t2")
LATER, OVER = 600_000, -1_000
"""A lease, lock or timer that is not over during a test, and one that is over when it begins."""

T = TypeVar("T")
Draw = Callable[[int], int]
"""A number below the argument."""


class Both:
    """The same call on the real board and on the model; their answers must be equal."""

    def __init__(self, link: Link, draw: Draw) -> None:
        self.stage = Stage(link=link)
        self.draw = draw
        epoch = Epoch(number=1, server=link.server())
        link.client.flushall()
        assert published(link, epoch)
        assert link.refresh() == epoch
        self.model = ModelBoard(epoch=epoch)
        self.claims: list[tuple[Claimed, Claimed]] = []
        self.locks: list[tuple[Locked, Locked]] = []
        self.said: list[str] = []
        self.met: Counter[str] = Counter()

    def ask(self, what: str, real: Callable[[], Any], model: Callable[[], Any]) -> tuple[Any, Any]:
        """Both answers, which are equal but for times."""
        answers = _answer(real), _answer(model)
        self.said.append(f"{what}: {answers[1]}")
        self.met[f"{what.split(' ', 1)[0]} {_kind(answers[1])}"] += 1
        assert _plain(answers[0]) == _plain(answers[1]), self.said
        if isinstance(answers[0], Locked):
            self.locks.append(answers)
        return answers

    def compare(self) -> None:
        """The whole boards."""
        assert real_state(self.stage) == model_state(self.model), self.said

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.draw(len(options))]

    # --- one random call each -----------------------------------------------------------------------------------------

    def step(self) -> None:
        """A random call, if it has what it needs."""
        verb = self.pick(VERBS)
        verb(self)
        self.compare()

    def start(self) -> None:
        ref, token, lock_ms, late = run_ref(self.pick(RUNS)), self.pick(TOKENS), self.lock_span(), self.draw(8) == 0
        not_after = self.model.now_ms - 100 if late else None
        facts: dict[str, Any] = {"submitter": "ann", "digest": "d", "plan": "{}", "given": '{"n":1}', "size": 3}
        facts["control"] = self.draw(3)
        facts |= {"meta": '{"submitter":"ann"}', "token": token, "wanted": ["@state", "@open", "nothing"]}
        self.ask(
            f"start {ref} late={late}",
            lambda: timed_lock(
                lock_ms,
                lambda: scripts.start(self.stage.link, ref, not_after_ms=1 if late else None, **facts),
            ),
            lambda: self.model.start(ref, lock_ms=lock_ms, not_after_ms=not_after, **facts),
        )

    def post(self) -> None:
        ref, token, lock_ms = run_ref(self.pick(RUNS)), self.pick(TOKENS), self.lock_span()
        entry, wanted = self.pick(["", '{"t":"x"}', '{"t":"arrived","step":"a"}']), ["s:a", "s:b", "@lock"]
        self.ask(
            f"post {ref} {entry}",
            lambda: timed_lock(
                lock_ms, lambda: scripts.post(self.stage.link, ref, entry=entry, token=token, wanted=wanted)
            ),
            lambda: self.model.post(ref, entry=entry, token=token, lock_ms=lock_ms, wanted=wanted),
        )

    def claim(self) -> None:
        ref, step, ring = self.pick(self.ready() or [(run_ref("r1"), "a", "1.1")])
        if self.draw(4) == 0:
            ring = f"1.{1 + self.draw(3)}"
        call: dict[str, Any] = {"step": step, "ring": ring, "nonce": self.pick(NONCES), "queue_list": LIST}
        call |= {"worker": "w1", "lease_ms": self.span()}
        real, model = self.ask(
            f"claim {ref} {call}",
            lambda: scripts.claim(self.stage.link, ref, **call),
            lambda: self.model.claim(ref, **call),
        )
        if isinstance(real, Claimed):
            self.claims.append((real, model))

    def ready(self) -> list[tuple[RunRef, str, str]]:
        """Steps that a doorbell rings for."""
        return [
            (ref, name[2:], word[6:])
            for ref, run in self.model.runs.items()
            for name, word in run.values.items()
            if name.startswith("s:") and word.startswith("READY|")
        ]

    def beat(self) -> None:
        members = [f"{held.ref}/{held.step}/{held.fence}" for held, _ in self.claims[-3:]]
        lease_ms = self.span()
        self.ask(
            "beat",
            lambda: scripts.beat(self.stage.link, self.model.epoch, members, lease_ms=lease_ms),
            lambda: self.model.beat(members, lease_ms=lease_ms),
        )

    # --- the next doorbell ------------------------------------------------------------------------------------------

    def push(self) -> None:
        """What somebody else puts in a list: a doorbell once more, an old one, or no doorbell at all."""
        ref, step = run_ref(self.pick(RUNS)), self.pick(STEPS)
        ring = f"1.{1 + self.draw(2)}"
        texts = ["cheep", message("canary.steps.1f-3", tenant="default"), message("4f9e-7f6c", compact=False)]
        texts += [message(f"{ref.run}.{step}.{ring}", tenant=ref.tenant)] * 3
        name, text = self.pick([LIST, NEXT]), self.pick(texts)
        self.said.append(f"push {name} {text}")
        self.stage.client.lpush(name, text)
        self.model.lists.setdefault(name, []).insert(0, text.encode())

    def telling(
        self, what: str, real: Callable[..., Any], model: Callable[..., Any], lock_ms: int, **call: Any
    ) -> None:
        """How a step ended, and, if the worker wants one, the next doorbell: the same one on both."""
        lists = self.pick([(), (LIST,), (LIST, NEXT), (NEXT, LIST)])
        nonce, lease_ms = self.pick(NONCES), self.span()
        taken: tuple[list[scripts.Taken], list[scripts.Taken]] = ([], [])
        first, second = (
            scripts.Next(lists=lists, nonce=nonce, worker="w1", taken=one.append) if lists else None for one in taken
        )
        answer, _ = self.ask(
            f"{what} {call} then {lists} {nonce}",
            lambda: timed(lock_ms, lease_ms, lambda: real(**call, then=first)),
            lambda: model(**call, then=second, lock_ms=lock_ms, lease_ms=lease_ms),
        )
        assert [_plain(one) for one in taken[0]] == [_plain(one) for one in taken[1]], self.said
        if answer == "StaleFence" or not lists:
            assert taken == ([], [])
            return
        self.met[f"take {_claimed(taken[0])}"] += 1
        for pair in zip(*taken, strict=True):
            self.said.append(f"taken: {pair[1]}")
            mine, its = pair[0].claim, pair[1].claim
            if isinstance(mine, Claimed) and isinstance(its, Claimed):
                self.claims.append((mine, its))

    def arrive(self) -> None:
        held, shadow = self.owner()
        durable, state = self.draw(2) == 0, self.pick(["SUCCEEDED", "SUCCEEDED", "FAILED"])
        token, lock_ms = self.pick(TOKENS), self.lock_span()
        call: dict[str, Any] = {"state": state, "output": self.pick(["", '{"x":1}']), "outcome": '{"o":1}'}
        call |= {"durable": durable, "token": token, "wanted": [f"s:{held.step}", "@open"], "key": self.key()}
        real, model = partial(scripts.arrive, self.stage.link, held), partial(self.model.arrive, shadow)
        self.telling(f"arrive {held.ref} {held.step}", real, model, lock_ms, **call)

    def complete(self) -> None:
        held, shadow = self.owner()
        others = [step for step in STEPS if step != held.step]
        following = [self.following(held.ref, others[self.draw(3)])] if self.draw(3) else []
        following += [self.following(held.ref, others[2])] if following and following[0].step != others[2] else []
        token, lock_ms = self.pick(TOKENS), self.lock_span()
        call: dict[str, Any] = {"output": self.pick(["", '{"x":1}']), "outcome": '{"o":1}', "following": following}
        call |= {"token": token, "wanted": [f"s:{held.step}", "@open"]}
        real, model = partial(scripts.complete, self.stage.link, held), partial(self.model.complete, shadow)
        self.telling(f"complete {held.ref} {held.step}", real, model, lock_ms, **call)

    def following(self, ref: RunRef, step: str) -> scripts.Following:
        """A step with one edge, which becomes ready, or with several."""
        bell = doorbell(step, "1.1", ref=ref, queue_list=self.pick([LIST, NEXT])) if self.draw(2) else None
        references = self.pick([(), ("a", "b")])
        return scripts.Following(step=step, edges=1 if bell else 2 + self.draw(2), references=references, bell=bell)

    def park(self) -> None:
        held, shadow = self.owner()
        on = self.pick(["RETRY", "HOOK", "SIGNAL", "SIGNAL"])
        call: dict[str, Any] = {"on": on, "delay_ms": None if on == "SIGNAL" else self.span(), "attempt": 2}
        call |= {"kind": "step.blocked", "data": "{}", "detail": "E", "look_back": held.step if on == "SIGNAL" else ""}
        call["key"] = self.key()
        self.ask(
            f"park {held.ref} {held.step} {call}",
            lambda: scripts.park(self.stage.link, held, **call),
            lambda: self.model.park(shadow, **call),
        )

    def decline(self) -> None:
        held, shadow = self.owner()
        delay_ms = self.span()
        self.ask(
            f"decline {held.ref} {held.step}",
            lambda: scripts.decline(self.stage.link, held, delay_ms=delay_ms, data='{"missing":"x.y"}'),
            lambda: self.model.decline(shadow, delay_ms=delay_ms, data='{"missing":"x.y"}'),
        )

    def record(self) -> None:
        held, shadow = self.owner()
        call = {"key": self.pick(["k", 'a"b']), "value": self.pick(["1", '{"y":[2]}'])}
        self.ask(
            f"record {held.ref} {held.step} {call}",
            lambda: scripts.record(self.stage.link, held, **call),
            lambda: self.model.record(shadow, **call),
        )

    def ring(self) -> None:
        held, _ = self.owner()
        words = [f"RUNNING|{held.fence}", "READY|1.1", "READY|1.2", self.stage.word(held.ref, held.step) or "READY|"]
        count, over = 2 + self.draw(2), self.draw(2) == 0
        bell = doorbell(held.step, f"1.{count}", side=self.pick("LR"), ref=held.ref)
        ringing = scripts.Ringing(
            was=self.pick(words),
            bell=bell,
            count=count,
            kind="step.rung",
            lease=self.pick([held.fence, ""]),
            lease_must_be_over=over,
            timer=self.pick(["", "", "RETRY", "LIMIT"]),
            sets={f"d:{held.step}": self.pick(["1", ""])},
        )
        self.ask(
            f"ring {held.ref} {ringing}",
            lambda: scripts.ring(self.stage.link, self.model.epoch, held.ref, submitter="ann", ringing=ringing),
            lambda: self.model.ring(held.ref, submitter="ann", ringing=timeless_words(self, held, ringing)),
        )

    def reassert(self) -> None:
        ref, step, nonce, lease_ms = run_ref(self.pick(RUNS)), self.pick(STEPS), self.pick(NONCES), self.span()
        if self.draw(2) == 0:
            self.stage.client.zadd(self.stage.link.keys(self.model.epoch).held, {f"{ref}/{step}": LATER})
            self.model.held[f"{ref}/{step}"] = LATER
        call: dict[str, Any] = {"step": step, "nonce": nonce, "lease_ms": lease_ms}
        if key := self.key():
            call |= {"key": key, "limit": 1}
            self.close(key)
        self.ask(
            f"reassert {ref} {call}",
            lambda: scripts.reassert(self.stage.link, ref, **call),
            lambda: self.model.reassert(ref, **call),
        )

    def close(self, key: str) -> None:
        """The key is as a rebuild leaves it: nothing is granted for a while, or for one that is over."""
        if self.draw(2):
            return
        at = self.pick([LATER, OVER]) + self.stage.now_ms()
        self.stage.client.zadd(self.stage.link.keys(self.model.epoch).waiters("default", key), {"@": -at})
        self.model.limit(key).closed_ms = self.model.now_ms + (LATER if at > self.stage.now_ms() else OVER)

    def key(self) -> str | None:
        """A concurrency key, or none."""
        return self.pick([None, None, "k"])

    def asks(self) -> None:
        """Steps wait for their key, some of them with a state that they have not."""
        ref, key = run_ref(self.pick(RUNS)), "k"
        values = self.model.runs[ref].values if ref in self.model.runs else {}
        names = [step for step in STEPS if self.draw(2) and not values.get(f"s:{step}", "").startswith("RUNNING")]
        reals, models = [list[scripts.Asking]() for _ in range(2)]
        for step in names:
            limit, timer, other = 1 + self.draw(2), self.pick(["", "RETRY", "ASK"]), self.draw(6) == 0
            to = f"BLOCKED|LIMIT|{self.model.now_ms}|1.{self.draw(2)}"
            for found, word in ((reals, self.stage.word(ref, step)), (models, values.get(f"s:{step}"))):
                was = "READY|8.8" if other else word or ""
                found.append(scripts.Asking(step=step, was=was, to=to, limit=limit, timer=timer))
        self.ask(
            f"ask {ref} {models}",
            lambda: turns.ask(self.stage.link, self.model.epoch, ref, key=key, asking=reals),
            lambda: self.model.ask(ref, key=key, asking=models),
        )

    def leaves(self) -> None:
        ref, leaving = run_ref(self.pick(RUNS)), [(step, 1 + self.draw(2)) for step in STEPS if self.draw(3) == 0]
        self.ask(
            f"leave {ref} {leaving}",
            lambda: turns.leave(self.stage.link, self.model.epoch, ref, key="k", leaving=leaving),
            lambda: self.model.leave(ref, key="k", leaving=leaving),
        )

    def commit(self) -> None:
        if not self.locks:
            return
        real, shadow = self.pick(self.locks[-2:])
        batch, lock_ms = self.batch(real), self.lock_span()
        self.ask(
            f"commit {real.ref} {real.token} {batch}",
            lambda: timed_lock(lock_ms, lambda: scripts.commit(self.stage.link, real, submitter="ann", batch=batch)),
            lambda: self.model.commit(shadow, submitter="ann", batch=batch, lock_ms=lock_ms),
        )

    def batch(self, locked: Locked) -> scripts.Batch:
        """Something to write: mostly with values as they are, sometimes not."""
        values = self.model.runs[locked.ref].values if locked.ref in self.model.runs else {}
        step = self.pick(STEPS)
        writes = [("@open", values.get("@open", ""), str(self.draw(4)))] if self.draw(3) == 0 else []
        bells = []
        if not values.get(f"s:{step}"):
            writes += [(f"s:{step}", "READY|9.9" if self.draw(8) == 0 else "", "READY|1.1"), (f"r:{step}", "", "a b")]
            bells = [doorbell(step, "1.1", side=self.pick("LR"), ref=locked.ref)]
        if self.draw(2) == 0:
            writes += [(f"g:{step}", values.get(f"g:{step}", ""), self.pick(['{"t":"signal"}', ""]))]
        if self.draw(10) == 0:
            writes += [("@stop", values.get("@stop", ""), self.pick(["FAILED", ""]))]
        events = [("step.ready", step, "", "", "{}"), ("step.skipped", step, "j", "", '{"s":1}')]
        events += [("run.x", "", "jp", f"{locked.ref}/@", "{}")] if self.draw(6) == 0 else []
        return scripts.Batch(
            consumed=self.draw(len(locked.entries) + 1),
            writes=writes,
            posts=['{"t":"later"}'] if self.draw(3) == 0 else [],
            leases=[f"{held.step}/{held.fence}" for held, _ in self.claims[-1:]] if self.draw(4) == 0 else [],
            timers=self.pick(
                [[], [(f"{step}/RETRY", "")], [(f"{step}/HOOK", "1700000000000")], [(f"{step}/LEAVE", "1")]]
            ),
            bells=bells,
            events=events[: self.draw(4)],
        )

    def release(self) -> None:
        ref, steps = run_ref(self.pick(RUNS)), [step for step in (*STEPS, "@") if self.draw(2)]
        call: dict[str, Any] = {"grace_ms": LATER, "high_water": self.draw(40)}
        self.ask(
            f"release {ref} {steps} {call}",
            lambda: released(self.stage.link, self.model.epoch, ref, steps, **call),
            lambda: self.model.release(ref, steps=steps, **call),
        )

    def forget(self) -> None:
        if self.draw(8):
            return
        ref = run_ref(self.pick(RUNS))
        self.said.append(f"forget {ref}")
        departure.forget(self.stage.link, self.stage.link.keys(self.model.epoch), [ref])
        self.model.forget(ref)

    def span(self) -> int:
        """A lease, a lock or a delay."""
        return self.pick([LATER, LATER, OVER])

    def lock_span(self) -> int:
        """A lock's lease: mostly over, or its next holder would have to wait."""
        return self.pick([LATER, OVER, OVER])

    def owner(self) -> tuple[Claimed, Claimed]:
        """A claim that somebody made, or believes to have made."""
        owners = [pair for pair in self.claims if self.stage.word(pair[0].ref, pair[0].step).endswith(pair[0].fence)]
        if owners and self.draw(2):
            return self.pick(owners)
        if self.claims and self.draw(8):
            return self.pick(self.claims[-3:])
        ref, step, nonce = run_ref(self.pick(RUNS)), self.pick(STEPS), self.pick(NONCES)
        invented = Claimed(
            epoch=self.model.epoch,
            ref=ref,
            step=step,
            fence=f"1.1.{nonce}",
            at_ms=0,
            attempt=1,
            deliveries=0,
            meta={"submitter": "ann"},
            input=None,
            records={},
            outputs={},
        )
        return invented, invented


VERBS: list[Callable[[Both], None]] = [
    *[Both.start, Both.beat, Both.record, Both.decline, Both.ring, Both.reassert, Both.release, Both.forget, Both.push],
    *[Both.asks, Both.leaves],
    *[Both.post, Both.arrive, Both.park] * 2,
    *[Both.complete] * 3,
    *[Both.claim, Both.commit] * 3,
]


def timed_lock(lock_ms: int, call: Callable[[], Any]) -> Any:
    """The call with another length of lock leases."""
    return timed(lock_ms, scripts.LEASE_MS, call)


def timed(lock_ms: int, lease_ms: int, call: Callable[[], Any]) -> Any:
    """The call with other lengths of leases, of a lock and of a claim that is made besides."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scripts, "LOCK_MS", lock_ms)
        patch.setattr(scripts, "LEASE_MS", lease_ms)
        return call()


def timeless_words(both: Both, held: Claimed, ringing: scripts.Ringing) -> scripts.Ringing:
    """A state word holds a time, which is the model's own there."""
    run = both.model.run(held.ref)
    word = "" if run is None else run.values.get(f"s:{held.step}", "")
    if ringing.was != word and timeless(ringing.was) == timeless(word):
        return dataclasses.replace(ringing, was=word)
    return ringing


def _answer(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (errors.StaleFence, errors.UnknownRun, errors.SubmitTooLate) as error:
        return type(error).__name__


def _kind(answer: Any) -> str:
    if isinstance(answer, scripts.Refused):
        return answer.why
    if isinstance(answer, bool | None):
        return str(answer)
    return answer if isinstance(answer, str) else type(answer).__name__


def _claimed(taken: Sequence[scripts.Taken]) -> str:
    if not taken:
        return "NONE"
    return "plain" if taken[0].claim is None else _kind(taken[0].claim)


def _plain(answer: Any) -> Any:
    if isinstance(answer, Claimed | Locked | scripts.Beat | scripts.Refused | scripts.Taken):
        return {name: _plain(getattr(answer, name)) for name in answer.__slots__ if name != "at_ms"}
    return timeless(answer) if isinstance(answer, str | dict) else answer


# --- the whole state, in the same words -------------------------------------------------------------------------------


def real_state(stage: Stage) -> Any:
    """What is on the server."""
    found: dict[str, Any] = {}
    prefix = f"{stage.link.prefix}:1:"
    for name, value in stage.dump().items():
        if name.startswith(prefix):
            found[name[len(prefix) :]] = value
        elif name != f"{stage.link.prefix}:epoch":
            found[f"list {name}"] = value
    for name in [name for name in found if name.endswith((":feed", "journal"))]:
        found[name] = [entry for _, entry in found[name]]
    for value in found.values():
        if isinstance(value, dict):
            value.pop("@commit", None)
    for name in [name for name in found if name.startswith("waiters:")]:
        found[name] = _in_line(found[name])
    return _normal(found)


def _in_line(members: dict[str, float]) -> list[str]:
    """Who waits, in turn; turns are told apart by nobody."""
    return sorted(members, key=lambda member: members[member])


def model_state(board: ModelBoard) -> Any:
    """What would be on the server, by the names of its keys."""
    sets = {name: getattr(board, name) for name in ("leases", "timers", "held", "parked", "inboxes", "done")}
    sets |= {"runs": board.live, **{f"rung:{name}": members for name, members in board.rung.items()}}
    found: dict[str, Any] = {
        name: {member: float(score) for member, score in members.items()} for name, members in sets.items()
    }
    found |= {"journal": board.journal, "nudge": board.nudge}
    for key, limit in board.limits.items():
        found[f"holders:default:{key}"] = {member: float(at) for member, at in limit.holders.items()}
        found[f"waiters:default:{key}"] = [*(["@"] if limit.closed_ms is not None else []), *limit.waiters]
    for ref, run in board.runs.items():
        place = f"{ref.tenant}:{ref.run}"
        found |= {place: run.values, f"{place}:inbox": run.inbox, f"{place}:feed": run.feed}
    found |= {f"plan:{digest}": text for digest, text in board.plans.items()}
    found |= {f"list {name}": [content.decode() for content in line] for name, line in board.lists.items()}
    return _normal({name: value for name, value in found.items() if value})


def _normal(found: dict[str, Any]) -> Any:
    for name, value in found.items():
        if name.endswith(":inbox"):
            found[name] = [json.loads(text) for text in value]
    return timeless(json.loads(json.dumps(found)))
