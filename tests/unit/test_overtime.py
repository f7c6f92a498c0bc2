"""A prefork child ends only if the very body goes on whose step was taken from it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from celery import signals

from convergio.workers.overtime import Overtime


@dataclass
class Child:
    """What the watched process did; `wait` lets the time of grace be over."""

    said: list[str] = field(default_factory=list[str])
    timers: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])

    def wait(self) -> list[str]:
        for over in self.timers:
            over()
        return self.said


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Child:
    made = Child()

    class Timer:
        def __init__(self, _seconds: float, over: Callable[..., None], args: tuple[Any, ...]) -> None:
            self.over, self.args = over, args

        def start(self) -> None:
            made.timers.append(lambda: self.over(*self.args))

    def leave(code: int) -> None:
        made.said.append(f"exit {code}")

    monkeypatch.setattr(threading, "Timer", Timer)
    monkeypatch.setattr(os, "_exit", leave)
    return made


def test_a_body_that_goes_on_without_its_step_ends_its_process_once_all_is_said(child: Child) -> None:
    lost = Overtime(lambda: child.said.append("handed over")).watch()
    lost()
    assert child.wait() == ["handed over", "exit 0"]


def test_a_body_that_ends_in_time_costs_nothing(child: Child) -> None:
    lost = Overtime(lambda: child.said.append("handed over")).watch()
    lost()
    signals.task_postrun.send(sender=None)
    assert child.wait() == []


def test_a_step_that_is_lost_after_its_body_ended_leaves_the_next_body_alone(child: Child) -> None:
    """Its outcome is told and waits for SQL; the board is wiped, and does not give the claim back."""
    overtime = Overtime(lambda: child.said.append("handed over"))
    lost = overtime.watch()
    signals.task_postrun.send(sender=None)
    overtime.watch()
    lost()
    assert child.wait() == []
