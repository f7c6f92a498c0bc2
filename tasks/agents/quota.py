"""Limits of models that all workers keep together: their calls run, and were made, in one Redis.

Nothing of it is of the board: keys end by themselves, and what is lost with a server counts anew.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from contextlib import suppress
from functools import cache
from importlib import resources
from typing import Any, Final

import redis

from convergio.graphflow.model import errors
from convergio.tasks.agents.model import ModelSettings

logger = logging.getLogger(__name__)

LEASE_S: Final = 30.0
"""A call whose worker died holds its place no longer."""

PATIENCE_S: Final = 2.0
"""Seconds a call waits in its worker; beyond that its step waits without a slot."""

PAUSE_S: Final = 0.1
AWAY_S: Final = 1.0
LONGEST_HOLD_S: Final = 300.0
"""A provider may ask for more, but its word holds for all workers: they look again then."""


class Place:
    """A call that runs. Its lease is renewed until it leaves."""

    def __init__(self, quota: Quota, keys: list[str], name: str) -> None:
        self._quota = quota
        self._keys = keys
        self._name = name
        self._renewing = asyncio.ensure_future(self._renew())

    async def leave(self, *, tokens: int | None, hold_s: float) -> None:
        """The call has ended, with so many tokens if that is known. `hold_s`: nobody should ask before."""
        self._renewing.cancel()
        hold = round(min(hold_s, LONGEST_HOLD_S) * 1000)
        try:
            await self._quota.ask(self._keys, "leave", self._name, -1 if tokens is None else tokens, hold)
        except redis.RedisError as error:
            logger.info("a call's place is free only when its lease ends: %s", error)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 3)
            with suppress(redis.RedisError):
                await self._quota.ask(self._keys, "renew", self._name)


class Quota:
    """Where calls of models with limits wait for their turn."""

    def __init__(self, client: redis.Redis, prefix: str, *, patience_s: float = PATIENCE_S) -> None:
        self._client = client
        self._prefix = prefix
        self._patience_s = patience_s
        self._script: Any = client.register_script(_source())

    async def enter(self, model: ModelSettings, tokens: int) -> Place:
        """A place for a call of so many tokens at most.

        Raises: errors.ModelBusy with the seconds after which there may be one, if that is not soon, or if Redis does
        not answer.
        """
        keys = [f"{self._prefix}:quota:{part}:{model.title}" for part in ("running", "minute", "tokens", "hold")]
        limits, name, waited = model.limits, uuid.uuid4().hex, 0.0
        most = [limits.concurrent or 0, limits.requests_per_minute or 0, limits.tokens_per_minute or 0]
        while True:
            try:
                answer = await self.ask(keys, "enter", name, *most, tokens)
            except redis.RedisError as error:
                hint = "it goes on by itself when Redis is back: without it nobody knows what the others do"
                said = f"Redis, which keeps the limits of {model.title}, does not answer"
                raise errors.ModelBusy(said, retry_after=AWAY_S, hint=hint) from error
            if answer[0] == "OK":
                return Place(self, keys, name)
            seconds = int(answer[1]) / 1000
            if waited + min(seconds, PAUSE_S) > self._patience_s or seconds > self._patience_s:
                hint = "it goes on by itself; raise its limits if it may have more (docs/models.md)"
                raise errors.ModelBusy(f"{model.title}: {answer[2]}", retry_after=max(seconds, 0.5), hint=hint)
            await asyncio.sleep(min(seconds, PAUSE_S))
            waited += min(seconds, PAUSE_S)

    async def ask(self, keys: list[str], verb: str, name: str, *more: int) -> list[Any]:
        """The script, off the loop."""
        words = [verb, name, round(LEASE_S * 1000), *more]
        answer: list[Any] = await asyncio.to_thread(self._script, keys=keys, args=words)
        return answer


@cache
def _source() -> str:
    return (resources.files("convergio.tasks.agents") / "quota.lua").read_text()
