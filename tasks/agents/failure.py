"""What a model provider's failures mean for a step: one table from what happened to the errors of our tree."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC
from enum import StrEnum
from typing import Final, cast

from convergio.graphflow.model import errors
from convergio.tasks.agents.model import NO_KEY, ModelSettings

CONTEXT_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
"""OpenAI's code, and the type llama.cpp's server answers with."""

CONTEXT_WORDS: Final = ("prompt is too long", "exceeds the context window", "exceed context limit")
"""Anthropic has no code for it."""

FILTER_CODES: Final = frozenset({"content_filter", "ResponsibleAIPolicyViolation"})
PASSING_STATUS: Final = frozenset({408, 409, 425, 429})
"""Client errors that may pass; every 5xx may pass too."""

KEYS: Final = {
    "openai": "CONVERGIO_MODEL_API_KEY or OPENAI_API_KEY",
    "azure": "AZURE_OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "ollama": "the provider's api_key",
}
HINTS: Final = {
    403: "this key may not use this model",
    404: "check the model's name and the endpoint's URL (CONVERGIO_MODEL_NAME, CONVERGIO_MODEL_BASE_URL, or the file"
    " of CONVERGIO_MODELS)",
    413: "the request is too large for this provider: shorten the thread, or send smaller images",
}
SPENT_CODES: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
"""OpenAI sends these with 429, but waiting does not help."""

LONGEST: Final = 200


class Way(StrEnum):
    """How a call fails: by an answer with a status, without any, without a connection, or in the middle of one."""

    STATUS = "status"
    SILENCE = "silence"
    NO_CONNECTION = "no connection"
    BROKEN = "broken"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed call. `reached`: a model may have worked on it, so it is paid for. `said`: the provider's words."""

    way: Way
    reached: bool
    said: str = ""
    status: int = 0
    codes: frozenset[str] = frozenset()
    retry_after: float | None = None


def meaning(failure: Failure, model: ModelSettings) -> errors.ConvergioError:
    """The error of our tree: transient with the provider's Retry-After, or permanent; its hint says what to do."""
    failure = replace(failure, said=_unkeyed(failure.said, model.api_key))
    if failure.codes & CONTEXT_CODES or (failure.status == 400 and _has(failure.said, CONTEXT_WORDS)):
        hint = "shorten the prompt, lower max_tokens, or take a model with a larger context"
        return errors.ContextTooLong(f"{model.place}: {failure.said}", hint=hint)
    if failure.codes & FILTER_CODES:
        return withheld(model, failure.said)
    return _status(failure, model) if failure.way is Way.STATUS else _without_status(failure, model)


def _without_status(failure: Failure, model: ModelSettings) -> errors.ConvergioError:
    if failure.way is Way.SILENCE:
        hint = "is it overloaded? Raise CONVERGIO_MODEL_TIMEOUT, or name a fallback (docs/models.md)"
        return errors.ModelSilent(f"{model.place} was silent for {model.timeout_s:g} s", hint=hint)
    if failure.way is Way.NO_CONNECTION:
        hint = "is the model server running? See `convergio models check`"
        return errors.ModelUnavailable(f"no connection to {model.place}", hint=hint)
    if failure.way is Way.UNREADABLE and not failure.reached:
        hint = "the SDK does not take this request: is a name or a tool in it that this protocol has no form for?"
        return errors.ModelRefused(f"the call of {model.place} cannot be made: {failure.said}", hint=hint)
    hint = "nothing to do if it passes; else look at the provider, or at what is between it and here"
    return errors.AnswerBroken(f"the answer of {model.place} broke off: {failure.said}", hint=hint)


def unreadable(error: Exception) -> Failure:
    """What no SDK has an error for: garbage, if the provider has begun to answer."""
    return Failure(way=Way.UNREADABLE, reached=True, said=f"it cannot be read ({type(error).__name__})")


def withheld(model: ModelSettings, said: str) -> errors.AnswerWithheld:
    """The provider's filter, or the model itself, refuses."""
    hint = "ask for something else, or name a fallback for ANSWER_WITHHELD (docs/models.md)"
    return errors.AnswerWithheld(f"{model.place} refuses to answer: {said[:LONGEST] or 'no reason given'}", hint=hint)


def _status(failure: Failure, model: ModelSettings) -> errors.ConvergioError:
    status, said = failure.status, f"{model.place} answered {failure.status}: {failure.said}"
    if failure.codes & SPENT_CODES:
        return errors.ModelRefused(said, hint="the account's quota is used up")
    if status == 429:
        hint = "give the model limits of its own, or a fallback (docs/models.md)"
        return errors.RateLimited(said, retry_after=failure.retry_after, hint=hint)
    if status in PASSING_STATUS or status >= 500:
        hint = "the provider's trouble: look at its status page, or name a fallback (docs/models.md)"
        return errors.ProviderFailed(said, retry_after=failure.retry_after, hint=hint)
    if status == 401:
        return errors.ModelRefused(said, hint=f"check the API key ({KEYS[model.kind]})")
    return errors.ModelRefused(said, hint=HINTS.get(status, "the request itself is not accepted; see the answer"))


def _unkeyed(said: str, key: str) -> str:
    """Some servers quote the key that they refuse."""
    return said if key == NO_KEY else said.replace(key, "(the key)")


def _has(said: str, words: tuple[str, ...]) -> bool:
    return any(word in said.lower() for word in words)


def words_of(body: object, error: Exception) -> str:
    """The provider's own words, shortened: they may quote the prompt, which belongs into no log."""
    found = body
    if isinstance(found, dict):
        found = cast("dict[str, object]", found).get("error", cast(object, found))
    if isinstance(found, dict):
        found = cast("dict[str, object]", found).get("message")
    return str(found or error)[:LONGEST]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a `Retry-After` header, in either form, or of `retry-after-ms`, which OpenAI and Azure send too."""
    try:
        return max(0.0, float(headers.get("retry-after-ms", "")) / 1000)
    except ValueError:
        pass
    text = headers.get("retry-after", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        at = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - time.time())
