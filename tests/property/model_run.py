"""A run on the model board, and what its scripts ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from convergio.graphflow.board import scripts


@dataclass(slots=True)
class ModelRun:
    """A run's hash, inbox and feed."""

    values: dict[str, str] = field(default_factory=dict[str, str])
    inbox: list[str] = field(default_factory=list[str])
    feed: list[dict[str, str]] = field(default_factory=list[dict[str, str]])


def idle(run: ModelRun) -> bool:
    """Nothing contends for the run, and it goes on after one more step has ended."""
    values = run.values
    marks = "@stop" in values or "@lock" in values
    return values["@state"] == "RUNNING" and not marks and not run.inbox and int(values["@open"]) > 1


def simple(values: Mapping[str, str], one: scripts.Following) -> bool:
    """The step waits, was never rung, and a join does not fire by one more edge."""
    waits = f"s:{one.step}" not in values and f"n:{one.step}" not in values
    return waits and (one.bell is not None or int(values.get(f"j:{one.step}", 0)) + 1 < one.edges)


def drop(sets: dict[str, dict[str, float]], name: str, member: str) -> None:
    sets.get(name, {}).pop(member, None)


def put_or_drop(members: dict[str, float], member: str, due: str) -> None:
    if due == "":
        members.pop(member, None)
    else:
        members[member] = float(due)
