"""A run's feed on the board, read so that a reader may drop off, and the board may be lost and rebuilt."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, cast

import redis

from convergio.graphflow.board import fields
from convergio.graphflow.board.connection import UNREACHABLE, unavailable
from convergio.graphflow.board.keys import Epoch, Keys
from convergio.graphflow.client.event import FINISHED, RESET, SNAPSHOT, Event
from convergio.graphflow.model import errors, reference
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import TERMINAL_RUN

BLOCK_MS: Final = 1_000
PAUSE: Final = 0.1
"""Seconds between two looks while there is nothing to block on: no board, or the run is not on it."""

GROUP: Final = 500

Ended = Callable[[], Mapping[str, Any] | None]
"""Asked while the run is not on the board, and for a result that is too large for it: `state`, `output` and `error` of
a run that ended, or None."""


class Feed:
    """The events of one run, in order. Not for several threads at once."""

    def __init__(
        self, client: redis.Redis, ref: RunRef, ended: Ended, *, prefix: str = "convergio", patience: float = 60.0
    ) -> None:
        """`client` decodes its answers. `patience`: seconds without a board after which reading fails."""
        self._client = client
        self._ref = ref
        self._ended = ended
        self._prefix = prefix
        self._patience = patience
        self._at: tuple[int, int] | None = None
        self._seen = 0.0
        # A server that blocks for as long as the socket waits would count as away.
        timeout = client.connection_pool.connection_kwargs.get("socket_timeout")
        self._block_ms = min(BLOCK_MS, int(timeout * 500)) if timeout else BLOCK_MS

    def events(self, after: str = "") -> Generator[Event | None]:
        """Every event behind `after`, up to `run.finished`; None after each group, about once a second at least.

        Ids are without gap or repeat within an epoch; where events are missing (a new epoch, a trimmed feed), a
        snapshot stands in for them. Raises BoardUnavailable when Redis stays away for longer than `patience`,
        BoardRebuilding when it has no board for so long, and what `ended` raises.
        """
        self._at = _position(after) if after else None
        self._seen = time.monotonic()
        while True:
            found = self._patiently()
            yield from found
            if found and found[-1].type == FINISHED:
                return
            yield None

    def _patiently(self) -> Sequence[Event]:
        try:
            found = self._next()
        except (*UNREACHABLE, errors.BoardUnavailable, errors.BoardRebuilding) as error:
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
        return error if isinstance(error, errors.BoardUnavailable) else unavailable(error)

    def _next(self) -> Sequence[Event]:
        """What is there now, after at most a second."""
        epoch = self._epoch()
        if self._at is not None and self._at[0] != epoch:
            return self._reset(epoch, self._at[0])
        self._at = self._at or (epoch, 0)
        state, last = self._state()
        if state is None:
            return self._off_board()
        behind = self._at[1] < last
        entries = self._read(0 if behind else self._block_ms)
        if entries and entries[0].position[1] == self._at[1] + 1:
            known = self._whole(entries)
            self._at = known[-1].position if known else self._at
            return known
        if entries or behind:
            return [self._snapshot()]
        return self._off_board() if state in TERMINAL_RUN else ()

    def _epoch(self) -> int:
        text = cast("str | None", self._client.get(Keys(self._prefix, 0).epoch))
        if text is None:
            raise errors.BoardRebuilding()
        return Epoch.parse(text).number

    def _keys(self) -> Keys:
        assert self._at is not None
        return Keys(self._prefix, self._at[0])

    def _state(self) -> tuple[str | None, int]:
        values = self._client.hmget(self._keys().run(self._ref), [fields.STATE, fields.SEQ])
        state, seq = cast("list[str | None]", values)
        return state, int(seq or 0)

    def _read(self, block_ms: int) -> list[Event]:
        assert self._at is not None
        feed = self._keys().feed(self._ref)
        after = f"{self._at[0]}-{self._at[1]}"
        answer = self._client.xread({feed: after}, count=GROUP, block=block_ms or None)
        streams = cast("list[tuple[str, list[tuple[str, dict[str, str]]]]]", answer or [])
        return [Event.of(entry, values) for _, entries in streams for entry, values in entries]

    def _whole(self, entries: list[Event]) -> list[Event]:
        """A result that is too large for the board is a reference there: whoever knows the end has it whole."""
        *before, last = entries
        if last.type != FINISHED or not reference.held(last.data.get("output")):
            return entries
        found = self._ended()
        if found is None and not before:
            time.sleep(PAUSE)
        return before if found is None else [*before, replace(last, data=found)]

    def _reset(self, epoch: int, was: int) -> Sequence[Event]:
        self._at = (epoch, 0)
        reset = Event(id=f"{epoch}-0", type=RESET, data={"epoch": epoch, "was": was})
        return [reset] if self._state()[0] is None else [reset, self._snapshot()]

    def _snapshot(self) -> Event:
        """Read after its number: what happens meanwhile is in it, and is told again."""
        run = self._keys().run(self._ref)
        epoch = self._keys().number
        state, seq = self._state()
        self._at = (epoch, seq)
        words = self._client.hscan_iter(run, match="s:*", count=GROUP)
        steps = {name[2:]: _facts(fields.Word.parse(text)) for name, text in words}
        return Event(id=f"{epoch}-{seq}", type=SNAPSHOT, data={"state": state, "steps": steps})

    def _off_board(self) -> Sequence[Event]:
        """The run has left the board, or has not come to it yet."""
        found = self._ended()
        if found is None:
            time.sleep(PAUSE)
            return ()
        assert self._at is not None
        return [Event(id=f"{self._at[0]}-{self._at[1]}", type=FINISHED, data=found)]


def _facts(word: fields.Word) -> dict[str, Any]:
    on = word.blocked_on
    return {"state": word.state.value, "on": on.value if on else None, "since_ms": word.since_ms}


def _position(text: str) -> tuple[int, int]:
    epoch, _, seq = text.partition("-")
    if not (epoch.isdecimal() and seq.isdecimal()):
        raise errors.InvalidInput(f"'{text}' is no event id", hint="give the `id` of an event of this run")
    return int(epoch), int(seq)
