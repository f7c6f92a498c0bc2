"""Where the embedded model is: what the stack tells its processes, and how they read it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

URL_VARIABLE = "CONVERGIO_EMBEDDED_MODEL_URL"
KEY_VARIABLE = "CONVERGIO_EMBEDDED_MODEL_KEY"
NAME_VARIABLE = "CONVERGIO_EMBEDDED_MODEL_NAME"


@dataclass(frozen=True, kw_only=True)
class ModelEndpoint:
    """An embedded model that is served: base URL for OpenAI clients, API key, and the model's name."""

    url: str
    key: str = field(repr=False)
    name: str

    @classmethod
    def given(cls, environment: Mapping[str, str] = os.environ) -> ModelEndpoint | None:
        """The one this process was told of; None when there is none. It yields to a model that the user configured."""
        url, key, name = (environment.get(variable) for variable in (URL_VARIABLE, KEY_VARIABLE, NAME_VARIABLE))
        return cls(url=url, key=key, name=name) if url and key and name else None

    @property
    def env(self) -> Mapping[str, str]:
        """What a process is told."""
        return {URL_VARIABLE: self.url, KEY_VARIABLE: self.key, NAME_VARIABLE: self.name}
