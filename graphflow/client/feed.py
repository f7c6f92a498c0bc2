"""A run's feed on the board, read so that a reader may drop off, and the board may be lost and rebuilt."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

import redis

from convergio.graphflow.board import fields
from convergio.graphflow.board.connection import UNREACHABLE, unavailable
from convergio.graphflow.board.keys import Epoch, Keys
from convergio.graphflow.client import lifecycle
from convergio.graphflow.client.event import (
    CUSTOM,
    MESSAGES,
    OUTCOME,
    RESET,
    RETOLD,
    SNAPSHOT,
    SPOKEN,
    Event,
)
from convergio.graphflow.client.lifecycle import BEGUN, ENDED
from convergio.graphflow.client.past import Past, Position, Recall
from convergio.graphflow.client.transcript import Transcript
from convergio.graphflow.model import errors, instance, reference
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import TERMINAL_RUN, StepState

BLOCK_MS: Final = 1_000
PAUSE: Final = 0.1
"""Seconds between two looks while there is nothing to block on: no board, or the run is not on it."""

GROUP: Final = 500

NOWHERE: Final[Position] = (0, 0)
"""Where a reader is who has read nothing, and a turn that another run has made."""

LOOK_BACK: Final = 200
"""Events before a turn's outcome in which its last word is looked for."""

Ended = Callable[[], Mapping[str, Any] | None]
"""Asked while the run is not on the board, and for a result that is too large for it: `state`, `output` and `error` of
a run that ended, or None."""


class Feed:
    """The events of one run, in order. Not for several threads at once."""

    def __init__(
        self,
        client: redis.Redis,
        ref: RunRef,
        ended: Ended,
        *,
        recall: Recall | None = None,
        prefix: str = "convergio",
        patience: float = 60.0,
    ) -> None:
        """`client` decodes its answers. `recall`: tells what was said, where the stream does not have it any more;
        without it nothing stands in for that. `patience`: seconds without a board, or without a journal that is asked,
        after which reading fails."""
        self._client = client
        self._ref = ref
        self._ended = ended
        self._recall = recall
        self._talking: frozenset[str] | None = None
        self._spoken: dict[tuple[str, int], str] = {}
        self._prefix = prefix
        self._patience = patience
        self._at: Position = NOWHERE
        self._seen = 0.0
        # A server that blocks for as long as the socket waits would count as away.
        timeout = client.connection_pool.connection_kwargs.get("socket_timeout")
        self._block_ms = min(BLOCK_MS, int(timeout * 500)) if timeout else BLOCK_MS

    def events(self, after: str = "") -> Generator[Event | None]:
        """Every event behind `after`, up to the `final` one; None after each group, about once a second at least.

        Ids are without gap or repeat within an epoch; where events are missing (a new epoch, a trimmed feed, a run that
        has left the board), a snapshot stands in for them. What is told in the middle of a group has the id behind
        which the reader stood before. Who begins to read is told `RUN_STARTED` first, whatever is missing. Behind the
        final event there is nothing. Raises BoardUnavailable when Redis stays away for longer than `patience`,
        BoardRebuilding when it has no board for so long, JournalUnavailable when SQL cannot be asked for so long, and
        what `ended` and `recall` raise.
        """
        self._at = _position(after) if after else NOWHERE
        self._seen = time.monotonic()
        while True:
            found = self._patiently()
            if found is None:
                return
            yield from (lifecycle.told(event, self._ref) for event in found)
            if found and found[-1].type == ENDED:
                return
            yield None

    def _patiently(self) -> Sequence[Event] | None:
        try:
            found = self._next()
        except (*UNREACHABLE, errors.BoardUnavailable, errors.BoardRebuilding, errors.JournalUnavailable) as error:
            if time.monotonic() - self._seen > self._patience:
                raise self._lost(error) from error
            time.sleep(PAUSE)
            return ()
        self._seen = time.monotonic()
        return found

    def _lost(self, error: Exception) -> errors.ConvergioError:
        """What is wrong when the patience has ended."""
        if isinstance(error, errors.BoardRebuilding):
            hint = "a service process makes it from the journal: does one run (convergio service)?"
            return errors.BoardRebuilding(f"Redis has had no board for {self._patience:g} s", hint=hint)
        known = isinstance(error, errors.BoardUnavailable | errors.JournalUnavailable)
        return cast("errors.ConvergioError", error) if known else unavailable(error)

    def _next(self) -> Sequence[Event] | None:
        """What is there now, after at most a second; None if the reader has had the end."""
        epoch = self._epoch()
        state, last = self._state(epoch)
        if state is None:
            return self._off_board(epoch)
        if self._at == NOWHERE:
            return self._begun(epoch)
        if self._at[0] != epoch:
            return self._caught_up(epoch)
        behind = self._at[1] < last
        entries = self._read(0 if behind else self._block_ms)
        if entries and entries[0].position[1] == self._at[1] + 1:
            return self._delivered(self._whole(entries))
        if entries or behind:
            return self._caught_up(epoch)
        return self._after_all(epoch, last) if state in TERMINAL_RUN else ()

    def _begun(self, epoch: int) -> Sequence[Event] | None:
        """For who has read nothing: from the run's start, if that was on this board, and its events are there."""
        self._at = (epoch, 0)
        entries = self._read(0)
        if not entries or entries[0].position[1] != 1 or entries[0].type != BEGUN:
            self._at = NOWHERE
            return self._caught_up(epoch)
        reused = self._reused(epoch)
        begun, *more = self._delivered(self._whole(entries))
        if not reused:
            return [begun, *more]
        said = Event(id=begun.id, type=MESSAGES, data={"messages": reused})
        return [replace(begun, id=_id(NOWHERE)), said, *more]

    def _reused(self, epoch: int) -> list[Mapping[str, Any]]:
        """What was said in turns that the run has of another one: nobody says it again."""
        words = self._words(epoch)
        ended = {name for name, word in words.items() if _good(word) and self._talks(epoch, instance.step_of(name))}
        if not ended:
            return []
        told = {instance.named(one.step or "", one.iteration) for one in self._here(epoch)[1] if one.type == OUTCOME}
        if ended <= told or self._recall is None:
            return []
        return [message for turn in self._recall().turns if turn.at == NOWHERE for message in turn.messages]

    def _words(self, epoch: int) -> Mapping[str, fields.Word]:
        client: Any = self._client
        words: Iterator[tuple[str, str]] = client.hscan_iter(self._run(epoch), match="s:*", count=GROUP)
        return {name[2:]: fields.Word.parse(text) for name, text in words}

    def _after_all(self, epoch: int, last: int) -> Sequence[Event] | None:
        """For who has read all of a run that has ended."""
        ends = self._back(epoch, last, count=1)
        if not ends:
            return self._off_board(epoch)
        return None if ends[0].type == ENDED else ()

    def _epoch(self) -> int:
        text = cast("str | None", self._client.get(Keys(self._prefix, 0).epoch))
        if text is None:
            raise errors.BoardRebuilding()
        return Epoch.parse(text).number

    def _run(self, epoch: int) -> str:
        return Keys(self._prefix, epoch).run(self._ref)

    def _stream(self, epoch: int) -> str:
        return Keys(self._prefix, epoch).feed(self._ref)

    def _state(self, epoch: int) -> tuple[str | None, int]:
        values = self._client.hmget(self._run(epoch), [fields.STATE, fields.SEQ])
        state, seq = cast("list[str | None]", values)
        return state, int(seq or 0)

    def _read(self, block_ms: int) -> list[Event]:
        after = f"{self._at[0]}-{self._at[1]}"
        answer = self._client.xread({self._stream(self._at[0]): after}, count=GROUP, block=block_ms or None)
        streams = cast("list[tuple[str, list[tuple[str, dict[str, str]]]]]", answer or [])
        return [Event.of(entry, values) for _, entries in streams for entry, values in entries]

    def _back(self, epoch: int, seq: int, *, count: int) -> list[Event]:
        """The events up to this one, the latest first."""
        found = self._client.xrevrange(self._stream(epoch), f"{epoch}-{seq}", "-", count=count)
        return [Event.of(entry, values) for entry, values in cast("list[tuple[str, dict[str, str]]]", found)]

    def _whole(self, entries: list[Event]) -> list[Event]:
        """A result that is too large for the board is a reference there: whoever knows the end has it whole."""
        *before, last = entries
        if last.type != ENDED or not reference.held(last.data.get("output")):
            return entries
        found = self._ended()
        if found is None and not before:
            time.sleep(PAUSE)
        return before if found is None else [*before, replace(last, data=found)]

    # --- turns ------------------------------------------------------------------------------------------------------

    def _delivered(self, entries: list[Event]) -> list[Event]:
        """The events, and before the outcome of a turn whose words were not all told here, those of the journal."""
        told: list[Event] = []
        for event in entries:
            place = (event.step or "", event.iteration)
            if event.type == SPOKEN and event.data["whole"]:
                self._spoken[place] = event.data["claim"]
            elif event.type == OUTCOME and self._talks(event.position[0], event.step) and not self._was_spoken(event):
                messages = self._of_turn(place)
                if messages is None:  # SQL has it in a moment
                    time.sleep(0 if told else PAUSE)
                    return told
                data = {"name": RETOLD, "value": {"messages": messages}}
                told.append(replace(event, id=_id(self._at), type=CUSTOM, data=data))
            told.append(event)
            self._at = event.position
        return told

    def _talks(self, epoch: int, step: str | None) -> bool:
        """Whether the step is an agent's or a conversation, whose words the journal can tell."""
        if self._recall is None or step is None:
            return False
        if self._talking is None:
            self._talking = self._found_talking(epoch)
        return step in self._talking

    def _found_talking(self, epoch: int) -> frozenset[str]:
        meta = cast("str | None", self._client.hget(self._run(epoch), fields.META))
        digest = json.loads(meta)["digest"] if meta else ""
        plan = cast("str | None", self._client.get(Keys(self._prefix, epoch).plan(digest)))
        steps: Mapping[str, Any] = json.loads(plan)["steps"] if plan else {}
        return frozenset(name for name, step in steps.items() if "conversation" in step or "agent" in step)

    def _was_spoken(self, outcome: Event) -> bool:
        """Whether all words of a turn were told before its outcome, by the claim that ended it."""
        epoch, seq = outcome.position
        place = (outcome.step or "", outcome.iteration)
        text = cast("str | None", self._client.hget(self._run(epoch), fields.state(instance.named(*place))))
        if text is None:
            return False
        word = fields.Word.parse(text)
        ended = (word.parked or word).rest
        if place in self._spoken:
            return self._spoken.pop(place) == ended
        for event in self._back(epoch, seq - 1, count=LOOK_BACK):  # its reader may have begun in between
            if event.type == SPOKEN and (event.step, event.iteration) == place:
                return bool(event.data["whole"]) and event.data["claim"] == ended
        return False

    def _of_turn(self, place: tuple[str, int]) -> Sequence[Mapping[str, Any]] | None:
        assert self._recall is not None
        turn = self._recall().instances.get(place)
        return None if turn is None else turn.messages

    # --- where events are missing -----------------------------------------------------------------------------------

    def _caught_up(self, epoch: int) -> Sequence[Event] | None:
        """A snapshot instead of what is missing, at the last event that there is: the reader goes on behind it.

        Only the last event of the group has the new position: who is stopped before it gets the group again.
        """
        before, group = _id(self._at), self._opening()
        if self._at[0] not in (epoch, NOWHERE[0]):
            self._talking = None
            group.append(Event(id=before, type=RESET, data={"epoch": epoch, "was": self._at[0]}))
        seq, kept = self._here(epoch)
        if not kept and self._state(epoch)[0] in TERMINAL_RUN:  # its stream went before the run leaves the board
            return self._off_board(epoch)
        if kept and kept[-1].type == ENDED:  # the end is told as itself
            seq, kept = seq - 1, kept[:-1]
        # Read after the number: what happens meanwhile is in it, and is told again.
        words = self._words(epoch)
        if self._recall is not None and any(self._talks(epoch, instance.step_of(name)) for name in words):
            said = self._said(self._recall(), (epoch, seq), words, kept)
            if said is None:
                time.sleep(PAUSE)
                return ()
            group.append(Event(id=before, type=MESSAGES, data={"messages": said}))
        steps = {name: _facts(word) for name, word in words.items()}
        state = self._state(epoch)[0]
        if state is None:
            return ()
        self._at = (epoch, seq)
        return [*group, Event(id=_id(self._at), type=SNAPSHOT, data={"state": state, "steps": steps})]

    def _opening(self) -> list[Event]:
        """What comes before anything else for who has read nothing."""
        return [Event(id=_id(NOWHERE), type=BEGUN)] if self._at == NOWHERE else []

    def _here(self, epoch: int) -> tuple[int, list[Event]]:
        """The number of the last event, and the events that are still there."""
        with self._client.pipeline(transaction=True) as pipe:
            pipe.hget(self._run(epoch), fields.SEQ)
            pipe.xrange(self._stream(epoch))
            seq, entries = pipe.execute()
        return int(seq or 0), [Event.of(entry, values) for entry, values in entries]

    def _said(
        self, past: Past, at: Position, words: Mapping[str, fields.Word], kept: Sequence[Event]
    ) -> list[dict[str, Any]] | None:
        """What was said up to `at`: turns that have ended as SQL has them, what is being said from the events that are
        `kept`. None if SQL has not heard of a turn that has ended."""
        known = past.instances
        ended = {instance.split(name) for name, word in words.items() if _good(word)}
        if any(self._talks(at[0], step) and (step, place) not in known for step, place in ended):
            return None
        transcript, over = Transcript(), {place for place, turn in known.items() if turn.at <= at}
        for event in kept:
            if (event.step or "", event.iteration) not in over:
                transcript.tell(event)
        written = [dict(message) for place in over for message in known[place].messages]
        transcript.take([*written, *transcript.messages])
        return transcript.messages

    def _off_board(self, epoch: int) -> Sequence[Event] | None:
        """The run has left the board, or has not come to it yet."""
        if self._at[0] == epoch:
            entries = self._read(0)  # its events may stay for longer than the run
            if entries and self._recall is not None and self._talking is None:
                self._talking = frozenset(turn.step for turn in self._recall().turns)
            if entries and entries[0].position[1] == self._at[1] + 1:
                return self._delivered(self._whole(entries))
        found = self._ended()
        if found is None:
            time.sleep(PAUSE)
            return ()
        if self._recall is None:
            end = Event(id=_id(self._at if self._at != NOWHERE else (epoch, 0)), type=ENDED, data=found)
            return [*self._opening(), end]
        return self._from_journal(found, self._recall())

    def _from_journal(self, found: Mapping[str, Any], past: Past) -> Sequence[Event] | None:
        """The end of a run that is in SQL alone. Its id is always the same one, behind all that SQL has of the run."""
        epoch, seq = past.last or (0, 0)
        if self._at > (epoch, seq):
            return None
        said = [dict(message) for turn in past.turns for message in turn.messages]
        snapshot = Event(id=_id(self._at), type=MESSAGES, data={"messages": said})
        end = Event(id=f"{epoch}-{seq + 1}", type=ENDED, data=found)
        return [*self._opening(), *([snapshot] if said else []), end]


def _good(word: fields.Word) -> bool:
    """Whether the step has succeeded, in SQL or on its way there."""
    return (word.parked or word).state is StepState.SUCCEEDED


def _id(position: Position) -> str:
    return f"{position[0]}-{position[1]}"


def _facts(word: fields.Word) -> dict[str, Any]:
    on = word.blocked_on
    return {"state": word.state.value, "on": on.value if on else None, "since_ms": word.since_ms}


def _position(text: str) -> tuple[int, int]:
    epoch, _, seq = text.partition("-")
    if not (epoch.isdecimal() and seq.isdecimal()):
        raise errors.InvalidInput(f"'{text}' is no event id", hint="give the `id` of an event of this run")
    return int(epoch), int(seq)
