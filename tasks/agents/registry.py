"""Which models there are: `provider/model` -> where it is, how it is asked, its limits, and who answers instead."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

import pydantic
import yaml

from convergio.graphflow.flow import spelling
from convergio.graphflow.model import errors
from convergio.tasks.agents import secret
from convergio.tasks.agents.model import NO_KEY, PASSING, SCRIPTED, Kind, Limits, ModelSettings

FORM: Final = pydantic.ConfigDict(extra="forbid", frozen=True)
Positive = Annotated[int, pydantic.Field(ge=1)]

FALLING: Final = frozenset({*PASSING, "MODEL_BUSY", "MODEL_REFUSED", "CONTEXT_TOO_LONG", "ANSWER_WITHHELD"})
"""On what another model may be asked."""

SEEING: Final = ("gpt-4o", "gpt-4.1", "gpt-5", "o3", "o4-", "claude-", "llava", "llama3.2-vision")
"""What names of models begin with that see images, as their providers say; of any other it must be said."""


class ProviderForm(pydantic.BaseModel):
    """An endpoint. `url` none: the provider's own."""

    model_config = FORM

    kind: Kind = "openai"
    url: str | None = None
    api_key: str | None = None
    api_version: str | None = None
    timeout: float | None = pydantic.Field(default=None, gt=0)

    @pydantic.field_validator("api_key")
    @classmethod
    def _reference(cls, value: str | None) -> str | None:
        if value is not None and not secret.is_reference(value):
            raise ValueError(f"it holds a secret; {secret.HINT}")
        return value

    @pydantic.field_validator("url")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if value is not None and (not value.startswith(("http://", "https://")) or "@" in value):
            raise ValueError("write http://HOST/... or https://HOST/..., without a password")
        return value

    @pydantic.model_validator(mode="after")
    def _place(self) -> ProviderForm:
        if self.kind == "azure" and not self.url:
            raise ValueError("Azure has no endpoint of its own: write url, https://NAME.openai.azure.com")
        return self


class LimitsForm(pydantic.BaseModel):
    """What all workers together may ask."""

    model_config = FORM

    concurrent: Positive | None = None
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None


class FallbackForm(pydantic.BaseModel):
    """Who is asked instead, in this order, and after which errors (their codes)."""

    model_config = FORM

    to: tuple[str, ...] = pydantic.Field(min_length=1, max_length=8)
    when: frozenset[str] = PASSING

    @pydantic.field_validator("when")
    @classmethod
    def _codes(cls, value: frozenset[str]) -> frozenset[str]:
        if strangers := value - FALLING:
            raise ValueError(f"no other model is asked on {', '.join(sorted(strangers))}: {', '.join(sorted(FALLING))}")
        return value


class ModelForm(pydantic.BaseModel):
    """What is said of one model beyond its name."""

    model_config = FORM

    vision: bool | None = None
    temperature: float | None = pydantic.Field(default=None, ge=0, le=2)
    limits: LimitsForm = LimitsForm()
    fallback: FallbackForm | None = None


class Document(pydantic.BaseModel):
    """A file of models."""

    model_config = FORM

    default: str | None = None
    providers: dict[str, ProviderForm] = {}
    models: dict[str, ModelForm] = {}


SHIPPED: Final[Mapping[str, ProviderForm]] = MappingProxyType(
    {
        "openai": ProviderForm(kind="openai", api_key="env:OPENAI_API_KEY"),
        "anthropic": ProviderForm(kind="anthropic", api_key="env:ANTHROPIC_API_KEY"),
        "ollama": ProviderForm(kind="ollama"),
    }
)
"""Providers that are known without a file."""


@dataclass(frozen=True, kw_only=True)
class Registry:
    """The models of a process. `default`: who answers where no model is named; `closed`: nobody else ever answers."""

    default: ModelSettings
    document: Document = field(default_factory=Document)
    timeout_s: float = 120.0
    closed: bool = False

    def named(self, name: str | None) -> ModelSettings:
        """The model of this name: `provider/model`, or a model at the default one's endpoint.

        Raises: errors.UnknownModel with the nearest name; errors.InvalidSetting if its key is not there.
        """
        return self._with_fallbacks(self._alone(name))

    def titles(self) -> Iterator[str]:
        """The models that something is known of, the default one first."""
        yield self.default.title
        yield from (name for name in self.document.models if name != self.default.title)

    def provider(self, name: str) -> ProviderForm | None:
        """The provider of this name; one's own before those that ship."""
        return self.document.providers.get(name) or SHIPPED.get(name)

    def _alone(self, name: str | None) -> ModelSettings:
        if name is None or name == self.default.title or self.closed:
            return self._dressed(self.default)
        if name == SCRIPTED:
            return ModelSettings(pace_s=self.default.pace_s)
        provider, slash, model = name.partition("/")
        known = self.provider(provider) if slash and model else None
        if known is not None:
            return self._dressed(self._at(provider, known, model))
        if slash and self.document.providers:  # whoever names providers means one by what is before the slash
            names = [*self.document.providers, *SHIPPED]
            hint = spelling.did_you_mean(provider, names) or f"there are: {', '.join(names)}"
            raise errors.UnknownModel(f"there is no provider '{provider}' for model '{name}'", hint=hint)
        return self._dressed(self.default.named(name))

    def _at(self, provider: str, known: ProviderForm, model: str) -> ModelSettings:
        url = known.url
        if known.kind == "ollama" and url is None:
            host = os.environ.get("OLLAMA_HOST", "")
            url = host if "://" in host or not host else f"http://{host}"
        return ModelSettings(
            name=model,
            kind=known.kind,
            provider=provider,
            base_url=url or None,
            api_key=NO_KEY if known.api_key is None else secret.resolved(known.api_key),
            api_version=known.api_version,
            timeout_s=known.timeout or self.timeout_s,
        )

    def _dressed(self, model: ModelSettings) -> ModelSettings:
        said = self.document.models.get(model.title, ModelForm())
        seeing = model.name.startswith(SEEING) if said.vision is None else said.vision
        limits = Limits(**said.limits.model_dump()) or model.limits
        temperature = model.temperature if said.temperature is None else said.temperature
        return replace(model, vision=seeing or model.vision, limits=limits, temperature=temperature)

    def _with_fallbacks(self, model: ModelSettings) -> ModelSettings:
        said = self.document.models.get(model.title)
        if said is None or said.fallback is None or self.closed:
            return model
        others = tuple(self._alone(name) for name in said.fallback.to if name != model.title)
        return replace(model, fallbacks=others, fall_on=said.fallback.when)


def of(path: Path | None, *, timeout_s: float) -> Registry:
    """The models of a file, and the providers that ship; who answers by default is to be added."""
    document = Document() if path is None else read(path)
    return Registry(default=ModelSettings(), document=document, timeout_s=timeout_s)


def chosen(document: Document, *, name: str, base_url: str) -> str | None:
    """The model of a known provider that is to answer by default: that of the settings, else of the file."""
    if base_url or name == SCRIPTED:
        return None
    if name:
        provider, slash, model = name.partition("/")
        known = provider in document.providers or provider in SHIPPED
        return name if slash and model and known else None
    return document.default


def read(path: Path) -> Document:
    """A file of models. Raises: errors.InvalidSetting with every problem; no value is quoted, as it may be a secret."""
    try:
        return Document.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{_path(fault['loc'])}: {fault['msg']}" for fault in error.errors(include_input=False))
        raise errors.InvalidSetting(f"the models are not valid: {problems}", path=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" in line {mark.line + 1}"
        raise errors.InvalidSetting(f"the models cannot be read: no YAML{where}", path=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise errors.InvalidSetting(f"the models cannot be read: {error}", path=str(path)) from error


def _path(parts: tuple[Any, ...]) -> str:
    return ".".join(map(str, parts)) or "models"
