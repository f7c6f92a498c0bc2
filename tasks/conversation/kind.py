"""What type of conversation it is, and how its turns compare with a round robin's, measured for that type."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any

from convergio.tasks.conversation import tuning
from convergio.tasks.conversation.reading import Reader
from convergio.tasks.conversation.tuning import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """Conversations of one type that one policy led, and have ended. `turns`: their mean; `baseline`: what a round
    robin takes for this type; `saved`: by which share they took fewer, negative if more. None = not measured."""

    type: str
    policy: str
    conversations: int
    turns: float
    baseline: float | None
    saved: float | None


def of_task(task: str) -> str:
    """The type of a conversation with this task, as the configuration that ships has it."""
    return kind_of(task, tuning.load().kinds, _reader())


def kind_of(task: str, kinds: Mapping[str, Kind], reader: Reader) -> str:
    """The first type whose bound holds for what the task asks for; a type's own words make it that type at least."""
    requests = sum(1 for sentence in reader.read(task).sentences if "asking" in sentence.cues)
    names = list(kinds)
    fits = next((place for place, name in enumerate(names) if _holds(kinds[name], requests)), len(names) - 1)
    named = [place for place, name in enumerate(names) if reader.names_kind(name, task)]
    return names[max([fits, *named])]


def reduction(turns: float, kind: Kind) -> float | None:
    """By which share a conversation took fewer turns than round robin does for its type; None if that is not known.

    One conversation says little: the mean over many is the figure, the negative ones included.
    """
    return None if kind.baseline is None else 1 - turns / kind.baseline


def savings(ended: Iterable[Mapping[str, Any]], kinds: Mapping[str, Kind]) -> list[Savings]:
    """Of conversations that have ended (see `tables.ended`), by type and policy, in the order of the types."""
    groups: dict[tuple[str, str], list[int]] = {}
    for one in ended:
        groups.setdefault((one["type"], _policy(one["first"])), []).append(one["turns"])
    order = list(kinds)
    ranked = sorted(
        groups.items(), key=lambda group: (order.index(group[0][0]) if group[0][0] in kinds else len(order), group[0])
    )
    return [_savings(type_, policy, counts, kinds.get(type_, Kind())) for (type_, policy), counts in ranked]


def _savings(type_: str, policy: str, counts: list[int], kind: Kind) -> Savings:
    mean = fmean(counts)
    saved = reduction(mean, kind)
    return Savings(
        type=type_,
        policy=policy,
        conversations=len(counts),
        turns=round(mean, 2),
        baseline=kind.baseline,
        saved=None if saved is None else round(saved, 4),
    )


def _policy(chosen: str | None) -> str:
    """The policy that chose the first speaker; of a conversation that was forked, that is another run's to know."""
    return "?" if chosen is None else str(json.loads(chosen)["policy"])


def _holds(kind: Kind, requests: int) -> bool:
    return kind.requests is None or requests <= kind.requests


@lru_cache(maxsize=1)
def _reader() -> Reader:
    return Reader(tuning.load())
