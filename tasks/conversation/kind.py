"""What type of conversation it is, and how its turns compare with a round robin's, measured for that type."""

from __future__ import annotations

from collections.abc import Mapping

from convergio.tasks.conversation.reading import Reader
from convergio.tasks.conversation.tuning import Kind


def kind_of(task: str, kinds: Mapping[str, Kind], reader: Reader) -> str:
    """The first type whose bound holds for what the task asks for; a type's own words make it that type at least."""
    requests = sum(1 for sentence in reader.read(task).sentences if "asking" in sentence.cues)
    names = list(kinds)
    fits = next((place for place, name in enumerate(names) if _holds(kinds[name], requests)), len(names) - 1)
    named = [place for place, name in enumerate(names) if reader.names_kind(name, task)]
    return names[max([fits, *named])]


def reduction(turns: int, kind: Kind) -> float | None:
    """By which share a conversation took fewer turns than round robin does for its type; None if that is not known.

    One conversation says little: the mean over many is the figure, the negative ones included.
    """
    return None if kind.baseline is None else 1 - turns / kind.baseline


def _holds(kind: Kind, requests: int) -> bool:
    return kind.requests is None or requests <= kind.requests
