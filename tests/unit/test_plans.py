"""The cache of plans keeps those that are used."""

from __future__ import annotations

from typing import Any, cast

import pytest

from convergio.graphflow.engine import plans
from convergio.graphflow.flow.plan import Plan


def test_a_plan_that_is_used_outlives_newer_ones_that_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "KEPT", 2)
    cache = plans.Plans(cast("Any", None))
    hot, old, new = (cast("Plan", object()) for _ in range(3))
    cache.add("hot", hot)
    cache.add("old", old)
    assert cache.get("hot") is hot
    cache.add("new", new)
    assert list(cache._plans) == ["hot", "new"]
