"""Every setting, its default and what it means.

Each is the environment variable CONVERGIO_<NAME>, or a line in `.env`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "CONVERGIO_"
TIERS = ("small", "standard", "large")
"""Tiers of models that agents may ask for."""


class SettingError(ValueError):
    """A variable has a wrong value; the message names it and says what would be right."""


class Settings(BaseSettings):
    """All settings, validated whole, frozen."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True)

    home: Path = Field(Path(".convergio"), description="directory of the embedded stack: Valkey, SQLite, logs")
    redis_url: str = Field(
        "",
        description="broker and board: redis://host:6379/0, sentinel://a:26379;sentinel://b:26379/0?master_name=m; "
        "empty = the embedded Valkey",
    )
    journal_url: str = Field(
        "",
        description="journal, e.g. postgresql://user@host/db; empty = SQLite in HOME, unless redis_url is set",
    )
    key_prefix: str = Field(
        "convergio",
        description="first part of the board's keys; another one than this also of queues and results",
    )
    include: str = Field("", description="Python modules with your steps and workflows, separated by commas")
    workflows: str = Field("", description="directories with workflow YAML files, separated by commas")
    tenant: str = Field("default", description="tenant of runs submitted from this machine")
    submitter: str = Field("", description="who submits from this machine; empty = the user's login name")
    blob_limit: int = Field(
        16 * 1024 * 1024, ge=0, description="bytes of JSON that one input, output or record may have; 32 KB at least"
    )
    visibility_timeout: int = Field(
        15, ge=5, description="seconds after which a public entry of a dead worker runs again"
    )
    socket_timeout: float = Field(2.0, gt=0, description="seconds after which a silent Redis counts as away")
    journal_lag_events: int = Field(
        100_000, ge=1, description="events that SQL may be behind Redis; beyond that no run and no stream step begins"
    )
    journal_lag_seconds: float = Field(300.0, gt=0, description="the same in seconds of the oldest such event")
    memory_watermark: float = Field(
        0.9, gt=0, le=1, description="share of Redis' maxmemory that may be used; beyond that no run is accepted"
    )
    stream_retention: float = Field(
        600.0, ge=0, description="seconds that a conversation's stream stays in Redis when its run has left the board"
    )
    sqlite_synchronous: Literal["FULL", "NORMAL"] = Field(
        "FULL", description="FULL survives a power cut, NORMAL only a killed process"
    )
    concurrency: int = Field(8, ge=1, description="steps at once in one worker process: its threads, or its children")
    pool: Literal["threads", "solo", "prefork"] = Field(
        "threads", description="Celery pool of the workers; prefork for steps that compute, or may crash"
    )
    child_memory_mb: int = Field(
        0, ge=0, description="a prefork child that has grown beyond this is replaced after its step; 0 = never"
    )
    queues: str = Field("steps,turns,tools,control,convergio", description="queues that `convergio worker` serves")
    task_events: bool = Field(True, description="workers tell Flower about every step; Flower itself turns it on, too")
    drain_seconds: float = Field(25.0, gt=0, description="seconds a stopping worker has; what runs then is given back")
    model_name: str = Field(
        "", description="model of the agents, e.g. anthropic/NAME; empty = the embedded local model; or 'scripted'"
    )
    model_base_url: str = Field("", description="OpenAI-compatible endpoint; empty = OpenAI or the embedded model")
    model_api_key: SecretStr = Field(
        SecretStr(""), description="key of the model endpoint, or env:NAME, or file:PATH (OPENAI_API_KEY counts too)"
    )
    models: str = Field("", description="YAML file with providers, models, their limits and fallbacks (docs/models.md)")
    model_local: bool = Field(False, description="the endpoint is the embedded model: sample as was chosen for it")
    model_timeout: float = Field(120.0, gt=0, description="seconds one model call may take")
    model_threads: int = Field(1, ge=1, description="threads of the embedded model; more is slower on busy machines")
    model_tiers: str = Field(
        "", description="models of tiers, e.g. small=gpt-a,large=gpt-b; a tier that is not named has MODEL_NAME"
    )
    agents: str = Field(
        "", description="YAML file with a roster of agents, or a folder of them; empty = the roster that ships"
    )
    trusted_keys: str = Field(
        "", description="folder of public keys (ID.pub) by which definitions must be signed; empty = none need be"
    )
    require_signed: bool = Field(False, description="no definition of yours counts without a signature, keys or not")
    signing_passphrase: SecretStr = Field(SecretStr(""), description="opens private keys, and closes new ones")
    flower_port: int = Field(5555, ge=0, le=65535, description="port of `convergio flower`; 0 = any free one")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("WARNING", description="how much is logged")

    @field_validator("model_tiers")
    @classmethod
    def _tiers(cls, value: str) -> str:
        named = [one.partition("=") for one in _listed(value)]
        if wrong := [tier.strip() for tier, _, model in named if tier.strip() not in TIERS or not model.strip()]:
            raise ValueError(f"write TIER=MODEL with a tier of {', '.join(TIERS)}, not {', '.join(wrong)}")
        return value

    @field_validator("redis_url")
    @classmethod
    def _no_cluster(cls, value: str) -> str:
        if "cluster" in value.split("://", 1)[0]:
            raise ValueError("Redis Cluster cannot carry the board; use one server or Sentinel")
        return value

    @property
    def included(self) -> tuple[str, ...]:
        """Modules to import in workers and in the CLI."""
        return _listed(self.include)

    @property
    def workflow_dirs(self) -> tuple[Path, ...]:
        """Directories with workflow files."""
        return tuple(Path(name) for name in _listed(self.workflows))

    @property
    def tier_models(self) -> dict[str, str]:
        """Names of models by tier."""
        named = (one.partition("=") for one in _listed(self.model_tiers))
        return {tier.strip(): model.strip() for tier, _, model in named}

    @property
    def queue_names(self) -> tuple[str, ...]:
        """Queues of a worker."""
        return _listed(self.queues)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def load(**overrides: Any) -> Settings:
    """The settings of this process; `overrides` win over the environment. Raises SettingError naming the variable."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise SettingError("; ".join(lines)) from error


def _explain(problem: Mapping[str, Any]) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else "?"
    meaning = Settings.model_fields[name].description if name in Settings.model_fields else ""
    return f"{variable(name)}={problem.get('input')!r}: {problem['msg']} ({meaning})"


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def source(settings: Settings, name: str) -> str:
    """Where a value came from: the environment, a file, the command line, or the default."""
    if variable(name) in os.environ:
        return f"environment {variable(name)}"
    if name in settings.model_fields_set:
        return ".env or command line"
    return "default"
