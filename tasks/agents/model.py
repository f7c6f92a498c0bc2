"""Which model answers, as one hashable value."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal

from convergio.graphflow.model import errors

SCRIPTED: Final = "scripted"
DEFAULT_OPENAI_MODEL: Final = "gpt-4o-mini"
NO_KEY: Final = "none"
"""Sent where no key is needed: the client insists on one, and would take OPENAI_API_KEY from the environment."""

Kind = Literal["openai", "azure", "anthropic", "ollama"]
PLACES: Final = {"openai": "OpenAI", "azure": "Azure OpenAI", "anthropic": "Anthropic", "ollama": "Ollama"}

PASSING: Final = frozenset(
    error.code
    for error in (
        errors.RateLimited,
        errors.ProviderFailed,
        errors.AnswerBroken,
        errors.ModelSilent,
        errors.ModelUnavailable,
    )
)
"""On what another model is asked, unless the definition says otherwise: on what may pass, and is not our own limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What all workers together may ask of one model. None: no such limit."""

    concurrent: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    def __bool__(self) -> bool:
        return not (self.concurrent is self.requests_per_minute is self.tokens_per_minute is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """One model behind one endpoint, or the scripted one.

    `kind`: the protocol that the endpoint speaks; `provider`: what the registry calls it, empty for the endpoint of
    the settings. `base_url` None = the provider's own. `timeout_s` bounds connecting and every silence of the server,
    not the whole answer. `stop` ends prose only; typed answers end by themselves. `pace_s`: seconds between two words
    of the scripted model. `fallbacks` are asked in their order when this one fails with an error of `fall_on` (codes).
    """

    name: str = SCRIPTED
    kind: Kind = "openai"
    provider: str = ""
    base_url: str | None = None
    api_key: str = field(default=NO_KEY, repr=False)
    api_version: str | None = None
    timeout_s: float = 120.0
    temperature: float | None = None
    frequency_penalty: float | None = None
    stop: tuple[str, ...] = ()
    pace_s: float = 0.0
    vision: bool = False
    limits: Limits = Limits()
    fallbacks: tuple[ModelSettings, ...] = ()
    fall_on: frozenset[str] = PASSING

    @property
    def scripted(self) -> bool:
        """True if no language model answers at all."""
        return self.name == SCRIPTED

    @property
    def title(self) -> str:
        """What the ledger calls it: `provider/model`, or the model alone at the endpoint of the settings."""
        return f"{self.provider}/{self.name}" if self.provider else self.name

    @property
    def place(self) -> str:
        """The model in words, for people: `doctor`, the demo's heading, error messages."""
        if self.scripted:
            return "the scripted model (no language model is configured; its answers are made up from the question)"
        return f"{self.name} at {self.base_url or PLACES[self.kind]}"

    def named(self, name: str | None) -> ModelSettings:
        """The same endpoint with another model; the scripted model stays what it is."""
        return self if name is None or self.scripted else replace(self, name=name)


def local_model(url: str, key: str, *, name: str, timeout_s: float = 120.0) -> ModelSettings:
    """The embedded model server's model. Its sampling was chosen with SmolLM2-135M-Instruct.

    At temperature 0 the demo says the same every time; without the penalty and the stop a model of this size repeats
    itself after its first paragraph.
    """
    return ModelSettings(
        name=name,
        base_url=url,
        api_key=key,
        timeout_s=timeout_s,
        temperature=0.0,
        frequency_penalty=0.2,
        stop=("\n\n",),
    )


def model_settings(
    *,
    name: str | None = None,
    base_url: str | None = None,
    api_key: str | None = None,
    local: ModelSettings | None = None,
    timeout_s: float = 120.0,
    pace_s: float = 0.0,
) -> ModelSettings:
    """Who answers: the endpoint that is configured, else OpenAI if there is a key, else `local`, else the script.

    None or empty = not configured. `name` "scripted" asks for the scripted model whatever else is configured.
    `local` is None where no local model server runs.

    Raises: errors.InvalidSetting for a name that nobody serves.
    """
    if name == SCRIPTED:
        return ModelSettings(pace_s=pace_s)
    if base_url:
        return ModelSettings(name=name or "default", base_url=base_url, api_key=api_key or NO_KEY, timeout_s=timeout_s)
    if api_key:
        return ModelSettings(name=name or DEFAULT_OPENAI_MODEL, api_key=api_key, timeout_s=timeout_s)
    if name and (local is None or local.name != name):
        hint = "set CONVERGIO_MODEL_BASE_URL or CONVERGIO_MODEL_API_KEY too, or leave the name empty"
        raise errors.InvalidSetting(f"CONVERGIO_MODEL_NAME is '{name}', but no endpoint serves it", hint=hint)
    return local or ModelSettings(pace_s=pace_s)
