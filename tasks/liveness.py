"""A sign of life from a step's body: without one for its idle timeout, the attempt has timed out."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from convergio.graphflow.engine.claims import Claim

_CLAIM: Final[ContextVar[Claim | None]] = ContextVar("convergio_claim", default=None)
"""Of the body that runs here; coroutines, and threads begun by `asyncio.to_thread`, inherit it."""


def heartbeat() -> None:
    """The body gets on with its work. Costs nothing; outside of a step it does nothing."""
    claim = _CLAIM.get()
    if claim is not None:
        claim.sign()


@contextmanager
def heard(claim: Claim) -> Generator[None]:
    """Whoever calls `heartbeat` meanwhile speaks for this claim."""
    token = _CLAIM.set(claim)
    try:
        yield
    finally:
        _CLAIM.reset(token)
