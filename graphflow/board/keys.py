"""Every Redis key of the board, in one table. Live keys carry the epoch; nothing live ever has a TTL.

| key                           | type   | holds                                                                       |
|-------------------------------|--------|-----------------------------------------------------------------------------|
| P:epoch                       | string | number, schema and server of the board; written last by a rebuild           |
| P:rebuilding                  | string | number of the board that is being made, until it is published               |
| P:owner                       | string | id of the journal that the board belongs to                                 |
| P:leader:ROLE                 | string | who is journaler or sweeper, for 3 s                                        |
| P:E:journal                   | stream | facts on their way to SQL, ids `E-*`                                        |
| P:E:released                  | string | high water: the stream sequence up to which facts are in SQL                |
| P:E:leases                    | zset   | tenant/run/step/fence by expiry (ms, Redis TIME)                            |
| P:E:timers                    | zset   | tenant/run/step/ON by due time (ms)                                         |
| P:E:held                      | zset   | tenant/run/step after a rebuild, by the time it is rung (ms)                |
| P:E:parked                    | zset   | tenant/run/step (or @ for the run's end) by stream sequence                 |
| P:E:nudge                     | list   | one element if somebody waits for SQL since the journaler looked            |
| P:E:inboxes                   | zset   | tenant/run with a non-empty inbox, by time (ms)                             |
| P:E:runs                      | zset   | live tenant/run by start (ms)                                               |
| P:E:done                      | zset   | ended tenant/run by the time it leaves the board (ms)                       |
| P:E:plan:DIGEST               | string | a definition as canonical JSON                                              |
| P:E:rung:LIST                 | zset   | tenant/run/step/ring by ring time (ms), one per queue list                  |
| P:E:canary:LIST               | hash   | id, pushed, eaten: the canary of one queue list                             |
| P:E:holders:TENANT:KEY        | zset   | tenant/run/step that may run under a concurrency key, by its grant (ms)     |
| P:E:waiters:TENANT:KEY        | zset   | tenant/run/step/limit that wait for one, by their turn                      |
| P:E:TENANT:RUN                | hash   | the run: see `fields`                                                       |
| P:E:TENANT:RUN:inbox          | list   | consequences that wait to be decided (JSON)                                 |
| P:E:TENANT:RUN:feed           | stream | what readers follow, ids `E-seq`                                            |
| P:E:TENANT:RUN:made:NONCE     | hash   | what becomes the run by ADOPT; until then nobody reads it, and it expires   |

Not of the board: P:quota:PART:MODEL, the limits of models (`tasks/agents/quota.py`), which end by themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from convergio.graphflow.model.ids import RunRef

SCHEMA = 1
"""Version of the board's layout, compared with every script like the epoch."""


DEFAULT: Final = "convergio"
"""The prefix of who names none."""


def queue_prefix(prefix: str) -> str:
    """What queues, unacknowledged messages and results of an installation begin with: nothing by default, so that any
    Celery client finds them, and else its prefix, so that two installations on one server do not take each other's."""
    return "" if prefix == DEFAULT else f"{prefix}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """Which board: its number, its schema and the Redis server (INFO run_id) it was made on."""

    number: int
    server: str
    schema: int = SCHEMA

    @property
    def text(self) -> str:
        """The value of the epoch key."""
        return f"{self.number}|{self.schema}|{self.server}"

    @classmethod
    def parse(cls, text: str) -> Epoch:
        """The inverse of `text`."""
        number, schema, server = text.split("|", 2)
        return cls(number=int(number), schema=int(schema), server=server)


@dataclass(frozen=True, slots=True)
class Keys:
    """Key names of one epoch."""

    prefix: str
    number: int

    @property
    def epoch(self) -> str:
        return f"{self.prefix}:epoch"

    @property
    def rebuilding(self) -> str:
        return f"{self.prefix}:rebuilding"

    @property
    def owner(self) -> str:
        return f"{self.prefix}:owner"

    @property
    def live(self) -> str:
        """What every key of this epoch begins with."""
        return self._of("")

    def leader(self, role: str) -> str:
        return f"{self.prefix}:leader:{role}"

    def _of(self, name: str) -> str:
        return f"{self.prefix}:{self.number}:{name}"

    @property
    def journal(self) -> str:
        return self._of("journal")

    @property
    def released(self) -> str:
        return self._of("released")

    @property
    def leases(self) -> str:
        return self._of("leases")

    @property
    def timers(self) -> str:
        return self._of("timers")

    @property
    def held(self) -> str:
        return self._of("held")

    @property
    def parked(self) -> str:
        return self._of("parked")

    @property
    def nudge(self) -> str:
        return self._of("nudge")

    @property
    def inboxes(self) -> str:
        return self._of("inboxes")

    @property
    def runs(self) -> str:
        return self._of("runs")

    @property
    def done(self) -> str:
        return self._of("done")

    def plan(self, digest: str) -> str:
        return self._of(f"plan:{digest}")

    def rung(self, queue_list: str) -> str:
        return self._of(f"rung:{queue_list}")

    def canary(self, queue_list: str) -> str:
        return self._of(f"canary:{queue_list}")

    def holders(self, tenant: str, key: str) -> str:
        return self._of(f"holders:{tenant}:{key}")

    def waiters(self, tenant: str, key: str) -> str:
        return self._of(f"waiters:{tenant}:{key}")

    def limit(self, tenant: str, key: str | None) -> list[str]:
        """Who holds a concurrency key, and who waits for it; nothing without one."""
        return [] if key is None else [self.holders(tenant, key), self.waiters(tenant, key)]

    def run(self, ref: RunRef) -> str:
        return self._of(f"{ref.tenant}:{ref.run}")

    def made(self, ref: RunRef, nonce: str) -> str:
        return self._of(f"{ref.tenant}:{ref.run}:made:{nonce}")

    def inbox(self, ref: RunRef) -> str:
        return self._of(f"{ref.tenant}:{ref.run}:inbox")

    def feed(self, ref: RunRef) -> str:
        return self._of(f"{ref.tenant}:{ref.run}:feed")


def glob(text: str) -> str:
    """`text` as a pattern that matches nothing else: a prefix may be any text."""
    return re.sub(r"([*?\[\]^\\])", r"\\\1", text)
