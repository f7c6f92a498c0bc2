"""A store that is away fills no log: it is said when it goes, once a minute, and when it is back."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from convergio.graphflow.engine import outage
from convergio.graphflow.model import errors


def test_an_outage_is_said_once_a_minute_and_when_it_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 1_000.0
    monkeypatch.setattr(outage, "time", SimpleNamespace(monotonic=lambda: now))
    one = outage.Outage(logging.getLogger("test"), "sweeper")
    one.over()
    for _ in range(650):
        one.met(errors.BoardUnavailable("gone"))
        now += 0.2
    one.over()
    one.over()
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(" (")[0].partition(" after")[0] for text in said] == [
        *["sweeper: BOARD_UNAVAILABLE  gone"] * 3,
        "sweeper: goes on",
    ]


def test_another_store_that_goes_is_said_at_once(caplog: pytest.LogCaptureFixture) -> None:
    one = outage.Outage(logging.getLogger("test"), "clerk")
    for error in (errors.BoardUnavailable, errors.JournalUnavailable, errors.BoardUnavailable):
        one.met(error())
    assert len(caplog.records) == 2
