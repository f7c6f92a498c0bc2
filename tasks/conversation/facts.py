"""What a turn has learned and paid for: facts that must not be bought twice, and a ledger row for each model call."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from convergio.graphflow.engine.claims import Claim
from convergio.graphflow.engine.steps import Steps
from convergio.graphflow.model import instance
from convergio.tasks.agents import tables as agent_tables
from convergio.tasks.agents.spec import ModelUsage
from convergio.tasks.agents.step import Ledger

MODEL: Final = "model."
"""Begins the keys of recorded answers of models."""


class Facts:
    """The records of a turn, and what its model calls cost. Rows of recorded answers are in the records."""

    def __init__(self, steps: Steps, claim: Claim) -> None:
        self._steps = steps
        self._claim = claim
        self._made = 0
        self.unrecorded: Ledger = []
        self.recorded: Ledger = [fact["row"] for key, fact in _sorted(claim) if key.startswith(MODEL)]

    def get(self, key: str) -> Any:
        """What an earlier claim of the turn recorded."""
        return self._claim.held.records.get(key)

    async def keep(self, key: str, fact: Any, *, before_acting: bool) -> None:
        """RECORD: off the loop, and, if something is done because of it, until SQL has it."""
        if key.startswith(MODEL):
            fact = {**fact, "row": self.unrecorded[-1]}
        await asyncio.to_thread(self._steps.guard if before_acting else self._steps.record, self._claim, key, fact)
        if key.startswith(MODEL):
            self.recorded.append(self.unrecorded.pop())

    def book(self, agent: str, usage: ModelUsage) -> None:
        """A model call for this agent has ended, well or not."""
        held, self._made = self._claim.held, self._made + 1
        step, iteration = instance.split(held.step)
        row = agent_tables.usage_row(
            usage,
            call_id=f"{held.ref.run}:{self._claim.nonce}:{self._made}",
            tenant=held.ref.tenant,
            submitter=held.submitter,
            run_id=held.ref.run,
            step=step,
            iteration=iteration,
            attempt=held.attempt,
            agent=agent,
        )
        self.unrecorded.append(row)

    def sum(self, column: str) -> int:
        """Of all calls of this turn that this claim knows of."""
        return sum(int(row[column]) for row in self.rows)

    @property
    def rows(self) -> Ledger:
        """One row for each call of this turn that this claim knows of."""
        return [*self.recorded, *self.unrecorded]


def _sorted(claim: Claim) -> list[tuple[str, Any]]:
    records = claim.held.records
    return [(key, records[key]) for key in sorted(records) if key.startswith(MODEL)]
