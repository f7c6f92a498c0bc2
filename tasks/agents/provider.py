"""What a model provider's failures mean for a step: one table from the `openai` client's exceptions to our errors."""

from __future__ import annotations

from typing import Final, cast

import httpx2
import openai

from convergio.graphflow.model import errors
from convergio.tasks.agents.model import ModelSettings

CONTEXT_CODES: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
"""OpenAI's code, and the type llama.cpp's server answers with."""

PASSING_STATUS: Final = frozenset({408, 409, 425, 429})
"""Client errors that may pass; every 5xx may pass too."""

HINTS: Final = {
    401: "check the API key (CONVERGIO_MODEL_API_KEY or OPENAI_API_KEY)",
    403: "this key may not use this model",
    404: "check the model's name and the endpoint's URL (CONVERGIO_MODEL_NAME, CONVERGIO_MODEL_BASE_URL)",
}
SPENT_CODES: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
"""OpenAI sends these with 429, but waiting does not help."""


def translated(error: openai.OpenAIError, model: ModelSettings) -> errors.ConvergioError:
    """The error of our tree for `error`: transient with the provider's Retry-After, or permanent with a hint."""
    match error:
        case openai.APIStatusError():
            return _status(error, model)
        case openai.APITimeoutError():
            return errors.Transient(f"{model.place} did not answer within {model.timeout_s:g} s")
        case openai.APIConnectionError():
            hint = "is the model server running? See `convergio doctor`"
            return errors.ModelUnavailable(f"no connection to {model.place}", hint=hint)
        case openai.APIError() if _too_long(error):
            return _context(error, model)
        case _:
            # An error event in the middle of a stream has no status; it is the server's trouble until it repeats.
            return errors.Transient(f"{model.place} broke off: {_words(error)}")


def never_reached(error: openai.OpenAIError) -> bool:
    """True if no model can have worked on the call: it was refused, or no connection came about."""
    return isinstance(error, openai.APIStatusError) or isinstance(
        error.__cause__, httpx2.ConnectError | httpx2.ConnectTimeout
    )


def _status(error: openai.APIStatusError, model: ModelSettings) -> errors.ConvergioError:
    status, said = error.status_code, f"{model.place} answered {error.status_code}: {_words(error)}"
    if _too_long(error):
        return _context(error, model)
    if error.code in SPENT_CODES:
        return errors.ModelRefused(said, hint="the account's quota is used up")
    if status in PASSING_STATUS or status >= 500:
        return errors.Transient(said, retry_after=_retry_after(error))
    return errors.ModelRefused(said, hint=HINTS.get(status, "the request itself is not accepted; see the answer"))


def _context(error: openai.APIError, model: ModelSettings) -> errors.ContextTooLong:
    hint = "shorten the prompt, lower max_tokens, or take a model with a larger context"
    return errors.ContextTooLong(f"{model.place}: {_words(error)}", hint=hint)


def _too_long(error: openai.APIError) -> bool:
    return bool({error.code, error.type} & CONTEXT_CODES)


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds of a `Retry-After` header; its date form is rare among model providers and is left out."""
    try:
        seconds = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, seconds)


def _words(error: openai.OpenAIError) -> str:
    """The provider's own words, shortened: they may quote the prompt, which belongs into no log."""
    body: object = getattr(error, "body", None)
    said = cast(dict[str, object], body).get("message") if isinstance(body, dict) else None
    return str(said or error)[:200]
