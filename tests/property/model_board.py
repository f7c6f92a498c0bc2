"""The board's scripts as a small model in Python: what Redis would hold after each of them.

`test_lua_against_python` holds it equal to the Lua files on a real server; `explorer` plays many histories on it.
Times come from `now_ms`. Every change of a step's state is noted in `moves`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convergio.graphflow.board import scripts
from convergio.graphflow.board.fields import Word
from convergio.graphflow.board.keys import Epoch
from convergio.graphflow.board.scripts import Batch, Claimed, Locked, Next, Parked, Refused, Ringing, Taken
from convergio.graphflow.model import errors
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import StepState
from tests.property.model_limits import ModelKey
from tests.property.model_run import ModelRun, drop, idle, put_or_drop, simple

Told = tuple[str, str, dict[str, str]]
"""An entry of the journal's stream: type, step, the other fields."""


@dataclass(slots=True)
class ModelBoard:
    """One board. Members of the sorted sets are named as on the real one, without its key prefix."""

    epoch: Epoch
    now_ms: int = 1_790_000_000_000
    runs: dict[RunRef, ModelRun] = field(default_factory=dict[RunRef, ModelRun])
    plans: dict[str, str] = field(default_factory=dict[str, str])
    journal: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    released: int | None = None
    nudge: list[str] = field(default_factory=list[str])
    leases: dict[str, float] = field(default_factory=dict[str, float])
    timers: dict[str, float] = field(default_factory=dict[str, float])
    held: dict[str, float] = field(default_factory=dict[str, float])
    parked: dict[str, float] = field(default_factory=dict[str, float])
    inboxes: dict[str, float] = field(default_factory=dict[str, float])
    live: dict[str, float] = field(default_factory=dict[str, float])
    done: dict[str, float] = field(default_factory=dict[str, float])
    lists: dict[str, list[bytes]] = field(default_factory=dict[str, list[bytes]])
    rung: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    limits: dict[str, ModelKey] = field(default_factory=dict[str, ModelKey])
    moves: set[tuple[StepState, StepState]] = field(default_factory=set[tuple[StepState, StepState]])

    # --- small words, as in prelude.lua -------------------------------------------------------------------------------

    def run(self, ref: RunRef) -> ModelRun | None:
        """The run, if it is on the board."""
        return self.runs.get(ref)

    def _set(self, run: ModelRun, name: str, value: str) -> None:
        if name.startswith("s:") and run.values.get(name, "") != value:
            move = (Word.parse(run.values.get(name)).state, Word.parse(value).state)
            self.moves.add(move)
        if value == "":
            run.values.pop(name, None)
        else:
            run.values[name] = value

    def tell(self, ref: RunRef, kind: str, step: str, data: str, submitter: str | None) -> int:
        """`submitter` is None for what only readers are told. Returns the stream's sequence."""
        run = self.runs[ref]
        seq = int(run.values.get("@seq", 0)) + 1
        run.values["@seq"] = str(seq)
        at = str(self.now_ms)
        run.feed.append({"type": kind, "step": step, "at": at, **({"data": data} if submitter is None else {})})
        if submitter is None:
            return -1
        told = {"t": kind, "r": str(ref), "u": submitter, "s": step, "q": str(seq), "a": at, "d": data}
        self.journal.append(told)
        return len(self.journal) - 1

    def _lock(self, ref: RunRef, token: str, lock_ms: int, wanted: Sequence[str]) -> Locked | None:
        run = self.runs[ref]
        owner, _, expiry = run.values.get("@lock", f"{token}|0").rpartition("|")
        if owner != token and int(expiry) > self.now_ms:
            return None
        if not run.inbox:
            return None
        run.values["@lock"] = f"{token}|{self.now_ms + lock_ms}"
        entries = [json.loads(text) for text in run.inbox[:100]]
        values = {name: run.values.get(name, "") for name in wanted}
        return Locked(epoch=self.epoch, ref=ref, token=token, at_ms=self.now_ms, entries=entries, values=values)

    def _park(self, member: str, sequence: int) -> None:
        self.parked[member] = sequence
        self.nudge = ["1"]

    def _push(self, ref: RunRef, entry: str) -> None:
        self.runs[ref].inbox.append(entry)
        self.inboxes[str(ref)] = self.now_ms

    # --- the scripts --------------------------------------------------------------------------------------------------

    def start(
        self, ref: RunRef, *, submitter: str, digest: str, plan: str, meta: str, given: str, size: int, token: str,
        lock_ms: int = scripts.LOCK_MS, not_after_ms: int | None = None, control: int = 0, wanted: Sequence[str] = (),
    ) -> Locked | None:  # fmt: skip
        """START."""
        if ref in self.runs:
            return None
        if not_after_ms is not None and self.now_ms > not_after_ms:
            raise errors.SubmitTooLate
        values = {"@state": "RUNNING", "@cv": str(control), "@open": str(size), "@meta": meta, "@input": given}
        self.runs[ref] = ModelRun(values=values)
        self.live[str(ref)] = self.now_ms
        self.plans[digest] = plan
        self.tell(ref, "run.started", "", "{}", submitter)
        self._push(ref, '{"t":"start"}')
        return self._lock(ref, token, lock_ms, wanted)

    def post(
        self, ref: RunRef, *, entry: str, token: str, lock_ms: int = scripts.LOCK_MS, wanted: Sequence[str] = ()
    ) -> Locked | None:
        """POST."""
        if ref not in self.runs:
            self.inboxes.pop(str(ref), None)
            raise errors.UnknownRun
        if entry:
            self._push(ref, entry)
        locked = self._lock(ref, token, lock_ms, wanted)
        if not self.runs[ref].inbox:
            self.inboxes.pop(str(ref), None)
        return locked

    def claim(
        self, ref: RunRef, *, step: str, ring: str, nonce: str, queue_list: str, worker: str = "w1",
        lease_ms: int = scripts.LEASE_MS,
    ) -> Claimed | Refused:  # fmt: skip
        """CLAIM."""
        member = f"{ref}/{step}"
        drop(self.rung, queue_list, f"{member}/{ring}")
        run = self.runs.get(ref)
        if run is None:
            return Refused(why="GONE")
        values, fence = run.values, f"{ring}.{nonce}"
        word = values.get(f"s:{step}", "")
        again = word == f"RUNNING|{fence}"
        if word != f"READY|{ring}" and not again:
            return Refused(why="DUPLICATE", state=word)
        undoes = values["@state"] == "COMPENSATING" and step.startswith("undo:")
        if (values["@state"] != "RUNNING" and not undoes) or "@stop" in values:
            return Refused(why="STOPPED")
        if not again:
            self._set(run, f"s:{step}", f"RUNNING|{fence}")
            values.pop(f"u:{step}", None)
            self.tell(ref, "step.running", step, worker, None)
        self.leases[f"{member}/{fence}"] = self.now_ms + lease_ms
        names = values.get(f"r:{step}", "").split()
        return Claimed(
            epoch=self.epoch,
            ref=ref,
            step=step,
            fence=fence,
            at_ms=self.now_ms,
            attempt=int(values.get(f"a:{step}", 1)),
            deliveries=int(values.get(f"d:{step}", 0)),
            meta=json.loads(values["@meta"]),
            input=json.loads(values["@input"]),
            records=scripts.parse_records(values.get(f"x:{step}", "")),
            outputs={name: json.loads(values.get(f"o:{name}") or "null") for name in names},
        )

    def beat(self, members: Sequence[str], *, lease_ms: int = scripts.LEASE_MS) -> scripts.Beat:
        """BEAT."""
        lost = frozenset(member for member in members if member not in self.leases)
        for member in members:
            if member in self.leases:
                self.leases[member] = self.now_ms + lease_ms
        return scripts.Beat(at_ms=self.now_ms, released=-1 if self.released is None else self.released, lost=lost)

    def _owned(self, held: Claimed) -> ModelRun:
        """The run of a claim; StaleFence if there is none with its step on it."""
        run = self.runs.get(held.ref)
        if run is None or f"s:{held.step}" not in run.values:
            raise errors.StaleFence
        return run

    def arrive(
        self, held: Claimed, *, state: str, output: str, outcome: str, durable: bool, token: str,
        lock_ms: int = scripts.LOCK_MS, wanted: Sequence[str] = (), then: Next | None = None,
        lease_ms: int = scripts.LEASE_MS, key: str | None = None,
    ) -> Locked | Parked | None:  # fmt: skip
        """ARRIVE, then TAKE."""
        answer = self._arrive(
            held, state=state, output=output, outcome=outcome, durable=durable, token=token, lock_ms=lock_ms,
            wanted=wanted, key=key,
        )  # fmt: skip
        self._then(then, lease_ms)
        return answer

    def _arrive(
        self, held: Claimed, *, state: str, output: str, outcome: str, durable: bool, token: str, lock_ms: int,
        wanted: Sequence[str], key: str | None,
    ) -> Locked | Parked | None:  # fmt: skip
        run, step, ref, member = self._owned(held), held.step, held.ref, f"{held.ref}/{held.step}"
        was, done = run.values[f"s:{step}"], f"{state}|{held.fence}"
        if was == f"RUNNING|{held.fence}":
            self.leases.pop(f"{member}/{held.fence}", None)
            self._free(key, member)
            sequence = self.tell(ref, f"step.{state.lower()}", step, outcome, held.submitter)
            if output:
                run.values[f"o:{step}"] = output
            if durable:
                self._set(run, f"s:{step}", f"BLOCKED|JOURNAL|{self.now_ms}|{done}")
                self._park(member, sequence)
                return Parked(sequence=sequence)
            self._set(run, f"s:{step}", done)
            self._push(ref, json.dumps({"t": "arrived", "step": step}))
        elif was.startswith("BLOCKED|") and was.endswith(done):
            return Parked(sequence=int(self.parked.get(member, 0)))
        elif was != done:
            raise errors.StaleFence
        return self._lock(ref, token, lock_ms, wanted)

    def complete(
        self, held: Claimed, *, output: str, outcome: str, following: Sequence[scripts.Following], token: str,
        lock_ms: int = scripts.LOCK_MS, wanted: Sequence[str] = (), then: Next | None = None,
        lease_ms: int = scripts.LEASE_MS,
    ) -> Locked | None:  # fmt: skip
        """COMPLETE, then TAKE."""
        answer = self._complete(
            held, output=output, outcome=outcome, following=following, token=token, lock_ms=lock_ms, wanted=wanted
        )
        self._then(then, lease_ms)
        return answer

    def _complete(
        self, held: Claimed, *, output: str, outcome: str, following: Sequence[scripts.Following], token: str,
        lock_ms: int, wanted: Sequence[str],
    ) -> Locked | None:  # fmt: skip
        run, step, ref, member = self._owned(held), held.step, held.ref, f"{held.ref}/{held.step}"
        values, was, done = run.values, run.values[f"s:{step}"], f"SUCCEEDED|{held.fence}"
        if was == done:
            return self._lock(ref, token, lock_ms, wanted)
        if was != f"RUNNING|{held.fence}":
            raise errors.StaleFence
        self.leases.pop(f"{member}/{held.fence}", None)
        self.tell(ref, "step.succeeded", step, outcome, held.submitter)
        if output:
            values[f"o:{step}"] = output
        self._set(run, f"s:{step}", done)
        if not idle(run) or not all(simple(values, one) for one in following):
            self._push(ref, json.dumps({"t": "arrived", "step": step}))
            return self._lock(ref, token, lock_ms, wanted)
        values[f"c:{step}"] = "x"
        values["@open"] = str(int(values["@open"]) - 1)
        for one in following:
            self._move(ref, run, one)
        return None

    def _then(self, then: Next | None, lease_ms: int) -> None:
        taken = None if then is None else self.take(then.lists, nonce=then.nonce, worker=then.worker, lease_ms=lease_ms)
        if then is not None and taken is not None:
            then.taken(taken)

    def take(self, lists: Sequence[str], *, nonce: str, worker: str, lease_ms: int = scripts.LEASE_MS) -> Taken | None:
        """TAKE. A script of its own only here; on the real board it follows another one."""
        for name in lists:
            if self.lists.get(name):
                text = self.lists[name].pop().decode()
                break
        else:
            return None
        rung = doorbell_of(text)
        if rung is None:
            return Taken(queue_list=name, message=text)
        ref, step, ring = rung
        claim = self.claim(ref, step=step, ring=ring, nonce=nonce, queue_list=name, worker=worker, lease_ms=lease_ms)
        return Taken(queue_list=name, message=text, ref=ref, step=step, ring=ring, claim=claim)

    def _move(self, ref: RunRef, run: ModelRun, one: scripts.Following) -> None:
        values = run.values
        if one.bell is None:
            for name in (f"j:{one.step}", f"k:{one.step}"):
                values[name] = str(int(values.get(name, 0)) + 1)
            return
        values[f"n:{one.step}"] = "1"
        self._set(run, f"s:{one.step}", f"READY|{one.bell.ring}")
        if one.references:
            values[f"r:{one.step}"] = " ".join(one.references)
        self._ding(ref, one.bell)
        self.tell(ref, "step.ready", one.step, "{}", None)

    def park(
        self, held: Claimed, *, on: str, delay_ms: int | None, attempt: int, kind: str, data: str, detail: str = "",
        look_back: str = "", key: str | None = None,
    ) -> bool:  # fmt: skip
        """PARK."""
        run, step, ref, member = self._owned(held), held.step, held.ref, f"{held.ref}/{held.step}"
        was = run.values[f"s:{step}"]
        if was != f"RUNNING|{held.fence}":
            if was.startswith(f"BLOCKED|{on}|") and was.endswith(held.fence):
                return False
            raise errors.StaleFence
        self.leases.pop(f"{member}/{held.fence}", None)
        self._free(key, member)
        self._set(run, f"s:{step}", f"BLOCKED|{on}|{self.now_ms}|{detail}|{held.fence}")
        run.values[f"a:{step}"] = str(attempt)
        run.values.pop(f"d:{step}", None)
        if delay_ms is not None:
            self.timers[f"{member}/{on}"] = self.now_ms + delay_ms
        self.tell(ref, kind, step, data, held.submitter)
        if on == "SIGNAL":
            self.nudge = ["1"]
        early = run.values.get(f"g:{look_back}") if look_back else None
        if early is None:
            return False
        for line in early.split("\n"):
            self._push(ref, line)
        return True

    def decline(self, held: Claimed, *, delay_ms: int, data: str) -> None:
        """DECLINE."""
        run, step, member = self._owned(held), held.step, f"{held.ref}/{held.step}"
        was = run.values[f"s:{step}"]
        if was == f"READY|{held.fence}":
            return
        if was != f"RUNNING|{held.fence}":
            raise errors.StaleFence
        self.leases.pop(f"{member}/{held.fence}", None)
        self._set(run, f"s:{step}", f"READY|{held.fence}")
        run.values.pop(f"d:{step}", None)
        self.held[member] = self.now_ms + delay_ms
        self.tell(held.ref, "step.declined", step, data, None)

    def record(self, held: Claimed, *, key: str, value: str) -> int:
        """RECORD."""
        run, step = self._owned(held), held.step
        if run.values[f"s:{step}"] != f"RUNNING|{held.fence}":
            raise errors.StaleFence
        run.values[f"x:{step}"] = run.values.get(f"x:{step}", "") + f"{key}\t{value}\n"
        data = f'{{"key":{json.dumps(key)},"value":{value}}}'
        return self.tell(held.ref, "step.recorded", step, data, held.submitter)

    def ring(self, ref: RunRef, *, submitter: str, ringing: Ringing) -> bool:
        """RING."""
        run, bell, member = self.runs.get(ref), ringing.bell, f"{ref}/{ringing.bell.step}"
        if run is None or run.values.get(f"s:{bell.step}") != ringing.was:
            return False
        lease = f"{member}/{ringing.lease}" if ringing.lease else ""
        timer = f"{member}/{ringing.timer}" if ringing.timer else ""
        if ringing.lease_must_be_over and self.leases.get(lease, 0) > self.now_ms:
            return False
        if timer and self.timers.pop(timer, None) is None:
            return False
        self.leases.pop(lease, None)
        self.held.pop(member, None)
        if ringing.was.startswith("READY|"):
            drop(self.rung, bell.queue_list, f"{member}/{ringing.was[6:]}")
        self._set(run, f"s:{bell.step}", f"READY|{bell.ring}")
        run.values[f"n:{bell.step}"] = str(ringing.count)
        for name, value in ringing.sets.items():
            self._set(run, name, value)
        self._ding(ref, bell)
        self.tell(ref, ringing.kind, bell.step, ringing.data, submitter)
        return True

    def _ding(self, ref: RunRef, bell: scripts.Doorbell) -> None:
        line = self.lists.setdefault(bell.queue_list, [])
        line.insert(0 if bell.side == "L" else len(line), bell.content)
        self.rung.setdefault(bell.queue_list, {})[f"{ref}/{bell.step}/{bell.ring}"] = self.now_ms

    def _free(self, key: str | None, member: str) -> None:
        if key is not None:
            self.limit(key).free(member, self.timers, self.now_ms)

    def limit(self, key: str) -> ModelKey:
        """A concurrency key."""
        return self.limits.setdefault(key, ModelKey())

    def ask(self, ref: RunRef, *, key: str, asking: Sequence[scripts.Asking]) -> int:
        """ASK."""
        run, asked, limit = self.runs.get(ref), 0, self.limit(key)
        for one in asking:
            member = f"{ref}/{one.step}"
            if run is None or run.values.get(f"s:{one.step}") not in (one.was, one.to):
                continue
            asked += 1
            self._set(run, f"s:{one.step}", one.to)
            self.timers.pop(f"{member}/{one.timer}", None)
            self.held.pop(member, None)
            limit.ask(member, one.limit, self.timers, self.now_ms)
        limit.grant(self.timers, self.now_ms)
        return asked

    def leave(self, ref: RunRef, *, key: str, leaving: Sequence[tuple[str, int]]) -> None:
        """LEAVE."""
        for step, limit in leaving:
            self.limit(key).leave(f"{ref}/{step}", limit, self.timers)
        self.limit(key).grant(self.timers, self.now_ms)

    def reassert(
        self, ref: RunRef, *, step: str, nonce: str, lease_ms: int = scripts.LEASE_MS, key: str | None = None,
        limit: int = 1,
    ) -> tuple[Epoch, str]:  # fmt: skip
        """REASSERT."""
        run, member = self.runs.get(ref), f"{ref}/{step}"
        word = "" if run is None else run.values.get(f"s:{step}", "")
        if word.startswith("RUNNING|") and word.endswith(f".{nonce}"):
            return self.epoch, word[8:]
        found = word.startswith("READY|" if key is None else "BLOCKED|LIMIT|")
        if key is not None and found:
            closed_ms = self.limit(key).closed_ms
            found = closed_ms is not None and self.now_ms < closed_ms
        if run is None or not found or self.held.pop(member, None) is None:
            raise errors.StaleFence
        if key is not None:
            assert self.limit(key).reassert(member, limit, self.now_ms)
        fence = f"{word.rsplit('|', 1)[1]}.{nonce}"
        self._set(run, f"s:{step}", f"RUNNING|{fence}")
        self.leases[f"{member}/{fence}"] = self.now_ms + lease_ms
        return self.epoch, fence

    def commit(
        self, locked: Locked, *, submitter: str, batch: Batch, lock_ms: int = scripts.LOCK_MS
    ) -> list[Mapping[str, Any]] | None:
        """COMMIT. A repetition with a lost answer is `commit` of the same decision twice: the real script is told by
        its name, the model by `again`."""
        ref, run = locked.ref, self.runs.get(locked.ref)
        if run is None or run.values.get("@lock", "").rpartition("|")[0] != locked.token:
            return None
        if any(run.values.get(name, "") != was for name, was, _ in batch.writes):
            return None
        for name, _, to in batch.writes:
            self._set(run, name, to)
        run.inbox[:] = [*run.inbox[batch.consumed :], *batch.posts]
        for lease in batch.leases:
            self.leases.pop(f"{ref}/{lease}", None)
        for timer, due in batch.timers:
            put_or_drop(self.timers, f"{ref}/{timer}", due)
        for bell in batch.bells:
            self._ding(ref, bell)
        for kind, step, flags, member, data in batch.events:
            sequence = self.tell(ref, kind, step, data, submitter if flags else None)
            if flags == "jp":
                self._park(member, sequence)
        if not run.inbox:
            del run.values["@lock"]
            self.inboxes.pop(str(ref), None)
            return []
        run.values["@lock"] = f"{locked.token}|{self.now_ms + lock_ms}"
        return [json.loads(text) for text in run.inbox[:100]]

    def release(self, ref: RunRef, *, steps: Sequence[str], grace_ms: int, high_water: int) -> tuple[int, str]:
        """RELEASE."""
        moved, ended, run = 0, "", self.runs.get(ref)
        for step in steps:
            member = f"{ref}/{step}"
            if self.parked.get(member, high_water + 1) > high_water:
                continue
            del self.parked[member]
            if run is None:
                continue
            if step == "@":
                ended = run.values["@state"]
                self._finish(ref, run, grace_ms)
            elif parked := Word.parse(run.values.get(f"s:{step}")).parked:
                self._set(run, f"s:{step}", parked.text)
                self._push(ref, json.dumps({"t": "arrived", "step": step}))
                moved += 1
        return moved, ended

    def _finish(self, ref: RunRef, run: ModelRun, grace_ms: int) -> None:
        self.live.pop(str(ref), None)
        self.done[str(ref)] = self.now_ms + grace_ms
        output, error = run.values.get("@output", "null"), run.values.get("@error", "null")
        data = f'{{"state":"{run.values["@state"]}","output":{output},"error":{error}}}'
        self.tell(ref, "run.finished", "", data, None)

    def forget(self, ref: RunRef) -> None:
        """An ended run leaves the board."""
        self.runs.pop(ref, None)
        self.done.pop(str(ref), None)
        self.inboxes.pop(str(ref), None)


def doorbell_of(text: str) -> tuple[RunRef, str, str] | None:
    """Run, step and ring of a message that is a doorbell."""
    try:
        headers = json.loads(text)["headers"]
        run, step, number, count = headers["id"].replace("~", "#").split(".")
        return RunRef(tenant=headers["tenant"], run=run), step, f"{int(number)}.{int(count)}"
    except (ValueError, KeyError):
        return None
