"""The Lua scripts on a real server and their model in Python, through the same random histories: equal after each step.

Hypothesis chooses the history, so that a difference is reported by the shortest one that shows it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convergio.graphflow.board.connection import Link
from tests.property.both_boards import Both, model_state, real_state

pytestmark = pytest.mark.slow


# --- the histories ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def valkey_link(session_valkey: Any) -> Iterator[Link]:
    link = Link(session_valkey.url)
    yield link
    link.client.flushall()
    link.close()


@pytest.fixture(scope="module")
def redis_link(session_redis: Any) -> Iterator[Link]:
    link = Link(session_redis.url)
    yield link
    link.client.flushall()
    link.close()


def history(link: Link, data: st.DataObject) -> Both:
    """Some random calls. After each of them, too, answers and boards are compared."""
    both = Both(link, lambda bound: data.draw(st.integers(0, bound - 1)))
    both.start()
    for _ in range(data.draw(st.integers(1, 25))):
        both.step()
    return both


SETTINGS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@given(data=st.data())
@SETTINGS
def test_on_valkey_lua_and_its_model_agree_after_each_step(valkey_link: Link, data: st.DataObject) -> None:
    both = history(valkey_link, data)
    assert real_state(both.stage) == model_state(both.model)


@given(data=st.data())
@SETTINGS
def test_on_redis_lua_and_its_model_agree_after_each_step(redis_link: Link, data: st.DataObject) -> None:
    both = history(redis_link, data)
    assert real_state(both.stage) == model_state(both.model)


ANSWERS = {
    *["start Locked", "start None", "start SubmitTooLate"],
    *["post Locked", "post None", "post UnknownRun"],
    *["claim Claimed", "claim DUPLICATE", "claim GONE", "claim STOPPED"],
    *["arrive Locked", "arrive None", "arrive Parked", "arrive StaleFence"],
    *["complete Locked", "complete None", "complete StaleFence"],
    *["take Claimed", "take DUPLICATE", "take GONE", "take STOPPED", "take plain", "take NONE"],
    *["park True", "park False", "park StaleFence", "record int", "record StaleFence"],
    *["decline None", "decline StaleFence", "ask int", "leave None"],
    *["ring True", "ring False", "reassert tuple", "reassert StaleFence"],
    *["commit list", "commit None", "release tuple", "beat Beat"],
}


def test_lua_and_its_model_agree_through_long_histories_that_meet_every_answer(valkey_link: Link) -> None:
    met: Counter[str] = Counter()
    for seed in range(40):
        both = Both(valkey_link, random.Random(seed).randrange)
        for _ in range(130):
            both.step()
        met.update(both.met)
    assert {answer: met[answer] for answer in ANSWERS if met[answer] < 3} == {}
    assert met.keys() == ANSWERS
