"""What an attempt came to, in the form that crosses processes (JSON) and ends in the journal."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from convergio.graphflow.model import errors
from convergio.graphflow.model.states import StepState

PAYLOAD_LIMIT: Final = 32 * 1024
"""Bytes of JSON that travel through Redis: a larger input, output or record becomes a blob, larger other values are
refused."""

_ESCAPED_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""An even number of backslashes before it: an escaped backslash followed by "u0000" is harmless text."""

compact: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""A value as JSON, as it travels. Made once: `json.dumps` makes an encoder for each call."""

_strict: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows of a domain's own tables, by table name: the journaler writes them in the outcome's transaction."""


def encode(value: Any, *, what: str, limit: int = PAYLOAD_LIMIT) -> str:
    """`value` as JSON text; refuses what no store can keep: non-JSON values, NaN, NUL characters, more than `limit`
    bytes."""
    try:
        text = _strict(value)
    except (TypeError, ValueError, RecursionError) as error:
        hint = "return only dicts, lists, strings, finite numbers, booleans and None"
        raise errors.InvalidPayload(f"{what} is not JSON: {error}", hint=hint) from error
    if has_nul(text):
        raise errors.InvalidPayload(f"{what} holds a NUL character", hint="remove \\x00 from its strings")
    plain = text.isascii()
    size = len(text) if plain else len(text.encode("utf-8", "surrogatepass"))
    if size > limit:
        hint = "store it elsewhere and pass a reference"
        raise errors.PayloadTooLarge(f"{what} has {size} bytes of JSON, the limit is {limit}", hint=hint)
    if plain:
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise errors.InvalidPayload(f"{what} holds a lone surrogate", hint="decode its text properly") from error
    return text


def has_nul(text: str) -> bool:
    """Does a string in this JSON text hold a NUL character? PostgreSQL keeps none."""
    return "\\u0000" in text and _ESCAPED_NUL.search(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A terminal outcome of a step. Times are milliseconds of the board's clock (Redis TIME).

    `cache`: the digest of what was called with what, if other steps may use the outcome; `cached_from`: run/step whose
    outcome this one is.
    """

    state: StepState
    output: Any = None
    error: Mapping[str, Any] | None = None
    attempt: int = 1
    started_ms: int | None = None
    finished_ms: int | None = None
    worker: str | None = None
    tokens: int = 0
    rows: Rows = field(default_factory=dict)
    cache: str | None = None
    cached_from: str | None = None

    @classmethod
    def failed(cls, error: errors.ConvergioError, **rest: Any) -> Outcome:
        """The outcome of an attempt that ended with `error`."""
        return cls(state=StepState.FAILED, error=error.as_dict(), **rest)

    def as_json(self) -> str:
        """The journal's form; the output is checked by `encode` before."""
        body = {
            "state": self.state.value,
            "output": self.output,
            "error": self.error,
            "attempt": self.attempt,
            "started_ms": self.started_ms,
            "finished_ms": self.finished_ms,
            "worker": self.worker,
            "tokens": self.tokens,
            "rows": self.rows,
        }
        if self.cache is not None:
            body["cache"] = self.cache
        if self.cached_from is not None:
            body["cached_from"] = self.cached_from
        return compact(body)
