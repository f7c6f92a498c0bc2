"""Pre-run hooks: one that breaks is logged, whom they concern, and times of the board, in a zone with its rules."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest

from convergio.graphflow.model.ids import RunRef
from convergio.graphflow.model.workflow import StepKind
from convergio.tasks import hooks

BERLIN = ZoneInfo("Europe/Berlin")


def at(now: datetime) -> hooks.HookContext:
    return hooks.HookContext(
        tenant="t", submitter="ann", run="r1", workflow="w", step="pay", kind=StepKind.TASK, attempt=1, now=now
    )


def test_a_hook_that_breaks_denies_and_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    def guard(context: hooks.HookContext) -> hooks.Answer:
        raise KeyError(context.step)

    asked = hooks.Hooks()
    asked.add(guard)
    with caplog.at_level(logging.WARNING, logger=hooks.__name__):
        answer = asked.ask(at(datetime.now(UTC)))
    assert isinstance(answer, hooks.Deny)
    assert "guard failed" in answer.reason
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "r1/pay" in record.getMessage()


@pytest.mark.parametrize(
    ("now", "hours"),
    [
        (datetime(2026, 3, 28, 22, 0, tzinfo=BERLIN), 9),  # 23 hours: clocks go forward in that night
        (datetime(2026, 10, 24, 22, 0, tzinfo=BERLIN), 11),
        (datetime(2026, 6, 1, 22, 0, tzinfo=BERLIN), 10),
        (datetime(2026, 6, 1, 7, 0, tzinfo=BERLIN), 1),
    ],
)
def test_the_next_time_of_day_is_right_where_clocks_change(now: datetime, hours: int) -> None:
    then = at(now).next(hour=8)
    assert then.hour == 8
    assert (then.astimezone(UTC) - now.astimezone(UTC)).total_seconds() == hours * 3600


def test_now_is_the_boards_time_in_a_zone_with_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    hooks.local_zone.cache_clear()
    ref = RunRef(tenant="t", run="r1")
    claimed = SimpleNamespace(step="pay", ref=ref, submitter="ann", meta={"workflow": "w"}, attempt=1, at_ms=1_000)
    now = hooks.context(claimed, StepKind.TASK).now
    assert (now.timestamp(), now.tzinfo) == (1.0, BERLIN)
    for unknown in ("Nowhere/Land", "../etc"):
        monkeypatch.setenv("TZ", unknown)
        hooks.local_zone.cache_clear()
        assert hooks.context(claimed, StepKind.TASK).now.timestamp() == 1.0
    hooks.local_zone.cache_clear()


@pytest.mark.parametrize("kind", list(StepKind))
def test_nobody_is_asked_about_a_kind_that_no_hook_is_for(kind: StepKind) -> None:
    asked = hooks.Hooks()
    assert not asked.concern(kind)
    asked.add(lambda context: hooks.Allow(), [StepKind.AGENT])
    asked.add(lambda context: hooks.Allow(), [StepKind.AGENT, StepKind.TASK])
    assert asked.concern(kind) is (kind in (StepKind.AGENT, StepKind.TASK))


def test_a_hook_that_names_no_kind_is_for_all() -> None:
    asked = hooks.Hooks()
    asked.add(lambda context: hooks.Allow())
    assert all(asked.concern(kind) for kind in StepKind)
