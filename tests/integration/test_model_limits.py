"""Limits of models hold over all workers: they are kept in Redis, and end by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from convergio.graphflow.model import errors
from convergio.tasks.agents import quota
from convergio.tasks.agents.model import Limits, ModelSettings
from convergio.tasks.agents.quota import Quota

MODEL = ModelSettings(name="m", provider="p", base_url="http://x/v1")


@pytest.fixture
def client(valkey: str) -> Iterator[Any]:
    with redis.Redis.from_url(valkey, decode_responses=True, protocol=2) as made:
        yield made
        made.delete(*made.keys("test:quota:*"))


def limited(**limits: int) -> ModelSettings:
    return replace(MODEL, limits=Limits(**limits))


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(body)


def older(client: Any, ms: int) -> None:
    """All calls are so much older."""
    for part in ("minute", "running"):
        name = f"test:quota:{part}:p/m"
        for member, score in client.zrange(name, 0, -1, withscores=True):
            client.zadd(name, {member: score - ms})


def test_no_more_calls_run_at_once_than_may_whoever_asks(client: Any) -> None:
    async def two_processes() -> None:
        here, there = (Quota(client, "test", patience_s=0.15) for _ in range(2))
        model = limited(concurrent=2)
        places = [await here.enter(model, 10), await there.enter(model, 10)]
        with pytest.raises(errors.ModelBusy) as caught:
            await there.enter(model, 10)
        assert caught.value.retry_after == 0.5
        await places.pop().leave(tokens=5, hold_s=0)
        places.append(await here.enter(model, 10))
        for place in places:
            await place.leave(tokens=None, hold_s=0)

    run(two_processes())


def test_a_call_that_waits_gets_the_place_that_becomes_free(client: Any) -> None:
    async def waits() -> None:
        gate = Quota(client, "test", patience_s=60)
        model = limited(concurrent=1)
        first = await gate.enter(model, 10)
        waiting = asyncio.ensure_future(gate.enter(model, 10))
        done, _ = await asyncio.wait({waiting}, timeout=0.3)
        assert not done
        await first.leave(tokens=5, hold_s=0)
        await (await asyncio.wait_for(waiting, 20)).leave(tokens=5, hold_s=0)

    run(waits())


def test_a_minute_has_so_many_calls_and_the_next_one_is_told_when(client: Any) -> None:
    async def three() -> None:
        gate = Quota(client, "test")
        model = limited(requests_per_minute=2)
        for _ in range(2):
            await (await gate.enter(model, 10)).leave(tokens=5, hold_s=0)
        with pytest.raises(errors.ModelBusy) as caught:
            await gate.enter(model, 10)
        assert 2 < (caught.value.retry_after or 0) <= 60
        older(client, 60_000)
        await (await gate.enter(model, 10)).leave(tokens=5, hold_s=0)

    run(three())


def test_tokens_are_counted_as_said_until_they_are_known(client: Any) -> None:
    async def some() -> None:
        gate = Quota(client, "test")
        model = limited(tokens_per_minute=100)
        first = await gate.enter(model, 90)
        with pytest.raises(errors.ModelBusy):
            await gate.enter(model, 20)
        await first.leave(tokens=30, hold_s=0)
        await (await gate.enter(model, 70)).leave(tokens=None, hold_s=0)
        with pytest.raises(errors.ModelBusy):
            await gate.enter(model, 1)
        older(client, 60_001)
        await (await gate.enter(model, 1_000)).leave(tokens=1_000, hold_s=0)  # alone, a call may have more

    run(some())


def test_what_a_provider_asks_holds_for_all(client: Any) -> None:
    async def held() -> None:
        gate = Quota(client, "test")
        model = limited(concurrent=9)
        await (await gate.enter(model, 1)).leave(tokens=None, hold_s=120)
        with pytest.raises(errors.ModelBusy) as caught:
            await Quota(client, "test").enter(model, 1)
        assert 60 < (caught.value.retry_after or 0) <= 120

    run(held())


def test_the_place_of_a_worker_that_died_is_free_when_its_lease_ends(client: Any) -> None:
    async def died() -> None:
        gate = Quota(client, "test", patience_s=0.05)
        model = limited(concurrent=1)
        lost = await gate.enter(model, 1)
        lost._renewing.cancel()
        with pytest.raises(errors.ModelBusy):
            await gate.enter(model, 1)
        older(client, round(quota.LEASE_S * 1000))
        await (await gate.enter(model, 1)).leave(tokens=None, hold_s=0)

    run(died())


def test_every_key_ends_by_itself(client: Any) -> None:
    async def once() -> None:
        await (await Quota(client, "test").enter(limited(concurrent=1), 1)).leave(tokens=2, hold_s=5)

    run(once())
    names = list(client.scan_iter("test:quota:*"))
    assert len(names) == 3
    assert all(int(client.pttl(name)) > 0 for name in names)


def test_without_redis_a_call_waits_as_nobody_knows_what_the_others_do() -> None:
    gone = Quota(redis.Redis(host="127.0.0.1", port=9, retry=Retry(NoBackoff(), 0)), "test")
    with pytest.raises(errors.ModelBusy, match="does not answer"):
        asyncio.run(gone.enter(limited(concurrent=1), 1))
