"""What the scored policy weighs and the words it reads by: read once from a file, checked whole, never changed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import pydantic
import yaml

from convergio.graphflow.model import errors
from convergio.tasks.conversation.acts import ACTS
from convergio.tasks.conversation.phrases import Phrases

FACTORS: Final = (
    "addressed",
    "expertise",
    "keywords",
    "phase",
    "collaboration",
    "performance",
    "recency",
    "complexity",
    "urgency",
    "order",
    "repetition",
    "refusal",
)
"""What a candidate is judged by. The last two are penalties: their weights are not positive."""

Words = tuple[str, ...]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]
FROZEN: Final = pydantic.ConfigDict(extra="forbid", frozen=True)


class Phase(pydantic.BaseModel):
    """A stage of a conversation: its words, who is good at it, and how much the number of turns leans to it."""

    model_config = FROZEN

    words: Words = pydantic.Field(min_length=1)
    domains: Words = ()
    until: int | None = None
    lean: Share = 0.0


class Cues(pydantic.BaseModel):
    """Words and phrases that tell what a sentence does. They count as whole words only."""

    model_config = FROZEN

    declined: Words
    waiting: Words
    failed: Words
    again: Words
    negation: Words
    asking: Words
    done: Words
    in_turn: Words
    collaboration: Words
    closing: Words


class Kind(pydantic.BaseModel):
    """A type of conversation: at most so many requests; `words` that name it; `baseline`, measured turns."""

    model_config = FROZEN

    requests: int | None = None
    words: Words = ()
    baseline: float | None = None


class Tuning(pydantic.BaseModel):
    """The whole file."""

    model_config = FROZEN

    weights: dict[str, float]
    stop: float
    epsilon: float = pydantic.Field(ge=0)
    window: int = pydantic.Field(ge=1)
    penalty_window: int = pydantic.Field(ge=1)
    trust: Share
    phases: dict[str, Phase] = pydantic.Field(min_length=1)
    domains: dict[str, Words] = pydantic.Field(min_length=1)
    cues: Cues
    acts: dict[str, dict[str, float]]
    urgency: dict[float, Words]
    kinds: dict[str, Kind] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _whole(self) -> Tuning:
        if wrong := set(self.weights) ^ set(FACTORS):
            raise ValueError(f"weights: unknown or missing factors {sorted(wrong)}")
        if positive := [name for name in FACTORS[-2:] if self.weights[name] > 0]:
            raise ValueError(f"weights: penalties above 0: {positive}")
        if unread := {act for row in self.acts.values() for act in row} - set(ACTS):
            raise ValueError(f"acts: unknown {sorted(unread)}")
        for name, phase in self.phases.items():
            if unknown := set(phase.domains) - set(self.domains):
                raise ValueError(f"phases.{name}: unknown domains {sorted(unknown)}")
        return self

    @cached_property
    def phrases(self) -> Phrases:
        """The cues, made ready for searching."""
        return Phrases({name: getattr(self.cues, name) for name in Cues.model_fields})

    @cached_property
    def alarms(self) -> tuple[tuple[float, re.Pattern[str]], ...]:
        """Signs of urgency and what they add."""
        return tuple((added, pattern(words)) for added, words in self.urgency.items())


def pattern(phrases: Iterable[str]) -> re.Pattern[str]:
    """Any of these, as whole words."""
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(phrases, key=len, reverse=True)))})\b", re.IGNORECASE)


@lru_cache(maxsize=8)
def load(path: Path | None = None) -> Tuning:
    """The tuning in a YAML file; without `path` the one that ships. Raises: errors.InvalidSetting, saying all of it."""
    place = str(path or "config/speakers.yaml")
    try:
        text = (path or resources.files("convergio.config") / "speakers.yaml").read_text(encoding="utf-8")
        return Tuning.model_validate(yaml.safe_load(text))
    except pydantic.ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise errors.InvalidSetting(f"the selection of speakers is not set up well: {said}", path=place) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise errors.InvalidSetting(f"the set-up of speaker selection cannot be read: {error}", path=place) from error
