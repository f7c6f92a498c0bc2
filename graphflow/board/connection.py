"""The way to the board: connections that know which server they talk to, and the epoch all scripts are called with.

A server that the epoch was not made on (restarted, failed over) is another board, whether or not it lost data. So
every new connection reads INFO `run_id` first, and no script leaves on a connection whose server is not the epoch's.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from convergio.graphflow.board import address
from convergio.graphflow.board.keys import SCHEMA, Epoch, Keys
from convergio.graphflow.model import errors

SOCKET_TIMEOUT: Final = 2.0
"""Seconds after which a silent server counts as away (architecture: worst-case recovery)."""

UNREACHABLE: Final = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.BusyLoadingError,
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
    OSError,
)
"""A server that does not answer, or not with what we asked for: what was asked is asked again later."""


NEW_WORK: Final = frozenset({"adopt", "start"})
"""Scripts that a server without memory refuses. All others go on there: what runs must be able to end."""


LIMITED: Final = frozenset({"arrive", "ask", "leave", "park", "reassert"})
"""Scripts that deal with concurrency keys."""


@dataclass(frozen=True, slots=True)
class Call:
    """One script with its keys and its arguments, the epoch's token left out."""

    name: str
    keys: Sequence[str]
    args: Sequence[Any]


@cache
def script(name: str, then: str = "") -> tuple[str, str]:
    """The text of a script, and its SHA-1 for EVALSHA. `then`: a second one that follows in the same move."""
    flags = "" if name in NEW_WORK else "#!lua flags=allow-oom\n"
    text = flags + _source("shared/prelude") + _source("shared/events") + _source("shared/grant")
    text += _source("shared/limits") if name in LIMITED else ""
    if then:
        parts = {"first": name, "second": then}
        text += "".join(f"local function {part}(KEYS, ARGV)\n{_source(one)}end\n" for part, one in parts.items())
        text += _source("shared/both")
    else:
        text += _source(name)
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


Whole = tuple[tuple[str, str], Sequence[str], Sequence[Any]]
"""One call of the server: a script's text and SHA-1, its keys, its arguments."""


def _whole(first: Call, second: Call | None) -> Whole:
    """One script, or two in one move."""
    if second is None:
        return script(first.name), first.keys, first.args
    args = [len(first.keys), len(first.args), *first.args, *second.args]
    return script(first.name, second.name), [*first.keys, *second.keys], args


def _parts(answer: list[Any], second: Call | None) -> tuple[list[Any], list[Any]]:
    """What came of a call that `_whole` made: of the first script, and of the second one, if it was called."""
    if second is None:
        return answer, []
    return answer[0], answer[1] if len(answer) > 1 else []


def _source(name: str) -> str:
    return (resources.files("convergio.graphflow.board") / "lua" / f"{name}.lua").read_text()


def pool(url: str, *, socket_timeout: float = SOCKET_TIMEOUT, **options: Any) -> redis.ConnectionPool:
    """Connections to the server behind `url`, or behind its Sentinels; a cluster is refused in words."""
    if "cluster" in urlsplit(url).scheme:
        hint = "use one server (redis://, rediss://, unix://) or Sentinel"
        raise errors.UnsupportedServer(
            "Redis Cluster cannot carry the board: its scripts touch keys of many slots", hint=hint
        )
    options = {
        "decode_responses": True,
        "protocol": 2,
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": socket_timeout,
        "retry": Retry(NoBackoff(), 0),
        **options,
    }
    if url.startswith("sentinel"):
        return _watched(address.sentinels_of(url), options)
    return redis.ConnectionPool.from_url(url, **options)


def _watched(sentinels: address.Sentinels, options: dict[str, Any]) -> redis.ConnectionPool:
    """Connections to whatever server the Sentinels call the primary when a connection is made."""
    from redis import sentinel  # only here: nobody else needs it

    patience = {name: options[name] for name in ("socket_timeout", "socket_connect_timeout")}
    watchers: Any = sentinel  # redis-py has no types for it
    manager = watchers.Sentinel(sentinels.hosts, sentinel_kwargs={**patience, "retry": Retry(NoBackoff(), 0)})
    made = watchers.SentinelConnectionPool(sentinels.master, manager, **{**options, **sentinels.options})
    return cast(redis.ConnectionPool, made)


class Wire(Protocol):
    """A connection of redis-py, which has no types of its own; `board_server` is what `_greet` learnt."""

    board_server: str

    def connect(self) -> None: ...
    def on_connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def send_packed_command(self, command: Sequence[bytes], check_health: bool = True) -> None: ...
    def send_command(self, *words: Any) -> None: ...
    def read_response(self) -> Any: ...


def _greet(connection: Wire) -> None:
    connection.on_connect()
    connection.send_command("INFO", "server")
    try:
        answer = connection.read_response()
    except redis.exceptions.NoPermissionError as error:
        connection.disconnect()
        raise _nameless() from error
    text = answer.decode() if isinstance(answer, bytes) else str(answer)
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    if "run_id" not in lines:
        connection.disconnect()
        raise _nameless()
    connection.board_server = lines["run_id"]


def _nameless() -> errors.UnsupportedServer:
    hint = "let this user call INFO (ACL SETUSER ... +info): a board is bound to the server that it was made on"
    return errors.UnsupportedServer("the server does not tell its run_id", hint=hint)


class Link:
    """Calls scripts under the current epoch. One per process; safe for threads."""

    def __init__(self, url: str, *, prefix: str = "convergio", socket_timeout: float = SOCKET_TIMEOUT) -> None:
        self.prefix = prefix
        self.journal: str | None = None
        """id of the journal that the board must belong to; None: whichever"""
        self.pool = pool(url, socket_timeout=socket_timeout, redis_connect_func=_greet)
        self.client = redis.Redis(connection_pool=self.pool)
        self._idle: deque[Wire] = deque()
        self._epoch: Epoch | None = None
        self._keys = Keys(prefix, 0)
        self._lock = threading.Lock()

    def close(self) -> None:
        """Closes every connection."""
        while self._idle:
            self._idle.pop().disconnect()
        self.pool.disconnect()

    # --- the epoch ------------------------------------------------------------------------------------------------

    def epoch(self) -> Epoch:
        """The epoch that scripts are called with; read from the board when none is known."""
        return self._epoch or self.refresh()

    def keys(self, epoch: Epoch) -> Keys:
        known = self._keys
        if known.number != epoch.number:
            known = self._keys = Keys(self.prefix, epoch.number)
        return known

    def refresh(self) -> Epoch:
        """Reads the epoch key. Raises BoardRebuilding if there is none, or if another server made it, and
        AnotherJournal if the board is not that of `journal`."""
        with self._lock:
            text, owner, server = self._peek()
            self._epoch = None
            if self.journal is not None and owner not in (None, self.journal):
                raise another_journal(str(owner), self.journal)
            if text is None:
                raise errors.BoardRebuilding()
            epoch = Epoch.parse(text)
            if epoch.schema != SCHEMA:
                hint = "run the same version of Convergio everywhere, or rebuild the board: convergio rebuild"
                raise errors.SchemaMismatch(f"the board has schema {epoch.schema}, this is {SCHEMA}", hint=hint)
            if epoch.server != server:
                raise errors.BoardRebuilding()
            self._epoch = epoch
            return epoch

    def server(self) -> str:
        """INFO run_id of the server that answers now."""
        return self._peek()[2]

    def _peek(self) -> tuple[str | None, str | None, str]:
        """The epoch key, whose board it is, and the server, over one and the same connection."""
        connection = self._take()
        names = Keys(self.prefix, 0)
        try:
            connection.send_command("MGET", names.epoch, names.owner)
            text, owner = cast("list[str | None]", connection.read_response())
            server = connection.board_server
        except UNREACHABLE as error:
            connection.disconnect()
            raise unavailable(error) from error
        self._idle.append(connection)
        return text, owner, server

    def forget(self, epoch: Epoch) -> None:
        """The board said that `epoch` is not its own: read it again before the next script."""
        with self._lock:
            if self._epoch == epoch:
                self._epoch = None

    # --- scripts --------------------------------------------------------------------------------------------------

    def call(self, name: str, epoch: Epoch, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
        """One script. Its answer; raises BoardRebuilding or BoardUnavailable. All scripts may be asked twice."""
        return self._call(script(name), epoch, keys, args)

    def call_each(self, epoch: Epoch, calls: Sequence[tuple[Call, Call | None]]) -> list[tuple[list[Any], list[Any]]]:
        """Many calls like those of `call_both`, in two moves: the first one of each kind alone, so that the server
        knows its script, then all others. What is one call is one move of its own there.

        Their answers; raises like `call`.
        """
        wholes = [_whole(*both) for both in calls]
        known, answers = set[tuple[str, str]](), dict[int, list[Any]]()
        for place, (text, keys, args) in enumerate(wholes):
            if text not in known:
                known.add(text)
                answers[place] = self._call(text, epoch, keys, args)
        rest = [place for place in range(len(wholes)) if place not in answers]
        try:
            told = self._at_once(epoch, [wholes[place] for place in rest])
        except (redis.ResponseError, *UNREACHABLE):
            self._drop_idle()
            told = [self._call(text, epoch, keys, args) for text, keys, args in (wholes[place] for place in rest)]
        answers |= zip(rest, told, strict=True)
        if any(answer[0] == "REBUILD" for answer in told):
            self.forget(epoch)
            raise errors.BoardRebuilding()
        return [_parts(answers[place], second) for place, (_, second) in enumerate(calls)]

    def _at_once(self, epoch: Epoch, wholes: Sequence[Whole]) -> list[list[Any]]:
        if not wholes:
            return []
        connection = self._of_board(epoch)
        try:
            packed = [_pack(("EVALSHA", sha, len(keys), *keys, epoch.text, *args)) for (_, sha), keys, args in wholes]
            connection.send_packed_command(packed, check_health=False)
            answers = [cast("list[Any]", connection.read_response()) for _ in wholes]
        except BaseException:  # answers that nobody has read may be on their way
            connection.disconnect()
            raise
        self._idle.append(connection)
        return answers

    def call_both(self, epoch: Epoch, first: Call, second: Call | None) -> tuple[list[Any], list[Any]]:
        """Two scripts in one move. Their answers; that of the second is empty if the first could not do its work."""
        text, keys, args = _whole(first, second)
        return _parts(self._call(text, epoch, keys, args), second)

    def _call(self, text: tuple[str, str], epoch: Epoch, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
        try:
            answer = self._once(text, epoch, keys, args)
        except redis.ConnectionError:
            self._drop_idle()
            answer = self._again(text, epoch, keys, args)
        except UNREACHABLE as error:
            raise unavailable(error) from error
        if answer[0] == "REBUILD":
            self.forget(epoch)
            raise errors.BoardRebuilding()
        return answer

    def _again(self, text: tuple[str, str], epoch: Epoch, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
        try:
            return self._once(text, epoch, keys, args)
        except UNREACHABLE as error:
            raise unavailable(error) from error

    def _once(self, source: tuple[str, str], epoch: Epoch, keys: Sequence[str], args: Sequence[Any]) -> list[Any]:
        text, sha = source
        connection = self._of_board(epoch)
        try:
            try:
                answer = _ask(connection, ("EVALSHA", sha, len(keys), *keys, epoch.text, *args))
            except redis.exceptions.NoScriptError:
                answer = _ask(connection, ("EVAL", text, len(keys), *keys, epoch.text, *args))
        except UNREACHABLE:
            connection.disconnect()
            raise
        except redis.ResponseError:
            self._idle.append(connection)
            raise
        self._idle.append(connection)
        return answer

    def _of_board(self, epoch: Epoch) -> Wire:
        """A connection to the server that the board was made on. Raises BoardRebuilding if another one answers."""
        connection = self._take()
        if connection.board_server != epoch.server:
            self._idle.append(connection)
            self.forget(epoch)
            raise errors.BoardRebuilding()
        return connection

    def _drop_idle(self) -> None:
        """One broken connection means that the others are probably broken too: the next call makes a new one."""
        for _ in range(len(self._idle)):
            try:
                self._idle.pop().disconnect()
            except IndexError:
                return

    def _take(self) -> Wire:
        """A connected connection: its server is known before anything is sent on it."""
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._made()
        try:
            connection.connect()
        except UNREACHABLE as error:
            connection.disconnect()
            raise unavailable(error) from error
        return connection

    def _made(self) -> Wire:
        # Not by the pool: it counts what it makes, takes back only what it lent, and after a hundred lost ones it would
        # make no more as long as the process lives.
        return cast(Wire, self.pool.connection_class(**self.pool.connection_kwargs))


_pack = cast(Callable[[tuple[Any, ...]], bytes], hiredis.pack_command)


def _ask(connection: Wire, command: tuple[Any, ...]) -> list[Any]:
    # redis-py's own packing looks at each word once more first, and a script has many.
    connection.send_packed_command([_pack(command)], check_health=False)
    return cast("list[Any]", connection.read_response())


def another_journal(owner: str, ours: str) -> errors.AnotherJournal:
    """The board is not that of our journal: nobody who has ours may touch it."""
    hint = (
        "set CONVERGIO_JOURNAL_URL to the journal of this board, or CONVERGIO_KEY_PREFIX or CONVERGIO_REDIS_URL to a"
        " board of your own; only if that journal is gone for good: convergio rebuild --adopt"
    )
    return errors.AnotherJournal(f"the board belongs to journal {owner[:8]}, and this is {ours[:8]}", hint=hint)


def unavailable(error: Exception) -> errors.BoardUnavailable:
    """`error` of the client library in our words."""
    if isinstance(error, redis.OutOfMemoryError):
        hint = "raise its maxmemory; runs that are on the board go on meanwhile, and make room"
        return errors.BoardUnavailable("Redis has no memory left", hint=hint)
    if isinstance(error, redis.AuthenticationError):
        hint = "check user and password in CONVERGIO_REDIS_URL"
        return errors.BoardUnavailable(f"Redis does not let us in: {error}", hint=hint)
    hint = "start it (convergio up), or set CONVERGIO_REDIS_URL to a running server"
    return errors.BoardUnavailable(f"Redis does not answer: {error}", hint=hint)
