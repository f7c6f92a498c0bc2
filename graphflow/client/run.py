"""A run, as who started it holds it."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast

from convergio.graphflow.client.event import Event
from convergio.graphflow.client.post import RESEND, Answer, Post
from convergio.graphflow.flow import durations
from convergio.graphflow.model import errors, ids
from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.states import RunState

if TYPE_CHECKING:
    import redis

    from convergio.graphflow.client.feed import Feed
    from convergio.graphflow.client.past import Past, Recall

SUBMIT: Final = "convergio.submit"
RETRY: Final = "convergio.retry"
FORK: Final = "convergio.fork"
SIGNAL: Final = "convergio.signal"
SAY: Final = "convergio.say"
CANCEL: Final = "convergio.cancel"
PAUSE: Final = "convergio.pause"
RESUME: Final = "convergio.resume"
THREAD: Final = "convergio.thread"

END: Final = object()

UNCHANGED: Final = object()
"""Stands where no new input is given: None is an input too."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """The message that a run began with: which public entry, its arguments, and the Celery id."""

    entry: str
    arguments: Mapping[str, Any]
    task_id: str


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Waits for the function without blocking the event loop."""
    import asyncio  # who does not use it should not pay for it: it is most of what importing the client would cost

    return await asyncio.to_thread(function, *args, **kwargs)


class Wire:
    """What the runs of one client share: the sender, and the way to the board."""

    def __init__(self, url: str, *, prefix: str, patience: float, submitter: str) -> None:
        """Connects when it is first used. Raises UnsupportedServer."""
        self.submitter = submitter
        self.post = Post(url, prefix=prefix)
        self.prefix = prefix
        self.patience = patience
        self._board: redis.Redis | None = None

    @property
    def board(self) -> redis.Redis:
        """A client of the board's Redis."""
        if self._board is None:
            import redis

            from convergio.graphflow.board import connection

            url = self.post.url.replace("redis+socket://", "unix://", 1)
            self._board = redis.Redis(connection_pool=connection.pool(url, socket_timeout=5.0))
        return self._board

    def close(self) -> None:
        """Ends the connections."""
        self.post.close()
        if self._board is not None:
            self._board.connection_pool.disconnect()
            self._board = None


class Silence:
    """For how long nothing has been heard. Who asks no more for a while begins anew: the run was on the board."""

    def __init__(self) -> None:
        self._since = self._asked = -math.inf

    def lasted(self) -> float:
        """Seconds of it until now."""
        now = time.monotonic()
        if now - self._asked > RESEND:
            self._since = now
        self._asked = now
        return now - self._since

    def break_(self) -> None:
        """Something was heard."""
        self._asked = -math.inf


class Run:
    """A handle: made by `Client.start` or `Client.run`, valid in any process and at any time.

    Everything here waits in the calling thread; each `a...` method waits in a thread of its own instead.
    """

    def __init__(self, wire: Wire, ref: RunRef, submission: Submission | None = None) -> None:
        """`submission`: the message that it began with, if it was sent from here."""
        self._wire = wire
        self._ref = ref
        self._task_id = ref.run if submission is None else submission.task_id
        self._submission = submission
        self._sent = time.monotonic()

    @property
    def id(self) -> str:
        """The run's id."""
        return self._ref.run

    def __repr__(self) -> str:
        return f"Run({self.id!r})"

    # --- reading --------------------------------------------------------------------------------------------------

    def events(self, after: str = "") -> Iterator[Event]:
        """Everything that happens to the run, from its start, or from behind the event with id `after`.

        Resumes by itself when Redis is away for a while. After a rebuild of the board comes `stream.reset`, then a
        snapshot; `client.transcript.Transcript` makes of the events what was said. The first one is `RUN_STARTED`, the
        last one (`event.final`) `RUN_FINISHED` or `RUN_ERROR`; behind it there is nothing. Raises BoardUnavailable
        after a minute without Redis, BoardRebuilding after a minute without a board, NoWorker if what the stream has no
        more is to be asked for and nobody answers, and UnknownRun if for the patience of the client nobody knows the
        run, or its end.
        """
        return (event for event in self._feed(self._recall).events(after) if event is not None)

    def result(self, timeout: str | float | None = None) -> Any:
        """Waits for the run's end and returns its output. `timeout`: seconds, or text such as "10m"; None: for ever.

        Raises RunFailed, RunCancelled, ResultTimeout (the run goes on), UnknownRun, BoardUnavailable, BoardRebuilding.
        """
        seconds = None if timeout is None else _seconds(timeout)
        began = time.monotonic()
        for event in self._feed().events():
            if event is not None and event.final:
                return self._outcome(event.data)
            if seconds is not None and time.monotonic() - began > seconds:
                hint = f"it goes on; look at it with: convergio runs why {self.id}"
                raise errors.ResultTimeout(f"the run did not end within {seconds:g} s", hint=hint, run=self.id)
        raise AssertionError("a feed ends with a final event")

    def state(self) -> RunState:
        """The run's state now. Raises UnknownRun for a run of which Redis knows nothing, BoardUnavailable."""
        from convergio.graphflow.board import fields
        from convergio.graphflow.board.connection import UNREACHABLE, unavailable
        from convergio.graphflow.board.keys import Epoch, Keys

        board, prefix = self._wire.board, self._wire.prefix
        try:
            epoch = cast("str | None", board.get(Keys(prefix, 0).epoch))
            key = Keys(prefix, Epoch.parse(epoch).number).run(self._ref) if epoch else None
            state = cast("str | None", board.hget(key, fields.STATE)) if key else None
        except UNREACHABLE as error:
            raise unavailable(error) from error
        return RunState(state) if state else self._state_by_answer()

    # --- acting ---------------------------------------------------------------------------------------------------

    def signal(self, name: str, data: Any = None) -> bool:
        """Gives the run the signal that its approval step `name` waits for, such as `{"decision": "approve"}`.

        Returns once it is kept in SQL, so it cannot be lost. Raises UnknownRun, UnknownStep, NoWorker,
        BoardUnavailable.
        """
        answer = self._ask(SIGNAL, {"name": name, "data": data})
        return bool(answer.result)

    def say(self, text: str, *, step: str | None = None, if_busy: str | None = None) -> Run:
        """Says something to the run's conversation: an answer, if it waits for one. The run in which it is heard: this
        one, or, if it has ended, a new one that goes on from it.

        `step`: which conversation, if there are several. `if_busy`: what becomes of it while a turn runs: enqueue,
        reject, interrupt or rollback; None: what the team says. Raises UnknownRun, UnknownStep, ConversationBusy,
        InvalidInput, PayloadTooLarge, NoWorker, BoardUnavailable.
        """
        heard = str(self._ask(SAY, {"text": text, "step": step, "if_busy": if_busy}).result)
        return self if heard == self.id else Run(self._wire, RunRef(tenant=self._ref.tenant, run=heard))

    def cancel(self, reason: str = "") -> None:
        """Asks for the run's end. Raises UnknownRun, NoWorker, BoardUnavailable."""
        self._ask(CANCEL, {"reason": reason})

    def pause(self) -> None:
        """No further step is started; what runs goes on to its end. Raises UnknownRun, NoWorker, BoardUnavailable."""
        self._ask(PAUSE, {})

    def resume(self) -> None:
        """A paused run goes on where it is. Raises UnknownRun, NoWorker, BoardUnavailable."""
        self._ask(RESUME, {})

    def retry(self, *, key: str | None = None) -> Run:
        """A new run that does what failed or was cancelled in this one once more, and reuses all that succeeded.

        The same `key` gives the same run. Raises RunNotEnded, NothingToRetry, UnknownRun, KeyConflict, NoWorker,
        JournalUnavailable, BoardUnavailable.
        """
        return self._begin(RETRY, {}, key)

    def fork(
        self,
        step: str | None = None,
        *,
        input: Any = UNCHANGED,
        definition: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> Run:
        """A new run that reuses what still holds of this one.

        `step`: it and all that follows from it run again. `input`: another input; what reads it runs again, unless
        `step` says where to begin. `definition`: an edited document of the same workflow; what did not change is
        reused. Raises like `retry`, and UnknownStep, InvalidInput, InvalidWorkflow.
        """
        given = {"step": step, "definition": definition}
        edited = {name: value for name, value in given.items() if value is not None}
        return self._begin(FORK, edited if input is UNCHANGED else {**edited, "input": input}, key)

    # --- without blocking an event loop ---------------------------------------------------------------------------

    async def aresult(self, timeout: str | float | None = None) -> Any:
        """`result` for asyncio."""
        return await in_thread(self.result, timeout)

    async def astate(self) -> RunState:
        """`state` for asyncio."""
        return await in_thread(self.state)

    async def asignal(self, name: str, data: Any = None) -> bool:
        """`signal` for asyncio."""
        return await in_thread(self.signal, name, data)

    async def asay(self, text: str, *, step: str | None = None, if_busy: str | None = None) -> Run:
        """`say` for asyncio."""
        return await in_thread(self.say, text, step=step, if_busy=if_busy)

    async def acancel(self, reason: str = "") -> None:
        """`cancel` for asyncio."""
        await in_thread(self.cancel, reason)

    async def apause(self) -> None:
        """`pause` for asyncio."""
        await in_thread(self.pause)

    async def aresume(self) -> None:
        """`resume` for asyncio."""
        await in_thread(self.resume)

    async def aretry(self, *, key: str | None = None) -> Run:
        """`retry` for asyncio."""
        return await in_thread(self.retry, key=key)

    async def afork(
        self,
        step: str | None = None,
        *,
        input: Any = UNCHANGED,
        definition: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> Run:
        """`fork` for asyncio."""
        return await in_thread(self.fork, step, input=input, definition=definition, key=key)

    async def aevents(self, after: str = "") -> AsyncIterator[Event]:
        """`events` for asyncio."""
        feed = self._feed(self._recall).events(after)
        while (event := await in_thread(next, feed, END)) is not END:
            if event is not None:
                yield cast(Event, event)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _recall(self) -> Past:
        """What was said, asked of the journal by way of a worker."""
        from convergio.graphflow.client.past import Past

        asked = ids.new_run_id()
        facts = {"run": self.id, "tenant": self._ref.tenant}
        answer = self._wire.post.ask(THREAD, facts, task_id=asked, patience=self._wire.patience)
        self._wire.post.forget(asked)
        if answer.error is not None:
            raise answer.error
        return Past.of(answer.result)

    def _feed(self, recall: Recall | None = None) -> Feed:
        from convergio.graphflow.client.feed import Feed

        silence = Silence()

        def ended() -> Mapping[str, Any] | None:
            """The end, if it is known. UnknownRun if for long enough nobody has known the run."""
            answer = self._answer()
            if answer is not None:
                silence.break_()
                return end_of(answer)
            if silence.lasted() > self._wire.patience:
                raise self._unknown()
            return None

        return Feed(self._wire.board, self._ref, ended, recall=recall, prefix=self._wire.prefix)

    def _ask(self, entry: str, kwargs: Mapping[str, Any]) -> Answer:
        facts = {"run": self.id, "tenant": self._ref.tenant, "by": self._wire.submitter, **kwargs}
        answer = self._wire.post.ask(entry, facts, task_id=ids.new_run_id(), patience=self._wire.patience)
        if answer.error is not None:
            raise answer.error
        return answer

    def _begin(self, entry: str, arguments: Mapping[str, Any], key: str | None) -> Run:
        arguments = {"run": self.id, **arguments}
        return begun(self._wire, self._ref.tenant, entry, arguments, key=key, task_id=ids.new_run_id())

    def _answer(self) -> Answer | None:
        """The answer to the submission, which has the end of the run.

        Redis forgets answers when it is wiped; the submission is idempotent and is sent again.
        """
        answer = self._wire.post.answer(self._task_id)
        if answer is None and self._submission is not None and time.monotonic() - self._sent > RESEND:
            self._sent = time.monotonic()
            self._wire.post.send(self._submission.entry, self._submission.arguments, task_id=self._task_id)
        return answer

    def _unknown(self) -> errors.UnknownRun:
        hint = "it ended more than a day ago, or was never started: convergio runs show"
        return errors.UnknownRun(f"Redis knows no run '{self.id}'", hint=hint)

    def _state_by_answer(self) -> RunState:
        answer = self._wire.post.answer(self._task_id)
        if answer is None:
            raise self._unknown()
        ended = end_of(answer)
        return RunState(ended["state"]) if ended is not None else RunState.ACCEPTED

    def _outcome(self, data: Mapping[str, Any]) -> Any:
        state = RunState(data["state"])
        if state is RunState.SUCCEEDED:
            return data["output"]
        error: Mapping[str, Any] = data.get("error") or {}
        kind = errors.RunCancelled if state is RunState.CANCELLED else errors.RunFailed
        said = " ".join(str(error[name]) for name in ("code", "step", "message") if error.get(name))
        raise kind(said or None, hint=f"convergio runs show {self.id}", run=self.id)


def begun(wire: Wire, tenant: str, entry: str, arguments: Mapping[str, Any], *, key: str | None, task_id: str) -> Run:
    """Sends the message that begins a run, and waits until it is accepted. Raises what the entry refuses, NoWorker."""
    given = {**arguments, "tenant": tenant, "submitter": wire.submitter, **({} if key is None else {"key": key})}
    answer = wire.post.ask(entry, given, task_id=task_id, patience=wire.patience)
    if is_rejection(answer):
        raise answer.error or errors.ConvergioError(str(answer.result))
    run = answer.result.get("run", task_id) if answer.state == "SUBMITTED" else task_id
    return Run(wire, RunRef(tenant=tenant, run=run), Submission(entry=entry, arguments=given, task_id=task_id))


def end_of(answer: Answer) -> Mapping[str, Any] | None:
    """How a run ended, by the answer to its submission; None while it goes on."""
    if answer.state == "SUCCESS":
        return {"state": RunState.SUCCEEDED.value, "output": answer.result, "error": None}
    if answer.state != "FAILURE":
        return None
    state = RunState.CANCELLED if isinstance(answer.error, errors.RunCancelled) else RunState.FAILED
    error = answer.error
    facts = error.as_dict() if isinstance(error, errors.ConvergioError) else {"message": str(answer.result)}
    return {"state": state.value, "output": None, "error": facts}


def is_rejection(answer: Answer) -> bool:
    """Whether a submission failed as such, and not the run it named."""
    return answer.state == "FAILURE" and not isinstance(answer.error, errors.RunFailed | errors.RunCancelled)


def _seconds(timeout: str | float) -> float:
    try:
        return durations.seconds(timeout)
    except ValueError as error:
        raise errors.InvalidInput(f"timeout={timeout!r} {error}", hint=durations.EXPECTED) from error
